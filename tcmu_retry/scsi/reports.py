"""Commands that tell of the unit's capacity, blocks, ports and task management (SBC-4 §5, SPC-4 §6)."""

from __future__ import annotations

import struct

from tcmu_retry.scsi.cdb import Task, address
from tcmu_retry.scsi.inquiry import TARGET_PORT, TARGET_PORT_GROUP
from tcmu_retry.scsi.sense import INVALID_FIELD_IN_CDB, LBA_OUT_OF_RANGE, CheckCondition
from tcmu_retry.scsi.unit import Unit


def read_capacity_10(unit: Unit, task: Task) -> bytes:
    """READ CAPACITY (10); all ones beyond 2 TiB of 512-byte blocks sends the initiator to READ CAPACITY (16)."""
    lba, pmi = struct.unpack_from(">2xI2xB", task.cdb)
    if lba and not pmi & 0x01:
        raise CheckCondition(INVALID_FIELD_IN_CDB.at(2))
    return struct.pack(">II", min(unit.blocks - 1, 0xFFFFFFFF), unit.block_size)


def read_capacity_16(unit: Unit, task: Task) -> bytes:
    """READ CAPACITY (16): no protection; LBPME and LBPRZ where it is thin."""
    allocation = address(task.cdb)[1]
    provisioning = 0xC000 if unit.can_discard else 0
    return struct.pack(">QIxBH16x", unit.blocks - 1, unit.block_size, unit.exponent, provisioning)[:allocation]


def get_lba_status(unit: Unit, task: Task) -> bytes:
    """GET LBA STATUS: what is mapped only the storage knows, so all is "mapped or unknown" (SBC-4, 0h)."""
    lba, allocation = address(task.cdb)
    if lba >= unit.blocks:
        raise CheckCondition(LBA_OUT_OF_RANGE)
    blocks = min(unit.blocks - lba, 0xFFFFFFFF)
    return struct.pack(">I4xQI4x", 20, lba, blocks)[:allocation]


def read_defect_data_10(unit: Unit, task: Task) -> bytes:
    """READ DEFECT DATA (10): the lists asked for, empty."""
    (allocation,) = struct.unpack_from(">H", task.cdb, 7)
    return struct.pack(">xB2x", task.cdb[2] & 0x1F)[:allocation]


def read_defect_data_12(unit: Unit, task: Task) -> bytes:
    """READ DEFECT DATA (12): the lists asked for, empty."""
    (allocation,) = struct.unpack_from(">I", task.cdb, 6)
    return struct.pack(">xB6x", task.cdb[1] & 0x1F)[:allocation]


def report_target_port_groups(unit: Unit, task: Task) -> bytes:
    """REPORT TARGET PORT GROUPS: one group, active/optimized whatever the storage does, for it is the only one."""
    (allocation,) = struct.unpack_from(">I", task.cdb, 6)
    form = task.cdb[1] >> 5
    if form > 1:
        raise CheckCondition(INVALID_FIELD_IN_CDB.at(1, 7))
    group = struct.pack(
        ">BBHxBxBHH",
        0x80,  # preferred, active/optimized
        0x01,  # active/optimized is the only state supported
        TARGET_PORT_GROUP,
        0x00,  # no state change yet
        1,  # target ports
        0,
        TARGET_PORT,
    )
    extension = bytes((0x10, 0, 0, 0)) if form else b""
    return (struct.pack(">I", len(extension) + len(group)) + extension + group)[:allocation]


def report_task_management(unit: Unit, task: Task) -> bytes:
    """REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS: ABORT TASK and LOGICAL UNIT RESET, as in the kernel."""
    (allocation,) = struct.unpack_from(">I", task.cdb, 6)
    extended = task.cdb[2] & 0x80
    return (bytes((0x88, 0, 0, 0x0C)) + bytes(12) if extended else bytes((0x88, 0, 0, 0)))[:allocation]
