"""The commands of this disk in one table: dispatch, CDB checks and REPORT SUPPORTED OPERATION CODES come from it."""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tcmu_retry.scsi import copying, inquiry, logs, medium, modes, readiness, reports
from tcmu_retry.scsi.cdb import Task
from tcmu_retry.scsi.request import Request
from tcmu_retry.scsi.sense import INVALID_FIELD_IN_CDB, INVALID_OPCODE, CheckCondition
from tcmu_retry.scsi.unit import Unit

NACA = 0x04
SERVICE_ACTION = 0x1F

Handler = Callable[[Unit, Task], Request | bytes | None]
"""A request for the storage, Data-In cut to the allocation length, or GOOD without data; refuses by CheckCondition."""


class Access(enum.Enum):
    """What a command needs of the medium: a started unit, and for WRITE a writable one."""

    NONE = "none"
    READ = "read"
    WRITE = "write"


@dataclass(frozen=True, slots=True)
class Command:
    """A row of the table.

    usage: CDB USAGE DATA of SPC-5 §6.36.3: the opcode, then the bits that are looked at. Others are refused,
        but for those of the control byte, of which only NACA has a meaning left.
    handler: None where the kernel answers before us, as long as `pgr_support` and `emulate_pr` are on (the default).
    thin: only on storage that can (True) or cannot (False) discard.
    """

    opcode: int
    action: int | None
    name: str
    usage: bytes
    access: Access
    handler: Handler | None
    thin: bool | None
    tested_by: str


def _row(
    usage: str,
    name: str,
    tested_by: str,
    handler: Handler | None = None,
    access: Access = Access.NONE,
    thin: bool | None = None,
) -> Command:
    """usage: hex digits; of an opcode with service actions the second byte tells which."""
    data = bytes.fromhex(usage)
    action = data[1] & SERVICE_ACTION if data[0] in (0x5E, 0x5F, 0x83, 0x84, 0x9E, 0xA3) else None
    return Command(data[0], action, name, data, access, handler, thin, tested_by)


def report_supported_opcodes(unit: Unit, task: Task) -> bytes:
    """REPORT SUPPORTED OPERATION CODES: all of them, or one by opcode and service action (SPC-5 §6.36)."""
    options, opcode, action, allocation = struct.unpack_from(">2xBBHI", task.cdb)
    timeouts = bool(options & 0x80)
    rows = _SUPPORTED[unit.can_discard]
    option = options & 0x07
    if option == 0:
        body = b"".join(_listed(row, timeouts) for actions in rows.values() for row in actions.values())
        return (struct.pack(">I", len(body)) + body)[:allocation]
    if option > 3:
        raise CheckCondition(INVALID_FIELD_IN_CDB.at(2, 2))
    actions = rows.get(opcode, {})
    plain = None in actions
    if (option == 1 and actions and not plain) or (option == 2 and plain):
        raise CheckCondition(INVALID_FIELD_IN_CDB.at(2, 2))
    return _alone(actions.get(None if option == 1 or (plain and action == 0) else action), timeouts)[:allocation]


def _listed(row: Command, timeouts: bool) -> bytes:
    flags = (0x02 if timeouts else 0) | (0x01 if row.action is not None else 0)
    return struct.pack(">BxHxBH", row.opcode, row.action or 0, flags, len(row.usage)) + _timeouts(timeouts)


def _alone(row: Command | None, timeouts: bool) -> bytes:
    if row is None:
        return struct.pack(">xB2x", 0x01)  # not supported
    return struct.pack(">xBH", 0x03 | (0x80 if timeouts else 0), len(row.usage)) + row.usage + _timeouts(timeouts)


def _timeouts(wanted: bool) -> bytes:
    """The command timeouts descriptor; no figures, because a command may be held for as long as policy says."""
    return struct.pack(">H10x", 10) if wanted else b""


_READ, _WRITE = Access.READ, Access.WRITE

