"""The command ring that a TCMU device shares with us: mailbox, entries, completions.

Theory of operation (layout: linux/target_core_user.h, version 2; all numbers little-endian as on the CPUs served here)
---------------------------------------------------------------------------------------------------------------------
The mapping starts with the mailbox, then the ring at `cmdr_off`, then data blocks. The kernel appends entries and moves
`cmd_head`; we complete and move `cmd_tail`. Commands end in any order while the tail can only move forward, so a
completion *steals* the entry at the tail: it writes its own cmd_id over whatever stood there and moves on. Two things
follow. An entry's content is only good until the first completion after its fetch: everything is copied out at once
(the response even overlays the iovs). And the ring never tells which commands are open, only how many.

`_next` is our private place of the next entry to fetch. Completions never outnumber fetched commands, so the tail never
passes it. PAD and TMR entries carry no completion; the tail walks over them when it meets them.

Order of memory accesses: `cmd_head` is read before any entry, `cmd_tail` is stored last, each as one aligned 32-bit
access through a memoryview of format "I". On x86-64 (TSO) that is enough; on weakly ordered CPUs it is not, and a ring
breaks within seconds (tcmu-runner issue 687), so pure Python refuses to run there.
"""

from __future__ import annotations

import platform
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tcmu_retry.tcmu.journal import Journal

VERSION = 2
OOOC, READ_LEN, TMR, KEEP_BUF = 1, 2, 4, 8
_NEEDED = {OOOC: "out-of-order completion", READ_LEN: "READ_LEN", TMR: "task management", KEEP_BUF: "KEEP_BUF"}

_MAILBOX = struct.Struct("<HHII")  # version, flags, cmdr_off, cmdr_size
_HEAD = 12 // 4
_TAIL = 64 // 4
_HEADER = struct.Struct("<IHBB")  # len_op, cmd_id, kflags, uflags
_REQUEST = struct.Struct("<IIIIQQQ")  # iov_cnt, iov_bidi_cnt, iov_dif_cnt, pad, cdb_off, pad, pad
_IOVS = 48
_RESPONSE = struct.Struct("<BxxxI96s")  # scsi_status, read_len, sense
_TMR = struct.Struct("<BxxxIQQ")  # tmr_type, cmd_cnt, pad

OP_PAD, OP_CMD, OP_TMR = 0, 1, 2
U_UNKNOWN_OP, U_READ_LEN, U_KEEP_BUF = 1, 2, 4

_LEAST = {OP_CMD: 48, OP_TMR: 32}  # bytes of an entry

_GROUP_LENGTH = (6, 10, 10, 0, 16, 12, 0, 0)
_VARIABLE_LENGTH_CDB = 0x7F


class RingError(Exception):
    """The ring cannot be used, or not any more; one sentence."""


@dataclass(frozen=True, slots=True)
class CommandEntry:
    """A command. iovs: (offset, length) in the mapping; Data-Out, or Data-In if there is no Data-Out."""

    id: int
    cdb: bytes
    iovs: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class TaskManagementEntry:
    """Task management over these commands; ids that were completed already may be among them."""

    kind: int
    ids: tuple[int, ...]


def layout(memory: memoryview) -> tuple[int, int]:
    """Where the ring lies in the mapping, and its size, in bytes. Raises RingError where it is not for us."""
    version, flags, offset, size = _MAILBOX.unpack_from(memory, 0)
    if version != VERSION:
        raise RingError(f"the kernel's ring has version {version}, and this is written for version {VERSION}")
    missing = [name for bit, name in _NEEDED.items() if not flags & bit]
    if missing:
        raise RingError(f"the kernel's ring lacks {', '.join(missing)}; Linux 6.1 or newer has it")
    if offset % 8 or not 128 <= offset < len(memory) or not 128 <= size <= len(memory) - offset or size % 8:
        raise RingError(f"the ring is said to lie at {offset} with {size} bytes in a mapping of {len(memory)}")
    return offset, size


