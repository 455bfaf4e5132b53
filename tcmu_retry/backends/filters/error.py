"""Fails calls on purpose: with an errno, by direction, byte range, chance, a trigger file, or for so many calls."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from tcmu_retry.backends.base import Backend
from tcmu_retry.backends.filters.wrapper import Wrapper, check_keys, directions
from tcmu_retry.scsi.request import Direction

KEYS = ("errno", "direction", "offset", "length", "rate", "while_file", "calls")


class ErrorFilter(Wrapper):
    """Fails a call that meets all of: direction, overlap with [start, end), trigger file exists, chance, calls left."""

    def __init__(
        self,
        below: Backend,
        code: int,
        which: frozenset[Direction],
        start: int,
        end: float,
        rate: float,
        trigger: Path | None,
        calls: float,
        chance: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(below)
        self._code = code
        self._which = which
        self._start, self._end = start, end
        self._rate = rate
        self._trigger = trigger
        self._left = calls
        self._chance = chance
        self._lock = threading.Lock()

    def _before(self, direction: Direction, offset: int | None, length: int) -> None:
        if direction not in self._which or (self._trigger is not None and not self._trigger.exists()):
            return
        if offset is not None and not (offset < self._end and self._start < offset + length):
            return
        with self._lock:
            if self._left < 1 or self._chance() >= self._rate:
                return
            self._left -= 1
        raise OSError(self._code, os.strerror(self._code))


def parse(settings: Mapping[str, str]) -> Callable[[Backend], Backend]:
    """`error.errno=EIO`, and as wished direction, offset and length (bytes), rate (0..1), while_file, calls."""
    check_keys("error", settings, KEYS)
    name = str(settings.get("errno", "EIO"))
    code = getattr(errno, name, None)
    if not isinstance(code, int):
        raise ValueError(f"error.errno={name} is not the name of an errno, such as EIO or ENOSPC")
    which = directions("error", str(settings.get("direction", "both")))
    try:
        start = int(settings.get("offset", 0))
        end = start + int(settings["length"]) if "length" in settings else float("inf")
        calls = int(settings["calls"]) if "calls" in settings else float("inf")
        rate = float(settings.get("rate", 1))
    except ValueError as problem:
        raise ValueError(
            f"filter error: {problem}; offset, length and calls are whole numbers, rate is 0 to 1"
        ) from None
    trigger = Path(settings["while_file"]) if "while_file" in settings else None
    return lambda below: ErrorFilter(below, code, which, start, end, rate, trigger, calls)
