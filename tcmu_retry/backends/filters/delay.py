"""Slows calls on purpose, or hangs them for as long as a trigger file exists."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tcmu_retry.backends.base import Backend
from tcmu_retry.backends.filters.wrapper import Wrapper, check_keys, directions
from tcmu_retry.scsi.request import Direction

KEYS = ("seconds", "direction", "while_file")
LOOK_SECONDS = 0.05


class DelayFilter(Wrapper):
    """Waits before each call of the given directions: a time, and until the trigger file is gone."""

    def __init__(
        self,
        below: Backend,
        seconds: float,
        which: frozenset[Direction],
        trigger: Path | None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(below)
        self._seconds = seconds
        self._which = which
        self._trigger = trigger
        self._sleep = sleep

    def _before(self, direction: Direction, offset: int | None, length: int) -> None:
        if direction not in self._which:
            return
        if self._seconds:
            self._sleep(self._seconds)
        while self._trigger is not None and self._trigger.exists():
            self._sleep(LOOK_SECONDS)


def parse(settings: Mapping[str, str]) -> Callable[[Backend], Backend]:
    """`delay.seconds=0.2`, direction, while_file (hang while it exists)."""
    check_keys("delay", settings, KEYS)
    which = directions("delay", str(settings.get("direction", "both")))
    try:
        seconds = float(settings.get("seconds", 0))
    except ValueError:
        raise ValueError(f"delay.seconds={settings['seconds']} is not a number of seconds") from None
    trigger = Path(settings["while_file"]) if "while_file" in settings else None
    return lambda below: DelayFilter(below, seconds, which, trigger)
