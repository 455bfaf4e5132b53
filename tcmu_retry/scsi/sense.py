"""Sense data: the conditions this disk reports and their wire formats (SPC-5 §4.4)."""

from __future__ import annotations

import struct
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sense:
    """Sense key, additional sense code and qualifier.

    information: an LBA or, for a miscompare, an offset in bytes. field: (in the CDB, byte) of an invalid field.
    """

    key: int
    asc: int
    ascq: int
    information: int | None = None
    field: tuple[bool, int] | None = None

    def __str__(self) -> str:
        return f"{self.key:02X}/{self.asc:02X}/{self.ascq:02X}"


NO_SENSE = Sense(0x0, 0x00, 0x00)
LUN_NOT_ACCESSIBLE = Sense(0x2, 0x04, 0x03)  # not ready, manual intervention required
ASYMMETRIC_TRANSITION = Sense(0x2, 0x04, 0x0A)
STOPPED = Sense(0x2, 0x04, 0x02)  # initializing command required
UNRECOVERED_READ_ERROR = Sense(0x3, 0x11, 0x00)
WRITE_ERROR = Sense(0x3, 0x0C, 0x00)
TARGET_FAILURE = Sense(0x4, 0x44, 0x00)
PARAMETER_LIST_LENGTH_ERROR = Sense(0x5, 0x1A, 0x00)
INVALID_OPCODE = Sense(0x5, 0x20, 0x00)
LBA_OUT_OF_RANGE = Sense(0x5, 0x21, 0x00)
INVALID_FIELD_IN_CDB = Sense(0x5, 0x24, 0x00)
LUN_NOT_SUPPORTED = Sense(0x5, 0x25, 0x00)
INVALID_FIELD_IN_PARAMETER_LIST = Sense(0x5, 0x26, 0x00)
SAVING_NOT_SUPPORTED = Sense(0x5, 0x39, 0x00)
MEDIUM_REMOVAL_PREVENTED = Sense(0x5, 0x53, 0x02)
DATA_LENGTH_MISMATCH = Sense(0x5, 0x0E, 0x03)  # invalid field in command information unit
CAPACITY_CHANGED = Sense(0x6, 0x2A, 0x09)
MODE_PARAMETERS_CHANGED = Sense(0x6, 0x2A, 0x01)
WRITE_PROTECTED = Sense(0x7, 0x27, 0x00)
SPACE_ALLOCATION_FAILED = Sense(0x7, 0x27, 0x07)
MISCOMPARE = Sense(0xE, 0x1D, 0x00)


def encode(sense: Sense, descriptor: bool) -> bytes:
    """Sense data in descriptor format (72h), else in fixed format (70h), which has 32 bits for the information."""
    if descriptor:
        return _descriptor(sense)
    fits = sense.information is not None and sense.information < 1 << 32
    information = sense.information if fits else 0
    specific = bytes(3) if sense.field is None else _pointer(sense.field)
    return struct.pack(
        ">BBBIBIBBB3s",
        0x70 | (0x80 if fits else 0),
        0,
        sense.key,
        information,
        10,  # additional sense length
        0,
        sense.asc,
        sense.ascq,
        0,
        specific,
    )


def _descriptor(sense: Sense) -> bytes:
    parts = b""
    if sense.information is not None:
        parts += struct.pack(">BBBBQ", 0x00, 10, 0x80, 0, sense.information)
    if sense.field is not None:
        parts += struct.pack(">BBH3sB", 0x02, 6, 0, _pointer(sense.field), 0)
    return struct.pack(">BBBB3xB", 0x72, sense.key, sense.asc, sense.ascq, len(parts)) + parts


def _pointer(field: tuple[bool, int]) -> bytes:
    """Sense key specific data of ILLEGAL REQUEST: the field pointer (SPC-5 table 60)."""
    in_cdb, byte = field
    return struct.pack(">BH", 0x80 | (0x40 if in_cdb else 0), byte)
