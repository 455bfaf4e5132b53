"""Any bytes as a row of commands: through the disk and against storage in memory, with all that must never happen.

An input is decoded, never refused: a byte chooses a row of the opcode table or a raw opcode, others fill the CDB, so a
fuzzer's mutations stay meaningful. The same `check` serves atheris (`make fuzz`) and Hypothesis (the unit tier).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from tcmu_retry.backends.base import Identity
from tcmu_retry.pump.base import Command
from tcmu_retry.pump.execute import execute
from tcmu_retry.scsi.cdb import plain
from tcmu_retry.scsi.disk import Disk, DiskIdentity
from tcmu_retry.scsi.opcodes import TABLE
from tcmu_retry.scsi.request import Direction, Op, Reply, Request, Status
from tcmu_retry.scsi.sense import parse

SHAPES = ((512, 64), (4096, 16))  # block size, blocks
MOST_COMMANDS = 8
GUARD = 64  # bytes around each buffer that nobody may touch
GUARD_BYTE, STALE_BYTE = 0xEE, 0xA5  # STALE: what an earlier command left in a buffer
IDENTITY = DiskIdentity("aabbccdd-1122-3344-5566-778899aabbcc", "fuzz")


@dataclass(slots=True)
class Input:
    """Takes bytes off an input; zeros where it has ended."""

    data: bytes
    at: int = 0

    def take(self, count: int) -> bytes:
        piece = self.data[self.at : self.at + count]
        self.at += count
        return piece.ljust(count, b"\0")

    def number(self, below: int) -> int:
        return int.from_bytes(self.take(2), "big") % below

    @property
    def ended(self) -> bool:
        return self.at >= len(self.data)


@dataclass(slots=True)
class Medium:
    """Storage in memory that takes whole blocks within its size only. `fault`: the call that fails, once; 0 is none."""

    block_size: int
    blocks: int
    fault: int = 0
    can_discard: bool = True
    write_back: bool = False
    data: bytearray = field(init=False)
    changed: bool = False

    def __post_init__(self) -> None:
        self.data = bytearray(self.blocks * self.block_size)

    @property
    def identity(self) -> Identity:
        return Identity("file", len(self.data), "")

    def _enter(self, offset: int, length: int) -> None:
        assert 0 <= offset <= offset + length <= len(self.data), f"{offset}+{length} is not on the medium"
        assert offset % self.block_size == length % self.block_size == 0, f"{offset}+{length}: no whole blocks"
        self.fault -= 1
        if self.fault == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def read(self, offset: int, buffers: Sequence[memoryview]) -> int:
        self._enter(offset, sum(map(len, buffers)))
        at = offset
        for view in buffers:
            view[:] = self.data[at : at + len(view)]
            at += len(view)
        return at - offset

    def write(self, offset: int, buffers: Sequence[memoryview], durable: bool) -> int:
        data = b"".join(buffers)
        self._enter(offset, len(data))
        assert durable, "a write-through disk wrote into a cache"
        self.changed = True
        self.data[offset : offset + len(data)] = data
        return len(data)

    def flush(self) -> None:
        self._enter(0, 0)

    def discard(self, offset: int, length: int) -> None:
        self.zero(offset, length, True)

    def zero(self, offset: int, length: int, discard: bool) -> None:
        self._enter(offset, length)
        self.changed = True
        self.data[offset : offset + length] = bytes(length)

    def close(self) -> None:
        raise AssertionError("a command closed the storage")


def check(data: bytes) -> int:
    """Carry an input's commands out and assert what holds for any; how many there were."""
    source = Input(data)
    shape = source.take(1)[0]
    block_size, blocks = SHAPES[shape & 1]
    read_only = bool(shape & 2)
    medium = Medium(block_size, blocks, can_discard=bool(shape & 4))
    disk = Disk(IDENTITY, block_size, blocks * block_size, can_discard=medium.can_discard, read_only=read_only)
    count = 0
    while count < MOST_COMMANDS and not source.ended:
        count += 1
        medium.fault = source.take(1)[0] & 0x0F
        _command(source, disk, medium)
    assert not (read_only and medium.changed), "a write-protected medium was changed"
    return count


