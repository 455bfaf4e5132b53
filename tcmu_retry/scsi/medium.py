"""Commands that touch the medium: CDB to Request, after the checks of range, length and fields (SBC-4 §5)."""

from __future__ import annotations

import struct

from tcmu_retry.scsi.cdb import FUA, MAXIMUM_TRANSFER, Task, address, address_fields
from tcmu_retry.scsi.request import Compare, Extent, Op, Request
from tcmu_retry.scsi.sense import (
    INVALID_FIELD_IN_CDB,
    INVALID_FIELD_IN_COMMAND_IU,
    INVALID_FIELD_IN_PARAMETER_LIST,
    LBA_OUT_OF_RANGE,
    PARAMETER_LIST_LENGTH_ERROR,
    CheckCondition,
)
from tcmu_retry.scsi.unit import MAXIMUM_UNMAP, MAXIMUM_UNMAP_DESCRIPTORS, MAXIMUM_WRITE_SAME, Unit


def read(unit: Unit, task: Task) -> Request | None:
    """READ. A longer buffer is a residual; a shorter one would be an overflow, which the kernel cannot be told."""
    extent = _transfer(unit, task.cdb)
    if extent.length > task.data_length:
        raise CheckCondition(INVALID_FIELD_IN_COMMAND_IU)
    return Request(Op.READ, (extent,), fua=_fua(task.cdb)) if extent.length else None


def write(unit: Unit, task: Task) -> Request | None:
    """WRITE; the buffer must be what the CDB says, for the kernel cannot be told a residual of Data-Out either."""
    extent = _transfer(unit, task.cdb)
    _expect(task, extent.length)
    return Request(Op.WRITE, (extent,), fua=_fua(task.cdb)) if extent.length else None


def verify(unit: Unit, task: Task) -> Request | None:
    """VERIFY. Without comparison (BYTCHK 0) no data is expected, and data that came all the same is ignored."""
    return _verify(unit, task, Op.VERIFY)


def write_and_verify(unit: Unit, task: Task) -> Request | None:
    """WRITE AND VERIFY; BYTCHK 2 and 3 are reserved there."""
    return _verify(unit, task, Op.WRITE_AND_VERIFY)


def _verify(unit: Unit, task: Task, op: Op) -> Request | None:
    extent = _transfer(unit, task.cdb)
    writes = op is Op.WRITE_AND_VERIFY
    match task.cdb[1] >> 1 & 0x03:
        case 0:
            compare = Compare.NONE
        case 1:
            compare = Compare.ALL
        case 3 if not writes:
            compare = Compare.ONE_BLOCK
        case _:
            raise CheckCondition(INVALID_FIELD_IN_CDB.at(1, 2))
    if compare is Compare.ONE_BLOCK and extent.length:
        _expect(task, unit.block_size)
    elif writes or compare is Compare.ALL:
        _expect(task, extent.length)
    return Request(op, (extent,), compare=compare) if extent.length else None


def compare_and_write(unit: Unit, task: Task) -> Request | None:
    """COMPARE AND WRITE; the buffer holds what is expected, then what is written."""
    extent = _extent(unit, task.cdb)
    if task.data_length != 2 * extent.length:  # the length field has one byte: 256 blocks would say 0 there
        raise CheckCondition(INVALID_FIELD_IN_CDB.at(13))
    return Request(Op.COMPARE_AND_WRITE, (extent,), fua=_fua(task.cdb)) if extent.length else None


def or_write(unit: Unit, task: Task) -> Request | None:
    """OR WRITE (16)."""
    extent = _transfer(unit, task.cdb)
    _expect(task, extent.length)
    return Request(Op.OR_WRITE, (extent,), fua=_fua(task.cdb)) if extent.length else None


def write_same(unit: Unit, task: Task) -> Request:
    """WRITE SAME (10) and (16). Zero blocks never means "to the end" here (WSNZ of VPD B0)."""
    extent = _extent(unit, task.cdb)
    if not 0 < extent.length <= MAXIMUM_WRITE_SAME:
        raise CheckCondition(INVALID_FIELD_IN_CDB.at(address_fields(task.cdb)[1]))
    zeroes = bool(task.cdb[1] & 0x01)
    _expect(task, 0 if zeroes else unit.block_size)
    return Request(Op.WRITE_SAME, (extent,), unmap=bool(task.cdb[1] & 0x08), zeroes=zeroes)


def synchronize_cache(unit: Unit, task: Task) -> Request:
    """SYNCHRONIZE CACHE; the whole medium is flushed whatever range was named, and IMMED waits all the same."""
    _extent(unit, task.cdb)
    return Request(Op.FLUSH)


def pre_fetch(unit: Unit, task: Task) -> None:
    """PRE-FETCH; there is no cache to fetch into, so the range is all there is to it."""
    _extent(unit, task.cdb)


def unmap(unit: Unit, task: Task) -> Request | None:
    """UNMAP (SBC-4 §5.35). An incomplete last descriptor is ignored, as the standard says."""
    (length,) = struct.unpack_from(">H", task.cdb, 7)
    if length == 0:
        return None
    if length < 8 or task.data_length < length:
        raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR)
    parameters = task.data_out()[:length]
    (named,) = struct.unpack_from(">2xH", parameters)
    descriptors = memoryview(parameters)[8 : 8 + named]
    number = len(descriptors) // 16
    if number > MAXIMUM_UNMAP_DESCRIPTORS:
        raise CheckCondition(INVALID_FIELD_IN_PARAMETER_LIST.at(2, in_cdb=False))
    extents = []
    total = 0
    for index in range(number):
        lba, count = struct.unpack_from(">QI", descriptors, index * 16)
        if lba + count > unit.blocks:
            raise CheckCondition(LBA_OUT_OF_RANGE)
        total += count * unit.block_size
        if total > MAXIMUM_UNMAP:
            raise CheckCondition(INVALID_FIELD_IN_PARAMETER_LIST.at(16 + index * 16, in_cdb=False))
        if count:
            extents.append(Extent(lba * unit.block_size, count * unit.block_size))
    return Request(Op.UNMAP, tuple(extents)) if extents else None


def _extent(unit: Unit, cdb: bytes) -> Extent:
    lba, count = address(cdb)
    if lba + count > unit.blocks:
        raise CheckCondition(LBA_OUT_OF_RANGE)
    return Extent(lba * unit.block_size, count * unit.block_size)


def _transfer(unit: Unit, cdb: bytes) -> Extent:
    extent = _extent(unit, cdb)
    if extent.length > MAXIMUM_TRANSFER:
        raise CheckCondition(INVALID_FIELD_IN_CDB.at(address_fields(cdb)[1]))
    return extent


def _expect(task: Task, length: int) -> None:
    if task.data_length != length:
        raise CheckCondition(INVALID_FIELD_IN_COMMAND_IU)


def _fua(cdb: bytes) -> bool:
    return cdb[0] >= 0x20 and bool(cdb[1] & FUA)  # in READ (6) and WRITE (6) the bit belongs to the LBA
