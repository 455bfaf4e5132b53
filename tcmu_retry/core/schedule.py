"""When the held commands of one direction come due: three heaps whose tops are checked when they are looked at.

Nothing is ever taken out of the middle. What became stale there (answered, out, waiting for another, pushed again) is
dropped when it comes to the top.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from tcmu_retry.core.actions import Token
from tcmu_retry.core.hold import Entry, Stage


class Schedule:
    """The held commands of one direction by time of their next try, by turn, and by end of their time."""

    def __init__(self, get: Callable[[Token], Entry | None], expiry: Callable[[Entry], float | None]) -> None:
        """expiry: when an entry's time-out comes, in its direction's clock; None without one."""
        self._get = get
        self._expiry = expiry
        self._dues: list[tuple[float, Token]] = []
        self._turns: list[tuple[int, Token]] = []
        self._ends: list[tuple[float, Token]] = []

    def clear(self) -> None:
        self._dues, self._turns, self._ends = [], [], []

    def at(self, entry: Entry) -> None:
        """It is tried by its own clock, at `entry.due`."""
        heapq.heappush(self._dues, (entry.due, entry.token))

    def in_turn(self, entry: Entry) -> None:
        """It is let out as a probe: those that had fewer turns first, then the oldest."""
        heapq.heappush(self._turns, (entry.turn, entry.token))

    def ending(self, entry: Entry) -> None:
        """Its time ends, if it has an end."""
        expiry = self._expiry(entry)
        if expiry is not None:
            heapq.heappush(self._ends, (expiry, entry.token))

    def first_due(self) -> tuple[float, Entry] | None:
        """Whose try comes next, and when."""
        heap = self._dues
        while heap:
            when, token = heap[0]
            entry = self._free(token)
            if entry is not None and entry.due == when:
                return when, entry
            heapq.heappop(heap)
        return None

    def first_turn(self) -> Entry | None:
        """Whose turn it is."""
        heap = self._turns
        while heap:
            turn, token = heap[0]
            entry = self._free(token)
            if entry is not None and entry.turn == turn:
                return entry
            heapq.heappop(heap)
        return None

    def first_end(self) -> tuple[float, Entry] | None:
        """Whose time ends first, and when, in its direction's clock."""
        heap = self._ends
        while heap:
            clock, token = heap[0]
            entry = self._get(token)
            if entry is not None and entry.stage is Stage.HELD and clock == self._expiry(entry):
                return clock, entry
            heapq.heappop(heap)
        return None

    def drop_end(self) -> None:
        """What `first_end` just told has been seen to."""
        heapq.heappop(self._ends)

    def _free(self, token: Token) -> Entry | None:
        entry = self._get(token)
        return entry if entry is not None and entry.stage is Stage.HELD and not entry.blockers else None
