"""What people see of held commands, and what they do with them. Time lines: see `play.py`."""

from __future__ import annotations

import errno

from tcmu_retry.core.outage import State
from tcmu_retry.scsi.request import Direction
from tests.unit.core.play import BLOCK, Play, play


def test_a_hold_tries_nothing_and_time_does_not_pass() -> None:
    """An hour in a person's hand costs a command none of its two seconds."""
    play(
        """
        0    ran w1@0 EIO  -> outage_began write
        0.5  hold          -> held
        0.6  r2@5          ->
        3600 idle          ->
        3600 kick          ->
        3600.5 resume      -> resumed, try 2, try 1
        3600.5 io 2 0      ->
        3601 io 1 EIO      ->
        3602 wake          -> 1=02/04/03, gave_up write, open
        """,
        "retry_timeout=2s",
    )


def test_what_a_person_fails_is_answered() -> None:
    """Also one that is out: as soon as it fails."""
    play("""
        0    gate w1@0 w2@1 ->
        0    io 1 EIO      -> outage_began write
        0    io 2 EIO      ->
        0.1  fail 2        -> 2=02/04/03
        1    wake          -> try 1
        1.1  fail          ->
        1.2  io 1 EIO      -> 1=02/04/03, gave_up write, open
    """)


def test_leaving_a_drain_arms_the_timer_again() -> None:
    """QEMU's quiesce without its lost wake-up: what came due meanwhile is tried at once, the rest by its clock."""
    play("""
        0    gate w1@0 w2@1 ->
        0    io 1 EIO      -> outage_began write
        0.1  drain         ->
        0.2  r3@9          ->
        9    io 2 EIO      ->
        9.5  idle          ->
        9.6  undrain       -> try 3, try 1
        9.7  io 1 0        ->
        10   wake          -> try 2
        10.1 io 2 0        -> recovered write, open
        10.2 io 3 0        ->
    """)


def test_a_new_policy_holds_for_held_commands() -> None:
    """From their beginnings: what has waited longer than the new time-out gets the new fallback now."""
    play("""
        0    ran w1@0 EIO  -> outage_began write
        1    wake          -> try 1
        1    io 1 EIO      ->
        1.5  set retry_interval=100ms -> policy_changed
        1.7  wake          -> try 1
        1.7  io 1 EIO      ->
        1.8  set retry_timeout=1s fallback=busy -> policy_changed, 1=BUSY, gave_up write, open
    """)


def test_stopping_answers_everything_and_whatever_still_comes() -> None:
    """Shutdown never waits for storage: what runs keeps its buffer."""
    play("""
        0    gate w1@0 w2@1 ->
        0    io 1 EIO      -> outage_began write
        0.1  stopping      -> 1=BUSY, 2=BUSY+keep, gave_up write
        0.2  r3@9          -> 3=BUSY
        0.3  io 2 0        ->
        9    idle          ->
    """)


def test_release_answers_busy_to_all() -> None:
    play("""
        0    gate w1@0 w2@1 ->
        0    io 1 EIO      -> outage_began write
        0.1  release       -> 1=BUSY, gave_up write
        0.6  wake          -> 2=BUSY+keep
        5    io 2 0        -> open
    """)


def test_who_waits_for_what_is_visible() -> None:
    """Who, since when, how often, why, when next."""
    player = Play("retry_timeout=1m")
    player.line("""
        0    ran w1@0 EIO  -> outage_began write
        0.5  w2@0          ->
    """)
    engine = player.engine
    first, second = engine.held()
    assert (engine.held_count, engine.held_bytes, engine.in_flight) == (2, 2 * BLOCK, 0)
    assert (first.token, first.attempts, first.error, first.held_at) == (1, 1, errno.EIO, 0.0)
    assert (engine.waits_for(first), engine.next_try(first), engine.expires(first, 0.5)) == ("retry", 1.0, 60.0)
    assert (engine.waits_for(second), engine.next_try(second)) == ("overlap", None)
    player.line("0.6 hold -> held")
    assert (engine.waits_for(first), engine.next_try(first), engine.expires(first, 0.6)) == ("resume", None, None)
    assert (engine.held_by, engine.state(Direction.READ)) == ("maintenance", State.STOPPED)
    player.line("""
        0.7  drain         ->
        0.7  resume        -> resumed
    """)
    assert engine.waits_for(first) == "drain"


def test_a_kick_tries_what_waits_for_its_turn() -> None:
    play("""
        0    ran r1@0 EIO   -> outage_began read
        0.2  kick           -> try 1
        0.3  io 1 0         -> recovered read, open
    """)


def test_what_fails_once_the_lun_is_given_up_is_answered_busy() -> None:
    """It ran on the pump's account, and nobody had told the engine of it."""
    play("""
        0    stopping       ->
        0.2  ran w1@0 EIO   -> 1=BUSY
        0.3  ran w2@0 0     ->
    """)


def test_who_is_held_can_be_named_until_it_is_answered() -> None:
    player = Play()
    player.line("0    gate w1@0 w2@8  ->")
    assert not player.engine.holds(1)
    player.line("0.1  io 1 EIO        -> outage_began write")
    assert [player.engine.holds(token) for token in (1, 2, 3)] == [True, False, False]
    player.line("""
        1.1  wake            -> try 1
        1.2  io 2 0          ->
    """)
    assert player.engine.holds(1)
    player.line("1.3  io 1 0          -> recovered write, open")
    assert not player.engine.holds(1)
