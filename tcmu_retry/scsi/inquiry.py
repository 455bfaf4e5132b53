"""INQUIRY: standard data and the vital product data pages (SPC-4 §6.6, §7.8; SBC-4 §6.6)."""

from __future__ import annotations

import struct
from collections.abc import Callable

from tcmu_retry.scsi.cdb import MAXIMUM_TRANSFER, Task
from tcmu_retry.scsi.copying import third_party_copy_page
from tcmu_retry.scsi.designators import designator, of_unit, serial_number, text
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


def _standard(identity: DiskIdentity) -> bytes:
    return struct.pack(
        ">BBBBBBBB8s16s4s20s2x8H22x",
        0x00,  # connected, direct access block device
        0x00,  # not removable
        0x06,  # SPC-4
        0x12,  # HISUP, response data format 2
        96 - 5,
        0x18,  # TPGS: implicit; 3PC: third-party copy
        0x10,  # MULTIP
        0x02,  # CMDQUE
        text(identity.vendor, 8),
        text(identity.product, 16),
        text(identity.revision, 4),
        text(identity.name, 20),  # vendor specific
        *VERSIONS,
        *(0 for _ in range(8 - len(VERSIONS))),
    )


def _supported_pages(unit: Unit) -> bytes:
    return bytes(sorted(_PAGES))


def _serial_number(unit: Unit) -> bytes:
    return serial_number(unit.identity)


def _device_identification(unit: Unit) -> bytes:
    """Designators: those of the unit, relative target port, target port group."""
    port = designator(0x1, 0x14, struct.pack(">2xH", TARGET_PORT))
    group = designator(0x1, 0x15, struct.pack(">2xH", TARGET_PORT_GROUP))
    return b"".join((*of_unit(unit.identity), port, group))


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
    0x8F: third_party_copy_page,
    0xB0: _block_limits,
    0xB1: _block_device_characteristics,
    0xB2: _logical_block_provisioning,
}
