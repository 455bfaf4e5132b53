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

The log is bounded; a write that finds it full flushes first, and fails if that fails (and is retried by policy). It
lives in memory: what the host's own death loses, a disk's power failure would have lost too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tcmu_retry.backends.base import Backend
from tcmu_retry.backends.file import ZEROS
from tcmu_retry.backends.filters.wrapper import Wrapper
from tcmu_retry.scsi.request import Extent

RECORD = 900  # bytes of memory that a change takes beside its data: measured, CPython 3.11


@dataclass(frozen=True, slots=True)
class _Change:
    """One change. data None: the range was zeroed or deallocated, and `again` does that."""

    extent: Extent
    data: bytes | None
    again: Callable[[Backend], None]
    number: int

    @property
    def weight(self) -> int:
        return len(self.data or b"") + RECORD


class ReplayLog:
    """The changes of one LUN since the last good flush; it outlives the backends that it is laid over."""

    def __init__(self, limit: int) -> None:
        """limit: bytes of memory."""
        self._limit = limit
        self._changes: dict[tuple[int, int], _Change] = {}  # by range, oldest first
        self._weight = 0
        self._number = 0
        self._busy: list[Extent] = []  # ranges that are being changed
        self._users = 0
        self._alone = False
        self._sure: Backend | None = None  # has all changes, flushed or not, as far as errors tell
        self._free = threading.Condition()
        self._flushing = threading.Lock()

    def over(self, backend: Backend) -> Backend:
        """A write-back backend over a newly opened one. Makes the changes again; blocks. Raises OSError.

        Nobody else uses the log meanwhile, unless this takes too long and its result is dropped.
        """
        with self._free:
            changes = list(self._changes.values())
        self._make(changes, backend)
        return _Logged(self, backend)

    def __len__(self) -> int:
        return len(self._changes)

    @property
    def weight(self) -> int:
        """Bytes of memory."""
        return self._weight

    # ---- for the backend laid over

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """I/O that may run beside other I/O."""
        with self._free:
            self._free.wait_for(lambda: not self._alone)
            self._users += 1
        try:
            yield
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                self._sure = None
            raise
        finally:
            with self._free:
                self._users -= 1
                self._free.notify_all()

    @contextlib.contextmanager
    def changing(self, extent: Extent) -> Iterator[None]:
        """A change, alone in its range."""
        with self._free:
            self._free.wait_for(lambda: not self._alone and not any(map(extent.overlaps, self._busy)))
            self._busy.append(extent)
        try:
            with self.shared():
                yield
        finally:
            with self._free:
                self._busy.remove(extent)
                self._free.notify_all()

    def note(self, extent: Extent, data: bytes | None, again: Callable[[Backend], None]) -> None:
        """The storage took a change; within `changing`."""
        with self._free:
            self._number += 1
            self._forget((extent.offset, extent.length))
            change = _Change(extent, data, again, self._number)
            self._changes[extent.offset, extent.length] = change
            self._weight += change.weight

    def flush(self, backend: Backend) -> None:
        """Flush, after making the changes again where there was an error since the last good flush. Raises OSError."""
        with self._flushing:
            if self._sure is not backend:
                self.make_again(backend)
            with self._free:
                upto = self._number
            with self.shared():
                backend.flush()
            with self._free:
                if self._sure is not backend:  # an error beside the flush: the cache may have been lost before it
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                for key in [key for key, change in self._changes.items() if change.number <= upto]:
                    self._forget(key)

    def make_room(self, backend: Backend) -> None:
        """Flush if the log is full. Raises OSError."""
        if self._weight > self._limit:
            self.flush(backend)

    def make_again(self, backend: Backend) -> None:
        """All changes in their order, with everything else shut out. Raises OSError."""
        with self._free:
            self._free.wait_for(lambda: not self._alone)
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

    def _forget(self, key: tuple[int, int]) -> None:
        change = self._changes.pop(key, None)
        if change is not None:
            self._weight -= change.weight


class _Logged(Wrapper):
    """A backend whose changes are logged."""

    def __init__(self, log: ReplayLog, below: Backend) -> None:
        super().__init__(below)
        self._log = log

    @property
    def write_back(self) -> bool:
        return True

    def read(self, offset: int, buffers: Sequence[memoryview]) -> int:
        with self._log.shared():
            return self._below.read(offset, buffers)

    def write(self, offset: int, buffers: Sequence[memoryview], durable: bool) -> int:
        self._log.make_room(self._below)
        with self._log.changing(Extent(offset, sum(map(len, buffers)))):
            moved = self._below.write(offset, buffers, durable)
            moved -= moved % self.block_size  # only whole blocks can be written again, and the caller goes on at one
            data = b"".join(buffers)[:moved]
            self._log.note(Extent(offset, moved), data, lambda backend: _write_all(backend, offset, data))
        return moved

    def flush(self) -> None:
        self._log.flush(self._below)

    def discard(self, offset: int, length: int) -> None:
        self._change(Extent(offset, length), lambda backend: backend.discard(offset, length))

    def zero(self, offset: int, length: int, discard: bool) -> None:
        self._change(Extent(offset, length), lambda backend: backend.zero(offset, length, discard))

    def _change(self, extent: Extent, again: Callable[[Backend], None]) -> None:
        self._log.make_room(self._below)
        with self._log.changing(extent):
            again(self._below)
            self._log.note(extent, None, lambda backend: _zero_again(backend, extent, again))


def _zero_again(backend: Backend, extent: Extent, again: Callable[[Backend], None]) -> None:
    """By writes where the storage cannot do it any other way any more: zeros are what it reads as."""
    try:
        again(backend)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        for offset in range(extent.offset, extent.end, len(ZEROS)):
            _write_all(backend, offset, ZEROS[: extent.end - offset])


def _write_all(backend: Backend, offset: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        moved = backend.write(offset, [view], durable=False)
        moved -= moved % backend.block_size
        if moved <= 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        offset, view = offset + moved, view[moved:]
