"""Both pumps between the simulated kernel and storage in memory: what they do unasked, tell, and answer.

Storage in memory has no file, so the native pump runs its I/O in workers here; test_native.py is about its loop.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcmu_retry.pump.base import (
    Arrived,
    Broken,
    Finished,
    Probed,
    Shape,
    TaskManagement,
)
from tcmu_retry.pump.native.pump import NativePump
from tcmu_retry.pump.reference import ReferencePump
from tcmu_retry.scsi.request import BUSY, GOOD, Direction, Extent, Op, Reply, Request, Status
from tcmu_retry.scsi.sense import MISCOMPARE
from tcmu_retry.scsi.sense import parse as parse_sense
from tcmu_retry.tcmu.simulated import LUN_RESET, SimulatedCommand, SimulatedKernel
from tests.unit.pump.loop import Loop, submit
from tests.unit.pump.rig import (
    ABORTED,
    BLOCK,
    BLOCKS,
    INQUIRY,
    PATIENCE,
    SYNC,
    Rig,
    Storage,
    block,
    compare_and_write,
    patiently,
    read,
    write,
)


@pytest.fixture(
    scope="module",
    params=[(pump, cache) for pump in (ReferencePump, NativePump) for cache in ("writethrough", "writeback")],
    ids=lambda param: f"{param[0].__name__}-{param[1]}",
    autouse=True,
)
def pump_class(request):
    Rig.pump_class, cache = request.param
    Rig.write_back = cache == "writeback"
    yield
    Rig.write_back = False


@pytest.fixture
def single() -> Iterator[Rig]:
    """With one worker: a second I/O waits for the first."""
    rig = Rig(workers=1)
    rig.start()
    yield rig
    rig.end()


def failed(rig: Rig, lba: int = 9) -> tuple[SimulatedCommand, Finished]:
    """A write that failed and closed the gate."""
    rig.storage.errors["write", lba] = errno.EIO
    command = rig.kernel.submit(write(lba), block("f"))
    return command, rig.next(Finished)


# ---- unasked


def test_plain_io_is_answered_without_the_main_loop(rig):
    out = rig.kernel.submit(write(3, 2), block("a") + block("b"))
    assert rig.answer(out) == Status.GOOD
    sync = rig.kernel.submit(SYNC)
    assert rig.answer(sync) == Status.GOOD
    back = rig.kernel.submit(read(4), data_in=BLOCK)
    assert rig.answer(back) == Status.GOOD
    assert back.data == block("b")
    assert rig.storage.calls == [("write", 3), ("flush", 0), ("read", 4)]
    rig.pump.stop()
    assert not list(rig.pump.events())


def test_plain_io_is_counted(rig):
    for command in (rig.kernel.submit(write(0, 2), block("a") * 2), rig.kernel.submit(SYNC)):
        rig.answer(command)
    rig.answer(rig.kernel.submit(read(0), data_in=BLOCK))
    failed(rig)
    statistics = rig.pump.statistics()
    assert (statistics.reads, statistics.writes, statistics.others, statistics.errors) == (1, 1, 1, 1)
    assert (statistics.read_bytes, statistics.written_bytes) == (BLOCK, 2 * BLOCK)
    assert statistics.in_flight == 0


def test_what_was_queued_before_the_start_is_found(batch):
    """It does not ring: the first scan comes before the first wait."""
    command = batch.kernel.submit(write(0), block("a"))
    batch.start()
    assert batch.answer(command) == Status.GOOD


def test_other_commands_go_to_the_main_loop(rig):
    rig.kernel.submit(INQUIRY, data_in=96)
    arrived = rig.next(Arrived)
    assert arrived.command.cdb == INQUIRY
    assert arrived.command.data_length == 96
    assert arrived.command.arrived == 7.0
    assert arrived.running == ()
    still = rig.kernel.submit(write(0), block("a"))
    assert rig.answer(still) == Status.GOOD, "it does not close the gate"


@pytest.mark.parametrize("cdb", [write(BLOCKS), write(0, 2)], ids=["beyond the medium", "length differs"])
def test_io_with_something_unusual_goes_to_the_main_loop(rig, cdb):
    rig.kernel.submit(cdb, block("a"))
    assert rig.next(Arrived).command.cdb == cdb
    assert rig.storage.calls == []


def test_without_a_shape_nothing_is_plain():
    rig = Rig(shape=False)
    rig.start()
    rig.kernel.submit(write(0), block("a"))
    assert rig.next(Arrived).command.cdb == write(0)
    rig.pump.shape(Shape(BLOCK, BLOCKS, True))
    rig.done()
    assert rig.answer(rig.kernel.submit(write(1), block("a"))) == Status.GOOD
    rig.end()


def test_a_write_protected_disk_is_read_unasked_and_not_written(rig):
    rig.pump.shape(Shape(BLOCK, BLOCKS, writable=False))
    rig.done()
    rig.kernel.submit(write(0), block("a"))
    rig.next(Arrived)
    assert rig.answer(rig.kernel.submit(read(0), data_in=BLOCK)) == Status.GOOD


def test_serials_are_not_used_twice_as_ids_are(rig):
    rig.kernel.submit(INQUIRY, data_in=96)
    first = rig.next(Arrived).command
    rig.pump.complete(first, GOOD)
    rig.done()
    rig.kernel.submit(INQUIRY, data_in=96)
    second = rig.next(Arrived).command
    assert first.id == second.id
    assert first.serial != second.serial


def test_one_doorbell_for_all_answers_of_a_turn(batch):
    commands = [batch.kernel.submit(write(lba), block("a")) for lba in range(8)]
    batch.kernel.abort(commands)
    batch.start()
    assert {batch.answer(command) for command in commands} == {Status.TASK_ABORTED}
    batch.next(TaskManagement)
    assert batch.pump.statistics().doorbells == 1


def test_a_full_ring_does_not_stop_the_flow(rig):
    commands = [rig.kernel.submit(write(number % BLOCKS), block("a")) for number in range(300)]
    assert {rig.answer(command) for command in commands} == {Status.GOOD}


# ---- the gate


def test_the_first_failure_closes_the_gate_and_hands_over_what_runs(rig):
    rig.storage.hold(("write", 1), ("write", 2))
    one, two = rig.kernel.submit(write(1), block("a")), rig.kernel.submit(write(2), block("b"))
    rig.storage.wait_for(("write", 1))
    rig.storage.wait_for(("write", 2))
    bad, finished = failed(rig)
    assert (finished.command.cdb, finished.error, finished.at) == (write(9), errno.EIO, 7.0)
    assert {command.cdb for command in finished.running} == {write(1), write(2)}
    assert bad.status is None
    later = rig.kernel.submit(write(3), block("c"))
    assert rig.next(Arrived).command.cdb == write(3), "from now on everything is asked for"
    rig.storage.errors["write", 2] = errno.ENOSPC
    rig.storage.release(("write", 1))
    first = rig.next(Finished)
    assert (first.command.cdb, first.error, first.running) == (write(1), 0, ())
    assert rig.answer(one) == Status.GOOD
    rig.storage.release(("write", 2))
    second = rig.next(Finished)
    assert (second.command.cdb, second.error, second.running) == (write(2), errno.ENOSPC, ())
    assert two.status is None
    assert later.status is None


def test_a_failure_behind_the_closed_gate_hands_over_nothing(rig):
    rig.storage.hold(("write", 1))
    rig.kernel.submit(write(1), block("a"))
    rig.storage.wait_for(("write", 1))
    _, finished = failed(rig)
    assert len(finished.running) == 1
    rig.pump.dispatch(finished.command)
    again = rig.next(Finished)
    assert (again.command, again.error, again.running) == (finished.command, errno.EIO, ())


def test_closing_is_confirmed_with_what_runs(rig):
    rig.storage.hold(("write", 1))
    rig.kernel.submit(write(1), block("a"))
    rig.storage.wait_for(("write", 1))
    (running,) = rig.close_gate()
    assert running.cdb == write(1)
    assert rig.close_gate() == (), "handed over once"
    rig.kernel.submit(write(2), block("b"))
    assert rig.next(Arrived).command.cdb == write(2)
    rig.storage.release()
    assert rig.next(Finished).command is running


def test_the_gate_opens_once_all_closings_were_taken(rig):
    _, _ = failed(rig)
    rig.open_gate()
    assert rig.answer(rig.kernel.submit(write(1), block("a"))) == Status.GOOD
    rig.pump.stop()
    assert not list(rig.pump.events())


def test_opening_does_not_count_while_a_closing_is_on_its_way(rig):
    """The main loop says open and does not know yet that something failed."""
    rig.storage.errors["write", 9] = errno.EIO
    bad = rig.kernel.submit(write(9), block("f"))
    assert rig.told()
    rig.pump.gate(True)
    rig.pump.probe(Direction.READ)
    assert rig.next(Finished).error == errno.EIO
    rig.next(Probed)
    later = rig.kernel.submit(write(1), block("a"))
    assert rig.next(Arrived).command.cdb == write(1)
    assert (bad.status, later.status) == (None, None)
    rig.open_gate()
    assert rig.answer(rig.kernel.submit(write(2), block("a"))) == Status.GOOD


def test_opening_at_one_event_does_not_count_for_a_closing_behind_it(batch):
    """The end of one COMPARE AND WRITE opens the gate; the next one, right behind, must find it closed."""
    for lba in (1, 2):
        batch.kernel.submit(compare_and_write(lba), bytes(2 * BLOCK))
    batch.start()
    patiently(lambda: len(batch.pump._outbox) == 2)
    for number, _ in enumerate(batch.pump.events()):
        if number == 0:
            batch.pump.gate(True)
    batch.done()
    command = batch.kernel.submit(write(2), block("a"))
    patiently(lambda: command.status is not None or len(batch.pump._outbox) > 0)
    assert command.status is None
    assert batch.next(Arrived).command.cdb == write(2)


def test_every_closing_counts_not_only_the_first(rig):
    rig.storage.hold(("write", 1))
    rig.storage.errors["write", 1] = errno.EIO
    rig.kernel.submit(write(1), block("a"))
    rig.storage.wait_for(("write", 1))
    failed(rig)
    rig.storage.release()
    assert rig.told()
    rig.pump.gate(True)  # the second failure is not taken
    rig.pump.probe(Direction.READ)
    rig.next(Finished)
    rig.next(Probed)
    rig.kernel.submit(write(2), block("a"))
    rig.next(Arrived)


def test_compare_and_write_closes_the_gate(rig):
    """No other write may come between its halves."""
    rig.storage.hold(("write", 1))
    rig.kernel.submit(write(1), block("a"))
    rig.storage.wait_for(("write", 1))
    rig.kernel.submit(compare_and_write(2), bytes(BLOCK) + block("n"))
    arrived = rig.next(Arrived)
    assert arrived.command.cdb == compare_and_write(2)
    assert [command.cdb for command in arrived.running] == [write(1)]
    rig.kernel.submit(write(2), block("b"))
    assert rig.next(Arrived).command.cdb == write(2)


def test_behind_compare_and_write_in_the_same_batch_nothing_starts(batch):
    batch.kernel.submit(compare_and_write(2), bytes(BLOCK) + block("n"))
    batch.kernel.submit(write(2), block("b"))
    batch.start()
    assert batch.next(Arrived).command.cdb == compare_and_write(2)
    assert batch.next(Arrived).command.cdb == write(2)
    assert batch.storage.calls == []


# ---- dispatch and complete


def test_a_failed_command_that_is_dispatched_again_is_answered_by_the_pump(rig):
    bad, finished = failed(rig)
    rig.storage.errors.clear()
    rig.pump.dispatch(finished.command)
    again = rig.next(Finished)
    assert (again.command, again.error) == (finished.command, 0)
    assert rig.answer(bad) == Status.GOOD
    assert rig.storage.medium[9 * BLOCK : 10 * BLOCK] == block("f")


def test_a_failed_command_can_be_answered_instead(rig):
    bad, finished = failed(rig)
    rig.pump.complete(finished.command, Reply(Status.CHECK_CONDITION, b"sense"))
    assert rig.answer(bad) == Status.CHECK_CONDITION
    assert bad.sense.startswith(b"sense")
    assert rig.kernel.open_ids == frozenset()


def test_dispatched_twice_it_runs_once(rig):
    _, finished = failed(rig)
    rig.storage.errors.clear()
    rig.storage.hold(("write", 9))
    rig.pump.dispatch(finished.command)
    rig.pump.dispatch(finished.command)
    rig.storage.wait_for(("write", 9))
    rig.storage.release()
    assert rig.next(Finished).error == 0
    rig.done()
    assert rig.storage.calls.count(("write", 9)) == 2, "the failed attempt and one more"


def test_what_was_answered_is_neither_run_nor_answered_again(rig):
    bad, finished = failed(rig)
    rig.pump.complete(finished.command, BUSY)
    assert rig.answer(bad) == Status.BUSY
    reused = rig.kernel.submit(INQUIRY, data_in=96)
    arrived = rig.next(Arrived)
    assert arrived.command.id == finished.command.id
    rig.pump.dispatch(finished.command)
    rig.pump.complete(finished.command, ABORTED)
    rig.done()
    assert rig.storage.calls.count(("write", 9)) == 1
    assert reused.status is None, "another command's answer did not go to it"


def test_an_answer_that_comes_after_the_io_is_ignored(rig):
    rig.storage.hold(("write", 1))
    command = rig.kernel.submit(write(1), block("a"))
    rig.storage.wait_for(("write", 1))
    (running,) = rig.close_gate()
    rig.storage.release()
    assert rig.next(Finished).error == 0
    rig.pump.complete(running, ABORTED)
    rig.done()
    assert rig.answer(command) == Status.GOOD


def test_a_compare_that_matches_writes_and_one_that_differs_says_where(rig):
    def run(expected: bytes) -> SimulatedCommand:
        command = rig.kernel.submit(compare_and_write(2), expected + block("n"))
        arrived = rig.next(Arrived).command
        arrived.request = Request(Op.COMPARE_AND_WRITE, (Extent(2 * BLOCK, BLOCK),))
        rig.pump.dispatch(arrived)
        assert rig.next(Finished).error == 0
        rig.answer(command)
        return command

    assert run(bytes(BLOCK)).status == Status.GOOD
    assert rig.storage.medium[2 * BLOCK : 3 * BLOCK] == block("n")
    differs = run(block("n")[:100] + block("x")[100:])
    assert differs.status == Status.CHECK_CONDITION
    sense = parse_sense(differs.sense)
    assert sense is not None
    assert (sense.key, sense.asc, sense.information) == (MISCOMPARE.key, MISCOMPARE.asc, 100)


def test_an_exception_of_our_own_is_an_io_error_and_said(rig, caplog):
    rig.storage.errors["write", 1] = ZeroDivisionError("ours")
    rig.kernel.submit(write(1), block("a"))
    assert rig.next(Finished).error == errno.EIO
    assert "failed in our own code" in caplog.text


def test_an_error_without_a_number_is_an_io_error(rig):
    rig.storage.errors["write", 1] = OSError("no number")
    rig.kernel.submit(write(1), block("a"))
    assert rig.next(Finished).error == errno.EIO


def test_data_out_is_gathered(rig):
    cdb = bytes((0x42,)).ljust(10, b"\0")
    rig.kernel.submit(cdb, block("a") * 20)
    assert rig.pump.data_out(rig.next(Arrived).command) == block("a") * 20


def test_other_storage_gets_what_is_dispatched_from_now_on(rig):
    bad, finished = failed(rig)
    other = Storage()
    rig.pump.use(other)
    rig.pump.dispatch(finished.command)
    assert rig.next(Finished).error == 0
    assert rig.answer(bad) == Status.GOOD
    assert other.calls == [("write", 9)]


# ---- probes


def test_a_probe_reads_and_tells_how_it_went(rig):
    rig.pump.probe(Direction.WRITE)
    assert rig.next(Probed) == Probed(Direction.WRITE, 0, 7.0)
    rig.storage.errors["read", 0] = errno.ETIMEDOUT
    rig.pump.probe(Direction.READ)
    assert rig.next(Probed) == Probed(Direction.READ, errno.ETIMEDOUT, 7.0)
    assert rig.storage.calls == [("read", 0), ("read", 0)]


def test_a_probe_that_fails_in_our_own_code_has_an_end_too(rig, caplog):
    """Without one the direction would never be probed again."""
    rig.storage.errors["read", 0] = ZeroDivisionError("ours")
    rig.pump.probe(Direction.READ)
    assert rig.next(Probed).error == errno.EIO
    assert "failed in our own code" in caplog.text


def test_a_probe_of_storage_that_has_become_empty_fails(rig, monkeypatch):
    monkeypatch.setattr(rig.storage, "read", lambda *_: 0)
    rig.pump.probe(Direction.READ)
    assert rig.next(Probed).error == errno.EIO


# ---- task management


def test_task_management_names_the_open_commands_it_is_about(rig):
    rig.storage.hold(("write", 1))
    running = rig.kernel.submit(write(1), block("a"))
    rig.storage.wait_for(("write", 1))
    held, finished = failed(rig)
    rig.kernel.submit(INQUIRY, data_in=96)
    other = rig.next(Arrived).command
    rig.kernel.abort([running, held], LUN_RESET)
    event = rig.next(TaskManagement)
    assert event.kind == LUN_RESET
    assert set(event.commands) == {*finished.running, finished.command}
    assert other not in event.commands
    assert event.running == (), "the gate was closed"


def test_task_management_closes_the_gate(rig):
    rig.storage.hold(("write", 1))
    running = rig.kernel.submit(write(1), block("a"))
    rig.storage.wait_for(("write", 1))
    rig.kernel.abort([running])
    event = rig.next(TaskManagement)
    assert event.commands == event.running
    assert [command.cdb for command in event.running] == [write(1)]
    rig.kernel.submit(write(2), block("b"))
    assert rig.next(Arrived).command.cdb == write(2)


def test_what_is_aborted_in_the_batch_it_came_in_never_starts(batch):
    """After a pause of the daemon a command and its abort may wait together."""
    aborted, plain = batch.kernel.submit(write(1), block("a")), batch.kernel.submit(write(2), block("b"))
    asked = batch.kernel.submit(INQUIRY, data_in=96)
    batch.kernel.abort([aborted, asked])
    later = batch.kernel.submit(write(3), block("c"))
    batch.start()
    event = batch.next(TaskManagement)
    assert event.commands == ()
    assert [command.cdb for command in event.running] == [write(2)]
    assert batch.next(Arrived).command.cdb == write(3)
    assert (batch.answer(aborted), batch.answer(asked)) == (Status.TASK_ABORTED, Status.TASK_ABORTED)
    assert batch.next(Finished).error == 0
    assert batch.answer(plain) == Status.GOOD
    assert batch.storage.calls == [("write", 2)]
    assert later.status is None


def test_a_command_answered_before_the_kernel_sees_it_may_be_named_and_is_not_told(rig):
    """Its id belongs to another command right behind the task management, which has nothing to do with it."""
    rig.kernel.submit(INQUIRY, data_in=96)
    command = rig.next(Arrived).command
    successor: list[SimulatedCommand] = []

    def submit_again() -> None:
        successor.append(rig.kernel.submit(INQUIRY, data_in=96))

    by_id = rig.kernel._slots[command.id].command
    rig.channel.before = lambda: rig.kernel.abort([by_id])
    rig.channel.after = submit_again
    rig.pump.complete(command, GOOD)
    assert rig.next(TaskManagement).commands == ()
    again = rig.next(Arrived).command
    assert again.id == command.id
    assert rig.answer(by_id) == Status.GOOD
    assert successor[0].status is None
    rig.pump.complete(again, BUSY)
    assert rig.answer(successor[0]) == Status.BUSY


def test_task_management_alone_does_not_fill_the_ring(rig):
    """It wants no answer, so nothing else would move the tail over it."""
    rig.kernel.abort([])
    rig.next(TaskManagement)
    words = rig.channel.memory[:128].cast("I")
    patiently(lambda: words[64 // 4] == words[12 // 4])
    words.release()


# ---- answered while running


def test_the_kernel_keeps_the_buffer_of_io_that_still_runs(rig):
    rig.storage.hold(("write", 1))
    aborted = rig.kernel.submit(write(1), block("a"))
    rig.storage.wait_for(("write", 1))
    rig.kernel.abort([aborted])
    (command,) = rig.next(TaskManagement).commands
    rig.pump.complete(command, ABORTED)
    assert rig.answer(aborted) == Status.TASK_ABORTED, "at once, and not when the storage comes back"
    assert rig.kernel.kept_ids == {command.id}
    rig.kernel.submit(compare_and_write(5), block("z") * 2)
    other = rig.next(Arrived).command
    assert other.id != command.id
    assert not set(other.iovs) & set(command.iovs)
    rig.storage.release()
    finished = rig.next(Finished)
    assert (finished.command, finished.error) == (command, 0)
    assert rig.kernel.kept_ids == frozenset(), "freed before the main loop hears of it"
    assert rig.storage.medium[BLOCK : 2 * BLOCK] == block("a"), "its own data, to the end"


def test_io_that_fails_after_its_answer_changes_nothing_but_is_told(rig):
    rig.storage.hold(("write", 1))
    rig.storage.errors["write", 1] = errno.EIO
    busy = rig.kernel.submit(write(1), block("a"))
    rig.storage.wait_for(("write", 1))
    (command,) = rig.close_gate()
    rig.pump.complete(command, BUSY)
    assert rig.answer(busy) == Status.BUSY
    rig.storage.release()
    finished = rig.next(Finished)
    assert (finished.command, finished.error) == (command, errno.EIO)
    assert rig.kernel.kept_ids == frozenset()
    rig.pump.dispatch(command)
    rig.done()
    assert rig.storage.calls.count(("write", 1)) == 1


def test_where_no_thread_is_to_be_had_those_there_are_do_the_work(rig, monkeypatch):
    """A host's limit of threads. A pump that ended over it would take the daemon, with every LUN, along."""

    def start(thread):
        raise RuntimeError("can't start new thread")

    rig.done()
    monkeypatch.setattr(threading.Thread, "start", start)
    commands = [rig.kernel.submit(write(lba), block("a")) for lba in range(8)]
    assert [rig.answer(command) for command in commands] == [Status.GOOD] * 8


