"""Answers to task management that come late: when, for how long, and what ends that."""

from __future__ import annotations

import pytest

from tcmu_retry.core.initiators import PROFILES
from tests.unit.core.play import Play, play

QUIET = "retry_interval=1h retry_max_interval=1h"
HELD = "0 ran w1@0 ENOLINK -> outage_began write, down write"


def test_the_promise_is_what_six_tries_and_five_late_answers_make() -> None:
    """Of the sixth try's answer nobody has anything: its command is given up."""
    linux = PROFILES["linux"]
    assert linux.prompt == 6 * 60
    assert linux.silence <= 6 * 60 + linux.abort_late + 4 * linux.reset_late
    assert linux.abort_late <= 15 - 2, "open-iscsi's abort_timeout, and room for the answer's way"
    assert linux.reset_late <= 30 - 2, "its lu_reset_timeout"


@pytest.mark.parametrize("name", ["linux-tuned", "esxi", "windows"])
def test_only_an_initiator_whose_patience_is_known_is_answered_late(name: str) -> None:
    play(f"{HELD}\n 60 abort_task 1 -> 1=ABORTED", QUIET, initiator=name)


def test_an_outage_of_480_s_and_one_command_of_plain_linux() -> None:
    """Each try lasts 60 s; the first is ended by ABORT TASK, the others by LUN RESET; between them the answers' delays.

    0 s  down    60 s  ABORT TASK, answered 12.5 s later    132.5 s, 220 s, 307.5 s, 395 s  LUN RESET, each answered
    27.5 s later: the sixth try begins at 422.5 s    480 s  the storage is back, its command is tried and goes well
    """
    player = Play(QUIET, initiator="linux")
    player.line(HELD)
    sent = 0.0
    for tried in range(1, 6):
        kind, late = ("abort_task", 12.5) if tried == 1 else ("lun_reset", 27.5)
        player.line(f"""
            {sent + 60} {kind} {tried}    ->
            {sent + 60 + late} wake       -> {tried}=ABORTED
        """)
        sent += 60 + late
        player.line(f"{sent} w{tried + 1}@0 ->")
    assert sent == 422.5
    player.line("""
        480 kick               -> try 6
        480 io 6 0             -> recovered write, open
    """)


@pytest.mark.parametrize(
    ("event", "answered"),
    [
        ("61 hurry", "1=ABORTED"),
        ("61 kick", "1=ABORTED"),
        ("61 fail", "1=ABORTED"),
        ("61 fail 1", "1=ABORTED"),
        ("61 release", "1=ABORTED"),
        ("61 stopping", "1=ABORTED"),
        ("61 resume", "1=ABORTED"),
        ("61 reopen 0", "1=ABORTED, recovered write, open"),
    ],
)
def test_a_wait_ends_when_anything_suggests_it(event: str, answered: str) -> None:
    """60 s  aborted, its answer put off    61 s  a person, a dead connection, the daemon's end, the storage."""
    play(f"{HELD}\n 60 abort_task 1 ->\n {event} -> {answered}", QUIET, initiator="linux")


def test_with_its_ring_it_is_over_for_the_kernel_has_answered() -> None:
    play(f"{HELD}\n 60 abort_task 1 ->\n 61 ring ->\n 100 tick ->", QUIET, initiator="linux")


def test_after_a_release_nothing_is_answered_late_until_the_storage_is_back() -> None:
    """A login had to wait: whoever it is may have given up for want of an answer."""
    play(
        f"""{HELD}
        60 abort_task 1    ->
        61 release         -> 1=ABORTED
        62 w2@0            ->
        122 lun_reset 2    -> 2=ABORTED
        123 w3@0           ->
        124 kick           -> try 3
        124.1 io 3 0       -> recovered write, open
        200 ran w4@0 ENOLINK -> outage_began write, down write
        260 abort_task 4   ->
        272.5 wake         -> 4=ABORTED
        """,
        QUIET,
        initiator="linux",
    )


def test_the_end_of_a_persons_hold_ends_it() -> None:
    play(
        """
        0 gate           ->
        0 hold           -> held
        0 w1@0           ->
        60 abort_task 1  ->
        61 over          -> 1=ABORTED, resumed, open
        """,
        initiator="linux",
    )


def test_the_storage_ends_it_by_a_read_of_our_own() -> None:
    """With its only write aborted there is nothing to probe writes with; that reads go well is not taken for more.

    80 s  aborted    100 s  a block is read: EIO    108 s  sent again    180 s  aborted    200 s  a block is read: well
    """
    play(
        f"""{HELD}
        50 wake              -> try 1
        50.1 io 1 ENOLINK    ->
        80 lun_reset 1       ->
        100 wake             -> probe
        100.1 probe write EIO ->
        107.5 wake           -> 1=ABORTED
        108 w2@0             ->
        150 wake             -> try 2
        150.1 io 2 ENOLINK   ->
        180 lun_reset 2      ->
        200 wake             -> probe
        200.1 probe write 0  -> 2=ABORTED
        201 w3@0             -> try 3
        201.1 io 3 0         -> recovered write, open
        """,
        "retry_interval=50s retry_max_interval=50s",
        initiator="linux",
    )


