"""Designators: how a logical unit is named to the world (SPC-4 §7.8.6)."""

from __future__ import annotations

import hashlib
import struct

from tcmu_retry.scsi.unit import DiskIdentity


def designator(code_set: int, association_and_type: int, value: bytes) -> bytes:
    """A designation descriptor."""
    return struct.pack(">BBxB", code_set, association_and_type, len(value)) + value


def of_unit(identity: DiskIdentity) -> tuple[bytes, ...]:
    """The descriptors that name the logical unit itself: NAA, and vendor and serial number."""
    vendor_based = text(identity.vendor, 8) + serial_number(identity)
    return designator(0x1, 0x03, naa(identity.serial)), designator(0x2, 0x01, vendor_based[:252])


def naa(serial: str) -> bytes:
    """The NAA-6 identifier of a WWN, as the kernel and its tools make it: 6 001405, then 25 hex digits of the WWN.

    A WWN with fewer hex digits would not be unique so; its hash takes their place.
    """
    digits = "".join(character for character in serial.lower() if character in "0123456789abcdef")
    if len(digits) < 25:
        digits = hashlib.sha256(serial.encode()).hexdigest()
    return bytes.fromhex("6001405" + digits[:25])


def serial_number(identity: DiskIdentity) -> bytes:
    """As VPD page 80h has it."""
    return text(identity.serial, len(identity.serial))


def text(text: str, width: int) -> bytes:
    """Left-aligned ASCII of fixed width; what is not printable becomes a question mark (SPC-4 §4.3.1)."""
    printable = "".join(character if " " <= character <= "~" else "?" for character in text)
    return printable[:width].ljust(width).encode()
