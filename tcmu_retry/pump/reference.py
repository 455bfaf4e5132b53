"""The pump in pure Python: the meaning of a pump, and the one that runs where the native one cannot.

Theory of operation
-------------------
One thread owns the ring. It alone fetches entries, and it alone writes completions, so "answered exactly once" is
decided in one place: a command is answered if and only if it leaves `_open`. Blocking I/O runs in `Workers`, whose
threads put (job, outcome) on `_ended`; the main loop puts calls on `_inbox`; both then wake the thread if it sleeps.
What the main loop must know goes to `_outbox`, with an eventfd of its own.

A turn of the thread: take what ended, take the inbox, scan the ring if there is something, ring one doorbell for all
completions of the turn, and sleep only if all three are empty. `_asleep` is raised before the last look, so whoever
appends after that look sees it and writes the eventfd.

The gate. Open, plain commands run at once on the pump's own account and the main loop never hears of them. It closes
here, at the first failure, at task management and at COMPARE AND WRITE, before the next entry is looked at, and the
event carries what was running. The main loop opens it; but an event that closes may be on its way while the loop says
"open", so `gate(True)` carries how many such events the loop has seen, and counts only if none is outstanding.

A batch is read from the ring as a whole before any of it starts, so that a TMR behind a command of the same batch
finds that command not started (after a pause of the daemon both may wait there together).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from tcmu_retry.backends.absent import AbsentBackend
from tcmu_retry.backends.base import Backend
from tcmu_retry.pump.base import (
    Adopted,
    Arrived,
    Broken,
    Closed,
    Command,
    Event,
    Finished,
    Probed,
    Shape,
    Statistics,
    TaskManagement,
)
from tcmu_retry.pump.data_in import put
from tcmu_retry.pump.execute import execute, probe
from tcmu_retry.pump.workers import Workers
from tcmu_retry.scsi.cdb import EXCLUDING, plain
from tcmu_retry.scsi.request import GOOD, Direction, Op, Reply, Status
from tcmu_retry.scsi.sense import MISCOMPARE, Sense
from tcmu_retry.tcmu.base import Channel, CommandRing
from tcmu_retry.tcmu.journal import Journal, Left
from tcmu_retry.tcmu.ring import CommandEntry, Ring, RingError, TaskManagementEntry

log = logging.getLogger(__name__)

ABORTED = Reply(Status.TASK_ABORTED)
WORKERS = 16


@dataclass(slots=True, eq=False)
class Job:
    """One attempt at a command's I/O. `reported`: the main loop wants to hear of its end, good or bad."""

    command: Command
    reported: bool
    began: float
    reply: Reply | None = None
    error: int = 0
    at: float = 0.0


