"""Answers to task management that come late, because the initiator waits for them too.

Linux gives a command up after a number of tries. How long a try lasts is its affair, but not how long the answer takes
that ends it: ABORT TASK and LOGICAL UNIT RESET are answered when the commands that they name are, and the next try
begins only then. So while the storage is away the answer is put off until shortly before the initiator would lose its
patience with it; the profile has the numbers (`initiators.py`), and docs/decisions the reasons.

What is here was named, never runs again, and is answered when its time comes, or at once when anything suggests that
waiting is over: the storage answers something, or a person wants something.
"""

from __future__ import annotations

from collections.abc import Iterable

from tcmu_retry.core.actions import Token
from tcmu_retry.core.hold import Entry
from tcmu_retry.core.initiators import FOR_EVER, Profile
from tcmu_retry.scsi.request import Direction

ABORT_TASK, LUN_RESET = 1, 5  # kinds of task management, as TCMU numbers them


class Late:
    """The commands whose answer is put off."""

    def __init__(self) -> None:
        self.initiator = Profile("custom", FOR_EVER, None, "not said")
        self.answered = 0.0  # when the storage last did something, or may have while nobody here was told
        self.prompt = False  # until the storage is back: somebody did not wait for an answer
        self._entries: dict[Token, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, token: Token) -> Entry | None:
        return self._entries.get(token)

    def all(self) -> list[Entry]:
        return list(self._entries.values())

    def of(self, side: Direction) -> list[Entry]:
        return [entry for entry in self._entries.values() if entry.direction is side]

    def delay(self, kind: int, named: Iterable[Entry], now: float) -> float:
        """By how many seconds the answer is put off.

        What is younger than a try was not given up by the initiator's time-outs, and whoever aborts it has others. A
        reset stops all that the initiator does with the LUN: it is put off only if nothing of it has worked for half
        as long, so that a bad sector stays one. (Half: storage that is away may need some time to say so.)
        """
        profile = self.initiator
        if self.prompt or max((now - entry.arrived for entry in named), default=0.0) < profile.tried:
            return 0.0
        if kind == ABORT_TASK:
            return profile.abort_late
        return profile.reset_late if kind == LUN_RESET and now - self.answered >= profile.tried / 2 else 0.0

    def add(self, entry: Entry) -> None:
        self._entries[entry.token] = entry

    def due(self, now: float) -> list[Entry]:
        """Those whose time has come; they are forgotten here."""
        due = [entry for entry in self._entries.values() if entry.answer_at is not None and entry.answer_at <= now]
        for entry in due:
            del self._entries[entry.token]
        return due
