"""LOG SENSE: the pages a disk has that counts nothing of its own (SPC-4 §6.8, §7.3)."""

from __future__ import annotations

import struct

from tcmu_retry.scsi.cdb import Task
from tcmu_retry.scsi.sense import INVALID_FIELD_IN_CDB, CheckCondition
from tcmu_retry.scsi.unit import Unit

SUPPORTED, INFORMATIONAL_EXCEPTIONS = 0x00, 0x2F
SUPPORTED_SUBPAGES = 0xFF
CUMULATIVE = 1  # of PC
PAGES = (SUPPORTED, INFORMATIONAL_EXCEPTIONS)


def log_sense(unit: Unit, task: Task) -> bytes:
    """LOG SENSE: supported pages and subpages, and informational exceptions: the storage's health."""
    pointer, allocation = struct.unpack_from(">HH", task.cdb, 5)
    page, subpage = task.cdb[2] & 0x3F, task.cdb[3]
    if task.cdb[2] >> 6 != CUMULATIVE:
        raise CheckCondition(INVALID_FIELD_IN_CDB.at(2, 7))
    match page, subpage:
        case 0x00, 0x00:
            body = bytes(PAGES)
        case 0x00, 0xFF:
            body = bytes((SUPPORTED, 0, SUPPORTED, SUPPORTED_SUBPAGES, INFORMATIONAL_EXCEPTIONS, 0))
        case 0x2F, 0x00:
            asc, ascq = (unit.health.asc, unit.health.ascq) if unit.health else (0, 0)
            # Parameter 0: DU 0, binary list format; ASC and ASCQ, and FFh for a temperature that nobody knows.
            body = struct.pack(">HBBBBB", 0, 0x03, 3, asc, ascq, 0xFF)
        case _:
            raise CheckCondition(INVALID_FIELD_IN_CDB.at(2 if page not in PAGES else 3))
    if pointer:
        raise CheckCondition(INVALID_FIELD_IN_CDB.at(5))
    return (struct.pack(">BBH", page | (0x40 if subpage else 0), subpage, len(body)) + body)[:allocation]
