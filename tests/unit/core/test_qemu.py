"""What the QEMU series (v5, 2021) and its openEuler successors got wrong, or were asked for and never had."""

from __future__ import annotations

import errno

import pytest

from tcmu_retry.core.actions import Action, Complete, Dispatch, Emit, Gate, Probe
from tcmu_retry.core.engine import Engine
from tcmu_retry.core.outage import State
from tcmu_retry.core.policy import DEFAULT, Budgets, Policy, PolicyError, change, flatten
from tcmu_retry.scsi.request import Direction, Extent, Op, Request
from tests.unit.core.play import play

STEADY = {"retry_jitter": "0", "retry_backoff": "1"}


def engine(**words: str) -> Engine:
    settings = {word.replace("__", "."): value for word, value in words.items()}
    lun = Engine(change(DEFAULT, {**STEADY, **settings}), Budgets(), lambda: 0.5)
    lun.gate_closed([], 0.0)
    return lun


def command(op: Op, place: int = 0) -> Request:
    return Request(op, (Extent(place * 4096, 4096),))


def tokens(actions: list[Action], kind: type[Dispatch | Complete]) -> list[int]:
    return [action.token for action in actions if isinstance(action, kind)]


def test_many_retries_leave_nothing_behind_and_one_answer() -> None:
    """openEuler c2f55f210d: a reference was dropped at every tick of the retry timer."""
    lun = engine()
    write = command(Op.WRITE)
    actions = lun.finished(1, write, errno.EAGAIN, 0.0)
    for _ in range(500):
        now = lun.deadline()
        assert now is not None
        assert tokens(lun.tick(now), Dispatch) == [1]
        actions += lun.finished(1, write, errno.EAGAIN, now)
    due = lun.deadline()
    assert due is not None
    lun.tick(due)
    actions += lun.finished(1, write, 0, due)
    assert tokens(actions, Complete) == []
    assert Gate(True) in actions
    assert (lun.held_count, lun.in_flight, lun.deadline()) == (0, 0, None)


def test_a_retry_that_goes_out_does_not_set_the_clock_back() -> None:
    """openEuler 60181b02c7: re-issuing counted as a success, so that the time-out never came.

    t=0 fails, and each second again    t=5 its time is over
    """
    lun = engine(retry_timeout="5s")
    write = command(Op.WRITE)
    lun.finished(1, write, errno.EAGAIN, 0.0)
    now, ended = 0.0, []
    while not ended:
        due = lun.deadline()
        assert due is not None
        now = due
        actions = lun.tick(now)
        ended = tokens(actions, Complete)
        if tokens(actions, Dispatch):
            ended += tokens(lun.finished(1, write, errno.EAGAIN, now), Complete)
    assert now == 5.0


def test_another_command_s_success_does_not_set_the_clock_back() -> None:
    """v5: one good read reset the writes' clock, and a partial failure never timed out."""
    lun = engine(retry_timeout="5s", retry_interval="1h", retry_max_interval="1h")
    lun.finished(1, command(Op.WRITE), errno.EAGAIN, 0.0)
    for second in (1, 2, 3, 4):
        lun.arrived(10 + second, command(Op.READ, 9), float(second))
        lun.finished(10 + second, command(Op.READ, 9), 0, second + 0.1)
    assert lun.deadline() == 5.0
    assert tokens(lun.tick(5.0), Complete) == [1]


@pytest.mark.parametrize("word", ["retry_interval", "retry_timeout", "read-retry-interval", "write-retry-timeout"])
def test_negative_times_are_refused(word: str) -> None:
    """openEuler e880fc334e."""
    for value in (-1, "-1", "-5s"):
        with pytest.raises(PolicyError):
            change(DEFAULT, {word: value})


def test_nothing_is_retried_while_draining_and_everything_after() -> None:
    """openEuler bbac66be57, and the wake-up that v5 lost: nothing re-armed the timer at the end of a drain."""
    lun = engine()
    lun.finished(1, command(Op.WRITE), errno.EAGAIN, 0.0)
    lun.drain(0.5)
    assert lun.deadline() is None
    assert tokens(lun.tick(10.0), Dispatch) == []
    assert tokens(lun.undrain(20.0), Dispatch) == [1]


