"""The kernel's side of one TCMU device in plain memory: for tests, and for a daemon without a target.

It follows drivers/target/target_core_user.c (Linux 6.1 … 6.12) where a handler can tell the difference: entries are
never split, the ring's end is padded, ids and data blocks are reused at once and lowest first, blocks keep what an
earlier command left in them, and completions are processed inside the doorbell by walking the tail. The layout is
written down here a second time on purpose: what `ring.py` gets wrong must not cancel out.

Differences: readiness is a pipe and no event count, because a pipe can hang up as a removed uio does; buffers kept over
the end of a handler are freed when the next one opens the device. Not simulated: bidirectional commands and
time-outs.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import mmap
import os
import struct
import threading
import weakref
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from tcmu_retry.scsi.request import Status
from tcmu_retry.tcmu.base import unmap
from tcmu_retry.tcmu.journal import Journal

ABORT_TASK, LUN_RESET, PREEMPT_AND_ABORT = 1, 5, 128

_VERSION, _FLAGS = 2, 0xF  # out-of-order completion, READ_LEN, TMR, KEEP_BUF
_MAILBOX = 128
_HEAD, _TAIL = 12 // 4, 64 // 4
_PAD, _CMD, _TMR = 0, 1, 2
_UNKNOWN_OP, _READ_LEN, _KEEP_BUF = 1, 2, 4
_HEADER = struct.Struct("<IHBB")  # len_op, cmd_id, kflags, uflags
_REQUEST = struct.Struct("<III4xQ16x")  # iov_cnt, iov_bidi_cnt, iov_dif_cnt, cdb_off; the iovs follow
_SMALLEST = 112  # header and response
_TASK_MANAGEMENT = struct.Struct("<B3xI16x")  # type, count; the ids follow
_RESPONSE = struct.Struct("<B3xI96s")  # status, read_len, sense
_UNREACHABLE = bytes.fromhex("70 00 02 00000000 0a 00000000 08 00 00000000")  # 02/08/00, communication failure
_TOO_LARGE = bytes.fromhex("70 00 05 00000000 0a 00000000 24 00 00000000")  # 05/24/00, invalid field in CDB


@dataclass(slots=True, eq=False)
class SimulatedCommand:
    """One command of an initiator. status None: not answered. id 0: it waits for room, or has ended.

    data: the Data-In that the kernel took; residual: by how much READ_LEN made it shorter than asked.
    """

    cdb: bytes
    data_out: bytes = b""
    data_in: int = 0
    status: int | None = None
    sense: bytes = b""
    data: bytes = b""
    residual: int = 0
    id: int = 0
    _ended: threading.Event = field(default_factory=threading.Event, repr=False)

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it was answered in time."""
        return self._ended.wait(timeout)

    def end(self, status: int, sense: bytes = b"") -> None:
        """For the kernel: the answer is complete."""
        self.id, self.status, self.sense = 0, status, sense
        self._ended.set()


@dataclass(slots=True)
class _Slot:
    """What an id stands for: a command, or only its blocks once it was answered with KEEP_BUF."""

    command: SimulatedCommand
    blocks: list[int]
    iovs: list[tuple[int, int]]
    kept: bool = False


