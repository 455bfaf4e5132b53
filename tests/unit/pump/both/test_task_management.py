"""Task management in both pumps, and what is answered while its I/O runs."""

from __future__ import annotations

import errno
import threading

from tcmu_retry.pump.base import Arrived, Finished, TaskManagement
from tcmu_retry.scsi.request import BUSY, GOOD, Extent, Op, Request, Status
from tcmu_retry.tcmu.simulated import LUN_RESET, SimulatedCommand
from tests.unit.pump.rig import ABORTED, BLOCK, INQUIRY, block, compare_and_write, failed, patiently, write


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
