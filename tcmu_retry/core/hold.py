"""The commands an engine knows: who waits, who runs, and who must not overtake whom.

Theory of operation
-------------------
An entry lives from the moment the engine learns of a command until its answer is given and its I/O has returned. It is
HELD, RUNNING, or a FENCE: answered while its I/O still runs, so that its range stays closed to others and no late write
can land over newer data.

Order. An entry waits behind every earlier one that is alive and overlaps it, if one of the two writes. That is decided
once, when it arrives: each of those counts one in its `blockers` and lists it in its `dependents`, and counts it down
when it goes. Waiting is always for earlier ones, so it cannot go in a circle. FLUSH has no extent and waits for nobody
(SBC-4 §5.33 asks for no more than what was acknowledged before it came).

The index finds overlaps by buckets of 1 MiB. An extent over more than 64 buckets (an UNMAP of a terabyte) goes to a
list that every look-up walks.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tcmu_retry.core.actions import Token, Verdict
from tcmu_retry.core.errors import ErrorClass
from tcmu_retry.scsi.request import COPY_PIECE, Direction, Extent, Op, Request

BUCKET = 20  # bits
WIDE = 64  # buckets
EVERYWHERE = -1  # the bucket of what is wider


class Stage(enum.Enum):
    """Where a command is."""

    HELD = "held"
    RUNNING = "running"
    FENCE = "fence"


@dataclass(slots=True, eq=False)
class Entry:
    """One command. Tokens grow in order of arrival. Times in seconds: `since` in its direction's clock."""

    token: Token
    request: Request
    arrived: float
    stage: Stage = Stage.RUNNING
    attempts: int = 0
    turn: int = 0  # times let out while down: probes go in turn
    error: int = 0
    group: ErrorClass = ErrorClass.UNKNOWN
    held_at: float | None = None  # first failure, or when it was parked
    since: float | None = None  # its time-out counts from here
    due: float = 0.0
    probe: bool = False  # its I/O is out as a probe
    doomed: bool = False  # a person wants it failed when its I/O returns
    answer_at: float | None = None  # answered then, even if its I/O has not returned
    answer: Verdict = Verdict.ABORTED
    late: bool = False  # that answer is put off on purpose
    blockers: int = 0
    dependents: list[Entry] | None = None  # most have none, and thousands may be held

    @property
    def direction(self) -> Direction:
        return self.request.direction

    @property
    def changes(self) -> bool:
        """Whether it writes to its extents."""
        return self.request.op not in (Op.READ, Op.VERIFY, Op.FLUSH)

    @property
    def weight(self) -> int:
        """Bytes that are kept for it while it is held: UNMAP, WRITE SAME and COPY name far more than they carry."""
        match self.request.op:
            case Op.UNMAP | Op.WRITE_SAME:
                return 0
            case Op.COPY:
                return min(self.request.length // 2, COPY_PIECE)
        return self.request.length

    @property
    def place(self) -> int:
        """Its first byte; -1 for a flush."""
        return self.request.extents[0].offset if self.request.extents else -1


class Commands:
    """All entries of a LUN, by token, and their ranges."""

    def __init__(self) -> None:
        self._entries: dict[Token, Entry] = {}
        self._buckets: dict[int, dict[Token, Entry]] = {}
        self.held = 0
        self.held_bytes = 0
        self.closing = 0  # entries that keep the gate closed though nothing is held: fences, and what excludes others

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries.values()))

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, token: Token) -> Entry | None:
        return self._entries.get(token)

    def add(self, entry: Entry, ordered: bool) -> None:
        """ordered: it waits behind earlier overlapping ones; not so for what was running before we heard of it."""
        if ordered:
            for other in self._overlapping(entry):
                if other.changes or entry.changes:
                    entry.blockers += 1
                    other.dependents = other.dependents or []
                    other.dependents.append(entry)
        self._entries[entry.token] = entry
        for number in _places(entry):
            self._buckets.setdefault(number, {})[entry.token] = entry
        self._count(entry, 1)

    def remove(self, entry: Entry) -> list[Entry]:
        """Forget it; the entries that waited for it and wait for nobody any more."""
        self._count(entry, -1)
        del self._entries[entry.token]
        for number in _places(entry):
            bucket = self._buckets[number]
            del bucket[entry.token]
            if not bucket:
                del self._buckets[number]
        freed = []
        for other in entry.dependents or ():
            other.blockers -= 1
            if not other.blockers and other.stage is Stage.HELD and other.token in self._entries:
                freed.append(other)
        return freed

    def stage(self, entry: Entry, stage: Stage) -> None:
        self._count(entry, -1)
        entry.stage = stage
        self._count(entry, 1)

    def held_entries(self) -> list[Entry]:
        """Oldest first."""
        return sorted((entry for entry in self if entry.stage is Stage.HELD), key=lambda entry: entry.token)

    def _count(self, entry: Entry, sign: int) -> None:
        if entry.stage is Stage.HELD:
            self.held += sign
            self.held_bytes += sign * entry.weight
        elif entry.stage is Stage.FENCE or entry.request.op.excludes:
            self.closing += sign

    def _overlapping(self, entry: Entry) -> Iterable[Entry]:
        if not self._entries:
            return ()
        places = _places(entry)
        if places == (EVERYWHERE,):
            near = self._entries
        else:
            near = dict(self._buckets.get(EVERYWHERE, {}))
            for number in places:
                near |= self._buckets.get(number, {})
        return [other for other in near.values() if _overlap(entry.request.extents, other.request.extents)]


def _places(entry: Entry) -> tuple[int, ...]:
    """The buckets of an entry, each once."""
    numbers: set[int] = set()
    for extent in entry.request.extents:
        if extent.length >> BUCKET > WIDE:
            return (EVERYWHERE,)
        numbers.update(range(extent.offset >> BUCKET, (extent.end - 1 >> BUCKET) + 1))
    return tuple(numbers)


def _overlap(some: tuple[Extent, ...], others: tuple[Extent, ...]) -> bool:
    return any(one.overlaps(other) for one in some for other in others)
