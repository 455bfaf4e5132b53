"""What a pump is: the one thing that reads a LUN's ring, runs its plain I/O and writes its completions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from tcmu_retry.backends.base import Backend
from tcmu_retry.scsi.request import Direction, Reply, Request


@dataclass(slots=True, eq=False)
class Command:
    """One command between its fetch from the ring and its completion. Ids are reused at once; serials never.

    iovs: (offset, length) pairs in the mapping, Data-Out or Data-In.
    compared: COMPARE AND WRITE's compare phase succeeded, a retry goes on with its write phase.
    attempts, error, failed_at: failures in an earlier process, the last one's errno and the time of the first.
    former: that process's I/O for it may still be out.
    copied, piece: pieces of a COPY that are in place, and what was read for the next one; a retry goes on there.
    """

    serial: int
    id: int
    cdb: bytes
    iovs: tuple[tuple[int, int], ...]
    arrived: float  # CLOCK_MONOTONIC seconds
    request: Request | None = None
    compared: bool = False
    copied: int = 0
    piece: memoryview | None = None
    attempts: int = 0
    error: int = 0
    failed_at: float = 0.0
    former: bool = False
    answered: bool = False  # the main loop's mark: it has asked for the completion

    @property
    def data_length(self) -> int:
        return sum(length for _, length in self.iovs)


@dataclass(frozen=True, slots=True)
class Arrived:
    """A command that the pump does not run by itself: not plain, or the gate is closed.

    What reads and then writes (`cdb.EXCLUDING`) must see no other write in between: it closes the gate; `running` as
    in Finished.
    """

    command: Command
    running: tuple[Command, ...] = ()


@dataclass(frozen=True, slots=True)
class Adopted:
    """What an earlier process had open, in order of arrival; comes once, before anything else. Closes the gate.

    aborted: how many more of them task management had named, and are answered.
    """

    commands: tuple[Command, ...]
    aborted: int
    running: tuple[Command, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """A command's I/O ended. error 0: answered already. `at`: CLOCK_MONOTONIC of the end.

    With an error the command stays unanswered, and this pump's gate is closed from this moment on; `running` then lists
    the commands whose I/O the pump had out on its own account when it closed an open gate (empty if it was closed).
    ECANCELED: the command was completed before its I/O had started, and never will start.
    """

    command: Command
    error: int
    at: float
    running: tuple[Command, ...] = ()


@dataclass(frozen=True, slots=True)
class TaskManagement:
    """ABORT TASK (1), LUN RESET (5), PREEMPT AND ABORT (128): these commands must be completed, with any status.

    Closes the gate; `running` as in Finished. Named commands that had not left the pump are completed by it already
    and not listed.
    """

    kind: int
    commands: tuple[Command, ...]
    running: tuple[Command, ...] = ()


@dataclass(frozen=True, slots=True)
class Probed:
    """The end of `probe`; error 0: the storage answered."""

    direction: Direction
    error: int
    at: float


@dataclass(frozen=True, slots=True)
class Closed:
    """The gate was closed; `running` as in Finished.

    asked: because the main loop asked for it. Otherwise one of `running` has failed, and its Finished follows as soon
    as it is known what the failure means.
    """

    running: tuple[Command, ...]
    asked: bool = True


@dataclass(frozen=True, slots=True)
class Broken:
    """The pump cannot go on (uio gone, ring invalid, a mistake of its own); the message is one sentence."""

    message: str


@dataclass(frozen=True, slots=True)
class Shape:
    """What the pump must know of the disk to run a plain command unasked."""

    block_size: int
    blocks: int
    writable: bool


Event = Adopted | Arrived | Finished | TaskManagement | Probed | Closed | Broken


@dataclass(slots=True)
class Statistics:
    """Counters since the pump started."""

    reads: int = 0
    writes: int = 0
    others: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    errors: int = 0
    doorbells: int = 0
    in_flight: int = 0


class Pump(Protocol):
    """Owned by the main loop; every method returns at once. One thread behind it, the LUN's only completer."""

    def start(self) -> None: ...

    def fileno(self) -> int:
        """Readable while `events` has something."""

    def events(self) -> Iterator[Event]:
        """What happened; each counts as taken when it is handed out, so handle one before the next."""

    def dispatch(self, command: Command) -> None:
        """Run the command's request against the backend. GOOD is answered by the pump; the end is reported anyway."""

    def complete(self, command: Command, reply: Reply) -> None:
        """Answer. While its I/O still runs the kernel keeps its buffer (KEEP_BUF); Finished tells when that ends."""

    def probe(self, direction: Direction) -> None: ...

    def gate(self, open: bool) -> None:
        """Opening counts only if the caller has taken every event that closed it; closing is confirmed by Closed."""

    def data_out(self, command: Command) -> bytes:
        """The command's whole buffer, gathered; only before it is completed."""

    def use(self, backend: Backend) -> None:
        """I/O dispatched from now on goes to this backend.

        Open storage is locked, so that an earlier process has no I/O there any more. Until there is some, what that
        process left keeps its buffer (KEEP_BUF) when it is answered without having been run.
        """

    def shape(self, shape: Shape | None) -> None:
        """The disk's size as it is now; None: no command is plain (a unit attention waits, the unit is stopped)."""

    def statistics(self) -> Statistics: ...

    def keeps_buffers(self) -> bool:
        """Whether there are answered commands whose buffers I/O that is out, ours or a former process's, may use."""

    def running(self) -> list[tuple[Command, float]]:
        """Commands whose I/O has not returned, and since when (CLOCK_MONOTONIC seconds)."""

    def pulse(self) -> float:
        """When its thread last turned, CLOCK_MONOTONIC seconds; asking makes it turn again."""

    def stop(self) -> None:
        """Carry out what was asked before, then end the thread and release the ring. Idempotent.

        I/O that still runs is left to its worker, and the device stays open until it returns.
        """
