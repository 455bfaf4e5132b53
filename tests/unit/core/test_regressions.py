"""Defects that the other tests of this folder found, one test for each, and the promise that it broke."""

from __future__ import annotations

import errno
from itertools import pairwise

import pytest

from tcmu_retry.core.actions import Complete, Dispatch, Gate, Reopen
from tcmu_retry.core.engine import Engine
from tcmu_retry.core.outage import EVIDENCE, Outage, State
from tcmu_retry.core.policy import DEFAULT, Budgets, PolicyError, change, flatten
from tcmu_retry.core.words import format_duration, parse_duration
from tcmu_retry.scsi.request import Direction, Extent, Op, Request
from tcmu_retry.scsi.sense import WRITE_PROTECTED
from tests.unit.core.play import Play, play


def engine(**words: str) -> Engine:
    return Engine(change(DEFAULT, {word.replace("__", "."): value for word, value in words.items()}), Budgets(), half)


def half() -> float:
    return 0.5


def write(offset: int = 0) -> Request:
    return Request(Op.WRITE, (Extent(offset, 4096),))


def read(offset: int = 0) -> Request:
    return Request(Op.READ, (Extent(offset, 4096),))


@pytest.mark.parametrize("verb", ["aborted", "release"])
def test_gate_stays_closed_while_an_aborted_command_may_become_a_fence(verb: str) -> None:
    """A write of the initiator's next life would run unasked beside the fenced one, which may land over it later.

    t=0    write 1 runs, task management names it (or a person releases): the gate must stay closed
    t=0.5  the grace ends: answered with KEEP_BUF, its range is fenced
    t=2    its I/O returns: now the gate may open
    """
    lun = engine()
    lun.gate_closed([(1, write(), 0.0)], 0.0)
    named = lun.aborted([1], 0.0) if verb == "aborted" else lun.release(0.0)
    assert Gate(True) not in named
    assert [type(action) for action in lun.tick(0.5)] == [Complete]
    assert lun.finished(1, write(), 0, 2.0) == [Gate(True)]


@pytest.mark.parametrize("verb", ["fail", "kick", "aborted"])
def test_a_command_named_twice_is_answered_once(verb: str) -> None:
    """`tcmu-retry queue fail LUN 7 7` must not answer twice, nor break the engine."""
    lun = engine()
    lun.gate_closed([], 0.0)
    lun.finished(7, write(), errno.EIO, 0.0)
    actions = lun.aborted([7, 7], 0.1) if verb == "aborted" else getattr(lun, verb)(0.1, [7, 7])
    assert len([action for action in actions if isinstance(action, Complete | Dispatch)]) == 1


def test_fail_reaches_a_parked_command_that_is_out_as_a_probe() -> None:
    """A person who fails everything is obeyed by the one that happens to be out, though it had never failed before.

    t=0    write 1 fails with ENOLINK: down
    t=0.1  write 2 arrives and is parked; write 1 is failed by a person
    t=1    write 2 goes out as the probe; a person fails everything; its I/O fails
    """
    lun = engine()
    lun.gate_closed([], 0.0)
    lun.finished(1, write(), errno.ENOLINK, 0.0)
    lun.arrived(2, write(8192), 0.1)
    lun.fail(0.2, [1])
    assert Dispatch(2) in lun.tick(1.0)
    lun.fail(1.1)
    actions = lun.finished(2, write(8192), errno.ENOLINK, 1.2)
    assert [action.token for action in actions if isinstance(action, Complete)] == [2]


def test_readonly_refuses_what_was_running_when_it_came() -> None:
    """Everything else is refused; a command that was out at that moment must not hang until a person comes.

    t=0    write 1 fails
    t=5.5  it fails again, past retry_timeout: readonly
    t=6    write 2, which was running all the time, fails for the first time
    """
    lun = engine(retry_timeout="5s", write__fallback="readonly")
    lun.gate_closed([(2, write(8192), 0.0)], 0.0)
    lun.finished(1, write(), errno.EIO, 0.0)
    assert lun.tick(1.1) == [Dispatch(1)]
    lun.finished(1, write(), errno.EIO, 5.5)
    assert lun.state(Direction.WRITE) is State.STOPPED
    assert lun.finished(2, write(8192), errno.EIO, 6.0) == [Complete(2, WRITE_PROTECTED)]


