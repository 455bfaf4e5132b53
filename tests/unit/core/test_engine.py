"""What the engine does, as time lines; `play.py` says how to read them."""

from __future__ import annotations

import errno

import pytest

from tcmu_retry.core.outage import State
from tcmu_retry.core.policy import Budgets
from tcmu_retry.scsi.request import Direction
from tests.unit.core.play import BLOCK, Play, play

READ, WRITE = Direction.READ, Direction.WRITE


# ---- holding and retrying


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
    assert engine.state(WRITE) is State.RETRYING


# ---- order


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


# ---- the end of retrying


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
    assert engine.state(WRITE) is State.ONLINE


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


# ---- the breaker


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
    assert engine.state(WRITE) is State.RETRYING


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
    assert engine.state(READ) is State.RETRYING


@pytest.mark.parametrize("error", ["ENOLINK", "ETIMEDOUT", "ECONNRESET", "EHOSTUNREACH", "ENETDOWN"])
def test_a_lost_path_takes_it_down_at_once(error: str) -> None:
    """One direction: the other one has not failed yet."""
    engine = play(f"0 ran w1@0 {error} -> outage_began write, down write")
    assert (engine.state(WRITE), engine.state(READ)) == (State.DOWN, State.ONLINE)


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


def test_failed_tries_once_and_probes_on() -> None:
    """After the outage's time the held ones have their answer; new ones are tried and answered as soon as they fail."""
    play(
        """
        0    ran r1@0 ENOLINK -> outage_began read, down read
        1    wake          -> try 1
        1    io 1 ENOLINK  ->
        1.5  wake          -> timed_out read, 1=02/04/03
        2    wake          -> probe
        2    probe read ENOLINK ->
        3    r2@4          -> try 2
        3.1  io 2 ENOLINK  -> 2=02/04/03
        4    tick          -> probe
        5    probe read 0  -> recovered read, open
        """,
        "retry_timeout=1500ms",
    )


# ---- classes of errors


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


# ---- persons


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


# ---- budgets


@pytest.mark.parametrize("budgets", [Budgets(held=1), Budgets(held_bytes=BLOCK)])
def test_over_budget_the_answer_is_busy(budgets: Budgets) -> None:
    """Said once, however many are shed."""
    play(
        """
        0    gate w1@0 w2@1 w3@2 ->
        0    io 1 EIO      -> outage_began write
        0    io 2 EIO      -> shed write, 2=BUSY
        0    io 3 EIO      -> 3=BUSY
        0.1  w4@0          -> 4=BUSY
        1    wake          -> try 1
        1    io 1 0        -> recovered write, open
        """,
        budgets=budgets,
    )


def test_over_age_the_answer_is_busy() -> None:
    """However it waits: also in a person's hand, where time-outs stand still."""
    play(
        """
        0    ran w1@0 EIO  -> outage_began write
        2    hold          -> held
        3    w2@5          ->
        10   wake          -> shed write, 1=BUSY
        13   wake          -> 2=BUSY, gave_up write
        """,
        budgets=Budgets(age=10.0),
    )


# ---- task management


def test_a_budget_of_0_is_no_budget() -> None:
    """As for max_hold_age and retry_timeout; refused, all would be answered BUSY, which nobody means."""
    play(
        """
        0.0  ran w1@0 EIO  -> outage_began write
        0.1  ran w2@8 EIO  ->
        """,
        budgets=Budgets(held=0, held_bytes=0),
    )


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


def test_release_answers_busy_to_all() -> None:
    play("""
        0    gate w1@0 w2@1 ->
        0    io 1 EIO      -> outage_began write
        0.1  release       -> 1=BUSY, gave_up write
        0.6  wake          -> 2=BUSY+keep
        5    io 2 0        -> open
    """)


# ---- looking


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
    assert (engine.held_by, engine.state(READ)) == ("maintenance", State.STOPPED)
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


def test_who_runs_when_the_gate_closes_twice_is_known_once() -> None:
    play("""
        0    gate w1@0      ->
        0    gate w1@0      ->
        0.1  io 1 EIO       -> outage_began write
        1.1  wake           -> try 1
        1.2  io 1 0         -> recovered write, open
    """)