def extent(memory: memoryview) -> tuple[int, int]:
    """The ring's tail, and how many commands are open or wait to be fetched. Raises RingError."""
    offset, size = layout(memory)
    head, tail = (struct.unpack_from("<I", memory, 4 * place)[0] for place in (_HEAD, _TAIL))
    count, at = 0, tail
    for _ in range(size // 8):
        if at == head or at >= size:
            break
        (len_op,) = struct.unpack_from("<I", memory, offset + at)
        count += len_op & 7 == OP_CMD
        at = (at + max(len_op & ~7, 8)) % size
    return tail, count


class Ring:
    """One device's ring over its whole mapping. Not thread-safe: one thread fetches and completes."""

    def __init__(self, memory: memoryview, journal: Journal | None = None) -> None:
        """memory: the mapping, writable, format B. Raises RingError where this kernel's ring is not for us.

        journal: where it is noted what is open, and where fetching goes on.
        """
        if platform.machine() not in ("x86_64", "AMD64", "i686"):
            raise RingError(
                f"the pump in Python cannot order its memory accesses on {platform.machine()}: only the native pump can"
                " serve here"
            )
        self._offset, self._size = layout(memory)
        self._memory = memory
        self._words = memory[:128].cast("I")
        self._next = self._index(self._words[_TAIL], "tail")
        self._journal = journal
        if journal is not None:
            self._next = self._index(journal.next, "place in the journal")

    @property
    def unfetched(self) -> bool:
        return self._words[_HEAD] != self._next

    def fetch(self) -> list[CommandEntry | TaskManagementEntry]:
        """Every entry that the kernel queued since the last call. Raises RingError at one that makes no sense."""
        head = self._index(self._words[_HEAD], "head")
        entries: list[CommandEntry | TaskManagementEntry] = []
        while self._next != head:
            place = self._offset + self._next
            op, number, length = self._entry(self._next, head)
            if op == OP_CMD:
                command = self._command(place, length, number)
                entries.append(command)
                if self._journal is not None:
                    self._journal.opened(command)
            elif op == OP_TMR:
                management = self._task_management(place, length)
                entries.append(management)
                if self._journal is not None:
                    self._journal.aborted(management.ids)
            elif op != OP_PAD:
                self._memory[place + 7] |= U_UNKNOWN_OP
            self._next = (self._next + length) % self._size
            if self._journal is not None:
                self._journal.fetched(self._next)
        return entries

    def _entry(self, at: int, end: int) -> tuple[int, int, int]:
        """What it is, its id and its length. end: where the entries end that may be looked at."""
        len_op, number, _, _ = _HEADER.unpack_from(self._memory, self._offset + at)
        op, length = len_op & 7, len_op & ~7
        if not _LEAST.get(op, 8) <= length <= min((end - at) % self._size, self._size - at):
            raise RingError(f"the ring is broken: an entry of {length} bytes at {at} of {self._size}")
        return op, number, length

    def _command(self, place: int, length: int, number: int) -> CommandEntry:
        iov_cnt, _, _, _, cdb_off, _, _ = _REQUEST.unpack_from(self._memory, place + 8)
        if _IOVS + 16 * iov_cnt > length or not place + _IOVS <= cdb_off < place + length:
            raise RingError(f"the ring is broken: command {number} has {iov_cnt} iovs and its CDB at {cdb_off}")
        flat = struct.unpack_from(f"<{2 * iov_cnt}Q", self._memory, place + _IOVS)
        iovs = tuple(zip(flat[::2], flat[1::2], strict=True))
        end = len(self._memory)
        if any(offset + size > end for offset, size in iovs):
            raise RingError(f"the ring is broken: command {number} has a buffer outside the mapping")
        cdb = bytes(self._memory[cdb_off : place + length])
        size = 8 + cdb[7] if cdb[0] == _VARIABLE_LENGTH_CDB and len(cdb) > 7 else _GROUP_LENGTH[cdb[0] >> 5]
        # A reserved group has no length of its own: everything up to the entry's end.
        return CommandEntry(number, cdb[:size] if size else cdb, iovs)

    def _task_management(self, place: int, length: int) -> TaskManagementEntry:
        kind, count, _, _ = _TMR.unpack_from(self._memory, place + 8)
        if 32 + 2 * count > length:
            raise RingError(f"the ring is broken: task management over {count} commands in {length} bytes")
        return TaskManagementEntry(kind, struct.unpack_from(f"<{count}H", self._memory, place + 32))

    def complete(
        self, number: int, status: int, sense: bytes = b"", read_len: int | None = None, keep_buffer: bool = False
    ) -> None:
        """Write one completion; the kernel sees it at the next doorbell. read_len: Data-In bytes, more than 0.

        Raises RingError where there is no place for it, or none that makes sense any more.
        """
        self.settle()
        tail = self._words[_TAIL]
        if tail == self._next:
            raise RingError(f"the ring is broken: command {number} is completed and none is open")
        place = self._offset + tail
        memory = self._memory
        _, _, length = self._entry(tail, self._next)
        if self._journal is not None:
            self._journal.completing(number, tail)
        memory[place + 7] = (U_READ_LEN if read_len else 0) | (U_KEEP_BUF if keep_buffer else 0)
        struct.pack_into("<H", memory, place + 4, number)
        _RESPONSE.pack_into(memory, place + 8, status, read_len or 0, sense)
        self._words[_TAIL] = (tail + length) % self._size
        if self._journal is not None:
            self._journal.completed(number)

    def settle(self) -> None:
        """Move the tail over fetched entries that want no completion, so that they do not hold ring space.

        Raises RingError: what was fetched may have been overwritten since.
        """
        tail = start = self._index(self._words[_TAIL], "tail")
        while tail != self._next:
            op, _, length = self._entry(tail, self._next)
            if op == OP_CMD:
                break
            tail = (tail + length) % self._size
        if tail != start:
            self._words[_TAIL] = tail

    def close(self) -> None:
        """Release the views of the mapping."""
        self._words.release()

    def _index(self, value: int, name: str) -> int:
        if value >= self._size or value % 8:
            raise RingError(f"the ring is broken: its {name} is at {value} of {self._size}")
        return value
