"""Sense data: the named conditions this disk reports and their wire formats (SPC-5 §4.4)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class FieldPointer:
    """Where the illegal field starts: a byte of the CDB or of the parameter list, and its leftmost bit if known."""

    byte: int
    bit: int | None = None
    in_cdb: bool = True


@dataclass(frozen=True, slots=True)
class Sense:
    """Sense key, additional sense code and qualifier; `information` is an LBA or an offset in bytes, by command.

    pointer: of ILLEGAL REQUEST only (SENSE KEY SPECIFIC, SPC-5 §4.4.2.4.2).
    """

    key: int
    asc: int
    ascq: int
    information: int | None = None
    pointer: FieldPointer | None = None

    def __str__(self) -> str:
        return f"{self.key:02X}/{self.asc:02X}/{self.ascq:02X}"

    def at(self, byte: int, bit: int | None = None, in_cdb: bool = True) -> Sense:
        """The same condition, pointing at the field that caused it."""
        return replace(self, pointer=FieldPointer(byte, bit, in_cdb))

    def fixed(self) -> bytes:
        """Fixed format, 18 bytes. An INFORMATION that needs more than 32 bits is left out, as SPC-5 §4.4.3 demands."""
        information = self.information if self.information is not None and self.information < 1 << 32 else None
        return struct.pack(
            ">BxBIB4xBBx3s",
            0x70 if information is None else 0xF0,
            self.key,
            information or 0,
            10,
            self.asc,
            self.ascq,
            _specific(self.pointer),
        )

    def descriptors(self) -> bytes:
        """Descriptor format: INFORMATION and SENSE KEY SPECIFIC descriptors where there is something to say."""
        body = b""
        if self.information is not None:
            body += struct.pack(">BBBxQ", 0x00, 0x0A, 0x80, self.information)
        if self.pointer is not None:
            body += struct.pack(">BB2x3sx", 0x02, 0x06, _specific(self.pointer))
        return struct.pack(">BBBB3xB", 0x72, self.key, self.asc, self.ascq, len(body)) + body


class CheckCondition(Exception):
    """The command ends with this sense instead of being carried out."""

    def __init__(self, sense: Sense) -> None:
        super().__init__(str(sense))
        self.sense = sense


def parse(data: bytes) -> Sense | None:
    """What sense data of either format says; None where it is empty, cut short or of no current format."""
    match data[0] & 0x7F if data else 0:
        case 0x70 if len(data) >= 14:
            information = struct.unpack_from(">I", data, 3)[0] if data[0] & 0x80 else None
            pointer = _pointer(data[15:18]) if len(data) >= 18 else None
            return Sense(data[2] & 0x0F, data[12], data[13], information, pointer)
        case 0x72 if len(data) >= 8:
            sense = Sense(data[1] & 0x0F, data[2], data[3])
            at, end = 8, min(8 + data[7], len(data))
            while at + 2 <= end and at + 2 + data[at + 1] <= end:
                kind, length = data[at], data[at + 1]
                if kind == 0x00 and length >= 0x0A and data[at + 2] & 0x80:
                    sense = replace(sense, information=struct.unpack_from(">Q", data, at + 4)[0])
                elif kind == 0x02 and length >= 0x06:
                    sense = replace(sense, pointer=_pointer(data[at + 4 : at + 7]))
                at += 2 + length
            return sense
    return None


def _specific(pointer: FieldPointer | None) -> bytes:
    if pointer is None:
        return bytes(3)
    flags = 0x80 | (0x40 if pointer.in_cdb else 0) | (0 if pointer.bit is None else 0x08 | pointer.bit)
    return struct.pack(">BH", flags, pointer.byte)


def _pointer(specific: bytes) -> FieldPointer | None:
    flags, byte = struct.unpack(">BH", specific)
    if not flags & 0x80:
        return None
    return FieldPointer(byte, flags & 0x07 if flags & 0x08 else None, bool(flags & 0x40))


NO_SENSE = Sense(0x0, 0x00, 0x00)

IDLE_BY_COMMAND = Sense(0x0, 0x5E, 0x03)
STANDBY_BY_COMMAND = Sense(0x0, 0x5E, 0x04)

NOT_READY_STOPPED = Sense(0x2, 0x04, 0x02)  # initializing command required: START STOP UNIT
LUN_NOT_ACCESSIBLE = Sense(0x2, 0x04, 0x03)  # not ready, manual intervention required: multipath fails over

WRITE_ERROR = Sense(0x3, 0x0C, 0x00)
UNRECOVERED_READ_ERROR = Sense(0x3, 0x11, 0x00)

TARGET_FAILURE = Sense(0x4, 0x44, 0x00)

INVALID_FIELD_IN_COMMAND_IU = Sense(0x5, 0x0E, 0x03)  # the expected transfer length contradicts the CDB
PARAMETER_LIST_LENGTH_ERROR = Sense(0x5, 0x1A, 0x00)
INVALID_OPCODE = Sense(0x5, 0x20, 0x00)
LBA_OUT_OF_RANGE = Sense(0x5, 0x21, 0x00)
INVALID_FIELD_IN_CDB = Sense(0x5, 0x24, 0x00)
LUN_NOT_SUPPORTED = Sense(0x5, 0x25, 0x00)
INVALID_FIELD_IN_PARAMETER_LIST = Sense(0x5, 0x26, 0x00)
TOO_MANY_TARGETS = Sense(0x5, 0x26, 0x06)
UNSUPPORTED_TARGET = Sense(0x5, 0x26, 0x07)
TOO_MANY_SEGMENTS = Sense(0x5, 0x26, 0x08)
UNSUPPORTED_SEGMENT = Sense(0x5, 0x26, 0x09)
INLINE_DATA_LENGTH_EXCEEDED = Sense(0x5, 0x26, 0x0B)
SAVING_NOT_SUPPORTED = Sense(0x5, 0x39, 0x00)

MEDIUM_MAY_HAVE_CHANGED = Sense(0x6, 0x28, 0x00)
CAPACITY_CHANGED = Sense(0x6, 0x2A, 0x09)

WRITE_PROTECTED = Sense(0x7, 0x27, 0x00)
SPACE_ALLOCATION_FAILED = Sense(0x7, 0x27, 0x07)

COPY_ABORTED = Sense(0xA, 0x00, 0x00)
COPY_TARGET_NOT_REACHABLE = Sense(0xA, 0x0D, 0x02)
COPY_TARGET_TYPE = Sense(0xA, 0x0D, 0x03)

MISCOMPARE = Sense(0xE, 0x1D, 0x00)  # information: offset in bytes of the first difference
