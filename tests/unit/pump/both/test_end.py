"""The end of both pumps: asked for, with I/O out, or because the device or its ring is lost."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import struct
import threading
import time

import pytest

from tcmu_retry.pump.base import Arrived, Broken
from tcmu_retry.scsi.request import BUSY, Direction, Status
from tcmu_retry.tcmu.ring import layout
from tcmu_retry.tcmu.simulated import SimulatedKernel
from tests.unit.pump.rig import BLOCK, INQUIRY, PATIENCE, Rig, Storage, block, patiently, write


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


def test_a_ring_that_is_overwritten_under_its_io_breaks_the_pump(rig):
    """An entry without a length, before its completion: the pump does not walk on the spot for ever."""
    rig.storage.hold(("write", 1))
    rig.kernel.submit(write(1), block("a"))
    rig.storage.wait_for(("write", 1))
    struct.pack_into("<I", rig.channel.memory, layout(rig.channel.memory)[0], 0)
    rig.storage.release()
    assert "an entry of 0 bytes" in rig.next(Broken).message


def test_a_ring_of_another_version_is_refused_at_once():
    kernel = SimulatedKernel()
    channel = kernel.open()
    channel.memory[0] = 3
    with pytest.raises(Exception, match="version 3"):
        Rig.pump_class("vm1", channel, Storage(), BLOCK, Rig.sense_reply)
    channel.close()
