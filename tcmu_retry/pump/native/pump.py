"""The pump whose success path is C: Python runs for what is not plain, and for what failed.

`loop.c` carries the success path and comes back for everything else, which the reference pump's code then does, in the
same thread. A command belongs to one of both: those that run in the loop are not in `_open`. Whatever closes the gate
takes them over first (`_take_over`): from then on they are jobs like any other, only that their end comes by the loop.

I/O that failed in the loop has a raw result. What it means may take a look at the storage that blocks (a short
transfer, a disk that was pulled), so the gate closes at once (Closed names the command among what runs), and a worker
finds out; Finished follows.

The loop serves storage that offers its file (`DirectBackend`): O_DIRECT. Filters and buffered files are run by workers,
as in the reference pump, over the same ring.

Write-back: the loop borrows the replay log while nothing but it uses the storage. Whatever else is to be run takes both
back, the log and what runs; a write that finds the log full is run by a worker. So that the loop gets the log again
under a load that never pauses, what arrives may wait a moment for what the workers still run.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from tcmu_retry.backends.base import Backend, DirectBackend
from tcmu_retry.backends.replay import Claim, Logged
from tcmu_retry.pump.base import Closed, Command, Event, Statistics
from tcmu_retry.pump.native import core
from tcmu_retry.pump.native.core import Core
from tcmu_retry.pump.reference import Job, ReferencePump
from tcmu_retry.scsi.cdb import EXCLUDING, MAXIMUM_TRANSFER
from tcmu_retry.scsi.request import Direction, Extent, Op, Request
from tcmu_retry.tcmu.journal import Journal

log = logging.getLogger(__name__)

# Seconds that what arrives waits for the workers, and each time longer until they come to an end; and how many times as
# long it does not.
HOLD, HOLD_MOST, BETWEEN = 0.05, 1.0, 20

_OPS = {core.READ: Op.READ, core.WRITE: Op.WRITE, core.FLUSH: Op.FLUSH}


class NativePump(ReferencePump):
    """One LUN's pump; see `pump.base.Pump` for the contract of each method."""

    _ring: Core

    def _prepare(self) -> None:
        """Raises OSError where io_uring cannot be had."""
        self._slots: dict[int, Job] = {}  # taken over, and out
        self._lender: Logged | None = None  # whose replay log the loop has
        self._last_lender: Logged | None = None
        self._claims: dict[int, tuple[Logged, Claim]] = {}  # by slot: of these, what concerns a log
        self._held = 0.0  # CLOCK_MONOTONIC: since when what arrives waits; 0: it does not
        self._hold = HOLD
        self._released = threading.Event()
        try:
            self._ring.prepare(self._channel.fileno(), self._channel.bell, self._wake, EXCLUDING)
        except OSError:
            self._ring.close()
            self._workers.close()
            raise

    def _make_ring(self, memory: memoryview, journal: Journal | None) -> Core:
        return Core(memory[:], journal)  # a view of its own: the channel's could not be released while I/O is out

    # ---- called by the main loop

    def statistics(self) -> Statistics:
        in_flight = self._ring.in_flight  # before ours: what is taken over in between must be counted twice, not never
        python = super().statistics()
        native = self._ring.counters()
        return replace(
            python,
            reads=python.reads + native["reads"],
            writes=python.writes + native["writes"],
            others=python.others + native["others"],
            read_bytes=python.read_bytes + native["read_bytes"],
            written_bytes=python.written_bytes + native["written_bytes"],
            doorbells=python.doorbells + native["doorbells"],
            in_flight=python.in_flight + in_flight,
        )

    def running(self) -> list[tuple[Command, float]]:
        found = {
            serial: (_command(serial, number, cdb, (), began, what), began)
            for serial, number, cdb, began, what in self._ring.snapshot()
        }
        found |= {command.serial: (command, began) for command, began in super().running()}
        return list(found.values())

    def stop(self) -> None:
        if self._stopping or self._thread.ident is None:
            super().stop()
            return
        self._ask(self._do_stop)
        self._released.wait()

    def _rouse(self) -> None:
        super()._rouse()  # where the loop is over and `_outlive` sleeps
        self._ring.rouse()

    # ---- the pump's thread

    @property
    def _serial(self) -> int:
        return self._ring.serial

    @_serial.setter
    def _serial(self, value: int) -> None:
        self._ring.serial = value

    def _serve(self) -> None:
        self._ring.enable()
        self._resume()
        try:
            while not self._stopping:
                self._take_ended()
                self._take_inbox()
                self._finish_turn()
                self._run_the_loop()
        finally:
            self._take_back()

    def _run_the_loop(self) -> None:
        ring = self._ring
        if self._stopping:
            return
        self._say_what_is_plain()
        match ring.run():
            case core.BATCH:
                self._scan(ring.fetch())
            case core.ENTRY:
                self._scan(ring.fetch(1))
            case core.ENDED:
                self._io_ended(*ring.ended)
            case core.BELL:
                self._ring_doorbell = True
            case core.DOUBT:
                self._take_back()
                if self._last_lender is not None:
                    self._last_lender.doubt(ring.doubt)
            case core.REMOVED:
                raise OSError(errno.ENODEV, "the kernel removed the device")

    def _say_what_is_plain(self) -> None:
        shape, backend = self._shape, self._backend
        storage = backend.descriptor if isinstance(backend, DirectBackend) else None
        wanted = self._gate_open and shape is not None and storage is not None
        self._ring.hold = False
        if wanted and shape and storage is not None and (not isinstance(backend, Logged) or self._borrow(backend)):
            self._ring.serve(storage, shape.block_size, shape.blocks, MAXIMUM_TRANSFER, shape.writable)
        else:
            self._ring.serve(-1, self._block_size, 0, 0, False)

    def _borrow(self, backend: Logged) -> bool:
        """Whether the loop has the log."""
        if self._lender is not None:
            return True
        if self._running or self._ring.flushing:
            now = time.monotonic()
            if not self._held:
                self._held = now
            elif now > self._held + self._hold * BETWEEN:
                self._held, self._hold = now, min(self._hold * 2, HOLD_MOST)
            self._ring.hold = now < self._held + self._hold
            return False
        lent = backend.lend(MAXIMUM_TRANSFER, partial(self._ask, self._take_back))
        if lent is None:
            return False
        self._ring.lend(*lent)
        self._lender = self._last_lender = backend
        self._held, self._hold = 0.0, HOLD
        return True

    def _take_over(self) -> None:
        claims, waiting = [], []
        for serial, slot, number, cdb, iovs, began, what, mark, waits in self._ring.hand_over():
            command = _command(serial, number, cdb, iovs, began, what)
            self._open[number] = command
            if waits:
                waiting.append(command)
                continue
            self._running[serial] = self._slots[slot] = Job(command, False, began)
            if self._lender is not None:
                op, offset, length, _ = what
                claim = self._lender.claim(
                    Extent(offset, length) if op == core.WRITE else None, mark if op == core.FLUSH else None
                )
                self._claims[slot] = self._lender, claim
                claims.append(claim)
        self._ring.handed_over()
        if self._lender is not None:
            self._ring.take_back()
            self._lender.give_back(claims)
            self._lender = None
        for command in waiting:
            self._launch(command, reported=False)

    def _take_back(self) -> None:
        """Before anybody else than the loop uses the storage, if that has a replay log."""
        if self._lender is not None:
            self._take_over()

    def _launch(self, command: Command, reported: bool) -> None:
        self._take_back()
        super()._launch(command, reported)

    def _do_probe(self, direction: Direction) -> None:
        self._take_back()
        super()._do_probe(direction)

    def _do_use(self, backend: Backend) -> None:
        self._take_back()
        super()._do_use(backend)

    def _close_and_tell(self, event: Callable[[tuple[Command, ...]], Event]) -> None:
        self._take_over()
        super()._close_and_tell(event)

    def _task_management(self, kind: int, ids: tuple[int, ...], fresh: list[Command]) -> None:
        self._take_over()  # they may be named
        super()._task_management(kind, ids, fresh)

    def _io_ended(self, slot: int, result: int) -> None:
        if slot not in self._slots:  # the loop came back because of this failure, and runs nothing more by itself
            self._close_and_tell(lambda running: Closed(running, asked=False))
        job = self._slots.pop(slot)
        self._ring.forget(slot)
        command = job.command
        assert command.request is not None
        whole = result == command.request.length
        refused = self._settle(slot, command, result, whole)
        if whole or command.serial in self._kept:
            job.error = refused if whole else -result if result < 0 else errno.EIO
            job.at = self._clock()
            self._job_ended(job)
        else:
            backend = self._backend
            buffers = [self._memory[offset : offset + length] for offset, length in command.iovs]
            self._workers.submit(command.serial, lambda: self._find_out(job, backend, buffers, result))

    def _settle(self, slot: int, command: Command, result: int, whole: bool) -> int:
        """With the replay log, if there is one; the errno of what ended well and yet proves nothing."""
        lender, claim = self._claims.pop(slot, (None, None))
        if lender is None or claim is None:
            return 0
        error = -result if result < 0 and result != -errno.EINVAL else 0 if whole else None
        pieces = [self._memory[offset : offset + length] for offset, length in command.iovs]
        error = lender.settle(claim, error, pieces)
        for view in pieces:
            view.release()
        return error

    def _find_out(self, job: Job, backend: Backend, buffers: list[memoryview], result: int) -> None:
        """In a worker. Short transfers and misaligned memory are not errors: once more, by the backend's methods."""
        if result >= 0 or result == -errno.EINVAL or not isinstance(backend, DirectBackend):
            self._work(job, backend, buffers)
            return
        for view in buffers:
            view.release()
        job.error = -result
        try:
            job.error = backend.meaning(-result)
        except Exception as failure:  # closed for a reopen, or whatever: the command must not be lost over it
            log.info("LUN %s: what errno %d means could not be asked: %r", self._name, -result, failure)
        job.at = self._clock()
        self._ended.append(job)
        self._rouse()

    def _release(self) -> None:
        """I/O of the loop that does not return keeps this thread, the mapping and the device."""
        ring = self._ring
        started = self._thread.ident is not None
        if started and not ring.out:
            ring.linger()
        if started and ring.out:
            self._workers.close()
            log.warning(
                "LUN %s: %d I/O did not return; the kernel device stays open until they do", self._name, ring.out
            )
            with contextlib.suppress(BufferError):
                self._channel.close()
            self._released.set()
            ring.linger()
            for lender, claim in self._claims.values():
                lender.settle(claim, None)
            ring.close()
            if self._journal is not None:
                self._journal.close()
        else:
            super()._release()
            self._released.set()


def _command(
    serial: int,
    number: int,
    cdb: bytes,
    iovs: tuple[tuple[int, int], ...],
    began: float,
    what: tuple[int, int, int, bool],
) -> Command:
    op, offset, length, fua = what
    extents = () if op == core.FLUSH else (Extent(offset, length),)
    return Command(serial, number, cdb, iovs, began, Request(_OPS[op], extents, fua))
