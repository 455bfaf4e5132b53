"""The table: what is listed is what is dispatched, and every row has its test."""

import pathlib
import struct

import pytest

from tcmu_retry.scsi.cdb import EXCLUDING
from tcmu_retry.scsi.opcodes import TABLE, Access, Command
from tcmu_retry.scsi.request import Op, Reply, Status
from tcmu_retry.scsi.sense import INVALID_FIELD_IN_CDB, INVALID_OPCODE, Sense, parse

RSOC = "REPORT SUPPORTED OPERATION CODES"
KERNEL = [
    "RESERVE (6)",
    "RELEASE (6)",
    "RESERVE (10)",
    "RELEASE (10)",
    "PERSISTENT RESERVE IN, READ KEYS",
    "PERSISTENT RESERVE IN, READ RESERVATION",
    "PERSISTENT RESERVE IN, REPORT CAPABILITIES",
    "PERSISTENT RESERVE IN, READ FULL STATUS",
    "PERSISTENT RESERVE OUT, REGISTER",
    "PERSISTENT RESERVE OUT, RESERVE",
    "PERSISTENT RESERVE OUT, RELEASE",
    "PERSISTENT RESERVE OUT, CLEAR",
    "PERSISTENT RESERVE OUT, PREEMPT",
    "PERSISTENT RESERVE OUT, PREEMPT AND ABORT",
    "PERSISTENT RESERVE OUT, REGISTER AND IGNORE EXISTING KEY",
    "PERSISTENT RESERVE OUT, REGISTER AND MOVE",
    "REPORT LUNS",
]
ids = {"ids": lambda row: f"{row.name} thin={row.thin}"}


@pytest.mark.parametrize("row", TABLE, **ids)
def test_every_row_is_named_by_the_test_it_names(row: Command) -> None:
    tests = pathlib.Path(__file__).with_name(f"{row.tested_by}.py")
    assert f'"{row.name}"' in tests.read_text()


@pytest.mark.parametrize("row", TABLE, **ids)
def test_rows_are_well_formed(row: Command) -> None:
    """The CDB is as long as its group code says; usage data begins with the opcode and its service action."""
    assert len(row.usage) == {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}[row.opcode >> 5]
    assert row.usage[0] == row.opcode
    assert row.usage[-1] == 0x04
    assert row.action is None or row.usage[1] & 0x1F == row.action


@pytest.mark.parametrize("command", KERNEL)
def test_commands_of_the_kernel_are_listed_but_refused_if_they_come(lun, command: str) -> None:
    """With pgr_support and emulate_pr on, their default, they never come."""
    assert lun.refused(command) == INVALID_OPCODE


def listed(lun, timeouts: bool = False) -> dict[tuple[int, int | None], int]:
    """What RSOC lists: opcode and service action to CDB length."""
    data = lun.good(RSOC, put={2: 0x80 if timeouts else 0}, count=65535, length=65535)
    (length,) = struct.unpack_from(">I", data)
    assert length == len(data) - 4
    found = {}
    step = 20 if timeouts else 8
    for at in range(4, len(data), step):
        opcode, action, flags, size = struct.unpack_from(">BxHxBH", data, at)
        assert bool(flags & 0x02) == timeouts
        if timeouts:
            assert data[at + 8 : at + 20] == bytes((0, 10)) + bytes(10)
        assert flags & 0x01 or not action
        found[opcode, action if flags & 0x01 else None] = size
    return found


@pytest.mark.parametrize("thin", [False, True])
def test_all_commands_are_listed(make_lun, thin: bool) -> None:
    rows = {(row.opcode, row.action): len(row.usage) for row in TABLE if row.thin in (None, thin)}
    lun = make_lun(can_discard=thin)
    assert listed(lun) == listed(lun, timeouts=True) == rows
    assert lun.good(RSOC, count=6, length=65535) == lun.good(RSOC, count=65535, length=65535)[:6]


def ask(lun, option: int, opcode: int, action: int = 0, timeouts: bool = False) -> dict:
    put = {2: option | (0x80 if timeouts else 0), 3: opcode, 4: action >> 8, 5: action & 0xFF}
    return {"command": RSOC, "put": put, "count": 512, "length": 512}


@pytest.mark.parametrize("thin", [False, True])
def test_one_command(make_lun, thin: bool) -> None:
    """By opcode, by opcode and service action, and by what fits (option 3); usage data is the mask that is checked."""
    lun = make_lun(can_discard=thin)
    for row in TABLE:
        if row.thin not in (None, thin):
            continue
        wrong, right = (1, 2) if row.action is not None else (2, 1)
        expected = struct.pack(">xBH", 3, len(row.usage)) + row.usage
        assert lun.good(**ask(lun, right, row.opcode, row.action or 0)) == expected
        assert lun.good(**ask(lun, 3, row.opcode, row.action or 0)) == expected
        assert lun.refused(**ask(lun, wrong, row.opcode, row.action or 0)) == INVALID_FIELD_IN_CDB.at(2, 2)


def test_one_command_with_timeouts(lun) -> None:
    data = lun.good(**ask(lun, 1, 0x00, timeouts=True))
    assert data == bytes((0, 0x83, 0, 6)) + bytes.fromhex("00 00 0000 00 04") + bytes((0, 10)) + bytes(10)