class ReferencePump:
    """One LUN's pump; see `pump.base.Pump` for the contract of each method."""

    def __init__(
        self,
        name: str,
        channel: Channel,
        backend: Backend,
        block_size: int,
        sense_reply: Callable[[Sense], Reply],
        clock: Callable[[], float] = time.monotonic,
        workers: int = WORKERS,
    ) -> None:
        """sense_reply: how the disk words a condition, called from worker threads. Raises RingError, OSError."""
        self._name = name
        self._channel = channel
        self._memory = channel.memory
        self._journal = channel.journal
        self._ring: CommandRing = self._make_ring(self._memory, self._journal)
        self._backend = backend
        self._block_size = block_size
        self._sense_reply = sense_reply
        self._clock = clock
        self._workers = Workers(name, workers)
        self._shape: Shape | None = None
        self._open: dict[int, Command] = {}  # by id: fetched and not answered
        self._running: dict[int, Job] = {}  # by serial: I/O that has not returned
        self._kept: dict[int, Command] = {}  # by serial: answered with KEEP_BUF while running
        self._former: list[int] = []  # ids, answered with KEEP_BUF while an earlier process may have their I/O out
        self._serial = 0
        self._gate_open = True
        self._closings = 0  # events emitted that close the gate
        self._closings_seen = 0  # of them, those the main loop has taken
        self._ring_doorbell = False
        self._statistics = Statistics()
        self._inbox: deque[tuple[Callable[..., None], tuple[object, ...]]] = deque()
        self._ended: deque[Job | Probed] = deque()
        self._outbox: deque[tuple[Event, bool]] = deque()  # with whether the gate closed at this event
        self._asleep = False
        self._turned = time.monotonic()
        self._stopping = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._told = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # A worker that comes back late still writes `_wake`, and it holds this object: only then is the number free.
        for fd in (self._wake, self._told):
            weakref.finalize(self, os.close, fd)
        self._thread = threading.Thread(target=self._run, name=f"{name}-pump", daemon=True)
        self._prepare()
        for left in self._journal.left if self._journal is not None else ():
            self._take_up(left)

    def _prepare(self) -> None:
        """What a subclass adds to the constructor."""

    def _make_ring(self, memory: memoryview, journal: Journal | None) -> CommandRing:
        return Ring(memory, journal)

    def _take_up(self, left: Left) -> None:
        self._serial += 1
        entry = left.entry
        self._open[entry.id] = Command(
            self._serial,
            entry.id,
            entry.cdb,
            entry.iovs,
            left.arrived,
            compared=left.compared,
            attempts=left.attempts,
            error=left.error,
            failed_at=left.failed_at,
            former=isinstance(self._backend, AbsentBackend),
        )

    # ---- called by the main loop

    def start(self) -> None:
        self._thread.start()

    def fileno(self) -> int:
        return self._told

    def events(self) -> Iterator[Event]:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._told)
        while self._outbox:
            event, closes = self._outbox.popleft()
            self._closings_seen += closes  # one by one: a word on the gate at one event must not count for the next
            yield event

    def dispatch(self, command: Command) -> None:
        self._ask(self._do_dispatch, command)

    def complete(self, command: Command, reply: Reply) -> None:
        self._ask(self._do_complete, command, reply)

    def probe(self, direction: Direction) -> None:
        self._ask(self._do_probe, direction)

    def gate(self, open: bool) -> None:
        self._ask(self._do_gate, open, self._closings_seen)

    def data_out(self, command: Command) -> bytes:
        return b"".join(self._memory[offset : offset + length] for offset, length in command.iovs)

    def use(self, backend: Backend) -> None:
        self._ask(self._do_use, backend)

    def shape(self, shape: Shape | None) -> None:
        self._ask(self._do_shape, shape)

    def statistics(self) -> Statistics:
        return replace(self._statistics, in_flight=len(self._running))

    def keeps_buffers(self) -> bool:
        return bool(self._kept or self._former)

    def running(self) -> list[tuple[Command, float]]:
        return [(job.command, job.began) for job in list(self._running.values())]

    def pulse(self) -> float:
        self._ask(self._do_turn)
        return self._turned

    def stop(self) -> None:
        if self._stopping:
            return
        if self._thread.ident is None:
            self._stopping = True
            self._release()
            return
        self._ask(self._do_stop)
        self._thread.join()

    def _ask(self, what: Callable[..., None], *arguments: object) -> None:
        self._inbox.append((what, arguments))
        self._rouse()

    def _rouse(self) -> None:
        if self._asleep:
            os.eventfd_write(self._wake, 1)

    # ---- the pump's thread

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:
            if not isinstance(error, RingError | OSError):
                log.exception("LUN %s: its pump failed in our own code", self._name)
            self._tell(Broken(f"LUN {self._name}: {error}"))
            self._outlive()
        finally:
            self._release()

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        self._resume()
        # Entries queued before we opened the device do not make it readable: the first scan comes before the wait.
        while not self._stopping:
            self._take_ended()
            self._take_inbox()
            if self._ring.unfetched:
                self._scan(self._ring.fetch())
            self._finish_turn()
            self._asleep = True
            if not (self._ended or self._inbox or self._stopping):
                self._sleep(poll)
            self._asleep = False

    def _resume(self) -> None:
        """What an earlier process had open goes on; task management that waits behind it comes first."""
        if self._journal is None:
            return
        self._ring_doorbell = True  # its last completions may be waiting for one
        if not self._open:
            return
        entries = self._ring.fetch()
        aborted = [command for command in self._open.values() if self._journal.is_aborted(command.id)]
        for command in aborted:
            self._answer(command, ABORTED)
        adopted = tuple(self._open.values())
        self._close_and_tell(lambda running: Adopted(adopted, len(aborted), running))
        self._scan(entries)

    def _sleep(self, poll: select.poll) -> None:
        for fd, happened in poll.poll():
            if fd == self._wake:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
            elif happened & ~select.POLLIN:
                raise OSError(errno.ENODEV, "the kernel removed the device")
            else:
                self._channel.acknowledge()

    def _outlive(self) -> None:
        """The ring is lost, but jobs still return; wait for `stop` without answering anything."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        while not self._stopping:
            self._turned = time.monotonic()
            self._asleep = True
            if not self._inbox:
                poll.poll()
                os.eventfd_read(self._wake)
            self._asleep = False
            while self._inbox:
                what, _ = self._inbox.popleft()
                self._stopping = self._stopping or what == self._do_stop

    def _take_ended(self) -> None:
        while self._ended:
            ended = self._ended.popleft()
            if isinstance(ended, Probed):
                self._tell(ended)
            else:
                self._job_ended(ended)

    def _take_inbox(self) -> None:
        while self._inbox:
            what, arguments = self._inbox.popleft()
            what(*arguments)

    def _finish_turn(self) -> None:
        self._ring.settle()
        if self._ring_doorbell:
            self._ring_doorbell = False
            self._statistics.doorbells += 1
            self._channel.doorbell()

    def _scan(self, entries: Iterable[CommandEntry | TaskManagementEntry]) -> None:
        fresh: list[Command] = []
        now = self._clock()
        for entry in entries:
            if isinstance(entry, CommandEntry):
                self._serial += 1
                command = Command(self._serial, entry.id, entry.cdb, entry.iovs, now)
                self._open[entry.id] = command
                fresh.append(command)
            else:
                self._task_management(entry.kind, entry.ids, fresh)
                fresh.clear()
        self._start(fresh)

    def _task_management(self, kind: int, ids: tuple[int, ...], fresh: list[Command]) -> None:
        # An id that is not open names a command that was answered before the kernel saw it; the kernel promises that a
        # new command with this id comes behind the TMR.
        named = {command.serial: command for command in (self._open.get(number) for number in ids) if command}
        for command in fresh:
            if named.pop(command.serial, None):
                self._answer(command, ABORTED)
        self._start([command for command in fresh if command.id in self._open])
        self._close_and_tell(lambda running: TaskManagement(kind, tuple(named.values()), running))

    def _start(self, commands: list[Command]) -> None:
        for command in commands:
            shape = self._shape
            if command.cdb[:1] and command.cdb[0] in EXCLUDING:
                self._close_and_tell(lambda running, command=command: Arrived(command, running))  # type: ignore[misc]
            elif (
                self._gate_open
                and shape
                and (request := plain(command.cdb, command.data_length, shape.block_size, shape.blocks, shape.writable))
            ):
                command.request = request
                self._launch(command, reported=False)
            else:
                self._tell(Arrived(command))

    def _launch(self, command: Command, reported: bool) -> None:
        job = Job(command, reported, self._clock())
        self._running[command.serial] = job
        buffers = [self._memory[offset : offset + length] for offset, length in command.iovs]
        backend = self._backend
        self._workers.submit(command.serial, lambda: self._work(job, backend, buffers))

    def _work(self, job: Job, backend: Backend, buffers: list[memoryview]) -> None:
        command = job.command
        assert command.request is not None
        try:
            differs = execute(command, backend, buffers, self._block_size, self._compared)
            if differs is not None:
                job.reply = self._sense_reply(replace(MISCOMPARE, information=differs))
        except OSError as error:
            job.error = error.errno or errno.EIO
        except Exception:
            log.exception("LUN %s: %s failed in our own code and is treated as EIO", self._name, command.request)
            job.error = errno.EIO
        for view in buffers:  # before the end is told: `stop` may follow at once
            view.release()
        job.at = self._clock()
        self._ended.append(job)
        self._rouse()

    def _compared(self, command: Command) -> None:
        if self._journal is not None:
            self._journal.compared(command.id)

    def _job_ended(self, job: Job) -> None:
        command = job.command
        del self._running[command.serial]
        if self._kept.pop(command.serial, None):
            if command.former:
                self._former.append(command.id)
            else:
                self._channel.free_kept_buffer(command.id)
            self._tell(Finished(command, job.error, job.at))
        elif job.error:
            self._statistics.errors += 1
            if self._journal is not None:
                self._journal.failed(command.id, job.error, job.at)
            self._close_and_tell(lambda running: Finished(command, job.error, job.at, running))
        else:
            self._count(command)
            self._answer(command, job.reply or GOOD)
            if job.reported:
                self._tell(Finished(command, 0, job.at))

    def _count(self, command: Command) -> None:
        request = command.request
        assert request is not None
        if request.op is Op.READ:
            self._statistics.reads += 1
            self._statistics.read_bytes += request.length
        elif request.op is Op.WRITE:
            self._statistics.writes += 1
            self._statistics.written_bytes += request.length
        else:
            self._statistics.others += 1

    def _answer(self, command: Command, reply: Reply, keep_buffer: bool = False) -> None:
        del self._open[command.id]
        if command.former and not keep_buffer and reply.data is None:
            keep_buffer = True
            self._former.append(command.id)
        read_len = None if keep_buffer else put(self._memory, command, reply)
        self._ring.complete(command.id, reply.status, reply.sense, read_len, keep_buffer)
        self._ring_doorbell = True

    def _close_and_tell(self, event: Callable[[tuple[Command, ...]], Event]) -> None:
        running: tuple[Command, ...] = ()
        if self._gate_open:
            self._gate_open = False
            own = [job for job in self._running.values() if not job.reported]
            for job in own:
                job.reported = True
            running = tuple(job.command for job in own)
        self._closings += 1
        self._tell(event(running), closes=True)

    def _tell(self, event: Event, closes: bool = False) -> None:
        self._outbox.append((event, closes))
        os.eventfd_write(self._told, 1)

    # ---- what the main loop asked, in the pump's thread

    def _do_dispatch(self, command: Command) -> None:
        if self._open.get(command.id) is command and command.serial not in self._running:
            self._launch(command, reported=True)

    def _do_complete(self, command: Command, reply: Reply) -> None:
        if self._open.get(command.id) is not command:
            return  # its I/O came back in the meantime and it has its answer
        job = self._running.get(command.serial)
        if job is None:
            self._answer(command, reply)
        elif self._workers.withdraw(command.serial):
            del self._running[command.serial]
            self._answer(command, reply)
            self._tell(Finished(command, errno.ECANCELED, self._clock()))
        else:
            self._kept[command.serial] = command
            self._answer(command, reply, keep_buffer=True)

    def _do_probe(self, direction: Direction) -> None:
        self._serial += 1
        backend = self._backend
        self._workers.submit(self._serial, lambda: self._probe(direction, backend))

    def _probe(self, direction: Direction, backend: Backend) -> None:
        try:
            error = probe(backend)
        except Exception:
            log.exception("LUN %s: a probe failed in our own code and is treated as EIO", self._name)
            error = errno.EIO
        self._ended.append(Probed(direction, error, self._clock()))
        self._rouse()

    def _do_gate(self, open: bool, seen: int) -> None:
        if not open:
            self._close_and_tell(Closed)
        elif seen == self._closings:
            self._gate_open = True

    def _do_use(self, backend: Backend) -> None:
        self._backend = backend
        if not isinstance(backend, AbsentBackend):
            for number in self._former:
                self._channel.free_kept_buffer(number)
            self._former.clear()
            for command in [*self._open.values(), *self._kept.values()]:
                command.former = False

    def _do_shape(self, shape: Shape | None) -> None:
        self._shape = shape

    def _do_turn(self) -> None:
        self._turned = time.monotonic()

    def _do_stop(self) -> None:
        self._stopping = True

    def _release(self) -> None:
        self._workers.close()
        self._ring.close()
        if self._journal is not None:
            self._journal.close()
        try:
            self._channel.close()
        except BufferError:
            log.warning(
                "LUN %s: %d I/O did not return; the kernel device stays open until they do",
                self._name,
                len(self._running),
            )
