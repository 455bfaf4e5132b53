"""What follows retrying: each fallback, and how it ends. Time lines: see `play.py`."""

from __future__ import annotations

import pytest

from tcmu_retry.core.outage import State
from tcmu_retry.scsi.request import Direction
from tests.unit.core.play import play


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("", "1=02/04/03"),
        ("report_as=target", "1=04/44/00"),
        ("report_as=medium", "1=03/0C/00"),
        ("report_as=gone", "1=05/25/00"),
        ("fallback=busy", "1=BUSY"),
        ("fallback=enospc", "1=02/04/03"),
        ("fallback=ignore allow_data_loss=true", "ignored write, 1=IGNORED"),
    ],
)
def test_after_its_time_a_held_command_gets_the_fallback(words: str, answer: str) -> None:
    """Its time counts from its own first failure; the outage of a single command ends with its answer."""
    play(
        f"""
        0    ran w1@0 EIO  -> outage_began write
        1    wake          -> try 1
        1    io 1 EIO      ->
        2.5  wake          -> {answer}, gave_up write, open
        """,
        f"retry_timeout=2500ms {words}",
    )


def test_each_held_command_has_its_own_end() -> None:
    play(
        """
        0    gate w1@0 w2@1 ->
        0    io 1 EAGAIN   -> outage_began write
        0.5  io 2 EAGAIN   ->
        1    wake          -> try 1
        1    io 1 EAGAIN   ->
        1.5  wake          -> try 2
        1.5  io 2 EAGAIN   ->
        2    wake          -> 1=02/04/03
        2.5  wake          -> 2=02/04/03, gave_up write, open
        """,
        "retry_timeout=2s",
    )


def test_without_retry_the_fallback_comes_at_once() -> None:
    play("0 ran w1@0 EIO -> 1=02/04/03, open", "retry=false")


def test_stop_holds_untried_until_a_person_resumes() -> None:
    """Its clock stands still: after an hour nothing has timed out, and the time starts anew with `resume`.

    What had fewer tries goes first then, one by one until one succeeds. Reads that overlap a held write wait as well.
    """
    engine = play(
        """
        0    ran w1@0 EIO  -> outage_began write
        1    wake          -> try 1
        1    io 1 EIO      ->
        2    wake          -> stopped write
        3    w2@9          ->
        4    r3@9          ->
        5    r4@20         -> try 4
        5    io 4 0        ->
        3600 idle          ->
        3600 kick          ->
        3601 resume        -> resumed, try 2
        3602 io 2 EIO      -> try 1
        3602.5 io 1 0      -> try 2, recovered write
        3602.6 io 2 0      -> try 3, open
        3602.7 io 3 0      ->
        """,
        "retry_timeout=2s write.fallback=stop",
    )
    assert engine.state(Direction.WRITE) is State.ONLINE


def test_enospc_stops_only_for_want_of_space() -> None:
    engine = play("0 ran w1@0 ENOSPC -> stopped write", "write.retry=false write.fallback=enospc")
    assert engine.held_count == 1
    play("0 ran w1@0 EIO -> 1=02/04/03, open", "write.retry=false write.fallback=enospc")


def test_readonly_refuses_writes_untried_and_lets_reads_pass() -> None:
    play(
        """
        0    ran w1@0 EIO  -> outage_began write
        0.1  w2@0          ->
        1    wake          -> try 1
        2    io 1 EIO      -> stopped write, 2=07/27/00, 1=07/27/00
        3    w3@5          -> 3=07/27/00
        4    r4@0          -> try 4
        4    io 4 0        ->
        5    idle          ->
        6    resume        -> resumed, open
        """,
        "retry_timeout=2s write.fallback=readonly",
    )


def test_offline_refuses_both_directions() -> None:
    play(
        """
        0    ran r1@0 EIO  -> outage_began read
        2    tick          -> stopped read, 1=02/04/03, stopped write
        3    w2@5          -> 2=02/04/03
        4    r3@5          -> 3=02/04/03
        5    resume        -> resumed, open
        """,
        "retry_timeout=2s fallback=offline",
    )


def test_ignore_says_so_once() -> None:
    """Data is being lost: one event per outage, not one per command."""
    play(
        """
        0    gate w1@0 r2@1 ->
        0    io 1 EIO      -> ignored write, 1=IGNORED, open
        0.1  gate          ->
        0.1  io 2 EIO      -> 2=IGNORED, open
        """,
        "retry=false fallback=ignore allow_data_loss=true",
    )
