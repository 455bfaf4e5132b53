"""Where the replay log outlives the daemon: the changes of a LUN since its last good flush, in shared memory.

Theory of operation
-------------------
A ring of records in a file of /run, each with a number that only grows. A record is written in this order: its data,
the end mark behind it (number 0), its head, and last its number, so that a process killed in between left an end mark
there. What a flush made durable is passed over by one store, `_FLUSHED`; only then does `_START`, from where a reader
begins, move on and room become free. A reader follows the numbers as long as they grow by one and leaves out what was
flushed. Nothing but the host's own death takes the file away, and that takes the storage's connection with it.

Without room in /run the shelf is lost: it says so in the file, the log goes on in the daemon's memory alone, and the
next daemon says what that means.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import struct
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

log = logging.getLogger(__name__)

MAGIC = b"TCMUrepl"
VERSION = 1
_HEADER = struct.Struct("<8sII")  # magic, version, bytes of the identity
_LOST, _FLUSHED, _START, _IDENTITY, _RECORDS = 32, 64, 72, 128, 4096
_NUMBER = struct.Struct("<Q")
_HEAD = struct.Struct("<QQQII")  # number, offset, length, kind, bytes of data; number 0: no more records
WRITE, DISCARD, ZERO, ZERO_UNMAP, _WRAP = 0, 1, 2, 3, 4
_GROWTH = 1 << 20


class ShelfError(Exception):
    """What the last daemon had not flushed is not known; one sentence."""


@dataclass(frozen=True, slots=True)
class Record:
    """One change, as the storage took it. data: what was written, a view of the shelf."""

    number: int
    kind: int
    offset: int
    length: int
    data: memoryview


@dataclass(frozen=True, slots=True)
class Loan:
    """Where somebody else goes on with it, in the same format. start, next: places; file: to reserve memory with."""

    memory: memoryview
    file: int
    room: int
    start: int
    next: int
    number: int
    flushed: int


class Shelf:
    """One LUN's. Calls must come one at a time."""

    def __init__(self, fd: int, identity: str, limit: int) -> None:
        """Takes the fd of a file in memory over. limit: bytes of its records. Raises OSError."""
        self._fd = fd
        self._identity = identity.encode()
        self._size = _RECORDS + limit
        try:
            os.ftruncate(fd, self._size)
            os.posix_fallocate(fd, 0, _RECORDS)
            self._memory = memoryview(mmap.mmap(fd, self._size))
        except BaseException:
            os.close(fd)
            raise
        weakref.finalize(self, os.close, fd).atexit = False
        self._room = _RECORDS  # bytes that have memory
        self._next = _RECORDS
        self._number = 0
        self._live: dict[int, int] = {}  # place by number, oldest first

    def begin(self, lost: bool = False) -> None:
        """The file is new. lost: what is not flushed is not here. Raises OSError where there is no memory."""
        if not self._reserve(_RECORDS + _HEAD.size):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._memory[_IDENTITY : _IDENTITY + len(self._identity)] = self._identity
        self._put(_START, _RECORDS)
        self._put(_LOST, lost)
        _HEADER.pack_into(self._memory, 0, MAGIC, VERSION, len(self._identity))

    def resume(self) -> list[Record]:
        """What an earlier process had not flushed. Raises ShelfError."""
        magic, version, length = _HEADER.unpack_from(self._memory, 0)
        if magic != MAGIC:
            raise ShelfError("the last daemon left no log of it")
        if version != VERSION:
            raise ShelfError(f"its log has version {version}, and this is written for version {VERSION}")
        if bytes(self._memory[_IDENTITY : _IDENTITY + min(length, 1024)]) != self._identity:
            raise ShelfError("its log is of another device")
        if self._get(_LOST):
            raise ShelfError("its log was not complete")
        found = list(self._walk(self._get(_START)))
        self._take_up()
        return found

    def lend(self) -> Loan:
        """All of it, to somebody else who writes records and what was flushed; until `reread`."""
        live = next(iter(self._live), self._number + 1)
        start = self._live.get(live, self._next)
        return Loan(self._memory, self._fd, self._room, start, self._next, self._number, live - 1)

    def reread(self) -> tuple[int, list[Record]]:
        """The last record that is flushed, and those that came since it was lent and are not."""
        flushed = self._get(_FLUSHED)
        for old in [each for each in self._live if each <= flushed]:
            del self._live[old]
        # With nothing left of ours it may have begun anew, over what stands at `_next`.
        found = list(self._walk(self._next, self._number + 1) if self._live else self._walk(self._get(_START)))
        self._take_up()
        return flushed, found

    def _take_up(self) -> None:
        # Whoever wrote it may have been killed before it moved on; what it had flushed is room from now on.
        self._put(_START, self._first if self._live else self._next)
        self._room = max(_RECORDS, os.fstat(self._fd).st_blocks * 512)

    def _walk(self, place: int, expected: int | None = None) -> Iterator[Record]:
        """What is not flushed, from a place on. expected: the number there, if that is known."""
        flushed = self._get(_FLUSHED)
        self._number = max(flushed, self._number)
        while _RECORDS <= place <= self._size - _HEAD.size:
            number, offset, length, kind, size = _HEAD.unpack_from(self._memory, place)
            if number == 0 or expected not in (None, number) or kind > _WRAP or place + _HEAD.size + size > self._size:
                break
            expected = number + 1
            self._number = max(self._number, number)
            if kind == _WRAP:
                self._next = place = _RECORDS
                continue
            at = place + _HEAD.size
            self._next = place + _aligned(_HEAD.size + size)
            if number > flushed:
                self._live[number] = place
                yield Record(number, kind, offset, length, self._memory[at : at + size])
            place = self._next
        self._next = place

    @property
    def number(self) -> int:
        """Of the last record."""
        return self._number

    @property
    def capacity(self) -> int:
        """Bytes for records."""
        return self._size - _RECORDS

    @property
    def used(self) -> int:
        """Bytes from the first record that is not flushed to the last."""
        if not self._live:
            return 0
        return (self._next - self._first) % (self._size - _RECORDS)

    @property
    def _first(self) -> int:
        return next(iter(self._live.values()))

    def put(self, kind: int, offset: int, length: int, pieces: Sequence[memoryview]) -> memoryview | None:
        """Note a change; the data as it is kept. None: there is no room, or there was none before."""
        if self.lost:
            return None
        size = sum(map(len, pieces))
        place = self._make_place(_aligned(_HEAD.size + size) + _HEAD.size)
        if place is None:
            self._put(_LOST, 1)
            return None
        at = start = place + _HEAD.size
        for piece in pieces:
            self._memory[at : at + len(piece)] = piece
            at += len(piece)
        self._publish(place, offset, length, kind, size)
        if not self._live:
            self._put(_START, place)
        self._live[self._number] = place
        return self._memory[start:at]

    def _publish(self, place: int, offset: int, length: int, kind: int, size: int) -> None:
        behind = _RECORDS if kind == _WRAP else place + _aligned(_HEAD.size + size)
        self._put(behind, 0)
        _HEAD.pack_into(self._memory, place, 0, offset, length, kind, size)
        self._number += 1
        self._put(place, self._number)
        self._next = behind

    def _make_place(self, need: int) -> int | None:
        """Where so many bytes may stand: a record and the end mark behind it. None: nowhere."""
        wrapped = bool(self._live) and self._next < self._first
        end = self._first if wrapped else self._size
        if self._next + need <= end:
            return self._next if self._reserve(self._next + need) else None
        if wrapped or _RECORDS + need > (self._first if self._live else self._size):
            return None
        self._publish(self._next, 0, 0, _WRAP, 0)
        return _RECORDS

    def flushed(self, number: int) -> None:
        """Everything up to this number is durable."""
        if number <= self._get(_FLUSHED):
            return
        self._put(_FLUSHED, number)
        for old in [each for each in self._live if each <= number]:
            del self._live[old]
        self._put(_START, self._first if self._live else self._next)

    def complete(self) -> None:
        """Everything that is not flushed is here: what was missing is flushed."""
        if self.lost:
            self._put(_LOST, 0)

    # ---- memory

    @property
    def lost(self) -> bool:
        return bool(self._get(_LOST))

    def _reserve(self, upto: int) -> bool:
        """A store to a page that /run has no room for is SIGBUS."""
        if upto > self._room:
            room = min(-(-upto // _GROWTH) * _GROWTH, self._size)
            try:
                os.posix_fallocate(self._fd, self._room, room - self._room)
            except OSError as error:
                log.warning("the log of unflushed writes has no room in /run: %s", error.strerror)
                return False
            self._room = room
        return True

    def _get(self, place: int) -> int:
        value: int = _NUMBER.unpack_from(self._memory, place)[0]
        return value

    def _put(self, place: int, value: int) -> None:
        _NUMBER.pack_into(self._memory, place, value)


def _aligned(size: int) -> int:
    return -(-size // 8) * 8
