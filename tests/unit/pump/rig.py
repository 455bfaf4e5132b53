"""A pump between the simulated kernel and storage in memory, and what the tests of pumps do with it."""

from __future__ import annotations

import errno
import os
import select
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from tcmu_retry.backends.base import Backend, Identity
from tcmu_retry.backends.replay import ReplayLog
from tcmu_retry.backends.shelf import Shelf
from tcmu_retry.pump.base import Closed, Command, Event, Finished, Probed, Shape
from tcmu_retry.pump.reference import ReferencePump
from tcmu_retry.scsi.request import Direction, Reply, Status
from tcmu_retry.scsi.sense import Sense
from tcmu_retry.tcmu.simulated import SimulatedChannel, SimulatedCommand, SimulatedKernel

REPLAY_BYTES, SHELF = 64 << 20, 96 << 20
BLOCK = 512
BLOCKS = 64
PATIENCE = 10.0  # seconds; nothing takes as long unless it hangs
ABORTED = Reply(Status.TASK_ABORTED)
INQUIRY = bytes((0x12, 0, 0, 0, 96, 0))
SYNC = bytes((0x35,)).ljust(10, b"\0")
Call = tuple[str, int]  # what was called, first block
Some = TypeVar("Some", bound=Event)


def read(lba: int, count: int = 1) -> bytes:
    return struct.pack(">BxIxHx", 0x28, lba, count)


def write(lba: int, count: int = 1) -> bytes:
    return struct.pack(">BxIxHx", 0x2A, lba, count)


def compare_and_write(lba: int) -> bytes:
    return struct.pack(">BxQ3xBxx", 0x89, lba, 1)


def block(letter: str) -> bytes:
    return letter.encode() * BLOCK


def patiently(what: Callable[[], bool]) -> None:
    """Wait for something that nobody tells of."""
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, "it never happened"
        os.sched_yield()


class Storage:
    """In memory. `errors`: what a call fails with, until it is taken out; `hold`: calls that block until let go."""

    block_size = BLOCK
    can_discard = True
    write_back = False

    def __init__(self) -> None:
        self.medium = bytearray(BLOCKS * BLOCK)
        self.errors: dict[Call, int | Exception] = {}
        self.calls: list[Call] = []
        self.entered: dict[Call, threading.Event] = {}
        self.let_go: dict[Call, threading.Event] = {}

    @property
    def identity(self) -> Identity:
        return Identity("file", len(self.medium), "")

    def hold(self, *calls: Call) -> None:
        for call in calls:
            if call in self.let_go and not self.let_go[call].is_set():
                continue  # one that waits already must see the release
            self.entered[call] = threading.Event()
            self.let_go[call] = threading.Event()

    def wait_for(self, call: Call) -> None:
        assert self.entered[call].wait(PATIENCE), f"{call} was never made"

    def release(self, *calls: Call) -> None:
        for call in calls or tuple(self.let_go):
            self.let_go[call].set()

    def _enter(self, *call: str | int) -> None:
        name, offset = call
        key = (str(name), int(offset) // BLOCK)
        self.calls.append(key)
        if key in self.let_go:
            self.entered[key].set()
            assert self.let_go[key].wait(PATIENCE), f"{key} was never let go"
        error = self.errors.get(key, 0)
        if isinstance(error, Exception):
            raise error
        if error:
            raise OSError(error, os.strerror(error))

    def read(self, offset: int, buffers: Sequence[memoryview]) -> int:
        self._enter("read", offset)
        done = 0
        for view in buffers:
            view[:] = self.medium[offset + done : offset + done + len(view)]
            done += len(view)
        return done

    def write(self, offset: int, buffers: Sequence[memoryview], durable: bool) -> int:
        self._enter("write", offset)
        data = b"".join(buffers)
        self.medium[offset : offset + len(data)] = data
        return len(data)

    def flush(self) -> None:
        self._enter("flush", 0)

    def discard(self, offset: int, length: int) -> None:
        raise AssertionError("not asked for here")

    def zero(self, offset: int, length: int, discard: bool) -> None:
        raise AssertionError("not asked for here")

    def close(self) -> None:
        raise AssertionError("a pump does not close the storage")


class Channel(SimulatedChannel):
    """With a say at the doorbell: what happens in the kernel just before and just after it."""

    before: Callable[[], object] | None = None
    after: Callable[[], object] | None = None

    def doorbell(self) -> None:
        before, self.before = self.before, None
        if before:
            before()
        super().doorbell()
        after, self.after = self.after, None
        if after:
            after()


def make_log() -> ReplayLog:
    """Of a new LUN, as the daemon has it."""
    shelf = Shelf(os.memfd_create("shelf", os.MFD_CLOEXEC), "vm1", SHELF)
    shelf.begin()
    return ReplayLog(REPLAY_BYTES, shelf)


class Rig:
    """A pump and both its ends. Not started: whatever is submitted before `start` is one batch.

    `log`: of write-back, where it is that.
    """

    pump_class: type[ReferencePump]
    write_back = False

    def __init__(self, workers: int = 4, shape: bool = True, storage: Storage | None = None, ring: int = 4096) -> None:
        self.kernel = SimulatedKernel(ring=ring, data=4 << 20)
        self.storage = storage or Storage()
        self.log = self.make_log() if self.write_back else None
        self.channel = self.kernel.open()
        self.channel.__class__ = Channel
        self.pump = self.pump_class(
            "vm1", self.channel, self.backend(), BLOCK, self.sense_reply, clock=lambda: 7.0, workers=workers
        )
        self.pump.shape(Shape(BLOCK, BLOCKS, True) if shape else None)
        self._taken: deque[Event] = deque()

    def backend(self) -> Backend:
        """What the pump uses."""
        return self.log.over(self.storage) if self.log is not None else self.storage

    def make_log(self) -> ReplayLog:
        return make_log()

    @staticmethod
    def sense_reply(sense: Sense) -> Reply:
        return Reply(Status.CHECK_CONDITION, sense.fixed())

    def start(self) -> None:
        self.pump.start()

    def told(self) -> bool:
        """Whether there is something to take, after a while."""
        poll = select.poll()
        poll.register(self.pump.fileno(), select.POLLIN)
        return bool(poll.poll(PATIENCE * 1000))

    def next(self, kind: type[Some]) -> Some:
        """The next event, which must be one of these."""
        while not self._taken:
            assert self.told(), f"nothing came, and {kind.__name__} should have"
            self._taken.extend(self.pump.events())
        event = self._taken.popleft()
        assert isinstance(event, kind), event
        return event

    def done(self) -> None:
        """Wait until the pump has done what it was asked; leaves the gate as it is. Nothing else may be told."""
        self.pump.probe(Direction.READ)
        self.next(Probed)

    def close_gate(self) -> tuple[Command, ...]:
        self.pump.gate(False)
        return self.next(Closed).running

    def open_gate(self) -> None:
        self.pump.gate(True)
        self.done()

    def answer(self, command: SimulatedCommand) -> int:
        assert command.wait(PATIENCE), f"{command} was never answered"
        assert command.status is not None
        return command.status

    def end(self) -> None:
        self.storage.release()
        self.pump.stop()
        assert not self.kernel.broken


def failed(rig: Rig, lba: int = 9) -> tuple[SimulatedCommand, Finished]:
    """A write that failed and closed the gate."""
    rig.storage.errors["write", lba] = errno.EIO
    command = rig.kernel.submit(write(lba), block("f"))
    return command, rig.next(Finished)