def test_new_failures_do_not_push_the_next_try_back() -> None:
    """v5: every failing request re-armed the one timer; failures less than an interval apart starved the retry."""
    lun = engine()
    lun.finished(1, command(Op.WRITE), errno.EAGAIN, 0.0)
    for step in range(1, 9):
        lun.finished(1 + step, command(Op.WRITE, step), errno.EAGAIN, step / 10)
    assert lun.deadline() == 1.0
    assert tokens(lun.tick(1.0), Dispatch) == [1]


def test_held_commands_are_tried_in_the_order_of_their_arrival() -> None:
    """v5's virtio-blk kept them on a stack: the newest write came first."""
    lun = engine()
    for token in (1, 2, 3, 4):
        lun.finished(token, command(Op.WRITE, token), errno.EAGAIN, 0.0)
    assert tokens(lun.tick(1.0), Dispatch) == [1, 2, 3, 4]


def test_recovery_is_paced() -> None:
    """v5 sent everything at once at each tick, to storage that was just about to come back."""
    lun = engine()
    for token in range(1, 17):
        lun.finished(token, command(Op.WRITE, token), errno.ENOLINK, 0.0)
    now, waves, out = 1.0, [], tokens(lun.tick(1.0), Dispatch)
    while out:
        waves.append(len(out))
        fresh = []
        for token in out:
            fresh += tokens(lun.finished(token, command(Op.WRITE, token), 0, now), Dispatch)
        out = fresh
    assert waves[0] == 1
    assert max(waves) <= 8
    assert sum(waves) == 16


def test_one_event_for_an_outage_and_not_one_for_each_failure() -> None:
    """v5 sent BLOCK_IO_ERROR for every failed attempt, un-throttled; v1 to v3 had a begin and an end."""
    lun = engine()
    write = command(Op.WRITE)
    actions = lun.finished(1, write, errno.EAGAIN, 0.0)
    for second in range(1, 60):
        actions += lun.tick(float(second))
        actions += lun.finished(1, write, errno.EAGAIN if second < 59 else 0, float(second))
    assert [action.code for action in actions if isinstance(action, Emit)] == ["TR-001", "TR-004"]


def test_each_direction_has_its_own_times_and_clock() -> None:
    """v5 had one interval, one time-out and one clock for a device."""
    lun = engine(read__retry_timeout="3s", write__retry_timeout="7s", retry_interval="1h", retry_max_interval="1h")
    lun.finished(1, command(Op.READ), errno.EAGAIN, 0.0)
    lun.finished(2, command(Op.WRITE, 5), errno.EAGAIN, 1.0)
    assert tokens(lun.tick(3.0), Complete) == [1]
    assert tokens(lun.tick(7.9), Complete) == []
    assert tokens(lun.tick(8.0), Complete) == [2]


def test_after_a_time_out_everything_fails_fast_until_one_succeeds() -> None:
    """v5 latched; here the latch probes by itself, so that nobody has to run into it."""
    lun = engine(retry_timeout="5s")
    lun.finished(1, command(Op.READ), errno.ENOLINK, 0.0)
    lun.tick(5.0)
    assert lun.state(Direction.READ) is State.FAILED
    lun.arrived(2, command(Op.READ, 7), 5.1)
    assert tokens(lun.finished(2, command(Op.READ, 7), errno.ENOLINK, 5.2), Complete) == [2]
    lun.probed(Direction.READ, errno.ENOLINK, 5.3)
    due = lun.deadline()
    assert due is not None
    assert Probe(Direction.READ) in lun.tick(due)
    lun.probed(Direction.READ, 0, due)
    assert lun.state(Direction.READ) is State.ONLINE


