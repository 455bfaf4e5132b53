"""Fails calls on purpose: with an errno, by direction, byte range, chance, a trigger file, or for so many calls."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tcmu_retry.backends.base import Backend
from tcmu_retry.backends.filters import values
from tcmu_retry.backends.filters.wrapper import Wrapper
from tcmu_retry.core.words import parse_number, parse_size
from tcmu_retry.scsi.request import Direction

KEYS: Sequence[str] = ("errno", "direction", "offset", "length", "rate", "while_file", "calls")


@dataclass(frozen=True, slots=True)
class Fault:
    """Which calls fail: those that meet all of it. A flush is of no range, so a range lets it pass.

    span: first byte, and the first byte behind (None: to the end). calls: so many since the storage was opened.
    """

    code: int
    directions: frozenset[Direction] = frozenset(Direction)
    span: tuple[int, int | None] | None = None
    rate: float = 1.0
    while_file: Path | None = None
    calls: int | None = None

    def concerns(self, direction: Direction, offset: int | None, length: int) -> bool:
        """Whether a call of this kind and place is meant; chance, count and trigger apart."""
        if direction not in self.directions or self.span is None:
            return direction in self.directions
        start, end = self.span
        return offset is not None and start < offset + length and (end is None or offset < end)


class ErrorFilter(Wrapper):
    """Raises the fault's errno before the storage hears of the call."""

    def __init__(self, below: Backend, fault: Fault) -> None:
        super().__init__(below)
        self._fault = fault
        self._random = random.Random(0)  # the same sequence at every opening: what a test met, it meets again
        self._left = fault.calls
        self._lock = threading.Lock()

    def _before(self, direction: Direction, offset: int | None, length: int) -> None:
        fault = self._fault
        if not fault.concerns(direction, offset, length):
            return
        if fault.while_file is not None and not fault.while_file.exists():
            return
        with self._lock:
            if self._left == 0 or self._random.random() >= fault.rate:
                return
            if self._left is not None:
                self._left -= 1
        raise OSError(fault.code, os.strerror(fault.code))


def parse(settings: Mapping[str, str]) -> Callable[[Backend], Backend]:
    """`error.errno=EIO`, and as wished direction, offset and length, rate, while_file, calls. Raises ValueError."""
    values.check_keys("error", settings, KEYS)
    span = None
    if "offset" in settings or "length" in settings:
        start = parse_size(settings.get("offset", 0), "error.offset")
        span = start, start + parse_size(settings["length"], "error.length") if "length" in settings else None
    fault = Fault(
        code=values.error_code(str(settings.get("errno", "EIO")), "error.errno"),
        directions=values.directions(settings, "error"),
        span=span,
        rate=parse_number(settings.get("rate", 1), "error.rate", 0, 1),
        while_file=values.while_file(settings, "error"),
        calls=values.count(settings["calls"], "error.calls") if "calls" in settings else None,
    )
    return lambda below: ErrorFilter(below, fault)
