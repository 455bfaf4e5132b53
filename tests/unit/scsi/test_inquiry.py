"""INQUIRY: initiators decide by these bytes what the disk is and which commands they use."""

from collections.abc import Callable

import pytest

from tcmu_retry.scsi.designators import eui, naa, name
from tcmu_retry.scsi.disk import DiskIdentity
from tcmu_retry.scsi.sense import INVALID_FIELD_IN_CDB


def inquiry(page: int | None = None, allocation: int = 255) -> dict:
    """Arguments of an INQUIRY of standard data, or of a VPD page."""
    put = {3: allocation >> 8, 4: allocation & 0xFF}
    if page is not None:
        put |= {1: 1, 2: page}
    return {"command": "INQUIRY", "put": put, "length": allocation}


def test_standard_data(lun) -> None:
    """Direct access, SPC-4, format 2, implicit ALUA, queueing; names; SBC-3 among the version descriptors."""
    data = lun.good(**inquiry())
    assert len(data) == 96
    assert data[:8] == bytes((0, 0, 6, 0x12, 91, 0x18, 0x10, 0x02))
    assert data[8:36] == b"TCMU    tcmu-retry      1   "
    assert data[36:56].rstrip() == b"vm1"
    assert data[58:64] == bytes.fromhex("00a0 0460 04c0")


@pytest.mark.parametrize("allocation", [0, 5, 36, 96, 512])
def test_allocation_length_cuts(lun, allocation: int) -> None:
    assert lun.good(**inquiry(allocation=allocation)) == lun.good(**inquiry())[:allocation]


def test_a_buffer_shorter_than_the_allocation_length_is_not_overrun(lun) -> None:
    assert len(lun.good("INQUIRY", put={4: 96}, length=10)) == 10


def test_page_without_evpd_and_unknown_page_are_refused(lun) -> None:
    assert lun.refused("INQUIRY", put={2: 0x83, 4: 255}, length=255) == INVALID_FIELD_IN_CDB.at(2)
    assert lun.refused(**inquiry(0x8A)) == INVALID_FIELD_IN_CDB.at(2)


def test_every_listed_page_answers_with_its_own_code_and_length(lun) -> None:
    pages = lun.good(**inquiry(0x00))
    assert pages == bytes((0, 0, 0, 8, 0x00, 0x80, 0x83, 0x86, 0x8F, 0xB0, 0xB1, 0xB2))
    for page in pages[4:]:
        data = lun.good(**inquiry(page))
        assert (data[0], data[1], int.from_bytes(data[2:4], "big")) == (0, page, len(data) - 4)


def test_serial_number(lun) -> None:
    assert lun.good(**inquiry(0x80))[4:] == b"aabbccdd-1122-3344-5566-778899aabbcc"


def test_device_identification(lun) -> None:
    """NAA as LIO and tcmu-runner make it, so that /dev/disk/by-id stays the same; EUI, T10, name; port and group."""
    data = lun.good(**inquiry(0x83))[4:]
    designators = []
    while data:
        designators.append((data[0], data[1], data[4 : 4 + data[3]]))
        data = data[4 + data[3] :]
    assert designators == [
        (1, 0x03, bytes.fromhex("6001405aabbccdd11223344556677889")),
        (1, 0x02, bytes.fromhex("aabbccdd112233440014055566778890")),
        (2, 0x01, b"TCMU    aabbccdd-1122-3344-5566-778899aabbcc"),
        (3, 0x08, b"naa.6001405aabbccdd11223344556677889\0\0\0\0"),
        (1, 0x14, bytes.fromhex("00000001")),
        (1, 0x15, bytes.fromhex("00000001")),
    ]


@pytest.mark.parametrize(("make", "company"), [(naa, slice(1, 7)), (eui, slice(16, 22))])
def test_identifiers_of_short_serials_stay_unique(make: Callable[[str], bytes], company: slice) -> None:
    """Two WWNs that differ only in characters that are no hex digits must not become one disk."""
    assert make("vm1") != make("vn1")
    assert len(make("vm1")) == 16
    assert make("vm1").hex()[company] == "001405"


def test_every_digit_of_a_wwn_that_one_identifier_has_the_others_have() -> None:
    """What makes two LUNs differ by NAA makes them differ by EUI and name, and nothing else does."""
    wwn = "0123456789abcdef0123456789abcdef"
    for make in (naa, eui, name):
        changed = {at for at in range(32) if make(wwn[:at] + "f0"[wwn[at] == "f"] + wwn[at + 1 :]) != make(wwn)}
        assert changed == set(range(25))


@pytest.mark.parametrize("serial", ["", "ä", "x" * 300])
def test_odd_serials_are_told_as_printable_ascii(make_lun, serial: str) -> None:
    lun = make_lun(identity=DiskIdentity(serial=serial, name="längerer Name als Platz ist"))
    assert lun.good(**inquiry(0x80, 1000))[4:] == serial.replace("ä", "?").encode()
    assert all(0x20 <= byte < 0x7F for byte in lun.good(**inquiry())[8:56])
    lun.good(**inquiry(0x83, 1000))


@pytest.mark.parametrize(
    ("block_size", "limits"),
    [
        (512, "01 ff 0008 00001000 00000000 00000000 00100000 00000100 00000008 80000000 0000000000008000"),
        (4096, "01 ff 0001 00000200 00000000 00000000 00020000 00000100 00000001 80000000 0000000000001000"),
    ],
)
def test_block_limits(make_lun, block_size: int, limits: str) -> None:
    """2 MiB a transfer, 512 MiB an UNMAP, 16 MiB a WRITE SAME, whatever the block size; WSNZ."""
    lun = make_lun(block_size=block_size)
    assert lun.good(**inquiry(0xB0))[4:] == bytes.fromhex(limits).ljust(60, b"\0")


def test_storage_that_cannot_discard_claims_nothing(make_lun) -> None:
    lun = make_lun(can_discard=False)
    assert lun.good(**inquiry(0xB2))[4:] == bytes(4)
    assert lun.good(**inquiry(0xB0))[20:36] == bytes(16)


def test_thin_storage_says_how(lun) -> None:
    """LBPU, LBPWS, LBPWS10; unmapped blocks read as zeros; thin provisioned."""
    assert lun.good(**inquiry(0xB2))[4:] == bytes((0, 0xE4, 2, 0))


def test_rotation_rate(make_lun, lun) -> None:
    assert lun.good(**inquiry(0xB1))[4:6] == bytes((0, 1))
    assert make_lun(rotation_rate=0).good(**inquiry(0xB1))[4:6] == bytes(2)


def test_extended_data_promises_simple_tasks_only(lun) -> None:
    assert lun.good(**inquiry(0x86)) == bytes((0, 0x86, 0, 60, 0, 0x01)) + bytes(58)
