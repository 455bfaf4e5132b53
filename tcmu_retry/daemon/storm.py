"""Keeps a storm of events from filling journal, history and bus: storage that fails and recovers a thousand times.

Of each LUN's code the first BURST within SECONDS are passed on. Then, as long as it goes on, one a window stands for
all: the last of each direction, with `repeated` for those it stands for, so that whoever listens ends with the truth.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from tcmu_retry.core.events import BY_PERSONS
from tcmu_retry.daemon.api import Notice

BURST = 4
SECONDS = 60.0


@dataclass(slots=True)
class _Window:
    ends: float
    room: int
    last: dict[object, Notice] = field(default_factory=dict)  # by direction: not passed on
    count: dict[object, int] = field(default_factory=dict)


class Storm:
    """Pure: `now` comes in. What persons do is always passed on."""

    def __init__(self) -> None:
        self._windows: dict[tuple[str, str], _Window] = {}

    def passes(self, notice: Notice, now: float) -> bool:
        """Whether to pass it on now; otherwise `due` tells when one that stands for it comes."""
        if notice.code in BY_PERSONS:
            return True
        window = self._windows.setdefault((notice.device, notice.code), _Window(now + SECONDS, BURST))
        if window.room:
            window.room -= 1
            return True
        side = notice.fields.get("direction")
        window.last[side] = notice
        window.count[side] = window.count.get(side, 0) + 1
        return False

    def due(self) -> float | None:
        """When `end` has something to do."""
        return min((window.ends for window in self._windows.values()), default=None)

    def end(self, now: float) -> list[Notice]:
        """Close the windows that are over: what stands for the rest, in order of time."""
        over = [key for key, window in self._windows.items() if window.ends <= now]
        said: list[Notice] = []
        for key in over:
            window = self._windows.pop(key)
            if window.last:
                said += _sum(window)
                self._windows[key] = _Window(now + SECONDS, 0)
        return sorted(said, key=lambda notice: notice.time)


def _sum(window: _Window) -> Iterable[Notice]:
    for side, notice in window.last.items():
        count = window.count[side]
        message = f"{notice.message} (the last of {count} such within {SECONDS:g} s)" if count > 1 else notice.message
        yield replace(notice, message=message, fields={**notice.fields, "repeated": count})
