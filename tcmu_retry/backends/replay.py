"""Write-back, kept true: what was acknowledged since the last good flush can be written again.

Theory of operation
-------------------
A flush that failed may have dropped what it was to make durable, and storage that comes back after an outage may have
lost its cache. In neither case does flushing again bring the data back, and GOOD would be a lie. So every change is
remembered, data and all, in the order in which the storage took them, until a flush that was submitted after it has
succeeded. As NFS clients do with unstable writes, the changes are made again before a flush that follows any error, and
before a newly opened backend is used.

Changes that overlap are made one after the other, or nobody would know in which order to make them again. Making them
again shuts everything else out: until the newest is in place, old data stands where it must not be read.

The log is bounded; a write that finds it full flushes first, and fails if that fails (and is retried by policy); who
finds it full meanwhile waits for that flush. It lives in memory, shared with the next daemon (`shelf.py`): what the
host's own death loses, a disk's power failure would have lost too.

While nothing is wrong the native pump borrows it (`lend`) and writes the shelf's records itself. All other use waits
until it is given back, with what runs then: that keeps its ranges, and is noted as it ends (`settle`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from tcmu_retry.backends.base import Backend, DirectBackend
from tcmu_retry.backends.file import ZEROS
from tcmu_retry.backends.filters.wrapper import Wrapper
from tcmu_retry.backends.shelf import DISCARD, WRITE, ZERO, ZERO_UNMAP, Loan, Record, Shelf
from tcmu_retry.scsi.request import Extent

RECORD = 350  # bytes of memory that a change takes beside its data: measured, CPython 3.11


@dataclass(frozen=True, slots=True)
class _Change:
    """One change, in the words of `shelf`."""

    kind: int
    extent: Extent
    data: bytes | memoryview
    number: int

    @property
    def weight(self) -> int:
        return len(self.data) + RECORD

    def again(self, backend: Backend) -> None:
        if self.kind == WRITE:
            _write_all(backend, self.extent.offset, self.data)
            return
        extent = self.extent
        try:
            if self.kind == DISCARD:
                backend.discard(extent.offset, extent.length)
            else:
                backend.zero(extent.offset, extent.length, self.kind == ZERO_UNMAP)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            # By writes where the storage cannot do it any other way any more: zeros are what it reads as.
            for offset in range(extent.offset, extent.end, len(ZEROS)):
                _write_all(backend, offset, ZEROS[: extent.end - offset])


@dataclass(frozen=True, slots=True)
class Claim:
    """I/O that was started while the log was lent, and has not ended. extent: what it writes; upto: what it flushes."""

    backend: Backend
    extent: Extent | None = None
    upto: int | None = None


class ReplayLog:
    """The changes of one LUN since the last good flush; it outlives the backends that it is laid over."""

    def __init__(self, limit: int, shelf: Shelf | None = None, left: Iterable[Record] = (), lost: bool = False) -> None:
        """limit: bytes of memory. shelf: where it outlives the daemon; left: what stood there.

        lost: an earlier daemon's changes may not be durable, and nobody knows which: one flush says so.
        """
        self._limit = limit
        self._shelf = shelf
        self._lost = lost
        self._changes: dict[tuple[int, int], _Change] = {}  # by range, oldest first
        self._weight = 0
        self._number = 0
        self._busy: list[Extent] = []  # ranges that are being changed
        self._users = 0
        self._alone = False
        self._sure: Backend | None = None  # has all changes, flushed or not, as far as errors tell
        self._free = threading.Condition()
        self._flushing = threading.Lock()
        self._refusals = 0  # flushes of a full log that failed
        self._refusal = 0  # the last one's errno
        self._borrowed: Callable[[], None] | None = None  # asks for it
        self._waiting = 0  # for whom it is not lent again: who gives it back is faster than who is woken by that
        for record in left:
            self._keep_record(record)

    def over(self, backend: Backend) -> Backend:
        """A write-back backend over a newly opened one. Makes the changes again; blocks. Raises OSError.

        Nobody else uses the log meanwhile, unless this takes too long and its result is dropped.
        """
        with self._free:
            self._wait()
            changes = list(self._changes.values())
        self._make(changes, backend)
        return Logged(self, backend)

    def count(self) -> int:
        """Changes that are not flushed."""
        with self._free:
            self._wait()
            return len(self._changes)

    @property
    def weight(self) -> int:
        """Bytes of memory."""
        return self._weight

    def _wait(self, until: Callable[[], bool] = lambda: True) -> None:
        """Within `_free`, until it is ours and more."""
        self._waiting += 1
        try:
            while self._borrowed is not None or not until():
                if self._borrowed is not None:
                    self._borrowed()
                self._free.wait()
        finally:
            self._waiting -= 1

    # ---- for the backend laid over

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """I/O that may run beside other I/O."""
        with self._free:
            self._wait(lambda: not self._alone)
            self._users += 1
        try:
            yield
        except OSError as error:
            self._doubt(error.errno)
            raise
        finally:
            with self._free:
                self._users -= 1
                self._free.notify_all()

    def _doubt(self, code: int | None) -> None:
        if code != errno.EOPNOTSUPP:
            self._sure = None

    @contextlib.contextmanager
    def changing(self, extent: Extent) -> Iterator[None]:
        """A change, alone in its range."""
        with self._free:
            self._wait(lambda: not self._alone and not any(map(extent.overlaps, self._busy)))
            self._busy.append(extent)
        try:
            with self.shared():
                yield
        finally:
            with self._free:
                self._busy.remove(extent)
                self._free.notify_all()

    def note(self, kind: int, extent: Extent, pieces: Sequence[memoryview]) -> None:
        """The storage took a change; within `changing`."""
        with self._free:
            self._note(kind, extent, pieces)

    def _note(self, kind: int, extent: Extent, pieces: Sequence[memoryview]) -> None:
        kept = self._shelf.put(kind, extent.offset, extent.length, pieces) if self._shelf is not None else None
        if self._shelf is not None and kept is not None:
            self._keep(kind, extent, kept, self._shelf.number)
        else:
            self._keep(kind, extent, b"".join(pieces), self._number + 1)

    def _keep_record(self, record: Record) -> None:
        self._keep(record.kind, Extent(record.offset, record.length), record.data, record.number)

    def _keep(self, kind: int, extent: Extent, data: bytes | memoryview, number: int) -> None:
        """number: on the shelf, if it is there; they only grow until all is flushed."""
        self._number = number
        self._forget((extent.offset, extent.length))
        change = _Change(kind, extent, data, self._number)
        self._changes[extent.offset, extent.length] = change
        self._weight += change.weight

    def flush(self, backend: Backend) -> None:
        """Flush, after making the changes again where there was an error since the last good flush. Raises OSError."""
        with self._flushing:
            self._flush(backend)

    def _flush(self, backend: Backend) -> None:
        if self._lost:
            self._lost = False
            raise OSError(errno.EREMOTEIO, "what was written before the daemon's end may be lost")
        if self._sure is not backend:
            self.make_again(backend)
        with self.shared():
            with self._free:
                upto, shelved = self._number, self._shelf.number if self._shelf is not None else 0
            backend.flush()
        with self._free:
            self._flushed(backend, upto, shelved)

    def _flushed(self, backend: Backend, upto: int, shelved: int) -> None:
        """Raises OSError where that flush proves nothing."""
        if self._sure is not backend:  # an error beside the flush: the cache may have been lost before it
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._forget_upto(upto)
        if self._shelf is not None:
            self._shelf.flushed(shelved)
            if not self._changes:
                self._shelf.complete()

    def _is_full(self) -> bool:
        with self._free:
            return self._weight > self._limit or (self._shelf is not None and self._shelf.used > self._limit)

    def make_room(self, backend: Backend) -> None:
        """Flush if the log is full, once for all who find it so. Raises OSError."""
        refusals = self._refusals
        if not self._is_full():
            return
        with self._flushing:
            if self._refusals != refusals:  # the flush that we waited for
                raise OSError(self._refusal, os.strerror(self._refusal))
            if not self._is_full():
                return
            try:
                self._flush(backend)
            except OSError as error:
                self._refusals += 1
                self._refusal = error.errno or errno.EIO
                raise

    def make_again(self, backend: Backend) -> None:
        """All changes in their order, with everything else shut out. Raises OSError."""
        with self._free:
            self._wait(lambda: not self._alone)
            self._alone = True
            self._free.wait_for(lambda: not self._users)
            changes = list(self._changes.values())
        try:
            self._make(changes, backend)
        finally:
            with self._free:
                self._alone = False
                self._free.notify_all()

    def _make(self, changes: Sequence[_Change], backend: Backend) -> None:
        for change in changes:
            change.again(backend)
        self._sure = backend

    def _forget_upto(self, number: int) -> None:
        for key in [*takewhile(lambda key: self._changes[key].number <= number, self._changes)]:
            self._forget(key)

    def _forget(self, key: tuple[int, int]) -> None:
        change = self._changes.pop(key, None)
        if change is not None:
            self._weight -= change.weight

    # ---- for who borrows it; no call waits

    def lend(self, backend: Backend, largest: int, ask: Callable[[], None]) -> tuple[Loan, int] | None:
        """The shelf, and bytes of memory that the log may take. None: not now, something is wrong or going on.

        largest: bytes of one change. ask: called, from any thread, where somebody else needs it; `give_back` follows.
        """
        with self._free:
            shelf = self._shelf
            if (
                shelf is None
                or shelf.lost
                or self._lost
                or self._sure is not backend
                or self._borrowed is not None
                or self._waiting
                or self._alone
                or self._users
                or self._flushing.locked()
            ):
                return None
            self._borrowed = ask
            # Records are not divided: what the end is too short for goes to the beginning.
            return shelf.lend(), min(self._limit, shelf.capacity - 2 * (largest + RECORD))

    def give_back(self, running: Iterable[Claim]) -> None:
        """`running` keeps its ranges, and all out who must be alone, until it is settled."""
        with self._free:
            assert self._shelf is not None
            self._borrowed = None
            flushed, records = self._shelf.reread()
            self._forget_upto(flushed)
            for record in records:
                self._keep_record(record)
            for claim in running:
                self._users += 1
                if claim.extent is not None:
                    self._busy.append(claim.extent)
            self._free.notify_all()

    def settle(self, claim: Claim, error: int | None, pieces: Sequence[memoryview] = ()) -> int:
        """It ended. error: 0 where it did all, None where less. pieces: what it wrote. The errno that it ends with."""
        with self._free:
            if error:
                self._doubt(error)
            elif error is not None and claim.extent is not None:
                self._note(WRITE, claim.extent, pieces)
            elif error is not None and claim.upto is not None:
                try:
                    self._flushed(claim.backend, claim.upto, claim.upto)
                except OSError as failure:
                    error = failure.errno
            self._users -= 1
            if claim.extent is not None:
                self._busy.remove(claim.extent)
            self._free.notify_all()
        return error or 0

    def doubt(self, code: int) -> None:
        """A flush failed that nobody had asked for."""
        with self._free:
            self._doubt(code)


class Logged(Wrapper):
    """A backend whose changes are logged."""

    def __init__(self, log: ReplayLog, below: Backend) -> None:
        super().__init__(below)
        self._log = log

    @property
    def write_back(self) -> bool:
        return True

    @property
    def descriptor(self) -> int | None:
        """For who has borrowed the log."""
        return self._below.descriptor if isinstance(self._below, DirectBackend) else None

    def meaning(self, code: int) -> int:
        return self._below.meaning(code) if isinstance(self._below, DirectBackend) else code

    def lend(self, largest: int, ask: Callable[[], None]) -> tuple[Loan, int] | None:
        return self._log.lend(self._below, largest, ask)

    def claim(self, extent: Extent | None, upto: int | None) -> Claim:
        return Claim(self._below, extent, upto)

    def give_back(self, running: Iterable[Claim]) -> None:
        self._log.give_back(running)

    def settle(self, claim: Claim, error: int | None, pieces: Sequence[memoryview] = ()) -> int:
        return self._log.settle(claim, error, pieces)

    def doubt(self, code: int) -> None:
        self._log.doubt(code)

    def read(self, offset: int, buffers: Sequence[memoryview]) -> int:
        with self._log.shared():
            return self._below.read(offset, buffers)

    def write(self, offset: int, buffers: Sequence[memoryview], durable: bool) -> int:
        self._log.make_room(self._below)
        with self._log.changing(Extent(offset, sum(map(len, buffers)))):
            moved = self._below.write(offset, buffers, durable)
            moved -= moved % self.block_size  # only whole blocks can be written again, and the caller goes on at one
            self._log.note(WRITE, Extent(offset, moved), _first(buffers, moved))
        return moved

    def flush(self) -> None:
        self._log.flush(self._below)

    def discard(self, offset: int, length: int) -> None:
        self._change(DISCARD, Extent(offset, length), lambda: self._below.discard(offset, length))

    def zero(self, offset: int, length: int, discard: bool) -> None:
        self._change(
            ZERO_UNMAP if discard else ZERO, Extent(offset, length), lambda: self._below.zero(offset, length, discard)
        )

    def _change(self, kind: int, extent: Extent, make: Callable[[], None]) -> None:
        self._log.make_room(self._below)
        with self._log.changing(extent):
            make()
            self._log.note(kind, extent, ())


def _first(buffers: Sequence[memoryview], length: int) -> list[memoryview]:
    pieces = []
    for view in buffers:
        pieces.append(view[:length])
        length -= len(pieces[-1])
    return pieces


def _write_all(backend: Backend, offset: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        moved = backend.write(offset, [view], durable=False)
        moved -= moved % backend.block_size
        if moved <= 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        offset, view = offset + moved, view[moved:]
