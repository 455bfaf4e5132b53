"""Copies within the LUN: EXTENDED COPY (LID1), RECEIVE COPY RESULTS and VPD 8Fh (SPC-4 §6.4, §6.18, §7.8.17).

The only copy source and destination is this logical unit; another's data would need an initiator of our own.
"""

from __future__ import annotations

import struct

from tcmu_retry.scsi.cdb import Task
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
    CheckCondition,
)
from tcmu_retry.scsi.unit import Copy, CopyStatus, Unit

HEADER = struct.Struct(">BBH4xII")  # list id, flags, bytes of targets, segments and inline data
IDENTIFICATION = 0xE4  # the target descriptor that names a logical unit by a designator
BLOCK_TO_BLOCK = 0x02
TARGET_BYTES, SEGMENT_BYTES = 32, 28
MAXIMUM_TARGETS = 2
MAXIMUM_SEGMENTS = 16
MAXIMUM_DESCRIPTORS = 512  # bytes of all of them
MAXIMUM_SEGMENT = 32 << 20  # bytes; 65535 blocks of 512 bytes are less
GRANULARITY = 9  # two to this many bytes
DISCARD, NO_LIST_ID = 2, 3  # of LIST ID USAGE


def extended_copy(unit: Unit, task: Task) -> Request | None:
    """EXTENDED COPY; the extents of its request are a source and a destination in turn, in order of execution."""
    (length,) = struct.unpack_from(">I", task.cdb, 10)
    if length == 0:
        return None
    if length < HEADER.size or task.data_length < length:
        raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR)
    parameters = task.data_out()[:length]
    list_id, flags, target_bytes, segment_bytes, inline_bytes = HEADER.unpack_from(parameters)
    usage = flags >> 3 & 0x03
    if usage != NO_LIST_ID:
        _discard_ended(unit, list_id)
    if inline_bytes:
        raise CheckCondition(INLINE_DATA_LENGTH_EXCEEDED)
    end = HEADER.size + target_bytes + segment_bytes
    if end > length or target_bytes + segment_bytes > MAXIMUM_DESCRIPTORS or target_bytes % TARGET_BYTES:
        raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR)
    targets = _targets(parameters, target_bytes)
    extents = _segments(unit, parameters[:end], HEADER.size + target_bytes, targets)
    request = Request(Op.COPY, extents) if extents else None
    if usage != NO_LIST_ID:
        held = usage != DISCARD
        unit.copies.pop(list_id, None)
        if request or held:
            unit.copies[list_id] = Copy(request, CopyStatus.RUNNING if request else CopyStatus.DONE, held)
    return request


def _discard_ended(unit: Unit, list_id: int) -> None:
    """A result is kept until a command with its list identifier comes, even one that is refused (SPC-4 §6.18)."""
    known = unit.copies.get(list_id)
    if known is not None and known.status is not CopyStatus.RUNNING:
        del unit.copies[list_id]


def _targets(parameters: bytes, size: int) -> list[bytes]:
    targets = [parameters[at : at + TARGET_BYTES] for at in range(HEADER.size, HEADER.size + size, TARGET_BYTES)]
    for index, target in enumerate(targets):
        if target[0] != IDENTIFICATION:
            raise CheckCondition(UNSUPPORTED_TARGET.at(HEADER.size + index * TARGET_BYTES, in_cdb=False))
    if len(targets) > MAXIMUM_TARGETS:
        raise CheckCondition(TOO_MANY_TARGETS)
    return targets