def test_one_command_that_fails_alone_is_answered_late_too_and_a_read_of_our_own_ends_that() -> None:
    """A quiet LUN is not taken to be down for one failing write; when that would be tried, a block is read instead.

    0 s, 50 s  the write fails    60 s  aborted    72.5 s  answered, sent again: another outage    133 s  LUN RESET
    240 s  LUN RESET    261 s  a block is read: well, and the next write shows whether writes go well too
    """
    play(
        """0 ran w1@0 EIO    -> outage_began write
        50 wake              -> try 1
        50.1 io 1 EIO        ->
        60 abort_task 1      ->
        72.5 wake            -> 1=ABORTED, gave_up write, open
        73 ran w2@0 EIO      -> outage_began write
        123 wake             -> try 2
        123.1 io 2 EIO       ->
        133 lun_reset 2      ->
        160.5 wake           -> 2=ABORTED, gave_up write, open
        161 ran w3@0 EIO     -> outage_began write
        211 wake             -> try 3
        211.1 io 3 EIO       ->
        240 lun_reset 3      ->
        261.1 wake           -> probe
        261.2 probe write 0  -> 3=ABORTED, gave_up write, open
        """,
        "retry_interval=50s retry_max_interval=50s",
        initiator="linux",
    )


def test_while_that_read_is_out_only_the_answer_is_waited_for() -> None:
    play(
        """0 ran w1@0 EIO    -> outage_began write
        60 abort_task 1      ->
        70 tick              -> probe
        72.5 wake            -> 1=ABORTED, gave_up write, open
        73 probe write EIO   ->
        """,
        "retry_interval=70s retry_max_interval=70s",
        initiator="linux",
    )


def test_what_was_aborted_early_was_not_given_up_by_the_profiles_time_outs() -> None:
    """ESXi aborts after some seconds, a program's own time-out when it likes: answered at once."""
    play(f"{HELD}\n 57.9 abort_task 1 -> 1=ABORTED", QUIET, initiator="linux")


def test_a_reset_names_several_and_the_oldest_counts() -> None:
    play(
        f"""{HELD}
        50 w2@8            ->
        60 lun_reset 1 2   ->
        87.5 wake          -> 1=ABORTED, 2=ABORTED
        """,
        QUIET,
        initiator="linux",
    )


@pytest.mark.parametrize("kind", ["preempt", "abort"])
def test_nothing_else_is_answered_late(kind: str) -> None:
    """PREEMPT AND ABORT fences another host: nobody may wait for that."""
    play(f"{HELD}\n 70 {kind} 1 -> 1=ABORTED", QUIET, initiator="linux")


def test_a_reset_is_late_only_if_nothing_works() -> None:
    """A bad sector stays one: its abort may be late, but a reset would stop all that goes well beside it.

    0 s  a write fails, and goes on failing    50 s  another goes well    60 s  LUN RESET: at once    80 s: late
    """
    script = """0 ran w1@0 EIO -> outage_began write
        50 w2@8            -> try 2
        50.1 io 2 0        ->"""
    play(f"{script}\n 60 lun_reset 1 -> 1=ABORTED, recovered write, open", QUIET, initiator="linux")
    play(f"{script}\n 80 lun_reset 1 ->\n 107.5 wake -> 1=ABORTED, recovered write, open", QUIET, initiator="linux")
    play(f"{script}\n 60 abort_task 1 ->\n 72.5 wake -> 1=ABORTED, recovered write, open", QUIET, initiator="linux")


def test_io_that_hangs_is_answered_late_over_its_head() -> None:
    """0 s  I/O hangs, nobody knows    60 s  ABORT TASK    72.5 s  answered with KEEP_BUF    80 s  it ends"""
    player = Play(initiator="linux")
    token, request = player.request("w1@0")
    assert player.engine.gate_closed([(token, request, 0.0)], 60.0) == []
    player.line("""
        60 abort_task 1    ->
        72.5 wake          -> 1=ABORTED+keep
        80 io 1 EIO        -> open
    """)


def test_io_that_fails_meanwhile_is_answered_when_it_would_have_been() -> None:
    """60 s  named while it runs    61 s  its I/O fails    72.5 s  answered; it is not tried again."""
    player = Play(QUIET, initiator="linux")
    token, request = player.request("w1@0")
    player.engine.gate_closed([(token, request, 0.0)], 60.0)
    player.line("""
        60 abort_task 1    ->
        61 io 1 EIO        -> probe
        61.1 probe write EIO ->
    """)
    [entry] = player.engine.held()
    assert (player.engine.waits_for(entry), player.engine.next_try(entry)) == ("abort", 72.5)
    assert player.engine.expires(entry, 61) is None
    assert player.engine.holds(1)
    player.line("72.5 wake -> 1=ABORTED, open")


def test_io_that_runs_is_answered_by_its_grace_when_the_wait_ends() -> None:
    """60 s  named while it runs    61 s  a person releases    61.5 s  answered over its head."""
    player = Play(initiator="linux")
    token, request = player.request("w1@0")
    player.engine.gate_closed([(token, request, 0.0)], 60.0)
    player.line("""
        60 abort_task 1    ->
        61 release         ->
        61.5 wake          -> 1=ABORTED+keep
        62 io 1 0          -> open
    """)


def test_who_waited_behind_an_aborted_command_waits_no_longer() -> None:
    """It never runs again, so nothing can overtake it; its answer is another matter."""
    play(
        """
        0 ran w1@0 EIO     -> outage_began write
        1 w2@0             ->
        59 abort_task 1    -> try 2
        59.1 io 2 0        -> 1=ABORTED, recovered write, open
        """,
        QUIET,
        initiator="linux",
    )
