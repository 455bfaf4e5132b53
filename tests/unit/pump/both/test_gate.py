"""The gate of both pumps: what closes it, what is handed over then, and whose word opens it."""

from __future__ import annotations

import errno

from tcmu_retry.pump.base import Arrived, Finished, Probed
from tcmu_retry.scsi.request import Direction, Status
from tests.unit.pump.rig import BLOCK, block, compare_and_write, failed, patiently, write


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