class SimulatedKernel:
    """One device. Any thread may submit and abort; another one has the channel. Sizes in bytes."""

    def __init__(self, ring: int = 65536, data: int = 16 << 20, block: int = mmap.PAGESIZE, ids: int = 0xFFFF) -> None:
        """ring: of the ring alone, a multiple of 8. block: the unit of the data area, a multiple of the page size."""
        self.broken = ""  # why no completion is taken any more
        self._size = ring
        self._block = block
        self._data = -(-(_MAILBOX + ring) // mmap.PAGESIZE) * mmap.PAGESIZE
        self._length = self._data + data
        self._file = os.memfd_create("tcmu", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        os.ftruncate(self._file, self._length)
        self._memory = memoryview(mmap.mmap(self._file, self._length))
        self._words = self._memory[:_MAILBOX].cast("I")
        struct.pack_into("<HHII", self._memory, 0, _VERSION, _FLAGS, _MAILBOX, ring)
        self._blocks = data // block
        self._free_blocks = list(range(self._blocks))  # heaps: lowest first
        self._free_ids = list(range(1, ids + 1))
        self._slots: dict[int, _Slot] = {}
        self._cleaned = 0  # everything before this place of the ring is processed
        self._waiting: deque[SimulatedCommand] = deque()  # for room
        self._waiting_tmrs: deque[bytes] = deque()
        self._lock = threading.Lock()
        self._bell = -1  # the end of the pipe that wakes whoever has the device open
        self._open = False
        self._removed = False
        self._blocked = False

    # ---- the initiators' side

    def submit(self, cdb: bytes, data_out: bytes = b"", data_in: int = 0) -> SimulatedCommand:
        """Queue a command; where ring or data area are full it waits for completions. data_in: bytes asked for."""
        if data_out and data_in:
            raise ValueError("a command has Data-Out or Data-In, not both")
        command = SimulatedCommand(cdb, data_out, data_in)
        with self._lock:
            self._check()
            if self.broken:
                command.end(Status.CHECK_CONDITION, _UNREACHABLE)
            elif self._blocked:
                command.end(Status.BUSY)
            elif self._waiting or not self._queue(command):
                self._waiting.append(command)
        return command

    def abort(self, commands: Iterable[SimulatedCommand], kind: int = ABORT_TASK) -> None:
        """Task management over these: the open ones are named to the handler, those that wait for room just end."""
        with self._lock:
            self._check()
            ids = []
            for command in commands:
                if command.id:
                    ids.append(command.id)
                elif command in self._waiting:
                    self._waiting.remove(command)
                    command.end(Status.TASK_ABORTED)
            entry = _TASK_MANAGEMENT.pack(kind, len(ids)) + struct.pack(f"<{len(ids)}H", *ids)
            if self._waiting_tmrs or not self._append(_TMR, 0, entry):
                self._waiting_tmrs.append(entry)

    @property
    def open_ids(self) -> frozenset[int]:
        """Ids of commands that were queued and not answered."""
        with self._lock:
            return frozenset(number for number, slot in self._slots.items() if not slot.kept)

    @property
    def kept_ids(self) -> frozenset[int]:
        """Ids of commands that were answered, and whose buffers the handler still has."""
        with self._lock:
            return frozenset(number for number, slot in self._slots.items() if slot.kept)

    @property
    def waiting(self) -> int:
        """How many commands wait for room."""
        with self._lock:
            return len(self._waiting)

    # ---- the handler's side

    def open(self) -> SimulatedChannel:
        """Raises OSError: EBUSY while a channel, or a view of its memory, is alive; ENODEV once it was removed."""
        with self._lock:
            self._check()
            if self._open:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            self._free([number for number, slot in self._slots.items() if slot.kept])
            # Entries queued before this moment do not make the channel readable.
            readable, self._bell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            self._open = True
        return SimulatedChannel(self, readable, mmap.mmap(self._file, self._length))

    def open_anew(self) -> SimulatedChannel:
        """As `open`, with an empty ring: what was open is answered BUSY."""
        channel = self.open()
        with self._lock:
            for number in [number for number, slot in self._slots.items() if not slot.kept]:
                self._slots[number].command.end(Status.BUSY)
                self._forget(number)
            self._cleaned = self._words[_HEAD] = self._words[_TAIL] = 0
            self._waiting_tmrs.clear()
            self.broken = ""
            self._run_waiting()
        return channel

    def block(self, blocked: bool) -> None:
        """Commands are answered BUSY at once, those that wait for room as well."""
        with self._lock:
            self._blocked = blocked
            while blocked and self._waiting:
                self._waiting.popleft().end(Status.BUSY)

    def exists(self) -> bool:
        return not self._removed

    def damage(self) -> None:
        """The ring's head points nowhere, and the handler hears of it."""
        with self._lock:
            self._words[_HEAD] = 4
            os.write(self._bell, b"\0")

    def remove(self) -> None:
        """The LUN is gone: the channel hangs up, and nothing that is open will ever be answered."""
        with self._lock:
            self._removed = True
            self._hang_up()

    def doorbell(self) -> None:
        """For the channel: take completions, and queue what waited for room."""
        with self._lock:
            self._check(errno.EINVAL)
            if self._handle_completions():
                self._run_waiting()

    def free_kept_buffer(self, number: int) -> None:
        """For the channel. Raises OSError EINVAL for an id that is not kept."""
        with self._lock:
            if self._removed:
                return  # as `UioChannel`: its configfs directory went with it
            if number not in self._slots or not self._slots[number].kept:
                raise OSError(errno.EINVAL, f"attempt to free the kept buffer of command {number}, which has none")
            self._free([number])

    def released(self) -> None:
        """For the channel: the last use of its mapping is over. May run in any thread at any point, so: no lock."""
        self._open = False

    def closed(self) -> None:
        """For the channel: nobody listens any more."""
        with self._lock:
            self._hang_up()

    def check(self) -> None:
        """For the channel. Raises OSError EIO once the device was removed."""
        with self._lock:
            self._check(errno.EIO)

    # ---- with the lock held

    def _check(self, code: int = errno.ENODEV) -> None:
        if self._removed:
            raise OSError(code, os.strerror(code))

    def _hang_up(self) -> None:
        if self._bell >= 0:
            os.close(self._bell)
            self._bell = -1

    def _queue(self, command: SimulatedCommand) -> bool:
        """False: there is no room now."""
        length = len(command.data_out) or command.data_in
        count = -(-length // self._block)
        if count > self._blocks:
            command.end(Status.CHECK_CONDITION, _TOO_LARGE)
            return True
        if self._waiting_tmrs or len(self._free_blocks) < count:
            return False
        blocks = [heapq.heappop(self._free_blocks) for _ in range(count)]
        iovs = self._iovs(blocks, length)
        flat = [number for iov in iovs for number in iov]
        base = max(_HEADER.size + _REQUEST.size + 8 * len(flat), _SMALLEST)
        entry_size = base + _aligned(len(command.cdb))
        if entry_size > self._size // 2 or not self._free_ids or not self._has_room(entry_size):
            self._give_back(blocks)
            if entry_size > self._size // 2:
                command.end(Status.CHECK_CONDITION, _TOO_LARGE)
                return True
            if not self._free_ids:
                command.end(Status.TASK_SET_FULL)
                return True
            return False
        command.id = heapq.heappop(self._free_ids)
        self._slots[command.id] = _Slot(command, blocks, iovs)
        rest = command.data_out
        for offset, size in iovs if rest else ():
            self._memory[offset : offset + size], rest = rest[:size], rest[size:]
        place = self._place(entry_size)
        request = _REQUEST.pack(len(iovs), 0, 0, place + base) + struct.pack(f"<{len(flat)}Q", *flat)
        self._append(_CMD, command.id, request.ljust(base - _HEADER.size, b"\0") + command.cdb)
        return True

    def _iovs(self, blocks: list[int], length: int) -> list[tuple[int, int]]:
        """Neighbouring blocks as one; the last one ends with the data."""
        iovs: list[tuple[int, int]] = []
        for block in blocks:
            offset, size = self._data + block * self._block, min(self._block, length)
            length -= size
            if iovs and sum(iovs[-1]) == offset:
                iovs[-1] = (iovs[-1][0], iovs[-1][1] + size)
            else:
                iovs.append((offset, size))
        return iovs

    def _to_end(self) -> int:
        return self._size - self._words[_HEAD]

    def _place(self, size: int) -> int:
        """Where in the mapping the next entry of this size will lie."""
        return _MAILBOX + (self._words[_HEAD] if size <= self._to_end() else 0)

    def _has_room(self, size: int) -> bool:
        used = (self._words[_HEAD] - self._cleaned) % self._size
        padding = 0 if size <= self._to_end() else self._to_end()
        return padding + size < self._size - used  # one byte stays free: a full ring must not look empty

    def _append(self, op: int, number: int, content: bytes) -> bool:
        """Write an entry, behind padding where it does not fit before the ring's end; False where it does not fit."""
        size = _aligned(_HEADER.size + len(content))
        if not self._has_room(size):
            return False
        if size > self._to_end():
            _HEADER.pack_into(self._memory, _MAILBOX + self._words[_HEAD], self._to_end() | _PAD, 0, 0, 0)
            self._words[_HEAD] = 0
        place = self._place(size)
        entry = _HEADER.pack(size | op, number, 0, 0) + content
        self._memory[place : place + size] = entry.ljust(size, b"\0")
        self._words[_HEAD] = (self._words[_HEAD] + size) % self._size
        if self._bell >= 0:
            with contextlib.suppress(BlockingIOError):
                os.write(self._bell, b"\0")
        return True

    def _handle_completions(self) -> bool:
        """Walk from where we were to the tail; whether that made room."""
        made_room = False
        while not self.broken and self._cleaned != self._words[_TAIL]:
            place = _MAILBOX + self._cleaned
            len_op, number, _, flags = _HEADER.unpack_from(self._memory, place)
            if not 8 <= len_op & ~7 <= (self._words[_TAIL] - self._cleaned) % self._size:  # the kernel would walk on
                self.broken = f"an entry of {len_op & ~7} bytes at {self._cleaned}, ring is broken"
                break
            if len_op & 7 == _CMD and not self._complete(place, number, flags):
                break
            self._cleaned = (self._cleaned + (len_op & ~7)) % self._size
            made_room = True
        return made_room and not self.broken

    def _complete(self, place: int, number: int, flags: int) -> bool:
        slot = self._slots.get(number)
        if slot is None:
            self.broken = f"cmd_id {number} not found, ring is broken"
        elif slot.kept:
            self.broken = f"cmd_id {number} already completed with KEEP_BUF, ring is broken"
        if slot is None or slot.kept:
            return False
        command = slot.command
        status, read_len, sense = _RESPONSE.unpack_from(self._memory, place + _HEADER.size)
        if flags & _UNKNOWN_OP:
            status, sense, read_len = Status.CHECK_CONDITION, _UNREACHABLE, 0
        elif command.data_in:
            told = bool(flags & _READ_LEN and read_len)
            length = min(read_len, command.data_in) if told else command.data_in
            failed = status == Status.CHECK_CONDITION
            if told or not failed:
                data = b"".join(self._memory[offset : offset + size] for offset, size in slot.iovs)
                command.data = data[:length]
            command.residual = command.data_in - length if failed or status == Status.GOOD else 0
        if flags & _KEEP_BUF:
            slot.kept = True
        else:
            self._forget(number)
        command.end(status, sense if status == Status.CHECK_CONDITION else b"")
        return True

    def _forget(self, number: int) -> None:
        self._give_back(self._slots.pop(number).blocks)
        heapq.heappush(self._free_ids, number)

    def _give_back(self, blocks: list[int]) -> None:
        for block in blocks:
            heapq.heappush(self._free_blocks, block)

    def _free(self, numbers: list[int]) -> None:
        for number in numbers:
            self._forget(number)
        if numbers:
            self._run_waiting()

    def _run_waiting(self) -> None:
        """Task management first: a command must not take an id that a TMR before it still names."""
        while self._waiting_tmrs and self._append(_TMR, 0, self._waiting_tmrs[0]):
            self._waiting_tmrs.popleft()
        while self._waiting and not self._waiting_tmrs and self._queue(self._waiting[0]):
            self._waiting.popleft()


class SimulatedChannel:
    """An open simulated device; see `tcmu.base.Channel`. Made by `SimulatedKernel.open`."""

    def __init__(self, kernel: SimulatedKernel, fd: int, memory: mmap.mmap) -> None:
        self._kernel = kernel
        self._fd = fd
        self.journal: Journal | None = None
        self._memory = memoryview(memory)
        # As with uio, it is the mapping that keeps the device open, and a view of it outlives `close`.
        self._release = weakref.finalize(memory, kernel.released)
        self._release.atexit = False

    @property
    def memory(self) -> memoryview:
        return self._memory

    def fileno(self) -> int:
        return self._fd

    @property
    def bell(self) -> int:
        return -1

    def acknowledge(self) -> None:
        self._kernel.check()
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, mmap.PAGESIZE)

    def doorbell(self) -> None:
        self._kernel.doorbell()

    def free_kept_buffer(self, command_id: int) -> None:
        self._kernel.free_kept_buffer(command_id)

    def close(self) -> None:
        """Raises BufferError while views of the memory are alive: the device stays open as long as they do."""
        if self._fd >= 0:
            self._kernel.closed()
            os.close(self._fd)
            self._fd = -1
            unmap(self._memory)
            self._release()


def _aligned(size: int) -> int:
    return -(-size // 8) * 8
