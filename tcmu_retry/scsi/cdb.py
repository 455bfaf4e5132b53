"""Fields of CDBs, by opcode group, and the fast path: the commands that need nothing but I/O."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from tcmu_retry.scsi.request import Extent, Op, Request

MAXIMUM_TRANSFER = 2 << 20  # bytes of one command's Data-In or Data-Out; VPD B0 says it in blocks
# Opcodes of COMPARE AND WRITE, OR WRITE and EXTENDED COPY, whose requests exclude other writes (`Op.excludes`).
EXCLUDING = frozenset((0x83, 0x89, 0x8B))
FUA = 0x08
FUA_DPO = 0x18

_ADDRESS_10 = struct.Struct(">2xIxHx")
_ADDRESS_12 = struct.Struct(">2xII2x")
_ADDRESS_16 = struct.Struct(">2xQI2x")


@dataclass(frozen=True, slots=True)
class Task:
    """A command that is being looked at. data_length: bytes of its buffers, of unknown direction; 0 without."""

    cdb: bytes
    data_length: int
    data_out: Callable[[], bytes]  # gathers the buffers


def address(cdb: bytes) -> tuple[int, int]:
    """LOGICAL BLOCK ADDRESS and TRANSFER LENGTH (READ (6) and WRITE (6): 0 means 256 blocks), by opcode group."""
    match cdb[0] >> 5:
        case 0:
            return int.from_bytes(cdb[1:4], "big") & 0x1FFFFF, cdb[4] or 256
        case 4:
            lba, count = _ADDRESS_16.unpack_from(cdb)
        case 5:
            lba, count = _ADDRESS_12.unpack_from(cdb)
        case _:
            lba, count = _ADDRESS_10.unpack_from(cdb)
    return lba, count


def address_fields(cdb: bytes) -> tuple[int, int]:
    """Where `address` finds them: the first bytes of LOGICAL BLOCK ADDRESS and TRANSFER LENGTH."""
    return {0: (1, 4), 4: (2, 10), 5: (2, 6)}.get(cdb[0] >> 5, (2, 7))


# What follows the opcode: flags, LBA, group number, length, control; 12 and 16: length before group; 6: LBA and length
# in one word, below three obsolete bits.
_SIX = struct.Struct(">xIB").unpack_from
_TEN = struct.Struct(">xBIBHB").unpack_from
_TWELVE = struct.Struct(">xBIIBB").unpack_from
_SIXTEEN = struct.Struct(">xBQIBB").unpack_from

_TRANSFERS = {
    0x28: (Op.READ, _TEN, 10),
    0x2A: (Op.WRITE, _TEN, 10),
    0x88: (Op.READ, _SIXTEEN, 16),
    0x8A: (Op.WRITE, _SIXTEEN, 16),
    0xA8: (Op.READ, _TWELVE, 12),
    0xAA: (Op.WRITE, _TWELVE, 12),
    0x08: (Op.READ, _SIX, 6),
    0x0A: (Op.WRITE, _SIX, 6),
    0x35: (Op.FLUSH, _TEN, 10),
    0x91: (Op.FLUSH, _SIXTEEN, 16),
}
_FLUSH = Request(Op.FLUSH)


def plain(cdb: bytes, data_length: int, block_size: int, blocks: int, writable: bool) -> Request | None:
    """The request of a READ, WRITE or SYNCHRONIZE CACHE that has nothing unusual; None: `Disk.handle` must see it."""
    if not cdb:
        return None
    entry = _TRANSFERS.get(cdb[0])
    if entry is None:
        return None
    op, unpack, size = entry
    if len(cdb) < size:
        return None
    if size == 10:
        flags, lba, group, count, control = unpack(cdb)
    elif size == 6:
        word, control = unpack(cdb)
        flags, group, lba, count = 0, word >> 29, word >> 8, word & 0xFF or 256
    else:
        flags, lba, count, group, control = unpack(cdb)
    if group or control or lba + count > blocks:
        return None
    if op is Op.FLUSH:
        return None if flags & ~0x02 or data_length else _FLUSH
    length = count * block_size
    if flags & ~FUA_DPO or not length or length != data_length or length > MAXIMUM_TRANSFER:
        return None
    if op is Op.WRITE and not writable:
        return None
    return Request(op, (Extent(lba * block_size, length),), flags & FUA != 0)