TABLE: tuple[Command, ...] = (
    _row("00 00 0000 00 04", "TEST UNIT READY", "test_readiness", readiness.test_unit_ready),
    _row("03 01 0000 ff 04", "REQUEST SENSE", "test_readiness", readiness.request_sense),
    _row("08 1f ffff ff 04", "READ (6)", "test_medium", medium.read, _READ),
    _row("0a 1f ffff ff 04", "WRITE (6)", "test_medium", medium.write, _WRITE),
    _row("12 01 ff ffff 04", "INQUIRY", "test_inquiry", inquiry.inquiry),
    _row("15 10 0000 ff 04", "MODE SELECT (6)", "test_modes", modes.mode_select),
    _row("16 00 0000 00 04", "RESERVE (6)", "test_opcodes"),
    _row("17 00 0000 00 04", "RELEASE (6)", "test_opcodes"),
    _row("1a 08 ffff ff 04", "MODE SENSE (6)", "test_modes", modes.mode_sense),
    _row("1b 01 0000 f5 04", "START STOP UNIT", "test_readiness", readiness.start_stop_unit),
    _row("1d 17 0000 00 04", "SEND DIAGNOSTIC", "test_readiness", readiness.send_diagnostic),
    _row("1e 00 0000 01 04", "PREVENT ALLOW MEDIUM REMOVAL", "test_readiness", readiness.prevent_allow_medium_removal),
    _row("25 00 ffffffff 0000 01 04", "READ CAPACITY (10)", "test_reports", reports.read_capacity_10),
    _row("28 18 ffffffff 3f ffff 04", "READ (10)", "test_medium", medium.read, _READ),
    _row("2a 18 ffffffff 3f ffff 04", "WRITE (10)", "test_medium", medium.write, _WRITE),
    _row("2e 16 ffffffff 3f ffff 04", "WRITE AND VERIFY (10)", "test_medium", medium.write_and_verify, _WRITE),
    _row("2f 16 ffffffff 3f ffff 04", "VERIFY (10)", "test_medium", medium.verify, _READ),
    _row("34 02 ffffffff 3f ffff 04", "PRE-FETCH (10)", "test_medium", medium.pre_fetch, _READ),
    _row("35 06 ffffffff 3f ffff 04", "SYNCHRONIZE CACHE (10)", "test_medium", medium.synchronize_cache, _READ),
    _row("37 00 1f 00000000 ffff 04", "READ DEFECT DATA (10)", "test_reports", reports.read_defect_data_10),
    _row("41 00 ffffffff 3f ffff 04", "WRITE SAME (10)", "test_medium", medium.write_same, _WRITE, thin=False),
    _row("41 08 ffffffff 3f ffff 04", "WRITE SAME (10)", "test_medium", medium.write_same, _WRITE, thin=True),
    _row("42 00 00000000 3f ffff 04", "UNMAP", "test_medium", medium.unmap, _WRITE, thin=True),
    _row("4d 00 ff ff 00 ffff ffff 04", "LOG SENSE", "test_logs", logs.log_sense),
    _row("55 10 0000000000 ffff 04", "MODE SELECT (10)", "test_modes", modes.mode_select),
    _row("56 00 0000000000 0000 04", "RESERVE (10)", "test_opcodes"),
    _row("57 00 0000000000 0000 04", "RELEASE (10)", "test_opcodes"),
    _row("5a 18 ffff 000000 ffff 04", "MODE SENSE (10)", "test_modes", modes.mode_sense),
    _row("5e 00 0000000000 ffff 04", "PERSISTENT RESERVE IN, READ KEYS", "test_opcodes"),
    _row("5e 01 0000000000 ffff 04", "PERSISTENT RESERVE IN, READ RESERVATION", "test_opcodes"),
    _row("5e 02 0000000000 ffff 04", "PERSISTENT RESERVE IN, REPORT CAPABILITIES", "test_opcodes"),
    _row("5e 03 0000000000 ffff 04", "PERSISTENT RESERVE IN, READ FULL STATUS", "test_opcodes"),
    _row("5f 00 ff 0000 ffffffff 04", "PERSISTENT RESERVE OUT, REGISTER", "test_opcodes"),
    _row("5f 01 ff 0000 ffffffff 04", "PERSISTENT RESERVE OUT, RESERVE", "test_opcodes"),
    _row("5f 02 ff 0000 ffffffff 04", "PERSISTENT RESERVE OUT, RELEASE", "test_opcodes"),
    _row("5f 03 ff 0000 ffffffff 04", "PERSISTENT RESERVE OUT, CLEAR", "test_opcodes"),
    _row("5f 04 ff 0000 ffffffff 04", "PERSISTENT RESERVE OUT, PREEMPT", "test_opcodes"),
    _row("5f 05 ff 0000 ffffffff 04", "PERSISTENT RESERVE OUT, PREEMPT AND ABORT", "test_opcodes"),
    _row("5f 06 ff 0000 ffffffff 04", "PERSISTENT RESERVE OUT, REGISTER AND IGNORE EXISTING KEY", "test_opcodes"),
    _row("5f 07 ff 0000 ffffffff 04", "PERSISTENT RESERVE OUT, REGISTER AND MOVE", "test_opcodes"),
    _row(
        "83 00 0000000000000000 ffffffff 00 04", "EXTENDED COPY (LID1)", "test_copying", copying.extended_copy, _WRITE
    ),
    _row("84 00 ff 00000000000000 ffffffff 00 04", "RECEIVE COPY STATUS (LID1)", "test_copying", copying.copy_status),
    _row(
        "84 03 0000000000000000 ffffffff 00 04",
        "RECEIVE COPY OPERATING PARAMETERS",
        "test_copying",
        copying.operating_parameters,
    ),
    _row("88 18 ffffffffffffffff ffffffff 3f 04", "READ (16)", "test_medium", medium.read, _READ),
    _row(
        "89 18 ffffffffffffffff 000000 ff 3f 04", "COMPARE AND WRITE", "test_medium", medium.compare_and_write, _WRITE
    ),
    _row("8a 18 ffffffffffffffff ffffffff 3f 04", "WRITE (16)", "test_medium", medium.write, _WRITE),
    _row("8b 18 ffffffffffffffff ffffffff 3f 04", "OR WRITE (16)", "test_medium", medium.or_write, _WRITE),
    _row(
        "8e 16 ffffffffffffffff ffffffff 3f 04", "WRITE AND VERIFY (16)", "test_medium", medium.write_and_verify, _WRITE
    ),
    _row("8f 16 ffffffffffffffff ffffffff 3f 04", "VERIFY (16)", "test_medium", medium.verify, _READ),
    _row("90 02 ffffffffffffffff ffffffff 3f 04", "PRE-FETCH (16)", "test_medium", medium.pre_fetch, _READ),
    _row(
        "91 06 ffffffffffffffff ffffffff 3f 04",
        "SYNCHRONIZE CACHE (16)",
        "test_medium",
        medium.synchronize_cache,
        _READ,
    ),
    _row(
        "93 01 ffffffffffffffff ffffffff 3f 04", "WRITE SAME (16)", "test_medium", medium.write_same, _WRITE, thin=False
    ),
    _row(
        "93 09 ffffffffffffffff ffffffff 3f 04", "WRITE SAME (16)", "test_medium", medium.write_same, _WRITE, thin=True
    ),
    _row("9e 10 ffffffffffffffff ffffffff 01 04", "READ CAPACITY (16)", "test_reports", reports.read_capacity_16),
    _row("9e 12 ffffffffffffffff ffffffff 00 04", "GET LBA STATUS", "test_reports", reports.get_lba_status, _READ),
    _row("a0 00 ff 000000 ffffffff 00 04", "REPORT LUNS", "test_opcodes"),
    _row(
        "a3 ea 00000000 ffffffff 00 04", "REPORT TARGET PORT GROUPS", "test_reports", reports.report_target_port_groups
    ),
    _row(
        "a3 0c 87 ff ffff ffffffff 00 04", "REPORT SUPPORTED OPERATION CODES", "test_opcodes", report_supported_opcodes
    ),
    _row(
        "a3 0d 80 000000 ffffffff 00 04",
        "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS",
        "test_reports",
        reports.report_task_management,
    ),
    _row("a8 18 ffffffff ffffffff 3f 04", "READ (12)", "test_medium", medium.read, _READ),
    _row("aa 18 ffffffff ffffffff 3f 04", "WRITE (12)", "test_medium", medium.write, _WRITE),
    _row("ae 16 ffffffff ffffffff 3f 04", "WRITE AND VERIFY (12)", "test_medium", medium.write_and_verify, _WRITE),
    _row("af 16 ffffffff ffffffff 3f 04", "VERIFY (12)", "test_medium", medium.verify, _READ),
    _row("b7 1f ffffffff ffffffff 00 04", "READ DEFECT DATA (12)", "test_reports", reports.read_defect_data_12),
)