def test_io_that_waits_for_a_worker_is_withdrawn(single):
    single.storage.hold(("write", 1))
    first = single.kernel.submit(write(1), block("a"))
    single.storage.wait_for(("write", 1))
    second = single.kernel.submit(write(2), block("b"))
    single.kernel.submit(INQUIRY, data_in=96)
    single.next(Arrived)  # behind it: the second is out as well
    one, two = single.close_gate()
    single.pump.complete(two, BUSY)
    finished = single.next(Finished)
    assert (finished.command, finished.error) == (two, errno.ECANCELED)
    assert single.answer(second) == Status.BUSY
    assert single.kernel.kept_ids == frozenset(), "nothing is touching its buffer"
    single.storage.release()
    assert single.next(Finished).command is one
    assert single.answer(first) == Status.GOOD
    single.done()
    assert ("write", 2) not in single.storage.calls


def test_nothing_more_is_written_for_a_command_that_was_answered_between_two_steps(rig):
    rig.storage.hold(("read", 2))
    command = rig.kernel.submit(compare_and_write(2), bytes(BLOCK) + block("n"))
    arrived = rig.next(Arrived).command
    arrived.request = Request(Op.COMPARE_AND_WRITE, (Extent(2 * BLOCK, BLOCK),))
    rig.pump.dispatch(arrived)
    rig.storage.wait_for(("read", 2))
    arrived.answered = True
    rig.pump.complete(arrived, ABORTED)
    assert rig.answer(command) == Status.TASK_ABORTED
    rig.storage.release()
    assert rig.next(Finished).error == errno.ECANCELED
    assert rig.storage.calls == [("read", 2)]


