"""Commands about whether the unit is ready, and what it has to say (SPC-4 §6.39, §6.47; SBC-4 §5.31)."""

from __future__ import annotations

from tcmu_retry.scsi.cdb import Task
from tcmu_retry.scsi.request import Op, Request
from tcmu_retry.scsi.sense import (
    IDLE_BY_COMMAND,
    INVALID_FIELD_IN_CDB,
    NO_SENSE,
    NOT_READY_STOPPED,
    STANDBY_BY_COMMAND,
    CheckCondition,
    Sense,
)
from tcmu_retry.scsi.unit import Unit


def _trouble(unit: Unit) -> Sense | None:
    return NOT_READY_STOPPED if unit.stopped else unit.health


def test_unit_ready(unit: Unit, task: Task) -> None:
    """TEST UNIT READY: stopped, or what the device says of the storage's health."""
    if trouble := _trouble(unit):
        raise CheckCondition(trouble)


def request_sense(unit: Unit, task: Task) -> bytes:
    """REQUEST SENSE: takes a waiting unit attention, else says what TEST UNIT READY would; DESC chooses the format."""
    sense = unit.attentions.pop(0) if unit.attentions else _trouble(unit) or unit.resting or NO_SENSE
    data = sense.descriptors() if task.cdb[1] & 0x01 else sense.fixed()
    return data[: task.cdb[4]]


def start_stop_unit(unit: Unit, task: Task) -> Request | None:
    """START STOP UNIT; a stop writes back a volatile cache first (SBC-4 5.31). A power condition needs no START bit."""
    match task.cdb[4] >> 4:
        case 0:
            unit.stopped, unit.resting = not task.cdb[4] & 0x01, None
        case 1:
            unit.stopped, unit.resting = False, None
        case 2:
            unit.stopped, unit.resting = False, IDLE_BY_COMMAND
        case 3:
            unit.stopped, unit.resting = False, STANDBY_BY_COMMAND
        case 7:  # conditions are the unit's own affair again; it has no timers, so nothing changes
            pass
        case _:
            raise CheckCondition(INVALID_FIELD_IN_CDB.at(4, 7))
    return Request(Op.FLUSH) if unit.stopped and unit.write_back else None


def prevent_allow_medium_removal(unit: Unit, task: Task) -> None:
    """PREVENT ALLOW MEDIUM REMOVAL: the medium cannot be removed anyway."""


def send_diagnostic(unit: Unit, task: Task) -> None:
    """SEND DIAGNOSTIC: the default self-test, which always succeeds; other diagnostics there are none."""
    if task.cdb[1] & 0xE0:
        raise CheckCondition(INVALID_FIELD_IN_CDB.at(1, 7))