def test_what_fails_once_the_lun_is_given_up_is_answered_busy() -> None:
    """It ran on the pump's account, and nobody had told the engine of it."""
    play("""
        0    stopping       ->
        0.2  ran w1@0 EIO   -> 1=BUSY
        0.3  ran w2@0 0     ->
    """)


def test_with_a_ring_all_its_commands_are_gone_and_the_outage_goes_on() -> None:
    """Held, or waiting behind another: none is answered or tried again; what comes after is untried until it ends."""
    engine = play("""
        0    lost EIO       -> outage_began read, down read, outage_began write, down write
        0.1  w1@0           ->
        0.2  w2@0           ->
        0.3  ring           ->
        0.4  w3@8           ->
        0.5  reopen 0       -> recovered read, try 3
        0.6  io 3 0         -> recovered write, open
    """)
    assert engine.held() == []


def test_a_ring_that_is_lost_while_its_only_command_is_out_leaves_nothing_to_do() -> None:
    engine = play("""
        0    ran w1@0 EIO   -> outage_began write
        1    wake           -> try 1
        1.1  ring           -> gave_up write, open
        1.1  idle           ->
        1.2  w2@0           -> try 2
    """)
    assert engine.held() == []


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


def test_stop_holds_no_more_than_the_budget() -> None:
    play(
        """
        0    ran w1@0 ENOSPC  -> stopped write
        0.1  ran w2@8 ENOSPC  -> shed write, 2=BUSY
        """,
        "fallback=stop retry=false",
        Budgets(held=1),
    )


def test_what_is_not_to_be_held_any_more_still_waits_for_the_write_before_it() -> None:
    play("""
        0    w1@0             -> try 1
        0.1  w2@0             ->
        0.2  set retry=false  -> policy_changed
        0.3  io 1 0           -> try 2
        0.4  io 2 0           ->
    """)


def test_budgets_count_for_what_comes_after_they_were_set() -> None:
    player = Play()
    player.line("""
        0    ran w1@0 EIO   -> outage_began write
        0.1  ran w2@8 EIO   ->
    """)
    player.engine.set_budgets(Budgets(held=2))
    player.line("0.2  ran w3@16 EIO   -> shed write, 3=BUSY")


def test_the_end_leaves_a_fence_to_the_io_that_it_waits_for() -> None:
    """It was answered when it was aborted."""
    play("""
        0    gate w1@0      ->
        0.1  abort 1        ->
        0.6  wake           -> 1=ABORTED+keep
        0.7  stopping       ->
        0.8  io 1 0         ->
    """)


def test_what_waits_for_a_probe_is_tried_with_the_next() -> None:
    engine = play("0    ran w1@0 ENOLINK   -> outage_began write, down write")
    [entry] = engine.held()
    assert (engine.waits_for(entry), engine.next_try(entry)) == ("probe", engine.deadline())


# ---- taken up from an earlier process


def test_what_an_earlier_process_held_is_tried_at_once_and_times_out_from_its_first_failure() -> None:
    play(
        """
        100    left w1@0 2 EIO 50  -> outage_began write, try 1
        100.5  io 1 EIO            ->
        110    tick                -> 1=02/04/03, gave_up write
        """,
        "retry_timeout=60s",
    )


def test_what_an_earlier_process_held_keeps_its_order() -> None:
    play("""
        100  gate                  ->
        100  left w1@0 2 EIO 50    -> outage_began write, try 1
        100  left w2@0 1 EIO 60    ->
        101  io 1 0                -> try 2
        102  io 2 0                -> recovered write, open
    """)


def test_what_an_earlier_process_held_waits_while_the_storage_is_not_open() -> None:
    play("""
        100  lost ENODEV           -> outage_began read, down read, outage_began write, down write
        100  left w1@0 2 EIO 50    ->
        101  reopen 0              -> recovered read, try 1
        101  io 1 0                -> recovered write, open
    """)


def test_what_an_earlier_process_held_is_refused_where_all_is_refused() -> None:
    play(
        """
        100  ran w1@0 EIO          -> stopped write, 1=07/27/00
        100  left w2@9 1 EIO 50    -> 2=07/27/00
        """,
        "write.fallback=readonly write.retry=false",
    )


def test_budgets_hold_for_what_an_earlier_process_held() -> None:
    player = Play(budgets=Budgets(held_bytes=1))
    player.line("100  left w1@0 2 EIO 50  -> shed write, 1=BUSY")
