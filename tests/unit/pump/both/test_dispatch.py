"""What both pumps are asked to do: run a command, answer it, probe."""

from __future__ import annotations

import errno

from tcmu_retry.pump.base import Arrived, Finished, Probed
from tcmu_retry.scsi.request import BUSY, Direction, Extent, Op, Reply, Request, Status
from tcmu_retry.scsi.sense import MISCOMPARE
from tcmu_retry.scsi.sense import parse as parse_sense
from tcmu_retry.tcmu.simulated import SimulatedCommand
from tests.unit.pump.rig import ABORTED, BLOCK, INQUIRY, Storage, block, compare_and_write, failed, write


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