def _segments(unit: Unit, parameters: bytes, at: int, targets: list[bytes]) -> tuple[Extent, ...]:
    """The whole list is looked at before anything is copied, so a refusal leaves the medium as it was."""
    extents: list[Extent] = []
    number = 0
    while at < len(parameters):
        number += 1
        if parameters[at] != BLOCK_TO_BLOCK:
            raise CheckCondition(UNSUPPORTED_SEGMENT.at(at, in_cdb=False))
        if at + SEGMENT_BYTES > len(parameters):
            raise CheckCondition(PARAMETER_LIST_LENGTH_ERROR)
        if number > MAXIMUM_SEGMENTS:
            raise CheckCondition(TOO_MANY_SEGMENTS)
        size, source, destination, count, read_at, write_at = struct.unpack_from(">HHH2xHQQ", parameters, at + 2)
        if size != SEGMENT_BYTES - 4:
            raise CheckCondition(INVALID_FIELD_IN_PARAMETER_LIST.at(at + 2, in_cdb=False))
        for index in (source, destination):
            if index >= len(targets):
                raise CheckCondition(COPY_TARGET_NOT_REACHABLE)
            _check_target(unit, targets[index], HEADER.size + index * TARGET_BYTES)
        if count * unit.block_size > MAXIMUM_SEGMENT:
            raise CheckCondition(INVALID_FIELD_IN_PARAMETER_LIST.at(at + 10, in_cdb=False))
        for lba in (read_at, write_at):
            if lba + count > unit.blocks:
                raise CheckCondition(COPY_ABORTED)
            if count:
                extents.append(Extent(lba * unit.block_size, count * unit.block_size))
        at += SEGMENT_BYTES
    return tuple(extents)


def _check_target(unit: Unit, target: bytes, place: int) -> None:
    """It names this logical unit, as a disk with these blocks. A block length of 0 is not looked at."""
    named = bytes((target[4] & 0x0F, target[5] & 0x3F, 0, target[7])) + target[8 : 8 + target[7]]
    if named not in of_unit(unit.identity):
        raise CheckCondition(COPY_TARGET_NOT_REACHABLE)
    if target[1] & 0x1F:
        raise CheckCondition(COPY_TARGET_TYPE)
    if int.from_bytes(target[29:32], "big") not in (0, unit.block_size):
        raise CheckCondition(INVALID_FIELD_IN_PARAMETER_LIST.at(place + 29, in_cdb=False))


def copy_status(unit: Unit, task: Task) -> bytes:
    """RECEIVE COPY STATUS (LID1): how the copy with this list identifier goes.

    Identifiers belong to an initiator, and we are not told which one asks: the newest copy with this one counts.
    """
    allocation = _allocation(task)
    copy = unit.copies.get(task.cdb[2])
    if copy is None:
        raise CheckCondition(INVALID_FIELD_IN_CDB.at(2))
    done = copy.status is CopyStatus.DONE and copy.request is not None
    extents = copy.request.extents if done and copy.request else ()
    copied = sum(extent.length for extent in extents[1::2])
    return struct.pack(">IBHBI", 8, copy.status.value, len(extents) // 2, 0, copied)[:allocation]


def operating_parameters(unit: Unit, task: Task) -> bytes:
    """RECEIVE COPY OPERATING PARAMETERS."""
    body = struct.pack(
        ">B3xHHIIIII2xHBBBB3xB2B",
        0x01,  # SNLID: no list identifier is needed
        MAXIMUM_TARGETS,
        MAXIMUM_SEGMENTS,
        MAXIMUM_DESCRIPTORS,
        MAXIMUM_SEGMENT,
        0,  # inline data
        0,  # held data
        0,  # stream devices
        1,  # copies at once, of all; they wait for each other
        1,
        GRANULARITY,
        0,
        0,
        2,
        BLOCK_TO_BLOCK,
        IDENTIFICATION,
    )
    return (struct.pack(">I", len(body)) + body)[: _allocation(task)]


def third_party_copy_page(unit: Unit) -> bytes:
    """VPD page 8Fh: commands, parameter data, descriptors, CSCD identifiers, general copy operations."""
    commands = bytes((0x83, 1, 0x00, 0x84, 2, 0x00, 0x03))
    return b"".join(
        (
            _descriptor(0x0001, bytes((len(commands),)) + commands),
            _descriptor(0x0004, struct.pack(">4xHHII12x", MAXIMUM_TARGETS, MAXIMUM_SEGMENTS, MAXIMUM_DESCRIPTORS, 0)),
            _descriptor(0x0008, bytes((2, BLOCK_TO_BLOCK, IDENTIFICATION))),
            _descriptor(0x000C, struct.pack(">H", 0)),
            _descriptor(0x8001, struct.pack(">IIIBB18x", 1, 1, MAXIMUM_SEGMENT, GRANULARITY, 0)),
        )
    )


def _descriptor(kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    return struct.pack(">HH", kind, len(body)) + body


def _allocation(task: Task) -> int:
    (allocation,) = struct.unpack_from(">I", task.cdb, 10)
    return int(allocation)
