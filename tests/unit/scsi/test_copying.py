"""EXTENDED COPY within the LUN: the parameter list, what it asks of the storage, and what is told of it afterwards."""

import struct

import pytest

from tcmu_retry.scsi.designators import of_unit
from tcmu_retry.scsi.request import Extent, Op, Request
from tcmu_retry.scsi.sense import (
    COPY_ABORTED,
    COPY_TARGET_NOT_REACHABLE,
    COPY_TARGET_TYPE,
    INLINE_DATA_LENGTH_EXCEEDED,
    INVALID_FIELD_IN_CDB,
    INVALID_FIELD_IN_PARAMETER_LIST,
    PARAMETER_LIST_LENGTH_ERROR,
    TOO_MANY_SEGMENTS,
    TOO_MANY_TARGETS,
    UNSUPPORTED_SEGMENT,
    UNSUPPORTED_TARGET,
    WRITE_PROTECTED,
    Sense,
)
from tests.unit.scsi.conftest import BLOCKS, IDENTITY

COPY = "EXTENDED COPY (LID1)"
STATUS = "RECEIVE COPY STATUS (LID1)"
NAA, EUI, T10, NAME = of_unit(IDENTITY)


def target(kind: int = 0xE4, name: bytes = NAA, device: int = 0, block_size: int = 512) -> bytes:
    head = bytes((kind, device, 0, 0)) + name[:2] + bytes((0, name[3])) + name[4:24]
    return head.ljust(28, b"\0") + block_size.to_bytes(4, "big")


def segment(
    source: int, destination: int, count: int, kind: int = 2, indices: tuple[int, int] = (0, 0), size: int = 0x18
) -> bytes:
    return struct.pack(">BBHHH2xHQQ", kind, 0, size, *indices, count, source, destination)


def parameters(targets: list[bytes], segments: list[bytes], list_id: int = 1, usage: int = 0, inline: int = 0) -> bytes:
    some, others = b"".join(targets), b"".join(segments)
    return struct.pack(">BBH4xII", list_id, usage << 3, len(some), len(others), inline) + some + others


def send(data: bytes, length: int | None = None) -> dict:
    """Arguments of `Lun.request` and the like. length: PARAMETER LIST LENGTH where it is not that of the data."""
    put = dict(enumerate((len(data) if length is None else length).to_bytes(4, "big"), 10))
    return {"command": COPY, "data": data, "put": put}


def test_sources_and_destinations_in_turn(lun) -> None:
    data = parameters([target()], [segment(0, 100, 8), segment(200, 50, 0), segment(4, 300, 1)])
    assert lun.request(**send(data)) == Request(
        Op.COPY, (Extent(0, 4096), Extent(51200, 4096), Extent(2048, 512), Extent(153600, 512))
    )


@pytest.mark.parametrize("name", [NAA, EUI, *(long[:3] + bytes((20,)) + long[4:24] for long in (T10, NAME))])
def test_the_unit_is_known_by_its_designators_only(lun, name: bytes) -> None:
    """T10's and the name are longer than a target descriptor has room for; cut short they are another's."""
    outcome = lun.send(**send(parameters([target(name=name)], [segment(0, 8, 1)])))
    assert isinstance(outcome, Request) == (name in (NAA, EUI))


@pytest.mark.parametrize(
    ("source", "destination", "repeatable"), [(0, 8, True), (0, 4, False), (8, 4, False), (8, 0, True), (8, 8, False)]
)
def test_a_copy_over_what_it_reads_may_not_begin_anew(lun, source: int, destination: int, repeatable: bool) -> None:
    """Eight blocks, from and to."""
    request = lun.request(**send(parameters([target()], [segment(source, destination, 8)])))
    assert request.repeatable is repeatable


def test_nothing_to_copy_is_no_error(lun) -> None:
    lun.good(**send(b""))
    lun.good(**send(parameters([], [])))
    lun.good(**send(parameters([target()], [segment(0, 8, 0)], list_id=9)))
    assert lun.good(STATUS, put={2: 9}, count=64, length=64)[4] == 1


ONE = [segment(0, 8, 1)]


@pytest.mark.parametrize(
    ("data", "sense"),
    [
        (bytes(15), PARAMETER_LIST_LENGTH_ERROR),
        (parameters([target()], ONE)[:-1], PARAMETER_LIST_LENGTH_ERROR),
        (parameters([target()[:-1]], ONE), PARAMETER_LIST_LENGTH_ERROR),
        (parameters([target()], [segment(0, 8, 1)[:-1]]), PARAMETER_LIST_LENGTH_ERROR),
        (parameters([target()] * 4, ONE * 14), PARAMETER_LIST_LENGTH_ERROR),
        (parameters([target()], ONE, inline=4), INLINE_DATA_LENGTH_EXCEEDED),
        (parameters([target()] * 3, ONE), TOO_MANY_TARGETS),
        (parameters([target()], ONE * 17), TOO_MANY_SEGMENTS),
        (parameters([target(), target(kind=0xE0)], ONE), UNSUPPORTED_TARGET.at(48, in_cdb=False)),
        (parameters([target()], [segment(0, 8, 1, kind=3)]), UNSUPPORTED_SEGMENT.at(48, in_cdb=False)),
        (parameters([target()], [segment(0, 8, 1, size=4)]), INVALID_FIELD_IN_PARAMETER_LIST.at(50, in_cdb=False)),
        (parameters([target()], [segment(0, 8, 1, indices=(0, 1))]), COPY_TARGET_NOT_REACHABLE),
        (parameters([target(name=NAA[:-1] + b"?")], ONE), COPY_TARGET_NOT_REACHABLE),
        (parameters([target(device=1)], ONE), COPY_TARGET_TYPE),
        (parameters([target(block_size=4096)], ONE), INVALID_FIELD_IN_PARAMETER_LIST.at(45, in_cdb=False)),
        (parameters([target()], [segment(0, BLOCKS - 1, 2)]), COPY_ABORTED),
        (parameters([target()], [segment(BLOCKS, 0, 1)]), COPY_ABORTED),
    ],
)
def test_refused_before_anything_is_copied(lun, data: bytes, sense: Sense) -> None:
    assert lun.refused(**send(data)) == sense
    assert lun.refused(STATUS, put={2: 1}, count=64, length=64) == INVALID_FIELD_IN_CDB.at(2)


