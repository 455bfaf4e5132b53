"""What outlives the daemon: which commands of a LUN are open, in shared memory that a new process takes up.

Theory of operation
-------------------
The ring does not name its open commands (see `ring.py`), so whoever fetches and completes notes it here, and does no
more than that on the success path: one slot for each cmd_id, written before `fetched` moves over the entry, and freed
after `cmd_tail` moved over the completion. The process may be killed between any two stores; all that were made before
are seen by the next one, for memory outlives a process and the order of one thread's stores is the program's.

Fetch: the slot's content, then its state OPEN, then `fetched`. Killed before the last: one slot more is open than
entries were fetched, and the entry at `fetched` names it; it is fetched again. Task management: the named slots are
marked ABORTED, then `fetched` moves; what was only marked is marked again.

Completion: the slot says COMPLETING with the tail as it is, then the entry at the tail is written, then the tail moves,
then the slot is free. A slot that is COMPLETING was completed if the tail is another by now; otherwise it was not, and
the half-written entry means nothing. One thread completes, so there is at most one. The doorbell is rung by the new
process in any case.

A new process believes it only if all of it fits: identity (boot, device, mapping), every entry from the tail to
`fetched` and on to the head, and as many open slots as entries. Memory of a slot is reserved before it is used: a store
to a page that /run has no room for is SIGBUS. Without room the journal is lost, says so in its header, and the daemon
goes on without.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import struct
import time
from dataclasses import dataclass

from tcmu_retry.tcmu.ring import OP_CMD, CommandEntry, RingError, layout

log = logging.getLogger(__name__)

MAGIC = b"TCMUjrnl"
VERSION = 1
IDS = 1 << 16
GROWTH = 256  # slots

# The C twin of this layout is native/journal.h.
_HEADER = struct.Struct("<8sII")  # magic, version, bytes of the identity
_SOUND, _ROOM, _LEFT_AT, _FETCHED, _IDENTITY, _SLOTS = 32, 36, 48, 64, 128, 4096
SLOT = 2112  # not a power of two, or the heads of all slots would meet in one set of the CPU's caches
IOVS = 256
FREE, OPEN, COMPLETING = 0, 1, 2
# tail, arrived, attempts, error, iovs, bytes of the CDB, compared, aborted, failed_at, CDB
_CONTENT = struct.Struct("<IdHHHHBB6xd16s")
_CONTENT_AT = 4
_TAIL, _ATTEMPTS, _ERROR, _COMPARED, _ABORTED, _FAILED_AT, _IOVS_AT = 4, 16, 18, 24, 25, 32, 56
UNKNOWN = 0xFFFF  # iovs that a slot cannot hold
_UNIT = 4096  # of an iov's offset: the kernel hands out pages


class JournalError(Exception):
    """The journal does not prove what is open; one sentence. `open`: how many commands it names."""

    def __init__(self, message: str, open: int = 0) -> None:
        super().__init__(message)
        self.open = open


@dataclass(frozen=True, slots=True)
class Left:
    """A command that an earlier process left open. Times: CLOCK_MONOTONIC seconds.

    compared: COMPARE AND WRITE had begun to write. error, failed_at: of its last and its first failure.
    """

    entry: CommandEntry
    arrived: float
    attempts: int = 0
    error: int = 0
    failed_at: float = 0.0
    compared: bool = False
    aborted: bool = False


class Journal:
    """One LUN's. One thread fetches and completes; `compared` may come from another one while the command runs."""

    def __init__(self, fd: int, identity: str) -> None:
        """Takes the fd of a file in memory over. identity: what the ring is of. Raises OSError."""
        self._fd = fd
        self._identity = identity.encode()
        self.left: tuple[Left, ...] = ()
        self.left_at = 0.0  # when an earlier process handed over, CLOCK_MONOTONIC seconds; 0: it did not
        size = _SLOTS + IDS * SLOT
        try:
            os.ftruncate(fd, size)
            os.posix_fallocate(fd, 0, _SLOTS)
            self._map = mmap.mmap(fd, size)
        except BaseException:
            os.close(fd)
            raise
        self.memory = memoryview(self._map)
        self.room = min(self._get32(_ROOM), IDS)  # ids below it have memory

    # ---- beginning

    def begin(self, fetched: int) -> None:
        """Nothing is open. fetched: where the ring's tail is. Raises OSError where there is no memory."""
        os.ftruncate(self._fd, 0)
        os.ftruncate(self._fd, _SLOTS + IDS * SLOT)
        os.posix_fallocate(self._fd, 0, _SLOTS)
        self.left, self.room = (), 0
        self._reserve(GROWTH)
        self.fetched(fetched)
        self.memory[_IDENTITY : _IDENTITY + len(self._identity)] = self._identity
        self._put32(_SOUND, 1)
        _HEADER.pack_into(self.memory, 0, MAGIC, VERSION, len(self._identity))

    def resume(self, memory: memoryview) -> None:
        """Take up what an earlier process left: `left` has it. memory: the ring's. Raises JournalError."""
        if not self.room:
            raise JournalError("there is none")
        magic, version, length = _HEADER.unpack_from(self.memory, 0)
        if magic != MAGIC:
            raise JournalError("it is none")
        if version != VERSION:
            raise JournalError(f"it has version {version}, and this is written for version {VERSION}")
        opened = self._opened()
        if bytes(self.memory[_IDENTITY : _IDENTITY + min(length, 1024)]) != self._identity:
            raise JournalError("it is of another device", len(opened))
        if not self._get32(_SOUND):
            raise JournalError("there was no room for it in /run", len(opened))
        try:
            self._check(memory, opened)
            self.left = tuple(sorted((self._left(number, memory) for number in opened), key=lambda left: left.arrived))
        except RingError as error:
            raise JournalError(str(error), len(opened)) from None
        (self.left_at,) = struct.unpack_from("<d", self.memory, _LEFT_AT)
        self.hand_over(0.0)

    def _opened(self) -> list[int]:
        return [number for number in range(self.room) if self._get32(_place(number)) in (OPEN, COMPLETING)]

    def _check(self, memory: memoryview, opened: list[int]) -> None:
        """Bring `opened` and the ring together. Raises JournalError, RingError."""
        offset, size = layout(memory)
        words = memory[:128].cast("I")
        head, tail, fetched = words[3], words[16], self.next
        words.release()
        for number in list(opened):
            if self._get32(_place(number)) == COMPLETING:
                if self._get32(_place(number) + _TAIL) != tail:
                    self._put32(_place(number), FREE)
                    opened.remove(number)
                else:
                    self._put32(_place(number), OPEN)
        entries, at, passed = 0, tail, tail == fetched
        following = 0  # the id of the command at `fetched`
        for _ in range(size // 8):
            if at == head:
                break
            if at >= size or at % 8:
                raise JournalError(f"the ring's place {at} is none", len(opened))
            len_op, number = struct.unpack_from("<IH", memory, offset + at)
            length = len_op & ~7
            if length < 8 or length > size - at:
                raise JournalError(f"the ring has an entry of {length} bytes at {at}", len(opened))
            if at == fetched and len_op & 7 == OP_CMD:
                following = number
            entries += not passed and len_op & 7 == OP_CMD
            at = (at + length) % size
            passed = passed or at == fetched
        if at != head or not passed:
            raise JournalError(f"its place {fetched} is not between the ring's {tail} and {head}", len(opened))
        if len(opened) == entries + 1 and following in opened:
            self._put32(_place(following), FREE)
            opened.remove(following)
        if len(opened) != entries:
            raise JournalError(f"it names {len(opened)} commands, and the ring has {entries}", len(opened))

    def _left(self, number: int, memory: memoryview) -> Left:
        place = _place(number)
        _, arrived, attempts, error, count, size, compared, aborted, failed_at, cdb = _CONTENT.unpack_from(
            self.memory, place + _CONTENT_AT
        )
        if count == UNKNOWN:
            raise RingError(f"the buffers of command {number} have more pieces than it can hold")
        flat = struct.unpack_from(f"<{2 * count}I", self.memory, place + _IOVS_AT)
        iovs = tuple((flat[i] * _UNIT, flat[i + 1]) for i in range(0, len(flat), 2))
        if count > IOVS or any(start + length > len(memory) for start, length in iovs):
            raise RingError(f"command {number} has a buffer outside the mapping")
        entry = CommandEntry(number, cdb[:size].ljust(size, b"\0"), iovs)
        return Left(entry, arrived, attempts, error, failed_at, bool(compared), bool(aborted))

    # ---- the ring's notes

    @property
    def next(self) -> int:
        """The place of the next entry to fetch."""
        return self._get32(_FETCHED)

    def fetched(self, place: int) -> None:
        """Everything before this place is noted."""
        self._put32(_FETCHED, place)

    def opened(self, entry: CommandEntry) -> None:
        number = entry.id
        if not self.reach(number):
            return
        place, count = _place(number), len(entry.iovs)
        units = [(offset // _UNIT, length) for offset, length in entry.iovs]
        if count > IOVS or any(offset % _UNIT or length >= 1 << 32 for offset, length in entry.iovs):
            count, units = UNKNOWN, []
        flat = [number for unit in units for number in unit]
        struct.pack_into(f"<{len(flat)}I", self.memory, place + _IOVS_AT, *flat)
        _CONTENT.pack_into(
            self.memory,
            place + _CONTENT_AT,
            *(0, time.monotonic(), 0, 0, count, len(entry.cdb), False, False, 0.0, entry.cdb),
        )
        self._put32(place, OPEN)

    def aborted(self, numbers: tuple[int, ...]) -> None:
        """Task management names these; whichever is open is not to be tried again."""
        for number in numbers:
            if number < self.room:
                self.memory[_place(number) + _ABORTED] = 1

    def is_aborted(self, number: int) -> bool:
        return number < self.room and bool(self.memory[_place(number) + _ABORTED])

    def completing(self, number: int, tail: int) -> None:
        if number < self.room:
            self._put32(_place(number) + _TAIL, tail)
            self._put32(_place(number), COMPLETING)

    def completed(self, number: int) -> None:
        if number < self.room:
            self._put32(_place(number), FREE)

    # ---- the pump's notes

    def failed(self, number: int, error: int, now: float) -> None:
        """One more attempt at an open command failed."""
        if number >= self.room:
            return
        place = _place(number)
        (attempts,) = struct.unpack_from("<H", self.memory, place + _ATTEMPTS)
        if not attempts:
            struct.pack_into("<d", self.memory, place + _FAILED_AT, now)
        struct.pack_into("<HH", self.memory, place + _ATTEMPTS, min(attempts + 1, 0xFFFF), error & 0xFFFF)

    def compared(self, number: int) -> None:
        """The compare of COMPARE AND WRITE succeeded, and its write is about to begin."""
        if number < self.room:
            self.memory[_place(number) + _COMPARED] = 1

    def hand_over(self, now: float) -> None:
        """From now on this process runs nothing."""
        struct.pack_into("<d", self.memory, _LEFT_AT, now)

    # ---- memory

    def reach(self, number: int) -> bool:
        """Whether this id has a slot with memory; makes it, or loses the journal."""
        if number >= self.room and not self.lost:
            try:
                self._reserve(min(number + GROWTH, IDS))
            except OSError as error:
                self.lose(error)
        return number < self.room

    @property
    def lost(self) -> bool:
        return not self._get32(_SOUND)

    def lose(self, error: OSError) -> None:
        """Go on without: the next process must not believe it."""
        log.warning(
            "the journal of %s has no room (%s): what is in flight when the daemon ends is answered BUSY then",
            self._identity.decode().replace("\n", " "),
            error.strerror,
        )
        self._put32(_SOUND, 0)
        self.room = 0

    def _reserve(self, slots: int) -> None:
        """Raises OSError."""
        os.posix_fallocate(self._fd, 0, _SLOTS + slots * SLOT)
        self.room = slots
        self._put32(_ROOM, slots)

    def close(self) -> None:
        """The file stays."""
        with contextlib.suppress(BufferError):  # the native pump's view may outlive it, with I/O that hangs
            self.memory.release()
            self._map.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _get32(self, place: int) -> int:
        value: int = struct.unpack_from("<I", self.memory, place)[0]
        return value

    def _put32(self, place: int, value: int) -> None:
        struct.pack_into("<I", self.memory, place, value)


def _place(number: int) -> int:
    return _SLOTS + number * SLOT
