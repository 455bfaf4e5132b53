"""Commands for the medium: what the storage is asked for, and what never gets that far."""

import struct

import pytest

from tcmu_retry.scsi.request import Compare, Extent, Op, Request
from tcmu_retry.scsi.sense import (
    INVALID_FIELD_IN_CDB,
    INVALID_FIELD_IN_COMMAND_IU,
    INVALID_FIELD_IN_PARAMETER_LIST,
    INVALID_OPCODE,
    LBA_OUT_OF_RANGE,
    PARAMETER_LIST_LENGTH_ERROR,
    WRITE_PROTECTED,
)

READS = ["READ (6)", "READ (10)", "READ (12)", "READ (16)"]
WRITES = ["WRITE (6)", "WRITE (10)", "WRITE (12)", "WRITE (16)"]
VERIFIES = ["VERIFY (10)", "VERIFY (12)", "VERIFY (16)"]
WRITE_VERIFIES = ["WRITE AND VERIFY (10)", "WRITE AND VERIFY (12)", "WRITE AND VERIFY (16)"]
WRITE_SAMES = ["WRITE SAME (10)", "WRITE SAME (16)"]
FLUSHES = ["SYNCHRONIZE CACHE (10)", "SYNCHRONIZE CACHE (16)"]
PRE_FETCHES = ["PRE-FETCH (10)", "PRE-FETCH (16)"]
ALL_ONES = {"READ (6)": (1 << 21) - 1, "WRITE (6)": (1 << 21) - 1}
FUA, DPO, BYTCHK_ALL, BYTCHK_ONE = 0x08, 0x10, 0x02, 0x06


@pytest.mark.parametrize("block_size", [512, 4096])
@pytest.mark.parametrize(("command", "op"), [(c, Op.READ) for c in READS] + [(c, Op.WRITE) for c in WRITES])
def test_transfers(make_lun, command: str, op: Op, block_size: int) -> None:
    lun = make_lun(block_size=block_size)
    request = lun.request(command, lba=7, count=3, length=3 * block_size)
    assert request == Request(op, (Extent(7 * block_size, 3 * block_size),))
    request = lun.request(command, lba=lun.blocks - 3, count=3, length=3 * block_size)
    assert request.extents[0].end == lun.blocks * block_size


@pytest.mark.parametrize("command", READS[1:] + WRITES[1:])
def test_fua_is_carried_and_dpo_makes_no_difference(lun, command: str) -> None:
    for flags in (0, FUA, DPO, FUA | DPO):
        assert lun.request(command, count=1, length=512, flags=flags).fua == bool(flags & FUA)


@pytest.mark.parametrize("command", ["READ (6)", "WRITE (6)"])
def test_six_byte_transfers_of_zero_mean_256_blocks(lun, command: str) -> None:
    """And the LBA bits where others have FUA are no FUA; the LUN bits of old are overlooked."""
    assert lun.request(command, lba=0x080000, count=0, length=256 * 512) == Request(
        Op.READ if command == "READ (6)" else Op.WRITE, (Extent(0x080000 * 512, 256 * 512),)
    )
    lun.request(command, count=1, length=512, flags=0x20)


@pytest.mark.parametrize("command", READS[1:] + WRITES[1:] + VERIFIES + WRITE_VERIFIES + PRE_FETCHES)
def test_zero_blocks_are_no_error_but_out_of_range_still_is(lun, command: str) -> None:
    lun.good(command, count=0)
    lun.good(command, lba=lun.blocks, count=0)
    assert lun.refused(command, lba=lun.blocks + 1, count=0) == LBA_OUT_OF_RANGE


@pytest.mark.parametrize(
    "command",
    READS + WRITES + VERIFIES + WRITE_VERIFIES + WRITE_SAMES + FLUSHES + PRE_FETCHES + ["COMPARE AND WRITE"],
)
def test_out_of_range(lun, command: str) -> None:
    """One block beyond the end, all but one beyond it, and the last LBA there can be."""
    end = ALL_ONES.get(command, (1 << 64 if "16" in command or command == "COMPARE AND WRITE" else 1 << 32) - 1)
    for lba, count in [(lun.blocks, 1), (lun.blocks - 1, 2), (end, 1), (end, 255)]:
        assert lun.refused(command, lba=lba, count=count, length=count * 512) == LBA_OUT_OF_RANGE


@pytest.mark.parametrize("command", READS[1:] + WRITES[1:] + VERIFIES + WRITE_VERIFIES)
def test_protection_information_is_refused(lun, command: str) -> None:
    for protect in range(1, 8):
        sense = lun.refused(command, count=1, length=512, flags=protect << 5)
        assert sense == INVALID_FIELD_IN_CDB.at(1, 4 + protect.bit_length())


@pytest.mark.parametrize("command", READS[1:] + WRITES[1:] + VERIFIES + WRITE_VERIFIES)
def test_maximum_transfer_length(lun, command: str) -> None:
    """2 MiB, as VPD B0 says; VERIFY too, so that one command cannot keep a worker for hours."""
    blocks = (2 << 20) // 512
    lun.request(command, count=blocks, length=blocks * 512)
    byte = {"0": 7, "2": 6, "6": 10}[command[-2]]
    sense = lun.refused(command, count=blocks + 1, length=(blocks + 1) * 512)
    assert sense == INVALID_FIELD_IN_CDB.at(byte)