def test_a_list_longer_than_its_data_is_refused(lun) -> None:
    assert lun.refused(**send(parameters([target()], ONE), length=4096)) == PARAMETER_LIST_LENGTH_ERROR


def test_a_segment_beyond_the_maximum_is_refused(make_lun) -> None:
    lun = make_lun(block_size=4096)
    data = parameters([target(block_size=0)], [segment(0, 65536, 8193)])
    assert lun.refused(**send(data)) == INVALID_FIELD_IN_PARAMETER_LIST.at(58, in_cdb=False)


def test_a_write_protected_unit_copies_nothing(make_lun) -> None:
    assert make_lun(read_only=True).refused(**send(parameters([target()], ONE))) == WRITE_PROTECTED


@pytest.mark.parametrize(("good", "status", "copied"), [(True, 1, 512), (False, 2, 0)])
def test_status_follows_the_copy(lun, good: bool, status: int, copied: int) -> None:
    """Running until its end is told; then how it ended, and how much was copied."""
    request = lun.request(**send(parameters([target()], ONE, list_id=7)))
    assert lun.good(STATUS, put={2: 7}, count=64, length=64) == struct.pack(">IBHBI", 8, 0, 0, 0, 0)
    lun.disk.copied(request, good)
    expected = struct.pack(">IBHBI", 8, status, copied // 512, 0, copied)
    assert lun.good(STATUS, put={2: 7}, count=64, length=64) == expected
    assert lun.good(STATUS, put={2: 7}, count=5, length=64) == expected[:5]


def test_the_end_of_one_copy_is_not_another_s(lun) -> None:
    lun.request(**send(parameters([target()], ONE, list_id=7)))
    other = lun.request(**send(parameters([target()], [segment(8, 64, 2)], list_id=8)))
    lun.disk.copied(other, good=True)
    assert lun.good(STATUS, put={2: 7}, count=64, length=64)[4] == 0
    assert lun.good(STATUS, put={2: 8}, count=64, length=64)[4] == 1


@pytest.mark.parametrize("good", [True, False])
def test_a_result_that_may_be_discarded_is_told_until_the_copy_ends(lun, good: bool) -> None:
    request = lun.request(**send(parameters([target()], ONE, list_id=7, usage=2)))
    assert lun.good(STATUS, put={2: 7}, count=64, length=64)[4] == 0
    lun.disk.copied(request, good)
    assert lun.refused(STATUS, put={2: 7}, count=64, length=64) == INVALID_FIELD_IN_CDB.at(2)


def test_a_new_copy_takes_the_place_of_an_old_result_with_its_list_id(lun) -> None:
    """Even one that copies nothing, and whose result may be discarded at once."""
    lun.disk.copied(lun.request(**send(parameters([target()], ONE, list_id=7))), good=True)
    lun.good(**send(parameters([], [], list_id=7, usage=2)))
    assert lun.refused(STATUS, put={2: 7}, count=64, length=64) == INVALID_FIELD_IN_CDB.at(2)


def test_a_refused_copy_ends_the_keeping_of_an_old_result_with_its_list_id(lun) -> None:
    """But not what is told of a copy with it that still runs, which may be another initiator's."""
    refused, ask = send(parameters([target(kind=0xE5)], ONE, list_id=7)), {"put": {2: 7}, "count": 64, "length": 64}
    request = lun.request(**send(parameters([target()], ONE, list_id=7)))
    lun.refused(**refused)
    assert lun.good(STATUS, **ask)[4] == 0
    lun.disk.copied(request, good=True)
    assert lun.good(STATUS, **ask)[4] == 1
    lun.refused(**refused)
    assert lun.refused(STATUS, **ask) == INVALID_FIELD_IN_CDB.at(2)


def test_a_copy_without_list_identifier_is_not_remembered(lun) -> None:
    lun.request(**send(parameters([target()], ONE, list_id=0, usage=3)))
    assert lun.refused(STATUS, put={2: 0}, count=64, length=64) == INVALID_FIELD_IN_CDB.at(2)


def test_operating_parameters_say_what_is_taken(lun) -> None:
    data = lun.good("RECEIVE COPY OPERATING PARAMETERS", count=512, length=512)
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    assert struct.unpack_from(">HHII", data, 8) == (2, 16, 512, 32 << 20)
    assert data[43:] == bytes((2, 0x02, 0xE4))


def test_the_third_party_copy_page_lists_what_is_dispatched(lun) -> None:
    page = lun.good("INQUIRY", flags=1, put={2: 0x8F, 3: 2, 4: 0}, length=512)
    found, at = {}, 4
    while at < len(page):
        kind, size = struct.unpack_from(">HH", page, at)
        found[kind] = page[at + 4 : at + 4 + size]
        at += 4 + size
    assert list(found) == [0x0001, 0x0004, 0x0008, 0x000C, 0x8001]
    assert found[0x0001][:8] == bytes((7, 0x83, 1, 0x00, 0x84, 2, 0x00, 0x03))
    assert [len(found[kind]) for kind in (0x0004, 0x8001)] == [0x1C, 0x20]