# ---- data-in


def secret(rig: Rig) -> None:
    """Leave something in the data blocks that the next command gets."""
    assert rig.answer(rig.kernel.submit(write(0, 2), block("s") * 2)) == Status.GOOD


def test_short_data_in_is_said_with_its_length(rig):
    secret(rig)
    command = rig.kernel.submit(INQUIRY, data_in=96)
    rig.pump.complete(rig.next(Arrived).command, Reply(Status.GOOD, data=b"i" * 36))
    assert rig.answer(command) == Status.GOOD
    assert (command.data, command.residual) == (b"i" * 36, 60)


def test_more_data_in_than_asked_for_is_cut(rig):
    command = rig.kernel.submit(INQUIRY, data_in=8)
    rig.pump.complete(rig.next(Arrived).command, Reply(Status.GOOD, data=b"i" * 36))
    assert rig.answer(command) == Status.GOOD
    assert (command.data, command.residual) == (b"i" * 8, 0)


def test_no_data_in_at_all_goes_out_as_zeros(rig):
    """READ_LEN cannot say 0, and what another command left must not go out."""
    secret(rig)
    command = rig.kernel.submit(INQUIRY, data_in=96)
    rig.pump.complete(rig.next(Arrived).command, Reply(Status.GOOD, data=b""))
    assert rig.answer(command) == Status.GOOD
    assert command.data == bytes(96)


