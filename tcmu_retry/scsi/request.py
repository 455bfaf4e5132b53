"""What a CDB asks of the storage and what the initiator is told: the plain types that every room shares."""

from __future__ import annotations

import enum
from dataclasses import dataclass

COPY_PIECE = 1 << 20  # bytes that a COPY reads before it writes them, and keeps while the writing is retried


class Direction(enum.Enum):
    """Which half of the policy governs a command; `write` is everything that changes or flushes the medium."""

    READ = "read"
    WRITE = "write"


class Op(enum.Enum):
    """What is done to the storage."""

    READ = "read"
    WRITE = "write"
    FLUSH = "flush"
    UNMAP = "unmap"
    WRITE_SAME = "write-same"
    COMPARE_AND_WRITE = "compare-and-write"
    VERIFY = "verify"
    WRITE_AND_VERIFY = "write-and-verify"
    OR_WRITE = "or-write"
    COPY = "copy"

    @property
    def direction(self) -> Direction:
        return Direction.READ if self in (Op.READ, Op.VERIFY) else Direction.WRITE

    @property
    def excludes(self) -> bool:
        """Writes what depends on what it read: no other write may come between the two."""
        return self in (Op.COMPARE_AND_WRITE, Op.OR_WRITE, Op.COPY)


class Compare(enum.Enum):
    """BYTCHK of VERIFY and WRITE AND VERIFY (SBC-4 table 16)."""

    NONE = 0
    ALL = 1
    ONE_BLOCK = 3


@dataclass(frozen=True, slots=True)
class Extent:
    """A range of the medium, in bytes."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length

    def overlaps(self, other: Extent) -> bool:
        return self.offset < other.end and other.offset < self.end


@dataclass(frozen=True, slots=True)
class Request:
    """One command as the storage sees it.

    extents: exactly one, but for FLUSH (none: the whole medium), UNMAP (any number), and COPY (a source and a
        destination of the same length in turn).
    fua: the effect must be on stable media before GOOD, whatever the cache mode says.
    compare: VERIFY and WRITE AND VERIFY only.
    unmap, zeroes: WRITE SAME only: blocks may be deallocated; the pattern is zeros and no data came (NDOB).
    Data-Out and Data-In stay in the command's buffers; COMPARE AND WRITE's hold the compare half, then the write half.
    """

    op: Op
    extents: tuple[Extent, ...] = ()
    fua: bool = False
    compare: Compare = Compare.NONE
    unmap: bool = False
    zeroes: bool = False

    @property
    def direction(self) -> Direction:
        return self.op.direction

    @property
    def takes_data(self) -> bool:
        """Its buffers hold Data-Out."""
        match self.op:
            case Op.READ | Op.FLUSH:
                return False
            case Op.VERIFY:
                return self.compare is not Compare.NONE
            case _:
                return not self.zeroes

    @property
    def length(self) -> int:
        """Bytes of the medium touched."""
        return sum(extent.length for extent in self.extents)

    @property
    def repeatable(self) -> bool:
        """Whether it may begin anew after it was stopped anywhere: not a COPY that writes over what it reads."""
        if self.op is not Op.COPY:
            return True
        sources, destinations = self.extents[::2], self.extents[1::2]
        return not any(source.overlaps(destination) for source in sources for destination in destinations)


class Status(enum.IntEnum):
    """SAM-5 status codes."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    BUSY = 0x08
    RESERVATION_CONFLICT = 0x18
    TASK_SET_FULL = 0x28
    TASK_ABORTED = 0x40


@dataclass(frozen=True, slots=True)
class Reply:
    """What the initiator is told. `data` is the whole Data-In; shorter than the buffer means a residual (READ_LEN).

    data None: there is no Data-In, or the buffers of a READ that is GOOD hold it.
    """

    status: Status
    sense: bytes = b""
    data: bytes | None = None


GOOD = Reply(Status.GOOD)
BUSY = Reply(Status.BUSY)