def test_clocks_stand_still_while_stopped() -> None:
    """Review of v5: no guest-visible change while stopped; QEMU_CLOCK_VIRTUAL instead of REALTIME.

    t=0 fails, time-out 5 s    t=2 held by a person    t=100 resumed    t=103 over
    """
    lun = engine(retry_timeout="5s", retry_interval="1h", retry_max_interval="1h")
    lun.finished(1, command(Op.WRITE), errno.EAGAIN, 0.0)
    lun.hold(2.0, "the switch is replaced")
    assert tokens(lun.tick(50.0), Complete) == []
    lun.resume(100.0)
    assert tokens(lun.tick(102.9), Complete) == []
    assert tokens(lun.tick(103.0), Complete) == [1]


def written(policy: Policy, side: str) -> tuple[str, str, str, str]:
    flat = flatten(policy)
    return (
        flat[f"{side}.retry"],
        flat[f"{side}.fallback"],
        flat[f"{side}.retry_interval"],
        flat[f"{side}.retry_timeout"],
    )


@pytest.mark.parametrize(
    ("words", "read", "write"),
    [
        ({"werror": "report", "rerror": "report"}, ("false", "report", "1s", "0s"), ("false", "report", "1s", "0s")),
        ({"werror": "retry", "rerror": "retry"}, ("true", "report", "1s", "0s"), ("true", "report", "1s", "0s")),
        ({"werror": "stop"}, ("true", "report", "1s", "0s"), ("false", "stop", "1s", "0s")),
        ({"werror": "enospc"}, ("true", "report", "1s", "0s"), ("false", "enospc", "1s", "0s")),
        ({"werror": "auto"}, ("true", "report", "1s", "0s"), ("true", "report", "1s", "0s")),
        (
            {"rerror": "retry", "retry_interval": 2000, "retry_timeout": 10000},
            ("true", "report", "2s", "10s"),
            ("true", "report", "2s", "10s"),
        ),
        (
            {"werror": "stop", "write-retry-interval": "1000", "write-retry-timeout": "15000", "rerror": "report"},
            ("false", "report", "1s", "0s"),
            ("true", "stop", "1s", "15s"),
        ),
    ],
)
def test_qemu_s_words_mean_what_they_mean_there(words: dict[str, object], read: object, write: object) -> None:
    """The last row is the form that review asked for: retry first, then any action, per direction."""
    policy = change(DEFAULT, words)
    assert written(policy, "read") == read
    assert written(policy, "write") == write


@pytest.mark.parametrize("words", [{"werror": "retyr"}, {"rerror": "enospcc"}, {"werror": "ignore"}])
def test_a_word_that_qemu_has_not_is_refused(words: dict[str, object]) -> None:
    """And `ignore`, which loses data, needs allow_data_loss beside it."""
    with pytest.raises(PolicyError):
        change(DEFAULT, words)


def test_a_reset_ends_the_outage_and_no_event_comes_after_it() -> None:
    """openEuler a344d86361: throttled error events came after a reboot and paused the new machine.

    0  a write is held    1  the machine resets: LUN RESET names it, the outage ends then and there    nothing follows
    """
    play("""
        0    ran w1@0 ENOLINK -> outage_began write, down write
        0.5  w2@1          ->
        1    abort 1 2     -> 1=ABORTED, 2=ABORTED
        3600 idle          ->
        3601 w3@2          -> try 3
        3601 io 3 0        -> recovered write, open
    """)


def test_no_space_does_not_stop_a_machine_that_nobody_asked_to_stop() -> None:
    """openEuler ea0feb8a26: its default became `report`, because machines stood still for want of space.

    Here it is held and tried like anything else; with `report`, told at once; stopped only by `enospc` or `stop`.
    """
    play("""
        0    ran w1@0 ENOSPC -> outage_began write
        1    wake          -> try 1
        1    io 1 0        -> recovered write, open
    """)
    play("0 ran w1@0 ENOSPC -> 1=07/27/07, open", "werror=report")
    play("0 ran w1@0 ENOSPC -> stopped write", "werror=enospc")