@pytest.mark.parametrize("reply", [BUSY, ABORTED], ids=["busy", "aborted"])
@pytest.mark.parametrize("cdb", [INQUIRY, read(5)], ids=["inquiry", "read"])
def test_an_answer_that_is_not_good_carries_no_foreign_data(rig, reply, cdb):
    secret(rig)
    rig.close_gate()
    command = rig.kernel.submit(cdb, data_in=BLOCK)
    rig.pump.complete(rig.next(Arrived).command, reply)
    assert rig.answer(command) == reply.status
    assert command.data == bytes(BLOCK)


@pytest.mark.parametrize("error", [0, errno.EIO], ids=["good", "failed"])
@pytest.mark.parametrize("asked", [Request(Op.FLUSH), Request(Op.VERIFY, (Extent(0, BLOCK),))], ids=["flush", "verify"])
def test_a_command_without_data_fills_a_buffer_that_came_with_it_with_zeros(rig, asked, error):
    """Nothing keeps an initiator from asking for Data-In where its command has none."""
    secret(rig)
    rig.storage.errors |= {("flush", 0): error, ("read", 0): error}
    command = rig.kernel.submit(INQUIRY, data_in=BLOCK)
    arrived = rig.next(Arrived).command
    arrived.request = asked
    rig.pump.dispatch(arrived)
    assert rig.next(Finished).error == error
    if error:
        rig.pump.complete(arrived, BUSY)
    assert rig.answer(command) == (Status.BUSY if error else Status.GOOD)
    assert command.data == bytes(BLOCK)