def test_failed_tries_a_command_that_had_to_wait_for_another() -> None:
    """In `failed` new commands are tried once. One that waits behind a running write is not answered untried.

    t=0    read 1 fails with ENOLINK: down
    t=5    failed: it gets the fallback, zeros
    t=6    write 2 runs; read 3 overlaps it and waits: no zeros for it while the storage may well answer
    t=7    write 2 is done, read 3 goes out as the next probe
    """
    lun = engine(retry_timeout="5s", read__fallback="ignore", allow_data_loss="true")
    lun.gate_closed([], 0.0)
    lun.finished(1, read(), errno.ENOLINK, 0.0)
    lun.tick(5.0)
    assert lun.state(Direction.READ) is State.FAILED
    lun.probed(Direction.READ, errno.ENOLINK, 5.1)
    assert Dispatch(2) in lun.arrived(2, write(8192), 6.0)
    assert [action for action in lun.arrived(3, read(8192), 6.1) if isinstance(action, Complete)] == []


def test_retrying_tries_a_command_that_had_to_wait_for_another() -> None:
    """While retrying, all others are tried. Its own time begins when it comes, not with somebody else's failure.

    t=0    write 1 fails (EAGAIN)       its time ends at 10
    t=8    write 2 fails (EAGAIN)       its time ends at 18
    t=12   write 3 comes, over the same place as write 2: it waits, and is not answered untried
    """
    lun = engine(retry_timeout="10s")
    lun.gate_closed([(2, write(8192), 0.0)], 0.0)
    lun.finished(1, write(), errno.EAGAIN, 0.0)
    lun.finished(2, write(8192), errno.EAGAIN, 8.0)
    lun.tick(8.9)
    assert lun.state(Direction.WRITE) is State.RETRYING
    assert [action for action in lun.arrived(3, write(8192), 12.0) if getattr(action, "token", 0) == 3] == []


@pytest.mark.parametrize("word", ["1000000s", "1234567ms", "12345.678s", "100.0001ms", "0.00001ms"])
def test_durations_are_read_back(word: str) -> None:
    """What the daemon writes down it can read again, and it is the same."""
    seconds = parse_duration(word, "retry_timeout")
    assert parse_duration(format_duration(seconds), "retry_timeout") == pytest.approx(seconds, rel=1e-12)


def test_a_policy_with_many_attempts_is_read_back() -> None:
    policy = change(DEFAULT, {"classes.unknown.attempts": 1234567, "retry_jitter": 0.12345678})
    assert change(DEFAULT, flatten(policy)) == policy


@pytest.mark.parametrize("value", ["0.5", 2.7])
def test_half_an_attempt_is_refused(value: object) -> None:
    """0.5 would be cut to 0, and 0 means no limit."""
    with pytest.raises(PolicyError):
        change(DEFAULT, {"classes.unknown.attempts": value})


def test_no_accepted_backoff_breaks_the_engine() -> None:
    """Whatever factor is accepted, the wait after any number of attempts is a number."""
    settings = change(DEFAULT, {"retry_backoff": "100000"}).write
    assert settings.delay(1000, 0.5) == settings.retry_max_interval


def test_retry_switched_off_ends_what_is_held() -> None:
    """The policy holds for held commands too: at once, not one by one with the probes.

    t=0    write 1 fails with ENOLINK: down       t=0.5  write 2 comes and is parked
    t=1    retry=false: 1 is answered, 2 gets its one try; 3, which comes later, is tried too
    """
    lun = engine()
    lun.gate_closed([], 0.0)
    lun.finished(1, write(), errno.ENOLINK, 0.0)
    lun.arrived(2, write(8192), 0.5)
    actions = lun.set_policy(change(DEFAULT, {"retry": "false"}), 0.9)
    assert [action.token for action in actions if isinstance(action, Complete)] == [1]
    assert Dispatch(2) in actions
    assert Dispatch(3) in lun.arrived(3, write(16384), 0.95)