@pytest.mark.parametrize(
    ("option", "opcode", "action"),
    [(1, 0xFF, 0), (2, 0xFF, 1), (3, 0xFF, 0), (2, 0x9E, 0x1F), (3, 0x9E, 0x1F), (3, 0x28, 1), (2, 0xA3, 0x100)],
)
def test_commands_that_there_are_not(lun, option: int, opcode: int, action: int) -> None:
    assert lun.good(**ask(lun, option, opcode, action)) == bytes((0, 1, 0, 0))


def test_reporting_options_beyond_the_known_are_refused(lun) -> None:
    assert lun.refused(**ask(lun, 4, 0)) == INVALID_FIELD_IN_CDB.at(2, 2)


@pytest.mark.parametrize("thin", [False, True])
def test_exactly_what_is_listed_is_dispatched(make_lun, thin: bool) -> None:
    """Every opcode with every service action, an otherwise empty CDB: listed and known are the same."""
    lun = make_lun(can_discard=thin)
    known = listed(lun)
    kernel = {(row.opcode, row.action) for row in TABLE if row.handler is None}
    opcodes = {opcode for opcode, _ in known}
    for opcode in range(256):
        for action in range(32):
            reply = lun.send(bytes((opcode, action)) + bytes(14))
            sense = parse(reply.sense) if isinstance(reply, Reply) else None
            key = (opcode, action) if (opcode, None) not in known else (opcode, None)
            if opcode not in opcodes or key in kernel:
                assert sense == INVALID_OPCODE
            elif key not in known:
                assert sense == INVALID_FIELD_IN_CDB.at(1, 4)
            else:
                assert sense != INVALID_OPCODE
            lun.good("START STOP UNIT", put={4: 1})


@pytest.mark.parametrize("row", [row for row in TABLE if row.handler is not None], **ids)
def test_bits_that_nobody_looks_at_are_refused(make_lun, row: Command) -> None:
    """Each bit outside the usage data, one at a time, points at itself."""
    lun = make_lun(can_discard=row.thin is not False)
    base = bytearray(len(row.usage))
    base[0] = row.opcode
    base[1] = row.action or 0
    for index in range(1, len(row.usage) - 1):
        for bit in range(8):
            looked_at = row.usage[index] >> bit & 1 or (index == 1 and row.action is not None and bit < 5)
            if looked_at or (index == 1 and bit >= 5 and len(row.usage) == 6):
                continue
            wrong = bytearray(base)
            wrong[index] |= 1 << bit
            reply = lun.send(bytes(wrong))
            sense = parse(reply.sense) if isinstance(reply, Reply) else None
            assert sense == INVALID_FIELD_IN_CDB.at(index, bit)


@pytest.mark.parametrize("command", ["TEST UNIT READY", "INQUIRY", "MODE SENSE (6)", "REQUEST SENSE", "READ (6)"])
def test_the_lun_of_old_is_overlooked(lun, command: str) -> None:
    """Linux puts it into byte 1 of its first INQUIRY, before it knows that this is no SCSI-2 disk."""
    put = {2: 0x3F} if command == "MODE SENSE (6)" else {4: 1}
    outcomes = [lun.send(command, flags=flags, put=put, length=512) for flags in (0x00, 0x20, 0xE0)]
    assert outcomes[0] == outcomes[1] == outcomes[2]


@pytest.mark.parametrize("row", [row for row in TABLE if row.handler is not None], **ids)
def test_naca_is_refused(make_lun, row: Command) -> None:
    """There is no ACA here (NORMACA 0); other bits of the control byte are a vendor's, and overlooked."""
    lun = make_lun(can_discard=row.thin is not False)
    data = bytearray(len(row.usage))
    data[0], data[1] = row.opcode, row.action or 0
    data[-1] = 0x04
    assert lun.refused(bytes(data)) == INVALID_FIELD_IN_CDB.at(len(data) - 1, 2)
    data[-1] = 0xC0
    reply = lun.send(bytes(data))
    assert not isinstance(reply, Reply) or reply.status is Status.GOOD or parse(reply.sense) != Sense(5, 0x24, 0)


@pytest.mark.parametrize(
    ("data", "sense"),
    [
        (b"", INVALID_OPCODE),
        (b"\x28", INVALID_FIELD_IN_CDB),
        (b"\x9e", INVALID_FIELD_IN_CDB.at(1, 4)),
        (b"\x7f" + bytes(31), INVALID_OPCODE),
    ],
)
def test_cdbs_cut_short(lun, data: bytes, sense: Sense) -> None:
    assert lun.refused(data) == sense


def test_what_excludes_other_writes_closes_the_gate() -> None:
    """The pump goes by the opcode and the engine by the request: they must mean the same commands."""
    excluding = {"COMPARE AND WRITE", "OR WRITE (16)", "EXTENDED COPY (LID1)"}
    assert {row.opcode for row in TABLE if row.name in excluding} == EXCLUDING
    assert sum(op.excludes for op in Op) == len(EXCLUDING)


def test_writes_are_marked_as_such() -> None:
    """What changes the medium by its name must be stopped by write protection."""
    for row in TABLE:
        writes = row.name.startswith(("WRITE", "COMPARE AND WRITE", "UNMAP", "OR WRITE", "EXTENDED COPY"))
        assert (row.access is Access.WRITE) == writes