def _index(rows: Iterable[Command]) -> dict[int, dict[int | None, Command]]:
    found: dict[int, dict[int | None, Command]] = {}
    for row in rows:
        found.setdefault(row.opcode, {})[row.action] = row
    return found


_SUPPORTED = {thin: _index(row for row in TABLE if row.thin in (None, thin)) for thin in (False, True)}


def find(cdb: bytes, thin: bool) -> tuple[Command, Handler]:
    """The row of a CDB and its handler, after the fields that every command has were checked."""
    actions = _SUPPORTED[thin].get(cdb[0]) if cdb else None
    if actions is None:
        raise CheckCondition(INVALID_OPCODE)
    row = actions.get(None)
    if row is None:
        if len(cdb) < 2 or cdb[1] & SERVICE_ACTION not in actions:
            raise CheckCondition(INVALID_FIELD_IN_CDB.at(1, 4))
        row = actions[cdb[1] & SERVICE_ACTION]
    if row.handler is None:
        raise CheckCondition(INVALID_OPCODE)
    _check(row, cdb)
    return row, row.handler


def _check(row: Command, cdb: bytes) -> None:
    """Refuse bits that nothing looks at. In six-byte CDBs the top of byte 1 was the LUN once, and still is for some."""
    control = len(row.usage) - 1
    if len(cdb) <= control:
        raise CheckCondition(INVALID_FIELD_IN_CDB)
    for index in range(1, control):
        unknown = cdb[index] & ~row.usage[index]
        if index == 1 and control == 5:
            unknown &= 0x1F
        if unknown:
            raise CheckCondition(INVALID_FIELD_IN_CDB.at(index, unknown.bit_length() - 1))
    if cdb[control] & NACA:
        raise CheckCondition(INVALID_FIELD_IN_CDB.at(control, 2))
