"""Storage that is away: what takes a direction down, probes, and the way back. Time lines: see `play.py`."""

from __future__ import annotations

import pytest

from tcmu_retry.core.outage import State
from tcmu_retry.scsi.request import Direction
from tests.unit.core.play import play


def test_three_places_failing_take_the_direction_down() -> None:
    """New commands are parked untried, and one probe goes out per interval."""
    play("""
        0    gate w1@0 w2@1 w3@2 ->
        0    io 1 EIO      -> outage_began write
        0    io 2 EIO      ->
        0    io 3 EIO      -> down write
        0.5  w4@9          ->
        0.6  r5@9          ->
        0.7  r6@50         -> try 6
        1    wake          -> try 1
        1    idle          ->
    """)


def test_a_success_between_clears_the_evidence() -> None:
    engine = play("""
        0    gate w1@0 w2@1 w3@2 w4@3 ->
        0    io 1 EIO      -> outage_began write
        0    io 2 EIO      ->
        0    io 4 0        ->
        0    io 3 EIO      ->
    """)
    assert engine.state(Direction.WRITE) is State.RETRYING


def test_one_place_that_keeps_failing_does_not() -> None:
    """Retries of one command count once, and so do two commands at one place."""
    engine = play("""
        0    gate r1@0 r2@0 ->
        0    io 1 EIO      -> outage_began read
        0    io 2 EIO      ->
        1    wake          -> try 1, try 2
        1    io 1 EIO      ->
        1    io 2 EIO      ->
        3    wake          -> try 1, try 2
        3    io 1 EIO      ->
        3    io 2 EIO      ->
    """)
    assert engine.state(Direction.READ) is State.RETRYING


@pytest.mark.parametrize("error", ["ENOLINK", "ETIMEDOUT", "ECONNRESET", "EHOSTUNREACH", "ENETDOWN"])
def test_a_lost_path_takes_it_down_at_once(error: str) -> None:
    """One direction: the other one has not failed yet."""
    engine = play(f"0 ran w1@0 {error} -> outage_began write, down write")
    assert (engine.state(Direction.WRITE), engine.state(Direction.READ)) == (State.DOWN, State.ONLINE)


def test_probes_go_in_turn() -> None:
    """Oldest first, then the next: one bad LBA cannot keep a healthy LUN down. A failure pushes no probe back."""
    play("""
        0    ran w1@0 ENOLINK -> outage_began write, down write
        0.1  w2@1          ->
        0.2  w3@2          ->
        1    wake          -> try 1
        1.9  io 1 ENOLINK  ->
        2    wake          -> try 2
        2    io 2 ENOLINK  ->
        4    wake          -> try 3
        4    io 3 ENOLINK  ->
        8    wake          -> try 1
    """)


def test_the_window_doubles_with_each_success_and_falls_to_one() -> None:
    """t=1: one out. Its success lets two out; one of them lets two more out beside the other; a failure: one by one."""
    play("""
        0    ran w1@0 ENOLINK -> outage_began write, down write
        0.1  w2@1          ->
        0.1  w3@2          ->
        0.1  w4@3          ->
        0.1  w5@4          ->
        0.1  w6@5          ->
        0.1  w7@6          ->
        0.1  w8@7          ->
        1    wake          -> try 1
        1.1  io 1 0        -> try 2, try 3
        1.2  io 2 0        -> try 4, try 5, try 6
        1.3  io 4 ENOLINK  ->
        1.4  io 3 0        ->
        1.5  io 5 ENOLINK  ->
        1.6  io 6 ENOLINK  ->
    """)


def test_it_is_over_when_all_that_was_held_is_out_again() -> None:
    play("""
        0    ran w1@0 ENOLINK -> outage_began write, down write
        0.1  w2@1          ->
        1    wake          -> try 1
        1.1  io 1 0        -> try 2, recovered write, open
        1.2  io 2 0        ->
    """)


def test_with_nothing_held_a_read_of_our_own_probes() -> None:
    """Reads: one block is read. Writes: only the next new write can tell."""
    play("""
        0    gate r1@0 w2@1 ->
        0    io 1 ENOLINK  -> outage_began read, down read
        0    io 2 ENOLINK  -> outage_began write, down write
        0.5  fail          -> 1=02/04/03, 2=02/04/03
        1    wake          -> probe
        2    idle          ->
        2    probe read ENOLINK -> probe
        3    probe read 0  -> recovered read
        4    idle          ->
        5    w3@1          -> try 3
        5    io 3 0        -> recovered write, open
    """)


def test_a_success_of_one_direction_brings_the_other_ones_probe_forward() -> None:
    play("""
        0    gate r1@0 w2@1 ->
        0    io 1 ENOLINK  -> outage_began read, down read
        0.5  io 2 ENOLINK  -> outage_began write, down write
        1    wake          -> try 1
        1.1  io 1 0        -> recovered read, try 2
        1.2  io 2 0        -> recovered write, open
    """)


def test_a_person_or_the_system_probes_at_once() -> None:
    play("""
        0    ran w1@0 ENOLINK -> outage_began write, down write
        0.1  kick          -> try 1
        0.2  kick          ->
        0.3  io 1 0        -> recovered write, open
    """)


def test_a_gone_file_is_opened_again_before_anything_is_tried() -> None:
    """Both directions wait for it, and the next try of the open follows its interval."""
    play("""
        0    ran w1@0 ESTALE -> outage_began read, down read, outage_began write, down write
        0.5  r2@9          ->
        1    wake          -> reopen
        1.1  idle          ->
        1.2  kick 1        ->
        1.5  reopen 0      -> try 2, try 1
        1.6  io 1 0        -> recovered write
        1.6  io 2 0        -> recovered read, open
    """)


def test_storage_that_was_never_there_is_waited_for() -> None:
    play("""
        0    lost ENOENT   -> outage_began read, down read, outage_began write, down write
        0.5  r1@0          ->
        1    wake          -> reopen
        1.5  reopen 0      -> recovered write, try 1
        1.6  io 1 0        -> recovered read, open
    """)


def test_gone_without_retry_is_reported_while_reopening_goes_on() -> None:
    play(
        """
        0    ran r1@0 ENODEV -> 1=02/04/03
        0.5  r2@0          -> try 2
        0.5  io 2 ENODEV   -> 2=02/04/03
        1    tick          -> reopen
        1.5  reopen 0      -> recovered read, recovered write, open
        """,
        "classes.gone.retry=false",
    )


def test_what_waits_for_a_probe_is_tried_with_the_next() -> None:
    engine = play("0    ran w1@0 ENOLINK   -> outage_began write, down write")
    [entry] = engine.held()
    assert (engine.waits_for(entry), engine.next_try(entry)) == ("probe", engine.deadline())
