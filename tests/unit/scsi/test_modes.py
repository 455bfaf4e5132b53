"""Mode pages: what initiators read to learn of caching and write protection, and the two bits they may change."""

import pytest

from tcmu_retry.scsi.sense import (
    INVALID_FIELD_IN_CDB,
    INVALID_FIELD_IN_PARAMETER_LIST,
    PARAMETER_LIST_LENGTH_ERROR,
    SAVING_NOT_SUPPORTED,
    WRITE_PROTECTED,
    FieldPointer,
    Sense,
)

RECOVERY = bytes.fromhex("010a 00000000000000000000")
CACHING = bytes.fromhex("0812") + bytes(18)
CONTROL = bytes.fromhex("0a0a 0210 0040 0000 ffff 0000")
PAGES = RECOVERY + CACHING + CONTROL
SHORT = bytes.fromhex("00100000 00000200")  # 2**20 blocks of 512
LONG = bytes.fromhex("0000000000100000 00000000 00000200")
DBD, LLBAA, PF = 0x08, 0x10, 0x10


def sense6(page: int, subpage: int = 0, control: int = 0, flags: int = DBD) -> dict:
    return {
        "command": "MODE SENSE (6)",
        "count": 255,
        "length": 255,
        "flags": flags,
        "put": {2: control << 6 | page, 3: subpage},
    }


def sense10(page: int, flags: int = DBD, count: int = 512) -> dict:
    return {"command": "MODE SENSE (10)", "count": count, "length": 512, "flags": flags, "put": {2: page}}


def select(lun, pages: bytes, descriptor: bytes = b"", long: bool = False) -> Sense | None:
    """MODE SELECT of both lengths must agree; returns the refusal of the last."""
    ten = bytes((0, 0, 0, 0, int(long), 0, 0, len(descriptor))) + descriptor + pages
    if long:
        return outcome(lun, "MODE SELECT (10)", ten)
    six = outcome(lun, "MODE SELECT (6)", bytes((0, 0, 0, len(descriptor))) + descriptor + pages)
    last = outcome(lun, "MODE SELECT (10)", ten)
    assert (six is None) == (last is None)
    return last


def outcome(lun, command: str, parameters: bytes) -> Sense | None:
    reply = lun.send(command, flags=PF, count=len(parameters), data=parameters)
    return lun.refused(command, flags=PF, count=len(parameters), data=parameters) if reply.sense else None


def list_error(byte: int) -> Sense:
    return INVALID_FIELD_IN_PARAMETER_LIST.at(byte, in_cdb=False)


@pytest.mark.parametrize(
    ("page", "pages"),
    [(0x01, RECOVERY), (0x08, CACHING), (0x0A, CONTROL), (0x3F, PAGES)],
    ids=["rw", "cache", "ctl", "all"],
)
@pytest.mark.parametrize("subpage", [0x00, 0xFF])
def test_pages(lun, page: int, pages: bytes, subpage: int) -> None:
    """DPOFUA is told whatever the page; without descriptors the header's last byte is 0."""
    assert lun.good(**sense6(page, subpage)) == bytes((3 + len(pages), 0, 0x10, 0)) + pages


def test_short_block_descriptor(lun) -> None:
    assert lun.good(**sense6(0x08, flags=0)) == bytes((3 + 8 + 20, 0, 0x10, 8)) + SHORT + CACHING
    assert lun.good(**sense10(0x08, 0)) == bytes((0, 6 + 8 + 20, 0, 0x10, 0, 0, 0, 8)) + SHORT + CACHING


def test_long_block_descriptor(lun) -> None:
    assert lun.good(**sense10(0x08, LLBAA)) == bytes((0, 6 + 16 + 20, 0, 0x10, 1, 0, 0, 16)) + LONG + CACHING


def test_short_block_descriptor_of_a_large_disk_is_all_ones(make_lun) -> None:
    lun = make_lun(blocks=1 << 33)
    assert lun.good(**sense6(0x08, flags=0))[4:8] == b"\xff" * 4


def test_allocation_length_cuts_but_lengths_stay(lun) -> None:
    """Linux reads four bytes first and believes the length in them."""
    assert lun.good("MODE SENSE (6)", count=4, length=4, flags=DBD, put={2: 0x3F}) == bytes((3 + 44, 0, 0x10, 0))
    assert lun.good(**sense10(0x3F, count=2)) == bytes((0, 6 + 44))


def test_changeable_values_are_masks(lun) -> None:
    assert lun.good(**sense6(0x3F, control=1))[4:] == bytes.fromhex("010a") + bytes(10) + bytes.fromhex("0812") + bytes(
        18
    ) + bytes.fromhex("0a0a 0400 0800 0000 0000 0000")


def test_defaults_stay_when_current_values_change(lun) -> None:
    assert select(lun, CONTROL[:4] + b"\x08" + CONTROL[5:]) is None
    assert lun.good(**sense6(0x0A, control=2))[4:] == CONTROL
    assert lun.good(**sense6(0x0A))[8] == 0x08


@pytest.mark.parametrize(
    ("page", "subpage", "control", "sense"),
    [
        (0x3F, 0, 3, SAVING_NOT_SUPPORTED),
        (0x02, 0, 0, INVALID_FIELD_IN_CDB.at(2, 5)),
        (0x0A, 1, 0, INVALID_FIELD_IN_CDB.at(3)),
        (0x3F, 1, 0, INVALID_FIELD_IN_CDB.at(3)),
    ],
)
def test_what_mode_sense_does_not_know(lun, page: int, subpage: int, control: int, sense: Sense) -> None:
    assert lun.refused(**sense6(page, subpage, control)) == sense