def test_a_read_that_failed_half_way_gives_nothing_away(rig):
    secret(rig)
    rig.storage.errors["read", 5] = errno.EIO
    command = rig.kernel.submit(read(5), data_in=BLOCK)
    rig.pump.complete(rig.next(Finished).command, BUSY)
    assert rig.answer(command) == Status.BUSY
    assert command.data == bytes(BLOCK)


def test_a_read_of_less_than_the_buffer_is_short(rig):
    secret(rig)
    command = rig.kernel.submit(read(0), data_in=2 * BLOCK)
    arrived = rig.next(Arrived).command
    arrived.request = Request(Op.READ, (Extent(0, BLOCK),))
    rig.pump.dispatch(arrived)
    assert rig.next(Finished).error == 0
    assert (rig.answer(command), command.data, command.residual) == (Status.GOOD, block("s"), BLOCK)


# ---- the end


def workers_of(rig: Rig) -> list[threading.Thread]:
    return list(rig.pump._workers._threads)


def stop_in_time(rig: Rig) -> None:
    stopper = threading.Thread(target=rig.pump.stop, daemon=True)
    stopper.start()
    stopper.join(PATIENCE)
    assert not stopper.is_alive(), "stop hangs"


def test_a_pump_that_was_never_started_gives_the_device_back():
    rig = Rig()
    rig.pump.stop()
    rig.pump.stop()
    rig.kernel.open().close()


