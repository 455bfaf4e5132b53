"""Any bytes as a row of commands through the simulated kernel and a pump: answered to the byte as without them.

Each command goes to a LUN of the kernel's, its pump and the least main loop there is, and to a twin: the disk alone and
its requests carried out over buffers of their own. Status, sense, Data-In and medium must agree. The kernel's data
blocks keep what earlier commands left in them, so another command's data in a Data-In is a difference.
"""

from __future__ import annotations

import errno
import select
import time
from dataclasses import replace

from tcmu_retry.pump.base import Arrived, Command, Finished, Shape
from tcmu_retry.pump.execute import execute
from tcmu_retry.pump.native.pump import NativePump
from tcmu_retry.pump.reference import ReferencePump
from tcmu_retry.scsi.disk import Disk
from tcmu_retry.scsi.request import Op, Reply, Status
from tcmu_retry.scsi.sense import MISCOMPARE
from tcmu_retry.tcmu.simulated import SimulatedCommand, SimulatedKernel
from tests.fuzz.commands import IDENTITY, MOST_COMMANDS, SHAPES, STALE_BYTE, Input, Medium, cdb

CDB_BYTES = (6, 10, 10, 16, 16, 12, 16, 16)  # by group code; of 3, 6 and 7 the ring tells no length
PATIENCE = 30.0  # seconds; nothing takes as long unless it hangs


class Loop:
    """A LUN behind a pump. `answer` sends one command and waits for its end."""

    def __init__(self, pump: type[ReferencePump], disk: Disk, medium: Medium) -> None:
        self.kernel = SimulatedKernel(ring=4096, data=1 << 20, block=4096)
        self._disk = disk
        self._pump = pump("fuzz", self.kernel.open(), medium, disk.block_size, disk.sense_reply, workers=1)
        self._reshape()
        self._pump.start()
        self._poll = select.poll()
        self._poll.register(self._pump.fileno(), select.POLLIN)
        self._failures = 0

    def answer(self, raw: bytes, data_out: bytes, data_in: int) -> SimulatedCommand:
        self._failures = 0
        sent = self.kernel.submit(raw, data_out, data_in)
        until = time.monotonic() + PATIENCE
        while not sent.wait(0.0002):
            if self._poll.poll(0):
                self._take()
            assert time.monotonic() < until, f"{raw.hex(' ')} was never answered"
        return sent

    def end(self) -> None:
        self._take()
        self._pump.stop()
        assert not self.kernel.broken
        assert not self.kernel.open_ids

    def _take(self) -> None:
        for event in self._pump.events():
            match event:
                case Arrived(command):
                    self._arrived(command)
                case Finished(command, 0):
                    if command.request is not None and command.request.op is Op.COPY:
                        self._disk.copied(command.request, good=True)
                case Finished(command, error):
                    assert error == errno.EIO, "an error that no storage had"
                    self._failures += 1
                    assert self._failures == 1, "one failing call ended two attempts"
                    self._pump.dispatch(command)
            self._pump.gate(True)

    def _arrived(self, command: Command) -> None:
        outcome = self._disk.handle(command.cdb, command.data_length, lambda: self._pump.data_out(command))
        self._reshape()
        if isinstance(outcome, Reply):
            self._pump.complete(command, outcome)
        else:
            command.request = outcome
            self._pump.dispatch(command)

    def _reshape(self) -> None:
        disk = self._disk
        self._pump.shape(Shape(disk.block_size, disk.blocks, not disk.read_only) if disk.plain else None)


def check(data: bytes) -> int:
    """Through one pump or the other, as the input's last byte says; how many commands there were."""
    return agree(data, NativePump if data and data[-1] & 1 else ReferencePump)


def agree(data: bytes, pump: type[ReferencePump]) -> int:
    """Carry an input's commands out on both sides and assert that they agree; how many there were."""
    source = Input(data)
    shape = source.take(1)[0]
    block_size, blocks = SHAPES[shape & 1]
    media = [Medium(block_size, blocks, can_discard=bool(shape & 4)) for _ in range(2)]
    disks = [
        Disk(IDENTITY, block_size, blocks * block_size, can_discard=bool(shape & 4), read_only=bool(shape & 2))
        for _ in range(2)
    ]
    loop = Loop(pump, disks[0], media[0])
    count = 0
    try:
        while count < MOST_COMMANDS and not source.ended:
            count += 1
            first = source.take(1)[0]
            for medium in media:
                medium.fault = first & 0x0F
            raw = _as_queued(cdb(source))
            size = source.number(4096) if source.take(1)[0] & 1 else source.number(blocks + 2) * block_size
            out = source.take(min(size, source.number(160))).ljust(size, bytes((STALE_BYTE,)))
            reply, takes_data = _alone(disks[1], media[1], raw, out)
            # The ring does not say which way data goes; Data-Out that nobody asked for does no harm, either.
            inwards = not takes_data and not first & 0x10
            sent = loop.answer(raw, b"" if inwards else out, size if inwards else 0)
            assert (sent.status, sent.sense.rstrip(b"\0")) == (reply.status, reply.sense.rstrip(b"\0")), raw.hex(" ")
            if inwards:
                nothing = b"" if reply.sense else bytes(size)  # READ_LEN cannot say 0
                assert sent.data == (reply.data or nothing), raw.hex(" ")
            assert media[0].data == media[1].data, raw.hex(" ")
    finally:
        loop.end()
    return count


def _as_queued(raw: bytes) -> bytes:
    """As long as the kernel makes it."""
    raw = raw.ljust(16, b"\0")
    size = 8 + raw[7] if raw[0] == 0x7F else CDB_BYTES[raw[0] >> 5]
    return raw.ljust(size, b"\0")[:size]


def _alone(disk: Disk, medium: Medium, raw: bytes, out: bytes) -> tuple[Reply, bool]:
    """What a command comes to without ring and pump, with its Data-In; and whether it takes Data-Out."""
    asked = False

    def data_out() -> bytes:
        nonlocal asked
        asked = True
        return out

    outcome = disk.handle(raw, len(out), data_out)
    if isinstance(outcome, Reply):
        return outcome, asked
    buffer = bytearray(out)
    command = Command(1, 1, raw, (), 0.0, outcome)
    try:
        differs = execute(command, medium, [memoryview(buffer)], disk.block_size)
    except OSError:  # a medium fails once
        differs = execute(command, medium, [memoryview(buffer)], disk.block_size)
    if outcome.op is Op.COPY:
        disk.copied(outcome, good=True)
    if differs is not None:
        return disk.sense_reply(replace(MISCOMPARE, information=differs)), True
    return Reply(Status.GOOD, data=bytes(buffer[: outcome.length]) if outcome.op is Op.READ else None), (
        asked or outcome.takes_data
    )