def test_read_into_a_longer_buffer_is_a_residual(lun) -> None:
    assert lun.request("READ (10)", count=1, length=10000).length == 512


@pytest.mark.parametrize("length", [0, 200, 512])
def test_read_into_a_shorter_buffer_is_refused(lun, length: int) -> None:
    """An overflow cannot be told to the kernel, and GOOD would look like all of it."""
    assert lun.refused("READ (10)", count=2, length=length) == INVALID_FIELD_IN_COMMAND_IU


@pytest.mark.parametrize("command", WRITES + WRITE_VERIFIES)
@pytest.mark.parametrize("length", [0, 200, 512, 1536])
def test_writes_take_exactly_their_data(lun, command: str, length: int) -> None:
    """A residual of Data-Out cannot be told: GOOD for a part of it would be a lie."""
    assert lun.refused(command, count=2, length=length) == INVALID_FIELD_IN_COMMAND_IU


@pytest.mark.parametrize("command", VERIFIES)
def test_verify(lun, command: str) -> None:
    """Without comparison data is not expected, and overlooked if it comes (libiscsi sends some)."""
    extents = (Extent(512, 1024),)
    for length in (0, 512, 1024):
        assert lun.request(command, lba=1, count=2, length=length, flags=DPO) == Request(Op.VERIFY, extents)
    assert lun.request(command, lba=1, count=2, length=1024, flags=BYTCHK_ALL).compare is Compare.ALL
    assert lun.request(command, lba=1, count=2, length=512, flags=BYTCHK_ONE).compare is Compare.ONE_BLOCK
    assert lun.refused(command, count=2, length=512, flags=BYTCHK_ALL) == INVALID_FIELD_IN_COMMAND_IU
    assert lun.refused(command, count=2, length=1024, flags=BYTCHK_ONE) == INVALID_FIELD_IN_COMMAND_IU
    assert lun.refused(command, count=2, length=1024, flags=0x04) == INVALID_FIELD_IN_CDB.at(1, 2)
    lun.good(command, count=0, flags=BYTCHK_ONE)


@pytest.mark.parametrize("command", WRITE_VERIFIES)
def test_write_and_verify(lun, command: str) -> None:
    extents = (Extent(512, 1024),)
    request = lun.request(command, lba=1, count=2, length=1024, flags=BYTCHK_ALL)
    assert request == Request(Op.WRITE_AND_VERIFY, extents, compare=Compare.ALL)
    assert lun.request(command, lba=1, count=2, length=1024).compare is Compare.NONE
    assert lun.refused(command, count=1, length=512, flags=BYTCHK_ONE) == INVALID_FIELD_IN_CDB.at(1, 2)


def test_compare_and_write(lun) -> None:
    request = lun.request("COMPARE AND WRITE", lba=3, count=255, length=2 * 255 * 512, flags=FUA)
    assert request == Request(Op.COMPARE_AND_WRITE, (Extent(3 * 512, 255 * 512),), fua=True)
    lun.good("COMPARE AND WRITE", count=0)
    for length in (0, 512, 1536):
        assert lun.refused("COMPARE AND WRITE", count=1, length=length) == INVALID_FIELD_IN_CDB.at(13)
    assert lun.refused("COMPARE AND WRITE", count=256, length=512 * 512) == INVALID_FIELD_IN_CDB.at(12, 0)


def test_or_write(lun) -> None:
    request = lun.request("OR WRITE (16)", lba=3, count=2, length=1024, flags=FUA)
    assert request == Request(Op.OR_WRITE, (Extent(3 * 512, 1024),), fua=True)
    lun.good("OR WRITE (16)", count=0)
    assert lun.refused("OR WRITE (16)", count=1, length=1024) == INVALID_FIELD_IN_COMMAND_IU
    assert lun.refused("OR WRITE (16)", lba=lun.blocks, count=1, length=512) == LBA_OUT_OF_RANGE
    assert lun.refused("OR WRITE (16)", count=1, length=512, flags=0x20) == INVALID_FIELD_IN_CDB.at(1, 5)


@pytest.mark.parametrize("command", WRITE_SAMES)
def test_write_same(lun, command: str) -> None:
    assert lun.request(command, lba=2, count=5, length=512) == Request(Op.WRITE_SAME, (Extent(1024, 2560),))
    assert lun.request(command, count=5, length=512, flags=0x08).unmap
    byte = 10 if "16" in command else 7
    assert lun.refused(command, count=0, length=512) == INVALID_FIELD_IN_CDB.at(byte)
    assert lun.refused(command, count=32769, length=512) == INVALID_FIELD_IN_CDB.at(byte)
    for length in (0, 256, 1024):
        assert lun.refused(command, count=1, length=length) == INVALID_FIELD_IN_COMMAND_IU
    assert lun.refused(command, count=1, length=512, flags=0x10) == INVALID_FIELD_IN_CDB.at(1, 4)


