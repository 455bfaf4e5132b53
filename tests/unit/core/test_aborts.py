"""Aborted commands are answered in time; what still runs keeps buffer and range. Time lines: see `play.py`."""

from __future__ import annotations

from tests.unit.core.play import play


def test_a_probe_that_hangs_and_is_aborted_does_not_end_the_probing() -> None:
    """Its range stays fenced; the others go on with the next probe."""
    play(
        """
        0.0  ran w1@0 ENOLINK -> outage_began write, down write
        0.1  w2@8             ->
        1.0  wake             -> try 1
        1.2  abort 1          ->
        1.7  wake             -> 1=ABORTED+keep
        2.0  wake             -> try 2
        2.1  io 2 0           -> recovered write
        2.2  w3@0             ->
        9.0  io 1 EIO         -> try 3, open
        9.1  io 3 0           ->
        """
    )


def test_an_aborted_held_command_is_answered_at_once() -> None:
    play("""
        0    ran w1@0 EIO  -> outage_began write
        0.1  w2@0          ->
        0.2  abort 1       -> 1=ABORTED, try 2
        0.3  io 2 0        -> recovered write, open
    """)


def test_an_aborted_running_command_is_answered_when_it_returns() -> None:
    """Within the grace no buffer is kept. A failure is not held any more; a success was answered by the pump."""
    play("""
        0    ran w1@0 EIO  -> outage_began write
        1    wake          -> try 1
        1.1  abort 1       ->
        1.3  io 1 EIO      -> 1=ABORTED, gave_up write, open
    """)


def test_an_aborted_command_that_does_not_return_becomes_a_fence() -> None:
    """After the grace it is answered over its head; its range stays closed until its I/O has come back."""
    play("""
        0    ran w1@0 EIO  -> outage_began write
        1    wake          -> try 1
        1.1  abort 1       ->
        1.2  w2@0          ->
        1.6  wake          -> 1=ABORTED+keep
        1.7  r3@5          -> try 3
        30   io 1 EIO      -> try 2
        31   io 2 0        -> recovered write, open
    """)


def test_the_end_leaves_a_fence_to_the_io_that_it_waits_for() -> None:
    """It was answered when it was aborted."""
    play("""
        0    gate w1@0      ->
        0.1  abort 1        ->
        0.6  wake           -> 1=ABORTED+keep
        0.7  stopping       ->
        0.8  io 1 0         ->
    """)
