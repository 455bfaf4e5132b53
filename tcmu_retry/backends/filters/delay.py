"""Slows calls on purpose, or hangs them for as long as a trigger file exists."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tcmu_retry.backends.base import Backend
from tcmu_retry.backends.filters import values
from tcmu_retry.backends.filters.wrapper import Wrapper
from tcmu_retry.scsi.request import Direction

KEYS: Sequence[str] = ("read", "write", "flush", "direction", "while_file")
LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Pace:
    """How long calls wait, in seconds; those of `directions` then wait until `while_file` is gone."""

    read: float = 0.0
    write: float = 0.0
    flush: float = 0.0
    directions: frozenset[Direction] = frozenset(Direction)
    while_file: Path | None = None


class DelayFilter(Wrapper):
    """Waits in the caller's thread, then does the call: to the fences above it is I/O that has not returned."""

    def __init__(self, below: Backend, pace: Pace, sleep: Callable[[float], None] = time.sleep) -> None:
        super().__init__(below)
        self._pace = pace
        self._sleep = sleep

    def _before(self, direction: Direction, offset: int | None, length: int) -> None:
        pace = self._pace
        seconds = pace.flush if offset is None else pace.read if direction is Direction.READ else pace.write
        if seconds:
            self._sleep(seconds)
        if pace.while_file is not None and direction in pace.directions:
            while pace.while_file.exists():
                self._sleep(LOOK_SECONDS)


def parse(settings: Mapping[str, str]) -> Callable[[Backend], Backend]:
    """`delay.read=2s`, write, flush; while_file (hang while it exists) with direction. Raises ValueError."""
    values.check_keys("delay", settings, KEYS)
    read, write, flush = (values.duration(settings.get(key, "0s"), f"delay.{key}") for key in KEYS[:3])
    pace = Pace(read, write, flush, values.directions(settings, "delay"), values.while_file(settings, "delay"))
    return lambda below: DelayFilter(below, pace)