def cdb(source: Input) -> bytes:
    """By the table with a small LBA and length, by the table with any fields, or anything of any length."""
    kind = source.take(1)[0]
    row = TABLE[source.take(1)[0] % len(TABLE)]
    size = len(row.usage)
    match kind % 4:
        case 0:
            return source.take(source.take(1)[0] % 33)
        case 1:
            return bytes((row.opcode,)) + source.take(size - 1)
        case _:
            fields = bytes(given & used for given, used in zip(source.take(size), row.usage, strict=True))
            made = bytearray(fields)
            made[0] = row.opcode
            made[1] = made[1] & ~0x1F | row.action if row.action is not None else made[1]
            made[-1] = 0
            first, last = {6: (2, 4), 10: (2, 6), 12: (2, 6), 16: (2, 10)}[size]
            if row.access.value != "none" and row.opcode not in (0x42, 0x83):
                made[first : last - 1] = bytes(last - 1 - first)  # an LBA below 256: often on the medium
                made[last - 1] %= 80
                if size > 6:
                    made[last : size - 3] = bytes(size - 3 - last)
            return bytes(made)


def _command(source: Input, disk: Disk, medium: Medium) -> None:
    raw = cdb(source)
    blocks = disk.blocks * disk.block_size
    size = source.number(4096) if source.take(1)[0] & 1 else source.number(disk.blocks + 2) * disk.block_size
    out = source.take(min(size, source.number(160))).ljust(size, bytes((STALE_BYTE,)))
    memory = bytearray((GUARD_BYTE,)) * (GUARD * 9 + size)
    views, at, left = [], GUARD, size
    while left:
        piece = left if len(views) == 7 else min(left, 1 + source.number(left))
        memory[at : at + piece] = out[size - left : size - left + piece]
        views.append(memoryview(memory)[at : at + piece])
        at += piece + GUARD
        left -= piece
    gathered = b"".join(views)
    assert gathered == out
    unasked = plain(raw, size, disk.block_size, disk.blocks, not disk.read_only) if disk.plain else None
    before = bytes(medium.data)
    outcome = disk.handle(raw, size, lambda: gathered)
    if unasked is not None:
        assert outcome == unasked, "the fast path means something else than the disk"
    if isinstance(outcome, Reply):
        _reply(outcome, size)
        assert medium.data == before
        assert b"".join(views) == out, "a reply wrote into the buffers by itself"
    else:
        _request(raw, outcome, medium, views, disk.block_size, blocks)
        if outcome.op not in (Op.READ,):
            assert b"".join(views) == out, "Data-Out was changed"
        if outcome.direction is Direction.READ:
            assert medium.data == before, "a command that reads wrote"
        if outcome.op is Op.COPY:
            disk.copied(outcome, good=True)
    at = GUARD
    edges = memory[:GUARD]
    for view in views:
        edges += memory[at + len(view) : at + len(view) + GUARD]
        at += len(view) + GUARD
    assert not edges.strip(bytes((GUARD_BYTE,))), "a byte outside the buffers was touched"


def _reply(reply: Reply, size: int) -> None:
    assert reply.status in (Status.GOOD, Status.CHECK_CONDITION)
    if reply.status is Status.CHECK_CONDITION:
        sense = parse(reply.sense)
        assert sense is not None, "CHECK CONDITION without sense"
        assert (sense.asc, sense.key) != (0x44, 0x4), "our own code failed"
        assert len(reply.sense) <= 96, "the kernel's sense buffer is shorter"
    else:
        assert not reply.sense
        assert reply.data is None or len(reply.data) <= size
        # None leaves the buffers alone, so that only a command without Data-In may say it.
        assert reply.data is not None or size == 0, "what an earlier command left in the buffers would go out"


def _request(raw: bytes, request: Request, medium: Medium, views: list[memoryview], block_size: int, size: int) -> None:
    assert all(extent.offset >= 0 and extent.length > 0 and extent.end <= size for extent in request.extents)
    command = Command(1, 1, raw, (), 0.0, request)
    for _ in range(2):
        try:
            execute(command, medium, views, block_size)
        except OSError as error:
            assert error.errno == errno.EIO, "an error that no storage had"
            continue
        return
    raise AssertionError("one failing call ended two attempts")