def test_configured_read_only_shows_and_cannot_be_lifted(make_lun) -> None:
    lun = make_lun(read_only=True)
    assert lun.good(**sense6(0x08))[2] == 0x90
    assert lun.good(**sense10(0x08))[3] == 0x90
    assert select(lun, CONTROL) is None
    assert lun.disk.read_only


def test_software_write_protect_can_be_set_and_cleared(lun) -> None:
    assert select(lun, CONTROL[:4] + b"\x08" + CONTROL[5:]) is None
    assert lun.disk.read_only
    assert lun.good(**sense6(0x08))[2] == 0x90
    assert lun.refused("WRITE (10)", count=1, data=bytes(512)) == WRITE_PROTECTED
    lun.request("READ (10)", count=1, length=512)
    assert select(lun, CONTROL) is None
    assert not lun.disk.read_only


def test_descriptor_sense_can_be_set(lun) -> None:
    assert select(lun, b"\x0a\x0a\x06" + CONTROL[3:]) is None
    reply = lun.send("READ (10)", lba=lun.blocks, count=1, length=512)
    assert reply.sense[0] == 0x72
    assert select(lun, CONTROL) is None
    assert lun.send("READ (10)", lba=lun.blocks, count=1, length=512).sense[0] == 0x70


def test_pages_as_read_are_accepted_back(lun) -> None:
    """What sdparm and hypervisors do: read, change one bit, write all; with the block descriptor as it is."""
    for descriptor in (b"", SHORT, bytes(4) + SHORT[4:], b"\xff" * 4 + bytes(4)):
        assert select(lun, PAGES, descriptor) is None
    assert select(lun, PAGES, LONG, long=True) is None
    assert select(lun, PAGES, b"\xff" * 8 + bytes(8), long=True) is None
    assert select(lun, b"") is None


def test_nothing_is_changed_if_anything_is_refused(lun) -> None:
    """WCE is the storage's to decide, never the initiator's."""
    wce = b"\x08\x12\x04" + bytes(17)
    assert select(lun, CONTROL[:4] + b"\x08" + CONTROL[5:] + wce) == list_error(8 + 12 + 2)
    assert not lun.disk.read_only


@pytest.mark.parametrize(
    ("pages", "byte"),
    [
        (b"\x0a\x0b" + CONTROL[2:], 9),  # page length
        (b"\x4a" + CONTROL[1:], 8),  # subpage format
        (b"\x02\x0a" + bytes(10), 8),  # no such page
        (CONTROL[:3] + b"\x00" + CONTROL[4:], 11),  # queue algorithm
    ],
)
def test_values_that_cannot_be_are_pointed_at(lun, pages: bytes, byte: int) -> None:
    assert select(lun, pages) == list_error(byte)


def test_block_descriptors_that_would_format_are_refused(lun) -> None:
    assert select(lun, b"", b"\x00\x00\x00\x07" + SHORT[4:]) == list_error(8)
    assert select(lun, b"", SHORT[:4] + bytes.fromhex("00001000")) == list_error(12)
    assert select(lun, b"", SHORT + SHORT) == list_error(6)
    assert select(lun, b"", bytes(7) + b"\x07" + LONG[8:], long=True) == list_error(8)
    assert select(lun, b"", SHORT, long=True) == list_error(6)


def test_lists_cut_short_are_refused(lun) -> None:
    assert outcome(lun, "MODE SELECT (6)", bytes(3)) == PARAMETER_LIST_LENGTH_ERROR
    assert outcome(lun, "MODE SELECT (10)", bytes(7)) == PARAMETER_LIST_LENGTH_ERROR
    assert outcome(lun, "MODE SELECT (6)", bytes((0, 0, 0, 8)) + bytes(4)) == PARAMETER_LIST_LENGTH_ERROR
    assert outcome(lun, "MODE SELECT (6)", bytes(4) + CONTROL[:5]) == PARAMETER_LIST_LENGTH_ERROR
    assert outcome(lun, "MODE SELECT (6)", bytes(4) + CONTROL[:1]) == PARAMETER_LIST_LENGTH_ERROR
    assert lun.refused("MODE SELECT (6)", flags=PF, count=16, data=bytes(8)) == PARAMETER_LIST_LENGTH_ERROR


def test_empty_list_changes_nothing(lun) -> None:
    lun.good("MODE SELECT (6)", flags=PF)
    lun.good("MODE SELECT (10)", flags=PF)


def test_vendor_format_and_saving_are_refused(lun) -> None:
    assert lun.refused("MODE SELECT (6)") == INVALID_FIELD_IN_CDB.at(1, 4)
    assert lun.refused("MODE SELECT (6)", flags=PF | 1).pointer == FieldPointer(1, 0)


def test_a_write_back_disk_says_so_and_it_cannot_be_changed(make_lun) -> None:
    """WCE is configuration: sd then sends SYNCHRONIZE CACHE; with it 0 it need not."""
    lun = make_lun(write_back=True)
    for control, wce in ((0x00, 0x04), (0x80, 0x04), (0x40, 0x00)):
        page = lun.good("MODE SENSE (6)", put={2: control | 0x08, 4: 255}, length=255)
        assert page[12 + 2] == wce, control
