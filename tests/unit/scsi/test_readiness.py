"""What the disk says of itself: ready, stopped, away; and what was established for the next command."""

import pytest

from tcmu_retry.scsi.request import Op, Request
from tcmu_retry.scsi.sense import (
    CAPACITY_CHANGED,
    INVALID_FIELD_IN_CDB,
    LUN_NOT_ACCESSIBLE,
    NO_SENSE,
    NOT_READY_STOPPED,
    Sense,
    parse,
)


def test_unit_is_ready(lun) -> None:
    assert lun.good("TEST UNIT READY") == b""


def test_health_is_told_by_test_unit_ready_and_request_sense_only(lun) -> None:
    """In an outage the disk goes on answering: only the two commands that ask say so, and I/O is the engine's."""
    lun.disk.health = LUN_NOT_ACCESSIBLE
    assert lun.disk.health == LUN_NOT_ACCESSIBLE
    assert lun.refused("TEST UNIT READY") == LUN_NOT_ACCESSIBLE
    assert parse(lun.good("REQUEST SENSE", count=252, length=252)) == LUN_NOT_ACCESSIBLE
    lun.good("READ CAPACITY (10)", length=8)
    lun.request("READ (10)", count=1, length=512)
    assert lun.disk.plain
    lun.disk.health = None
    lun.good("TEST UNIT READY")


def test_stopped_unit_refuses_the_medium_until_started(lun) -> None:
    lun.good("START STOP UNIT")
    assert not lun.disk.plain
    assert lun.refused("TEST UNIT READY") == NOT_READY_STOPPED
    assert lun.refused("READ (10)", count=1, length=512) == NOT_READY_STOPPED
    assert lun.refused("WRITE (16)", count=1, data=bytes(512)) == NOT_READY_STOPPED
    assert parse(lun.good("REQUEST SENSE", count=252, length=252)) == NOT_READY_STOPPED
    lun.good("READ CAPACITY (10)", length=8)
    lun.good("INQUIRY", put={4: 36}, length=36)
    lun.good("START STOP UNIT", flags=1, put={4: 0x01})
    assert lun.disk.plain
    lun.good("TEST UNIT READY")


@pytest.mark.parametrize(("put", "byte", "bit"), [({4: 0x03}, 4, 1), ({4: 0x41}, 4, 7), ({3: 1, 4: 1}, 3, 0)])
def test_eject_and_unknown_power_conditions_are_refused(lun, put: dict[int, int], byte: int, bit: int) -> None:
    assert lun.refused("START STOP UNIT", put=put) == INVALID_FIELD_IN_CDB.at(byte, bit)
    assert lun.disk.plain


@pytest.mark.parametrize(("condition", "ascq"), [(2, 0x03), (3, 0x04)])
def test_a_resting_unit_says_so_and_wakes_at_the_next_access(lun, condition: int, ascq: int) -> None:
    """Idle and standby refuse nothing; the pump must not run commands unasked before somebody has noted the waking."""
    lun.good("START STOP UNIT", put={4: condition << 4})
    lun.good("TEST UNIT READY")
    assert not lun.disk.plain
    assert parse(lun.good("REQUEST SENSE", count=252, length=252)) == Sense(0, 0x5E, ascq)
    lun.good("START STOP UNIT", put={4: 0x70})  # LU_CONTROL: the unit has no timers to act by
    assert not lun.disk.plain
    lun.request("READ (10)", count=1, length=512)
    assert lun.disk.plain
    assert parse(lun.good("REQUEST SENSE", count=252, length=252)) == NO_SENSE


def test_active_starts_a_stopped_unit_and_a_stop_ends_resting(lun) -> None:
    lun.good("START STOP UNIT")
    lun.good("START STOP UNIT", put={4: 0x10})
    lun.good("TEST UNIT READY")
    lun.good("START STOP UNIT", put={4: 0x30})
    lun.good("START STOP UNIT")
    assert lun.refused("TEST UNIT READY") == NOT_READY_STOPPED
    lun.good("START STOP UNIT", put={4: 1})
    assert lun.disk.plain


def test_request_sense_takes_the_attention_in_the_format_asked_for(lun) -> None:
    lun.disk.attention(CAPACITY_CHANGED)
    data = lun.good("REQUEST SENSE", flags=1, count=252, length=252)
    assert (data[0], parse(data)) == (0x72, CAPACITY_CHANGED)
    data = lun.good("REQUEST SENSE", count=252, length=252)
    assert (data[0], parse(data)) == (0x70, NO_SENSE)
    assert lun.good("REQUEST SENSE", count=4, length=252) == data[:4]


def test_prevent_allow_is_accepted_though_nothing_can_be_removed(lun) -> None:
    lun.good("PREVENT ALLOW MEDIUM REMOVAL", put={4: 1})
    lun.good("PREVENT ALLOW MEDIUM REMOVAL")
    assert lun.refused("PREVENT ALLOW MEDIUM REMOVAL", put={4: 2}) == INVALID_FIELD_IN_CDB.at(4, 1)


def test_default_self_test_succeeds_and_others_are_refused(lun) -> None:
    lun.good("SEND DIAGNOSTIC", flags=0x04)
    assert lun.refused("SEND DIAGNOSTIC", flags=0x20) == INVALID_FIELD_IN_CDB.at(1, 7)
    assert lun.refused("SEND DIAGNOSTIC", put={4: 8}, data=bytes(8)) == INVALID_FIELD_IN_CDB.at(4, 3)


def test_a_stop_writes_back_a_volatile_cache(make_lun) -> None:
    lun = make_lun(write_back=True)
    assert lun.request("START STOP UNIT") == Request(Op.FLUSH)
    assert not lun.disk.plain
