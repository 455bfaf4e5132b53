"""The disk as a whole: no bytes may break it, and what it establishes is told once."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcmu_retry.scsi.disk import Disk, DiskIdentity
from tcmu_retry.scsi.opcodes import TABLE
from tcmu_retry.scsi.request import GOOD, Extent, Op, Reply, Request, Status
from tcmu_retry.scsi.sense import CAPACITY_CHANGED, MEDIUM_MAY_HAVE_CHANGED, MISCOMPARE, Sense, parse

IDENTITY = DiskIdentity("aabbccdd-1122-3344-5566-778899aabbcc", "vm1")


@st.composite
def cdbs(draw: st.DrawFn) -> bytes:
    """Any bytes, and bytes that pass the checks of a row of the table."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=260))
    row = draw(st.sampled_from(TABLE))
    fields = draw(st.binary(min_size=len(row.usage), max_size=len(row.usage)))
    sparse = draw(st.binary(min_size=len(row.usage), max_size=len(row.usage)))
    data = bytearray(field & few & mask for field, few, mask in zip(fields, sparse, row.usage, strict=True))
    data[0] = row.opcode
    data[1] = data[1] & 0xE0 | row.action if row.action is not None else data[1]
    data[-1] = 0
    return bytes(data)


@settings(max_examples=400)
@given(
    st.lists(st.tuples(cdbs(), st.binary(max_size=600)), min_size=1, max_size=6),
    st.sampled_from((512, 4096)),
    st.sampled_from((1, 7, 1 << 20, 1 << 40)),
    st.booleans(),
    st.booleans(),
)
def test_any_bytes_get_a_request_within_the_medium_or_a_proper_reply(
    commands: list[tuple[bytes, bytes]], block_size: int, blocks: int, can_discard: bool, read_only: bool
) -> None:
    """Commands in a row, for MODE SELECT and START STOP UNIT change what the next one meets."""
    disk = Disk(IDENTITY, block_size, blocks * block_size, can_discard=can_discard, read_only=read_only)
    for cdb, data in commands:
        check(disk, disk.handle(cdb, len(data), lambda data=data: data), len(data), read_only)


def check(disk: Disk, outcome: Request | Reply, length: int, read_only: bool) -> None:
    if isinstance(outcome, Request):
        for extent in outcome.extents:
            assert extent.length > 0
            assert 0 <= extent.offset <= extent.end <= disk.blocks * disk.block_size
            assert not extent.offset % disk.block_size
            assert not extent.length % disk.block_size
        assert bool(outcome.extents) == (outcome.op is not Op.FLUSH)
        assert len(outcome.extents) == 1 or outcome.op in (Op.FLUSH, Op.UNMAP)
        if outcome.op in (Op.READ, Op.WRITE, Op.WRITE_AND_VERIFY):
            assert outcome.length <= length
        if read_only:
            assert outcome.op in (Op.READ, Op.VERIFY, Op.FLUSH)
        return
    assert len(outcome.data or b"") <= length
    if outcome.status is Status.CHECK_CONDITION:
        sense = parse(outcome.sense)
        assert sense is not None
        assert sense.key
        assert len(outcome.sense) <= 96
    else:
        assert outcome.status is Status.GOOD
        assert not outcome.sense
        assert outcome == GOOD or outcome.data is not None


def test_good_without_data_overwrites_what_the_buffers_held(lun) -> None:
    """The kernel sends the buffer whatever it holds; None would leave another command's data in it."""
    assert lun.send("TEST UNIT READY", length=512).data == b""
    assert lun.send("TEST UNIT READY").data is None


def test_data_out_is_gathered_only_where_it_is_looked_at(lun) -> None:
    """Copying eight megabytes for every WRITE in Python would be felt."""

    def never() -> bytes:
        pytest.fail("gathered")

    assert isinstance(lun.disk.handle(bytes.fromhex("2a 00 00000001 00 0002 00"), 1024, never), Request)


def test_a_wwn_that_came_late_is_told(lun) -> None:
    lun.disk.identity = replace(lun.disk.identity, serial="0f0f")
    assert lun.good("INQUIRY", flags=1, put={2: 0x80, 4: 64}, length=64) == b"\0\x80\0\x040f0f"


def test_unit_attention_is_told_once_and_spares_inquiry(lun) -> None:
    """Each once, oldest first, however often established; to any command, even an unknown one."""
    lun.disk.attention(MEDIUM_MAY_HAVE_CHANGED)
    lun.disk.attention(CAPACITY_CHANGED)
    lun.disk.attention(MEDIUM_MAY_HAVE_CHANGED)
    assert not lun.disk.plain
    lun.good("INQUIRY", put={4: 36}, length=36)
    assert lun.refused("READ (10)", count=1, length=512) == MEDIUM_MAY_HAVE_CHANGED
    assert lun.refused(b"\xff" + bytes(5)) == CAPACITY_CHANGED
    assert lun.disk.plain
    lun.good("TEST UNIT READY")


def test_resize_changes_capacity_and_says_so(lun) -> None:
    lun.disk.resize(lun.blocks * 512 * 2)
    assert lun.disk.blocks == lun.blocks * 2
    assert lun.refused("TEST UNIT READY") == CAPACITY_CHANGED
    lun.request("READ (10)", lba=lun.blocks, count=1, length=512)
    lun.disk.resize(lun.blocks * 512 * 2)
    lun.good("TEST UNIT READY")


@pytest.mark.parametrize("size", [0, -512, 100, 513])
def test_sizes_without_whole_blocks_are_refused(lun, size: int) -> None:
    with pytest.raises(ValueError, match=f"{size} bytes .* 512 bytes"):
        lun.disk.resize(size)


def test_sense_reply_carries_the_information(lun) -> None:
    """A miscompare's offset, which iscsi-test-cu compares."""
    reply = lun.disk.sense_reply(Sense(MISCOMPARE.key, MISCOMPARE.asc, MISCOMPARE.ascq, information=27))
    assert reply.status is Status.CHECK_CONDITION
    assert parse(reply.sense) == Sense(0xE, 0x1D, 0x00, information=27)


def test_the_end_of_a_copy_nobody_remembers_is_no_news(lun) -> None:
    """Its list identifier may have been used again meanwhile."""
    lun.disk.copied(Request(Op.COPY, (Extent(0, 512), Extent(512, 512))), good=True)
    assert (lun.disk.block_size, lun.disk.blocks) == (lun.block_size, lun.blocks)