def test_what_was_asked_before_the_stop_is_carried_out(rig):
    commands = [rig.kernel.submit(INQUIRY, data_in=96) for _ in range(5)]
    for _ in commands:
        rig.pump.complete(rig.next(Arrived).command, BUSY)
    stop_in_time(rig)
    assert [command.status for command in commands] == [Status.BUSY] * 5
    rig.pump.stop()
    rig.kernel.open().close()


def test_the_next_handler_gets_what_was_not_fetched(rig):
    stop_in_time(rig)
    rig.kernel.submit(write(1), block("a"))
    channel = rig.kernel.open()
    assert channel.memory[12] != channel.memory[64], "head and tail"
    channel.close()


def test_stopping_with_io_out_does_not_wait_for_it_and_the_device_stays_open():
    rig = Rig()
    rig.start()
    rig.storage.hold(("write", 1))
    command = rig.kernel.submit(write(1), block("a"))
    rig.storage.wait_for(("write", 1))
    stop_in_time(rig)
    assert command.status is None
    with pytest.raises(OSError, match="busy"):
        rig.kernel.open()
    workers = workers_of(rig)
    rig.storage.release()
    for thread in workers:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert rig.storage.medium[BLOCK : 2 * BLOCK] == block("a"), "it had its buffer to the end"
    kernel = rig.kernel
    del rig, workers, thread
    gc.collect()
    kernel.open().close()


