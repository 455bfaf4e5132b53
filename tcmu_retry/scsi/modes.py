"""MODE SENSE and MODE SELECT: headers, block descriptors and the three pages (SPC-4 §6.11, §7.5; SBC-4 §6.5)."""

from __future__ import annotations

import enum
import struct

from tcmu_retry.scsi.cdb import Task
from tcmu_retry.scsi.sense import (
    INVALID_FIELD_IN_CDB,
    INVALID_FIELD_IN_PARAMETER_LIST,
    PARAMETER_LIST_LENGTH_ERROR,
    SAVING_NOT_SUPPORTED,
    CheckCondition,
)
from tcmu_retry.scsi.unit import Unit

ALL_PAGES = 0x3F
ALL_SUBPAGES = 0xFF
WRITE_PROTECT = 0x80
DPO_FUA = 0x10
D_SENSE = 0x04
SWP = 0x08


WCE = 0x04  # of the caching page


class _Control(enum.IntEnum):
    """PC of MODE SENSE."""

    CURRENT = 0
    CHANGEABLE = 1
    DEFAULT = 2
    SAVED = 3


# Whole pages with their headers. Error recovery: nothing is retried or reassigned below us. Caching: RCD 0, WCE by
# configuration.
# Control: GLTSD; unrestricted reordering; TAS, as the kernel's emulate_tas defaults; no busy time-out.
_DEFAULTS = {
    0x01: bytes((0x01, 0x0A)) + bytes(10),
    0x08: bytes((0x08, 0x12)) + bytes(18),
    0x0A: bytes((0x0A, 0x0A, 0x02, 0x10, 0x00, 0x40, 0, 0, 0xFF, 0xFF, 0, 0)),
}
_CHANGEABLE = {page: default[:2] + bytes(len(default) - 2) for page, default in _DEFAULTS.items()}
_CHANGEABLE[0x0A] = bytes((0x0A, 0x0A, D_SENSE, 0, SWP)) + bytes(7)


def _pages(unit: Unit, control: _Control) -> dict[int, bytes]:
    if control is _Control.CHANGEABLE:
        return _CHANGEABLE
    defaults = {**_DEFAULTS, 0x08: bytes((0x08, 0x12, WCE)) + bytes(17)} if unit.write_back else _DEFAULTS
    if control is _Control.DEFAULT:
        return defaults
    page = bytearray(_DEFAULTS[0x0A])
    page[2] |= D_SENSE if unit.descriptor_sense else 0
    page[4] |= SWP if unit.software_write_protect else 0
    return {**defaults, 0x0A: bytes(page)}


def mode_sense(unit: Unit, task: Task) -> bytes:
    """MODE SENSE (6) and (10), cut to the allocation length."""
    cdb = task.cdb
    short = cdb[0] < 0x20
    allocation = cdb[4] if short else struct.unpack_from(">H", cdb, 7)[0]
    control, code, subpage = _Control(cdb[2] >> 6), cdb[2] & 0x3F, cdb[3]
    if control is _Control.SAVED:
        raise CheckCondition(SAVING_NOT_SUPPORTED)
    pages = _pages(unit, control)
    if code != ALL_PAGES and code not in pages:
        raise CheckCondition(INVALID_FIELD_IN_CDB.at(2, 5))
    if subpage not in (0, ALL_SUBPAGES):
        raise CheckCondition(INVALID_FIELD_IN_CDB.at(3))
    body = b"".join(pages.values()) if code == ALL_PAGES else pages[code]
    long_lba = not short and bool(cdb[1] & 0x10)
    descriptor = b"" if cdb[1] & 0x08 else _block_descriptor(unit, long_lba)
    device = DPO_FUA | (WRITE_PROTECT if unit.read_only else 0)
    length = len(descriptor) + len(body)
    if short:
        header = struct.pack(">BBBB", 3 + length, 0, device, len(descriptor))
    else:
        header = struct.pack(">HBBBxH", 6 + length, 0, device, 0x01 if long_lba else 0, len(descriptor))
    return (header + descriptor + body)[:allocation]


def _block_descriptor(unit: Unit, long_lba: bool) -> bytes:
    if long_lba:
        return struct.pack(">Q4xI", unit.blocks, unit.block_size)
    return struct.pack(">II", min(unit.blocks, 0xFFFFFFFF), unit.block_size)


def mode_select(unit: Unit, task: Task) -> None:
    """MODE SELECT (6) and (10): all of the list, or nothing. Only D_SENSE and SWP can be changed, and are not saved."""
    cdb = task.cdb
    short = cdb[0] < 0x20
    length = cdb[4] if short else struct.unpack_from(">H", cdb, 7)[0]
    if not cdb[1] & 0x10:
        raise CheckCondition(INVALID_FIELD_IN_CDB.at(1, 4))  # PF 0: a vendor's own format
    if length == 0:
        return
    header = 4 if short else 8
    if task.data_length < length or length < header:
        raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR)
    parameters = task.data_out()[:length]
    at = header + _check_block_descriptor(unit, parameters, header, short)
    current = _pages(unit, _Control.CURRENT)
    wanted = dict(current)
    while at < length:
        page = parameters[at] & 0x3F
        if parameters[at] & 0x40 or page not in current:
            raise _refused(at)
        old, changeable = current[page], _CHANGEABLE[page]
        end = at + len(old)
        if end > length:
            raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR)
        new = parameters[at:end]
        if new[1] != old[1]:
            raise _refused(at + 1)
        for index in range(2, len(old)):
            if (new[index] ^ old[index]) & ~changeable[index]:
                raise _refused(at + index)
        wanted[page] = new
        at = end
    unit.descriptor_sense = bool(wanted[0x0A][2] & D_SENSE)
    unit.software_write_protect = bool(wanted[0x0A][4] & SWP)


def _check_block_descriptor(unit: Unit, parameters: bytes, header: int, short: bool) -> int:
    """The length of the block descriptors; a descriptor may only say what is so already (0 and all ones: "as is")."""
    if short:
        length, long_lba = parameters[3], False
    else:
        (length,) = struct.unpack_from(">H", parameters, 6)
        long_lba = bool(parameters[4] & 0x01)
    if length == 0:
        return 0
    if length != (16 if long_lba else 8):
        raise _refused(3 if short else 6)
    if header + length > len(parameters):
        raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR)
    if long_lba:
        blocks, block_size = struct.unpack_from(">Q4xI", parameters, header)
        as_is = (0, 0xFFFFFFFFFFFFFFFF, unit.blocks)
    else:
        blocks, block_size = struct.unpack_from(">II", parameters, header)
        block_size &= 0xFFFFFF
        as_is = (0, 0xFFFFFFFF, unit.blocks)
    if blocks not in as_is:
        raise _refused(header)
    if block_size not in (0, unit.block_size):
        raise _refused(header + length - 4)
    return int(length)


def _refused(byte: int) -> CheckCondition:
    return CheckCondition(INVALID_FIELD_IN_PARAMETER_LIST.at(byte, in_cdb=False))
