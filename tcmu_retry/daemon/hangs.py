"""I/O that neither fails nor returns. It makes no event by itself, so it is looked for once a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from tcmu_retry.core import events
from tcmu_retry.pump.base import Command

WATCH_SECONDS = 1.0


class Hangs:
    """Of one LUN, from the first look until `stop`."""

    def __init__(
        self,
        running: Callable[[], list[tuple[Command, float]]],
        limit: Callable[[], float],
        emit: Callable[[str, Mapping[str, object]], None],
        changed: Callable[[], None],
    ) -> None:
        """running: as a pump's. limit: seconds after which I/O is told of, 0 for never.

        emit: tells of an event with its fields.
        """
        self._loop = asyncio.get_running_loop()
        self._running = running
        self._limit = limit
        self._emit = emit
        self._changed = changed
        self._since: float | None = None
        self._next = self._loop.call_later(WATCH_SECONDS, self._look)

    def now(self, now: float) -> list[tuple[Command, float]]:
        """Each command whose I/O hangs, and when that began."""
        limit = self._limit()
        return [(command, began) for command, began in self._running() if limit and now - began > limit]

    def stop(self) -> None:
        self._next.cancel()

    def _look(self) -> None:
        now = time.monotonic()
        hung = self.now(now)
        if hung and self._since is None:
            self._since = min(began for _, began in hung)
            self._emit(events.HANGS, {"count": len(hung), "seconds": self._limit()})
            self._changed()
        elif not hung and self._since is not None:
            self._emit(events.HANGS_NO_MORE, {"seconds": round(now - self._since, 1)})
            self._since = None
            self._changed()
        self._next = self._loop.call_later(WATCH_SECONDS, self._look)
