"""What both pumps do unasked: plain I/O, what was queued before they came, and that they turn."""

from __future__ import annotations

import threading
import time

import pytest

from tcmu_retry.pump.base import Arrived, Broken, Shape, TaskManagement
from tcmu_retry.scsi.request import GOOD, Status
from tests.unit.pump.rig import BLOCK, BLOCKS, INQUIRY, PATIENCE, SYNC, Rig, block, failed, patiently, read, write


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