def test_one_reopen_serves_both_directions() -> None:
    """t=0 the file is gone, both are down; each reopen that fails moves the next of both."""
    lun = engine()
    lun.gate_closed([], 0.0)
    lun.finished(1, write(), errno.ENODEV, 0.0)
    lun.finished(2, read(8192), errno.ENODEV, 0.0)
    times = []
    now = 0.0
    while len(times) < 4:
        due = lun.deadline()
        assert due is not None
        now = due
        if Reopen() in lun.tick(now):
            times.append(now)
            lun.reopened(errno.ENOENT, now)
    assert all(later - earlier > 0.5 for earlier, later in pairwise(times)), times


def test_a_held_unmap_takes_nothing_of_the_budget_of_bytes() -> None:
    """fstrim in an outage: one UNMAP names as many bytes as all held commands may carry."""
    lun = Engine(DEFAULT, Budgets(held_bytes=8192), half)
    lun.gate_closed([], 0.0)
    huge = Request(Op.UNMAP, (Extent(0, 512 << 20),))
    assert not [action for action in lun.finished(1, huge, errno.EIO, 0.0) if isinstance(action, Complete)]
    assert lun.held_count == 1


@pytest.mark.parametrize("fallback", ["readonly", "offline"])
def test_what_fails_after_a_stop_waits_with_the_others(fallback: str) -> None:
    """Two classes of errors, two fallbacks: the one that came first stands until a person resumes.

    t=0    write 1 finds no space: `stop`, it is held
    t=1    write 2, which ran all the time, fails with EIO, whose fallback is to refuse: held too
    t=2    resume: both are tried
    """
    words = {"write__retry": "false", "write__fallback": fallback, "write__classes__space__fallback": "stop"}
    lun = engine(**words)
    lun.gate_closed([(1, write(), 0.0), (2, write(8192), 0.0)], 0.0)
    lun.finished(1, write(), errno.ENOSPC, 0.0)
    assert lun.state(Direction.WRITE) is State.STOPPED
    actions = lun.finished(2, write(8192), errno.EIO, 1.0)
    assert not [action for action in actions if isinstance(action, Complete)]
    assert lun.held_count == 2
    assert Dispatch(1) in lun.resume(2.0)


def test_what_waited_behind_the_first_failure_gets_the_fallback_with_it() -> None:
    """It was parked before there was an outage; without an end of its own it would follow one by one, a probe each.

    t=0   write 1 runs, 2 and 3 overlap it and wait; 1 fails: the outage begins
    t=60  it has lasted its retry_timeout: all three get the fallback
    """
    play(
        """
        0  gate w1@0    ->
        0  w2@0         ->
        0  w3@0         ->
        0  io 1 ENOLINK -> outage_began write, down write
        40 wake         -> try 1
        41 io 1 ENOLINK ->
        60 wake         -> timed_out write, 1=02/04/03, 2=02/04/03, 3=02/04/03
        """,
        "retry_interval=40s retry_max_interval=40s retry_timeout=60s",
    )


def test_an_outage_without_end_keeps_no_account_of_every_place_that_failed() -> None:
    """Initiators abort and send again for weeks; three places are evidence enough."""
    outage = Outage()
    for token in range(100):
        outage.seen(token * 4096, token)
    assert len(outage.evidence) == EVIDENCE


def test_a_hold_that_is_over_ends_no_stop() -> None:
    """A stop by fallback lasts until a person resumes, and the end of a hold's time is no person.

    t=0  write 1 fails: stopped    t=1  a person holds for a while    t=9  the while is over: still stopped
    """
    player = Play("write.retry=false write.fallback=stop")
    player.line(
        """
        0 ran w1@0 EIO -> stopped write
        1 hold         -> held
        9 over         -> resumed, stopped write
        9 state write  -> stopped
        9 idle         ->
        10 resume      -> resumed, try 1
        11 io 1 0      -> recovered write, open
        11 over        ->
        """
    )
