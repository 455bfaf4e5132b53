"""Reports about capacity, blocks, defects, ports and task management."""

import pytest

from tcmu_retry.scsi.sense import INVALID_FIELD_IN_CDB, LBA_OUT_OF_RANGE


@pytest.mark.parametrize(
    ("blocks", "block_size", "data"),
    [
        (1, 512, "00000000 00000200"),
        (1 << 20, 4096, "000fffff 00001000"),
        (0xFFFFFFFF, 512, "fffffffe 00000200"),
        (1 << 32, 512, "ffffffff 00000200"),
        (1 << 40, 512, "ffffffff 00000200"),
    ],
)
def test_read_capacity_10(make_lun, blocks: int, block_size: int, data: str) -> None:
    """All ones from the first size on that has no room."""
    lun = make_lun(blocks=blocks, block_size=block_size)
    assert lun.good("READ CAPACITY (10)", length=8) == bytes.fromhex(data)


def test_read_capacity_10_of_an_address_is_refused_without_pmi(lun) -> None:
    assert lun.refused("READ CAPACITY (10)", lba=5, length=8) == INVALID_FIELD_IN_CDB.at(2)
    lun.good("READ CAPACITY (10)", lba=5, put={8: 1}, length=8)


@pytest.mark.parametrize("can_discard", [False, True])
def test_read_capacity_16(make_lun, can_discard: bool) -> None:
    """LBPME and LBPRZ only where UNMAP is honoured; no protection."""
    lun = make_lun(blocks=1 << 40, can_discard=can_discard)
    data = lun.good("READ CAPACITY (16)", count=32, length=32)
    assert data == bytes.fromhex("000000ffffffffff 00000200 0000") + (b"\xc0\0" if can_discard else b"\0\0") + bytes(16)
    assert lun.good("READ CAPACITY (16)", count=12, length=32) == data[:12]


@pytest.mark.parametrize(
    ("block_size", "physical", "exponent"),
    [(512, 0, 0), (512, 512, 0), (512, 4096, 3), (4096, 4096, 0), (4096, 512, 0), (512, 1536, 0), (512, 65536, 7)],
)
def test_physical_blocks_are_told_as_a_power_of_two(make_lun, block_size: int, physical: int, exponent: int) -> None:
    lun = make_lun(block_size=block_size, physical=physical)
    assert lun.good("READ CAPACITY (16)", count=32, length=32)[13] == exponent


def test_get_lba_status(lun) -> None:
    """One descriptor to the end of the disk: mapped, or unknown."""
    data = lun.good("GET LBA STATUS", lba=8, count=24, length=24)
    assert data == bytes.fromhex("00000014 00000000 0000000000000008 000ffff8 00000000")
    assert lun.refused("GET LBA STATUS", lba=lun.blocks, count=24, length=24) == LBA_OUT_OF_RANGE


def test_get_lba_status_of_a_large_disk_says_as_much_as_fits(make_lun) -> None:
    assert make_lun(blocks=1 << 40).good("GET LBA STATUS", count=24, length=24)[16:20] == b"\xff" * 4


def test_defect_lists_are_empty(lun) -> None:
    """The header repeats which lists were asked for, and in which format."""
    assert lun.good("READ DEFECT DATA (10)", put={2: 0x1D}, count=64, length=64) == bytes((0, 0x1D, 0, 0))
    assert lun.good("READ DEFECT DATA (12)", flags=0x08, count=64, length=64) == bytes((0, 0x08, 0, 0, 0, 0, 0, 0))
    assert lun.good("READ DEFECT DATA (12)", count=4, length=64) == bytes(4)


GROUP = bytes.fromhex("80010001 00000001 00000001")


def test_report_target_port_groups(lun) -> None:
    """One group, preferred and active/optimized, with the port that VPD 83 names; in both formats."""
    command = "REPORT TARGET PORT GROUPS"
    assert lun.good(command, count=128, length=128) == bytes.fromhex("0000000c") + GROUP
    assert lun.good(command, flags=0x20, count=128, length=128) == bytes.fromhex("00000010 10000000") + GROUP
    assert lun.good(command, count=4, length=4) == bytes.fromhex("0000000c")
    assert lun.refused(command, flags=0x40, count=128, length=128) == INVALID_FIELD_IN_CDB.at(1, 7)


def test_report_supported_task_management_functions(lun) -> None:
    """ABORT TASK and LOGICAL UNIT RESET."""
    command = "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS"
    assert lun.good(command, count=64, length=64) == bytes((0x88, 0, 0, 0))
    assert lun.good(command, put={2: 0x80}, count=64, length=64) == bytes((0x88, 0, 0, 12)) + bytes(12)