def test_write_same_without_data(lun) -> None:
    """NDOB: zeros are meant and nothing comes."""
    request = lun.request("WRITE SAME (16)", count=5, flags=0x09)
    assert (request.zeroes, request.unmap) == (True, True)
    assert lun.refused("WRITE SAME (16)", count=5, length=512, flags=0x01) == INVALID_FIELD_IN_COMMAND_IU


def test_without_discard_nothing_can_be_unmapped(make_lun) -> None:
    """UNMAP does not exist then, so that no initiator believes that it worked."""
    lun = make_lun(can_discard=False)
    assert lun.refused("UNMAP") == INVALID_OPCODE
    for command in WRITE_SAMES:
        lun.request(command, count=1, length=512)
        assert lun.refused(command, count=1, length=512, flags=0x08) == INVALID_FIELD_IN_CDB.at(1, 3)


@pytest.mark.parametrize("command", FLUSHES)
def test_synchronize_cache(lun, command: str) -> None:
    """Any range flushes everything; IMMED waits for it too."""
    for lba, count, flags in [(0, 0, 0), (5, 3, 0x02), (lun.blocks, 0, 0x04)]:
        assert lun.request(command, lba=lba, count=count, flags=flags) == Request(Op.FLUSH)


@pytest.mark.parametrize("command", PRE_FETCHES)
def test_pre_fetch_is_a_range_check(lun, command: str) -> None:
    lun.good(command, count=256, flags=0x02)
    lun.good(command, lba=lun.blocks - 1, count=1)


def unmap(lun, *descriptors: tuple[int, int], length: int | None = None, named: int | None = None, extra: bytes = b""):
    """Arguments of an UNMAP. length, named: parameter list and descriptor data length, if they lie."""
    body = b"".join(struct.pack(">QI4x", lba, count) for lba, count in descriptors) + extra
    data = struct.pack(">HH4x", len(body) + 6, len(body) if named is None else named) + body
    return {"command": "UNMAP", "count": len(data) if length is None else length, "data": data}


def test_unmap(lun) -> None:
    request = lun.request(**unmap(lun, (1, 2), (100, 0), (8, 8)))
    assert request == Request(Op.UNMAP, (Extent(512, 1024), Extent(4096, 4096)))


def test_unmap_of_nothing(lun) -> None:
    lun.good("UNMAP")
    lun.good(**unmap(lun))
    lun.good(**unmap(lun, (lun.blocks, 0)))


def test_unmap_out_of_range(lun) -> None:
    """Nothing is unmapped if one descriptor is wrong."""
    for descriptor in [(lun.blocks, 1), (lun.blocks - 1, 2), ((1 << 64) - 1, 1), (lun.blocks + 1, 0)]:
        assert lun.refused(**unmap(lun, (0, 1), descriptor)) == LBA_OUT_OF_RANGE


def test_unmap_limits(make_lun) -> None:
    """512 MiB and 256 descriptors, as VPD B0 says."""
    lun = make_lun(blocks=1 << 30)
    limit = (512 << 20) // 512
    assert lun.request(**unmap(lun, (0, limit))).length == 512 << 20
    assert lun.refused(**unmap(lun, (0, limit), (0, 1))) == INVALID_FIELD_IN_PARAMETER_LIST.at(32, in_cdb=False)
    lun.request(**unmap(lun, *[(0, 1)] * 256))
    assert lun.refused(**unmap(lun, *[(0, 1)] * 257)) == INVALID_FIELD_IN_PARAMETER_LIST.at(2, in_cdb=False)


def test_unmap_lists_that_contradict_themselves(lun) -> None:
    """Never more than came; an incomplete last descriptor is ignored (SBC-4 §5.35.2)."""
    assert lun.refused(**unmap(lun, (0, 1), length=7)) == PARAMETER_LIST_LENGTH_ERROR
    assert lun.refused(**unmap(lun, (0, 1), length=100)) == PARAMETER_LIST_LENGTH_ERROR
    assert lun.request(**unmap(lun, (0, 1), named=0xFFFF)).length == 512
    assert lun.request(**unmap(lun, (0, 1), extra=bytes(15))).length == 512
    assert lun.request(**unmap(lun, (0, 1), (1, 1), length=8 + 16)).length == 512
    lun.good(**unmap(lun, (0, 1), named=15))


@pytest.mark.parametrize("command", WRITES + WRITE_VERIFIES + WRITE_SAMES + ["COMPARE AND WRITE", "UNMAP"])
def test_write_protection_comes_before_everything_else_about_the_write(make_lun, command: str) -> None:
    lun = make_lun(read_only=True)
    assert lun.disk.read_only
    assert lun.refused(command, lba=0 if command == "UNMAP" else lun.blocks, count=1) == WRITE_PROTECTED


@pytest.mark.parametrize("command", READS + VERIFIES + FLUSHES + PRE_FETCHES)
def test_write_protection_does_not_stop_reads(make_lun, command: str) -> None:
    make_lun(read_only=True).send(command, count=1, length=512)
