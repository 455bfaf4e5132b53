"""Sense data: the named conditions this disk reports and their wire formats (SPC-5 §4.4)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sense:
    """Sense key, additional sense code and qualifier; `information` is an LBA or an offset in bytes, by command."""

    key: int
    asc: int
    ascq: int
    information: int | None = None

    def __str__(self) -> str:
        return f"{self.key:02X}/{self.asc:02X}/{self.ascq:02X}"
