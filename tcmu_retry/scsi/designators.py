"""Designators: how a logical unit is named to the world (SPC-4 §7.8.6)."""

from __future__ import annotations

import hashlib
import struct

from tcmu_retry.scsi.unit import DiskIdentity

COMPANY = "001405"  # LIO's


def designator(code_set: int, association_and_type: int, value: bytes) -> bytes:
    """A designation descriptor."""
    return struct.pack(">BBxB", code_set, association_and_type, len(value)) + value


def of_unit(identity: DiskIdentity) -> tuple[bytes, ...]:
    """The descriptors that name the logical unit itself: NAA, EUI-64, vendor and serial number, SCSI name string."""
    vendor_based = text(identity.vendor, 8) + serial_number(identity)
    return (
        designator(0x1, 0x03, naa(identity.serial)),
        designator(0x1, 0x02, eui(identity.serial)),
        designator(0x2, 0x01, vendor_based[:252]),
        designator(0x3, 0x08, name(identity.serial)),
    )


def naa(serial: str) -> bytes:
    """The NAA-6 identifier of a WWN, as the kernel and its tools make it: 6 001405, then 25 hex digits of the WWN."""
    return bytes.fromhex("6" + COMPANY + _digits(serial))


def eui(serial: str) -> bytes:
    """The EUI-64-based 16-byte identifier: 16 of the same digits, the company, the other 9 (SPC-4 §7.8.6.5.4)."""
    digits = _digits(serial)
    return bytes.fromhex(digits[:16] + COMPANY + digits[16:] + "0")


def name(serial: str) -> bytes:
    """The SCSI name string: the NAA identifier in words, null-padded to 40 bytes (SPC-4 §7.8.6.11).

    Linux (scsi_vpd_lun_id) and Windows prefer a name string to all other designators; so spelt, it says what Linux made
    of the NAA identifier before there was one.
    """
    return f"naa.{naa(serial).hex()}".encode().ljust(40, b"\0")


def _digits(serial: str) -> str:
    """25 hex digits of a WWN. One with fewer would not be unique so; those of its hash take their place."""
    digits = "".join(character for character in serial.lower() if character in "0123456789abcdef")
    return (digits if len(digits) >= 25 else hashlib.sha256(serial.encode()).hexdigest())[:25]


def serial_number(identity: DiskIdentity) -> bytes:
    """As VPD page 80h has it."""
    return text(identity.serial, len(identity.serial))


def text(text: str, width: int) -> bytes:
    """Left-aligned ASCII of fixed width; what is not printable becomes a question mark (SPC-4 §4.3.1)."""
    printable = "".join(character if " " <= character <= "~" else "?" for character in text)
    return printable[:width].ljust(width).encode()
