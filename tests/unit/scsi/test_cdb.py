"""The fast path: what `plain` lets by must be exactly what the disk would have said."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcmu_retry.scsi.cdb import plain
from tcmu_retry.scsi.disk import Disk, DiskIdentity
from tcmu_retry.scsi.request import Extent, Op, Request

BLOCKS = 1 << 20
READ_10 = "28 00 00000001 00 0002 00"
ONE = (Extent(512, 1024),)


@pytest.mark.parametrize(
    ("data", "length", "request_"),
    [
        ("08 000001 02 00", 1024, Request(Op.READ, ONE)),
        ("08 000001 00 00", 256 * 512, Request(Op.READ, (Extent(512, 256 * 512),))),
        ("0a 000001 02 00", 1024, Request(Op.WRITE, ONE)),
        (READ_10, 1024, Request(Op.READ, ONE)),
        ("28 08 00000001 00 0002 00", 1024, Request(Op.READ, ONE, fua=True)),
        ("2a 18 00000001 00 0002 00", 1024, Request(Op.WRITE, ONE, fua=True)),
        ("2a 10 00000001 00 0002 00", 1024, Request(Op.WRITE, ONE)),
        ("a8 00 00000001 00000002 00 00", 1024, Request(Op.READ, ONE)),
        ("aa 08 00000001 00000002 00 00", 1024, Request(Op.WRITE, ONE, fua=True)),
        ("88 00 0000000000000001 00000002 00 00", 1024, Request(Op.READ, ONE)),
        ("8a 08 0000000000000001 00000002 00 00", 1024, Request(Op.WRITE, ONE, fua=True)),
        ("35 00 00000000 00 0000 00", 0, Request(Op.FLUSH)),
        ("35 02 00000001 00 0002 00", 0, Request(Op.FLUSH)),
        ("91 00 0000000000000000 00000000 00 00", 0, Request(Op.FLUSH)),
        (READ_10 + "0000", 1024, Request(Op.READ, ONE)),
    ],
)
def test_plain(data: str, length: int, request_: Request) -> None:
    assert plain(bytes.fromhex(data), length, 512, BLOCKS, True) == request_


@pytest.mark.parametrize(
    ("data", "length"),
    [
        ("", 0),
        ("28", 1024),
        ("00 00 0000 00 00", 0),
        ("28 20 00000001 00 0002 00", 1024),  # RDPROTECT
        ("28 04 00000001 00 0002 00", 1024),
        ("28 00 00000001 01 0002 00", 1024),  # group
        ("28 00 00000001 00 0002 04", 1024),  # NACA
        ("28 00 00000001 00 0000 00", 0),
        ("28 00 00100000 00 0001 00", 512),  # beyond the end
        (READ_10, 512),
        (READ_10, 2048),
        ("28 00 00000000 00 1001 00", 0x1001 * 512),  # more than 2 MiB
        ("08 200001 02 00", 1024),  # a LUN of old
        ("35 04 00000000 00 0000 00", 0),
        ("35 00 00000000 00 0000 00", 512),
        ("35 00 00100000 00 0001 00", 0),
    ],
)
def test_anything_unusual_is_left_to_the_disk(data: str, length: int) -> None:
    assert plain(bytes.fromhex(data), length, 512, BLOCKS, True) is None


def test_writes_need_a_writable_disk() -> None:
    write = bytes.fromhex("2a 00 00000001 00 0002 00")
    assert plain(write, 1024, 512, BLOCKS, True)
    assert plain(write, 1024, 512, BLOCKS, False) is None
    assert plain(bytes.fromhex(READ_10), 1024, 512, BLOCKS, False)


numbers = st.one_of(st.integers(0, 16), st.integers(250, 260), st.integers(BLOCKS - 4, BLOCKS + 4))
layouts = {0: ">BxBBBB", 1: ">BBIBHB", 2: ">BBIBHB", 4: ">BBQIBB", 5: ">BBIIBB"}


@st.composite
def likely(draw: st.DrawFn) -> bytes:
    """CDBs of the plain opcodes with mostly harmless fields."""
    opcode = draw(st.sampled_from((0x08, 0x0A, 0x28, 0x2A, 0xA8, 0xAA, 0x88, 0x8A, 0x35, 0x91)))
    flags = draw(st.one_of(st.sampled_from((0, 0x02, 0x08, 0x10, 0x18)), st.integers(0, 255)))
    lba, count = draw(numbers), draw(numbers)
    group, control = draw(st.sampled_from((0, 0, 0, 1))), draw(st.sampled_from((0, 0, 0, 4)))
    match opcode >> 5:
        case 0:
            return struct.pack(">IBB", opcode << 24 | lba & 0x1FFFFF, count & 0xFF, control)
        case 1:
            return struct.pack(">BBIBHB", opcode, flags, lba, group, count & 0xFFFF, control)
        case 4:
            return struct.pack(">BBQIBB", opcode, flags, lba, count, group, control)
        case _:
            return struct.pack(">BBIIBB", opcode, flags, lba, count, group, control)


@given(
    st.one_of(likely(), st.binary(max_size=32)),
    st.one_of(st.none(), st.integers(0, 1 << 17)),
    st.sampled_from((512, 4096)),
    st.booleans(),
)
def test_plain_agrees_with_the_disk(cdb: bytes, length: int | None, block_size: int, writable: bool) -> None:
    """Where `plain` returns a request, `Disk.handle` returns the same one. No length: the one that the CDB says."""
    if length is None:
        count = {0: 4, 4: 10, 5: 6}.get(cdb[0] >> 5, 7) if cdb else 0
        width = {0: 1, 4: 4, 5: 4}.get(cdb[0] >> 5, 2) if cdb else 0
        length = int.from_bytes(cdb[count : count + width], "big") * block_size
        length = 0 if cdb[:1] in (b"\x35", b"\x91") else length or 256 * block_size
    request = plain(cdb, length, block_size, BLOCKS, writable)
    if request is not None:
        disk = Disk(DiskIdentity("0", "x"), block_size, BLOCKS * block_size, can_discard=True, read_only=not writable)
        assert disk.handle(cdb, length, lambda: bytes(length)) == request
