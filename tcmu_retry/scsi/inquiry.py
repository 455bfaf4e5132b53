"""INQUIRY: standard data and the vital product data pages (SPC-4 §6.6, §7.8; SBC-4 §6.6)."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable

from tcmu_retry.scsi.cdb import MAXIMUM_TRANSFER, Task
from tcmu_retry.scsi.sense import INVALID_FIELD_IN_CDB, CheckCondition
from tcmu_retry.scsi.unit import (
    GRANULE,
    MAXIMUM_COMPARE,
    MAXIMUM_UNMAP,
    MAXIMUM_UNMAP_DESCRIPTORS,
    MAXIMUM_WRITE_SAME,
    DiskIdentity,
    Unit,
)

TARGET_PORT = 1  # relative target port identifier: commands do not tell us by which port they came
TARGET_PORT_GROUP = 1
VERSIONS = (0x00A0, 0x0460, 0x04C0)  # SAM-5, SPC-4, SBC-3


def inquiry(unit: Unit, task: Task) -> bytes:
    """INQUIRY, cut to the allocation length."""
    evpd, page, allocation = struct.unpack_from(">xBBH", task.cdb)
    if not evpd & 0x01:
        if page:
            raise CheckCondition(INVALID_FIELD_IN_CDB.at(2))
        return _standard(unit.identity)[:allocation]
    make = _PAGES.get(page)
    if make is None:
        raise CheckCondition(INVALID_FIELD_IN_CDB.at(2))
    body = make(unit)
    return (struct.pack(">xBH", page, len(body)) + body)[:allocation]


def naa(serial: str) -> bytes:
    """The NAA-6 identifier of a WWN, as the kernel and its tools make it: 6 001405, then 25 hex digits of the WWN.

    A WWN with fewer hex digits would not be unique so; its hash takes their place.
    """
    digits = "".join(character for character in serial.lower() if character in "0123456789abcdef")
    if len(digits) < 25:
        digits = hashlib.sha256(serial.encode()).hexdigest()
    return bytes.fromhex("6001405" + digits[:25])


def _text(text: str, width: int) -> bytes:
    """Left-aligned ASCII of fixed width; what is not printable becomes a question mark (SPC-4 §4.3.1)."""
    printable = "".join(character if " " <= character <= "~" else "?" for character in text)
    return printable[:width].ljust(width).encode()


def _standard(identity: DiskIdentity) -> bytes:
    return struct.pack(
        ">BBBBBBBB8s16s4s20s2x8H22x",
        0x00,  # connected, direct access block device
        0x00,  # not removable
        0x06,  # SPC-4
        0x12,  # HISUP, response data format 2
        96 - 5,
        0x10,  # TPGS: implicit
        0x10,  # MULTIP
        0x02,  # CMDQUE
        _text(identity.vendor, 8),
        _text(identity.product, 16),
        _text(identity.revision, 4),
        _text(identity.name, 20),  # vendor specific
        *VERSIONS,
        *(0 for _ in range(8 - len(VERSIONS))),
    )


def _supported_pages(unit: Unit) -> bytes:
    return bytes(sorted(_PAGES))


def _serial_number(unit: Unit) -> bytes:
    return _text(unit.identity.serial, len(unit.identity.serial))


def _device_identification(unit: Unit) -> bytes:
    """Designators: T10 vendor ID, NAA, relative target port, target port group."""

    def designator(code_set: int, association_and_type: int, value: bytes) -> bytes:
        return struct.pack(">BBxB", code_set, association_and_type, len(value)) + value

    identity = unit.identity
    vendor_based = _text(identity.vendor, 8) + _serial_number(unit)
    return (
        designator(0x1, 0x03, naa(identity.serial))
        + designator(0x2, 0x01, vendor_based[:252])
        + designator(0x1, 0x14, struct.pack(">2xH", TARGET_PORT))
        + designator(0x1, 0x15, struct.pack(">2xH", TARGET_PORT_GROUP))
    )


def _extended(unit: Unit) -> bytes:
    return bytes((0, 0x01)) + bytes(58)  # SIMPSUP: the kernel hides ORDERED and HEAD OF QUEUE from us


def _block_limits(unit: Unit) -> bytes:
    granule = unit.count(GRANULE)
    return struct.pack(
        ">BBHIIIIIIIQ20x",
        0x01,  # WSNZ
        MAXIMUM_COMPARE,
        granule,
        unit.count(MAXIMUM_TRANSFER),
        0,  # no optimal transfer length
        0,  # PRE-FETCH does nothing, in any length
        unit.count(MAXIMUM_UNMAP) if unit.can_discard else 0,
        MAXIMUM_UNMAP_DESCRIPTORS if unit.can_discard else 0,
        granule if unit.can_discard else 0,
        0x80000000 if unit.can_discard else 0,  # UGAVALID, aligned at 0
        unit.count(MAXIMUM_WRITE_SAME),
    )


def _block_device_characteristics(unit: Unit) -> bytes:
    return struct.pack(">H58x", unit.rotation_rate)


def _logical_block_provisioning(unit: Unit) -> bytes:
    # LBPU, LBPWS, LBPWS10, LBPRZ 1; thin
    return bytes((0, 0xE4, 2, 0)) if unit.can_discard else bytes(4)


_PAGES: dict[int, Callable[[Unit], bytes]] = {
    0x00: _supported_pages,
    0x80: _serial_number,
    0x83: _device_identification,
    0x86: _extended,
    0xB0: _block_limits,
    0xB1: _block_device_characteristics,
    0xB2: _logical_block_provisioning,
}
