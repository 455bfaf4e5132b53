"""A LUN to send commands to by name."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

import pytest

from tcmu_retry.scsi.disk import Disk, DiskIdentity
from tcmu_retry.scsi.opcodes import TABLE
from tcmu_retry.scsi.request import Reply, Request, Status
from tcmu_retry.scsi.sense import Sense, parse

IDENTITY = DiskIdentity(serial="aabbccdd-1122-3344-5566-778899aabbcc", name="vm1")
BLOCKS = 1 << 20


def cdb(name: str, lba: int = 0, count: int = 0, flags: int = 0, put: Mapping[int, int] | None = None) -> bytes:
    """A CDB by its name in the table. count: transfer, allocation or parameter list length, where its opcode group has
    it; flags: bits of byte 1; put: other bytes by index.
    """
    row = next(row for row in TABLE if row.name == name)
    data = bytearray(len(row.usage))
    match row.opcode >> 5:
        case 0:
            struct.pack_into(">IB", data, 0, lba, count)
        case 4:
            struct.pack_into(">QI", data, 2, lba, count)
        case 5:
            struct.pack_into(">II", data, 2, lba, count)
        case _:
            struct.pack_into(">IxH", data, 2, lba, count)
    data[0] = row.opcode
    data[1] |= (row.action or 0) | flags
    for index, value in (put or {}).items():
        data[index] = value
    return bytes(data)


class Lun:
    """A disk and a terse way to talk to it."""

    def __init__(
        self,
        block_size: int = 512,
        blocks: int = BLOCKS,
        can_discard: bool = True,
        read_only: bool = False,
        identity: DiskIdentity = IDENTITY,
        **more: int,
    ) -> None:
        self.block_size = block_size
        self.blocks = blocks
        self.disk = Disk(
            identity, block_size, blocks * block_size, can_discard=can_discard, read_only=read_only, **more
        )

    def send(self, command: str | bytes, data: bytes = b"", length: int | None = None, **fields) -> Request | Reply:
        """data: Data-Out; length: of the buffers, where it is not that of data."""
        raw = command if isinstance(command, bytes) else cdb(command, **fields)
        return self.disk.handle(raw, len(data) if length is None else length, lambda: data)

    def good(self, command: str | bytes, **fields) -> bytes:
        """Data-In of a command that must end GOOD without I/O."""
        reply = self.send(command, **fields)
        assert isinstance(reply, Reply), reply
        assert reply.status is Status.GOOD, parse(reply.sense)
        return reply.data or b""

    def refused(self, command: str | bytes, **fields) -> Sense:
        """The sense of a command that must end with CHECK CONDITION."""
        reply = self.send(command, **fields)
        assert isinstance(reply, Reply), reply
        assert reply.status is Status.CHECK_CONDITION
        sense = parse(reply.sense)
        assert sense is not None
        return sense

    def request(self, command: str | bytes, **fields) -> Request:
        """What a command asks of the storage."""
        request = self.send(command, **fields)
        assert isinstance(request, Request), parse(request.sense)
        return request


@pytest.fixture
def make_lun() -> Callable[..., Lun]:
    return Lun


@pytest.fixture
def lun() -> Lun:
    """Thin, 512-byte blocks, 512 MiB."""
    return Lun()