def test_io_that_waits_for_a_worker_at_the_stop_is_never_made(single):
    single.storage.hold(("write", 1))
    single.kernel.submit(write(1), block("a"))
    single.storage.wait_for(("write", 1))
    single.kernel.submit(write(2), block("b"))
    single.kernel.submit(INQUIRY, data_in=96)
    single.next(Arrived)
    stop_in_time(single)
    single.storage.release()
    for thread in workers_of(single):
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert ("write", 2) not in single.storage.calls


# ---- the device is lost


def test_a_removed_device_breaks_the_pump(rig):
    rig.kernel.remove()
    assert rig.next(Broken).message == "LUN vm1: [Errno 19] the kernel removed the device"
    stop_in_time(rig)


def test_a_removed_device_with_io_out_breaks_the_pump_and_stop_still_returns(rig):
    rig.storage.hold(("write", 1))
    rig.kernel.submit(write(1), block("a"))
    rig.storage.wait_for(("write", 1))
    rig.kernel.remove()
    rig.next(Broken)
    rig.storage.release()
    stop_in_time(rig)


def test_what_is_asked_of_a_broken_pump_is_ignored(rig):
    rig.kernel.submit(INQUIRY, data_in=96)
    command = rig.next(Arrived).command
    rig.kernel.remove()
    rig.next(Broken)
    rig.pump.complete(command, BUSY)
    rig.pump.dispatch(command)
    rig.pump.gate(True)
    rig.pump.probe(Direction.READ)
    stop_in_time(rig)
    assert not list(rig.pump.events())


