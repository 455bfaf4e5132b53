"""A failure is held and tried again, in order and as its class of error says. Time lines: see `play.py`."""

from __future__ import annotations

import pytest

from tcmu_retry.core.outage import State
from tcmu_retry.scsi.request import Direction
from tests.unit.core.play import play


def test_a_failed_command_is_held_and_tried_again_with_growing_waits() -> None:
    """The initiator sees a pause, never an error; nothing is answered until the storage is back."""
    play("""
        0    ran w1@0 EIO   -> outage_began write
        1    wake           -> try 1
        1.5  io 1 EIO       ->
        3.5  wake           -> try 1
        3.5  io 1 EIO       ->
        7.5  wake           -> try 1
        8    io 1 0         -> recovered write, open
        8    idle           ->
    """)


def test_waits_stop_growing_at_the_longest() -> None:
    play(
        """
        0    ran r1@0 EIO   -> outage_began read
        1    wake           -> try 1
        1    io 1 EIO       ->
        2.5  wake           -> try 1
        2.5  io 1 EIO       ->
        4    wake           -> try 1
        """,
        "retry_max_interval=1500ms",
    )


def test_others_are_tried_while_one_is_held() -> None:
    """A bad sector must not stop the LUN; the gate stays closed, but commands go through."""
    play("""
        0    ran r1@0 EIO   -> outage_began read
        0.1  r2@1           -> try 2
        0.2  io 2 0         ->
        0.3  w3@5           -> try 3
        0.4  io 3 0         ->
        1    wake           -> try 1
        1.1  io 1 0         -> recovered read, open
    """)


def test_what_overlaps_waits_its_turn() -> None:
    """A write behind a held write, a read behind a held write, a write behind a held read; reads pass each other."""
    play("""
        0    ran w1@0 EIO  -> outage_began write
        0.1  r2@0          ->
        0.2  w3@0          ->
        0.3  r4@1          -> try 4
        1    tick          -> try 1
        1.1  io 1 0        -> try 2
        1.2  r5@1          -> try 5
        1.3  io 2 0        -> try 3
        1.4  io 3 0        -> recovered write, open
    """)


def test_a_flush_waits_for_nobody() -> None:
    """It covers what was acknowledged before it came; one bad LBA must not stop every flush."""
    play("""
        0    ran w1@0 EIO  -> outage_began write
        0.1  f2            -> try 2
    """)


def test_a_compare_and_write_keeps_the_gate_closed() -> None:
    """No other write comes between its halves."""
    play("""
        0    gate w1@0     ->
        0    c2@0          ->
        0.1  io 1 0        -> try 2
        0.2  w3@0          ->
        0.3  io 2 0        -> try 3, open
        0.4  io 3 0        ->
    """)


def test_an_interval_of_0_does_not_spin() -> None:
    """`retry_interval=0`: at once, which is after 10 ms; the main loop has others to serve."""
    play(
        """
        0.0   ran w1@0 EIO  -> outage_began write
        0.001 tick          ->
        0.01  wake          -> try 1
        0.01  io 1 EIO      ->
        0.02  wake          -> try 1
        """,
        "retry_interval=0 retry_max_interval=0",
    )


def test_who_runs_when_the_gate_closes_twice_is_known_once() -> None:
    play("""
        0    gate w1@0      ->
        0    gate w1@0      ->
        0.1  io 1 EIO       -> outage_began write
        1.1  wake           -> try 1
        1.2  io 1 0         -> recovered write, open
    """)


def test_what_is_not_to_be_held_any_more_still_waits_for_the_write_before_it() -> None:
    play("""
        0    w1@0             -> try 1
        0.1  w2@0             ->
        0.2  set retry=false  -> policy_changed
        0.3  io 1 0           -> try 2
        0.4  io 2 0           ->
    """)


@pytest.mark.parametrize("error", ["EAGAIN", "EBUSY", "EINTR", "ENOMEM"])
def test_momentary_errors_never_take_the_lun_down(error: str) -> None:
    engine = play(f"""
        0    gate w1@0 w2@1 w3@2 w4@3 ->
        0    io 1 {error}  -> outage_began write
        0    io 2 {error}  ->
        0    io 3 {error}  ->
        0    io 4 {error}  ->
        1    wake          -> try 1, try 2, try 3, try 4
    """)
    assert engine.state(Direction.WRITE) is State.RETRYING


def test_a_medium_error_is_tried_three_times() -> None:
    play("""
        0    ran r1@0 ENODATA -> outage_began read
        1    wake          -> try 1
        1    io 1 ENODATA  ->
        3    wake          -> try 1
        3    io 1 ENODATA  -> 1=03/11/00, gave_up read, open
    """)


@pytest.mark.parametrize(
    ("error", "sense"),
    [
        ("EREMOTEIO", "04/44/00"),
        ("EINVAL", "05/24/00"),
        ("EFBIG", "05/24/00"),
        ("EOPNOTSUPP", "05/20/00"),
        ("EROFS", "07/27/00"),
    ],
)
def test_a_permanent_error_is_reported_at_once(error: str, sense: str) -> None:
    play(f"0 ran w1@0 {error} -> 1={sense}, open")


def test_a_foreign_reservation_is_a_conflict() -> None:
    play("0 ran w1@0 EBADE -> 1=RESERVATION_CONFLICT, open")