def test_a_pump_with_a_high_file_number_outlives_its_ring(make_rig):
    """select(2) takes numbers below 1024, and a daemon of some hundred LUNs has higher ones."""
    low, high = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(low, 1200), high))
    with contextlib.ExitStack() as filled:
        fd = os.open("/dev/null", os.O_RDONLY)
        filled.callback(os.close, fd)
        while fd < 1024:
            fd = os.dup(fd)
            filled.callback(os.close, fd)
        rig = make_rig()
        rig.start()
        rig.kernel.remove()
        rig.next(Broken)
        asked = time.monotonic()
        patiently(lambda: rig.pump.pulse() > asked)
        stop_in_time(rig)
    resource.setrlimit(resource.RLIMIT_NOFILE, (low, high))


def test_a_ring_that_makes_no_sense_breaks_the_pump(rig):
    """The head is corrupted and the bell rung by hand."""
    struct.pack_into("<I", rig.channel.memory, 12, 4)
    os.write(rig.kernel._bell, b"\0")
    assert "its head is at 4" in rig.next(Broken).message


def test_a_ring_of_another_version_is_refused_at_once():
    kernel = SimulatedKernel()
    channel = kernel.open()
    channel.memory[0] = 3
    with pytest.raises(Exception, match="version 3"):
        Rig.pump_class("vm1", channel, Storage(), BLOCK, Rig.sense_reply)
    channel.close()


# ---- anything


COMMANDS = ["write", "write", "read", "read", "sync", "compare", "inquiry"]
DISTURBANCES = ["abort", "hold", "release", "fail", "heal", "turn", "turn", "close", "settle"]
STEPS = st.lists(st.tuples(st.sampled_from([*COMMANDS, *DISTURBANCES]), st.integers(0, 7)), max_size=60)


@settings(deadline=None, max_examples=300)
@given(steps=STEPS, choices=st.lists(st.integers(0, 29), max_size=20), workers=st.integers(1, 3), late=st.booleans())
def test_any_mix_is_answered_once_each(steps, choices, workers, late):
    """An answer too many would break the simulated ring, one too few would leave a command without a status."""
    rig = Rig(workers=workers)
    loop = Loop(rig, choices)
    sent: list[SimulatedCommand] = []
    if not late:
        rig.start()
    for what, number in steps:
        match what:
            case "abort":
                rig.kernel.abort(sent[-number - 1 :: 2])
            case "hold":
                rig.storage.hold(("write", number))
            case "release":
                rig.storage.release()
            case "fail":
                rig.storage.errors["read" if number % 2 else "write", number] = errno.EIO
            case "heal":
                rig.storage.errors.clear()
            case "turn":
                loop.turn()
            case "close":
                rig.pump.gate(False)
            case "settle" if not late:
                rig.pump.probe(Direction.READ)
                rig.told()
            case _ if what in COMMANDS:
                sent.append(submit(rig, what, number))
    if late:
        rig.start()
    rig.storage.errors.clear()
    rig.storage.release()

    def all_answered() -> bool:
        loop.turn()
        rig.storage.release()
        return all(command.status is not None for command in sent) and not rig.kernel.kept_ids

    with contextlib.ExitStack() as stack:
        stack.callback(rig.pump.stop)
        patiently(all_answered)
    assert not rig.kernel.broken
    assert not rig.kernel.open_ids
    for command in sent:
        assert command.status in (Status.GOOD, Status.BUSY, Status.TASK_ABORTED, Status.CHECK_CONDITION)
        if command.cdb[0] == 0x28 and command.status == Status.GOOD:
            # Its own block, as it was or as it was written, and no other command's data.
            assert command.data in (bytes(BLOCK), bytes((command.cdb[5] + 1,)) * BLOCK)


# ---- the watchdog's question


def test_asking_for_its_pulse_makes_it_turn(rig):
    """Idle, with I/O that hangs, and with its ring lost: its thread still turns."""
    rig.storage.hold(("write", 5))
    rig.kernel.submit(write(5), block("p"))
    rig.storage.wait_for(("write", 5))
    asked = time.monotonic()
    patiently(lambda: rig.pump.pulse() > asked)
    rig.storage.release()
    rig.kernel.remove()
    rig.next(Broken)
    asked = time.monotonic()
    patiently(lambda: rig.pump.pulse() > asked)


def test_a_pump_that_stands_still_has_no_pulse(rig):
    """Its thread hangs: asking does not help."""
    stuck, release = threading.Event(), threading.Event()

    def hang() -> None:
        stuck.set()
        release.wait(PATIENCE)

    rig.pump._ask(hang)
    assert stuck.wait(PATIENCE)
    turned = {rig.pump.pulse() for _ in range(100)}
    assert len(turned) == 1
    release.set()
