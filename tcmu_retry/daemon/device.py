"""A LUN: the one place where kernel, disk, engine and storage of a LUN meet.

Theory of operation
-------------------
A device lives in the main loop and never blocks. Its pump (a thread) reports events; each is turned into one call of
the engine, or answered by the disk; each call of the engine returns actions; `_act` carries them out and sets the one
timer to the engine's next deadline. Whatever may block (open, reopen, close) runs by `offload`.

Whose word counts: the pump knows which commands are open and running, the engine knows what each waits for, the disk
knows what a CDB means. The device keeps only the map from token to command, for the commands the engine has.

The gate closes in the pump and opens here (`Gate`). Every event that closed it is followed by `engine.gate_closed`
before anything else, so the engine knows what ran unasked. A person's hold or drain closes it too: the pump confirms
by `Closed`.

Leaving has two steps. `withdraw` answers everything (BUSY) and waits 5 s for I/O that runs; what does not return is
answered too and the kernel keeps its buffers. From then on arrivals are answered BUSY, so that an unlink in the kernel
does not wait for us. `detach` then gives the ring back.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from tcmu_retry.backends.absent import AbsentBackend
from tcmu_retry.backends.base import Backend, BackendError, Identity
from tcmu_retry.backends.patience import storage_links
from tcmu_retry.backends.replay import ReplayLog
from tcmu_retry.core import events
from tcmu_retry.core.actions import Action, Complete, Dispatch, Emit, Gate, Probe, Reopen, Token, Verdict
from tcmu_retry.core.chain import Link, initiator_link, kernel_links, policy_links, session_links
from tcmu_retry.core.engine import Engine
from tcmu_retry.core.policy import Policy, flatten
from tcmu_retry.daemon import view
from tcmu_retry.daemon.api import ApiError, DeviceStatus, HeldCommand, Notice, PolicyOptions
from tcmu_retry.daemon.config import DeviceConfig
from tcmu_retry.daemon.offload import offload
from tcmu_retry.daemon.records import Memory
from tcmu_retry.daemon.tuning import Tuning
from tcmu_retry.pump.base import (
    Arrived,
    Broken,
    Closed,
    Command,
    Event,
    Finished,
    Probed,
    Pump,
    Shape,
    TaskManagement,
)
from tcmu_retry.pump.select import make_pump
from tcmu_retry.scsi.disk import Disk
from tcmu_retry.scsi.request import BUSY, Direction, Op, Reply, Request, Status
from tcmu_retry.scsi.sense import MEDIUM_MAY_HAVE_CHANGED, TARGET_FAILURE, Sense
from tcmu_retry.tcmu.base import Channel
from tcmu_retry.tcmu.configfs import ATTRIBUTES, Window

log = logging.getLogger(__name__)

T = TypeVar("T")

INQUIRY = 0x12
REPLAY_BYTES = 64 << 20  # what is acknowledged and not flushed, in write-back
WATCH_SECONDS = 1.0
DRAIN_SECONDS = 5.0
OPEN_SECONDS = 10.0
CHANGED_SECONDS = 0.1  # watchers hear of a device at most this often


@dataclass(frozen=True, slots=True)
class Lun:
    """What the kernel says of a LUN. Sizes in bytes."""

    name: str  # the backstore's name
    wwn: Callable[[], str]  # rtslib sets it after the device was announced, so it is read when somebody asks
    config: str  # the configuration string
    size: int
    block_size: int
    uio: str  # "uio0"
    attributes: Callable[[], Mapping[str, str]]  # the kernel's, by name
    windows: Callable[[], Mapping[str, Window]]  # by initiator
    write_cache: bool = False  # what the kernel takes it for


@dataclass(frozen=True, slots=True)
class Place:
    """Storage for a LUN. name: the configuration string that means it. open may block, raises BackendError."""

    name: str
    config: DeviceConfig
    open: Callable[[], Backend]
    memory: Memory


class Device:
    """Serves one LUN from `attach` to `detach`; implements `daemon.api.DeviceApi`."""

    def __init__(
        self,
        lun: Lun,
        config: DeviceConfig,
        disk: Callable[[bool, int], Disk],
        open_storage: Callable[[], Backend],
        notify: Callable[[Notice], None],
        changed: Callable[[Device], None],
        memory: Memory,
        kept: Mapping[str, str],
        keep: Callable[[Mapping[str, str]], None],
    ) -> None:
        """disk: makes the disk, told whether the storage can discard. open_storage: as `Place.open`.

        kept, keep: the policy's changes that outlive the daemon, see `Tuning`.
        """
        self.lun = lun
        self.config = config
        self.backend_error = ""
        self.hold_reason = ""
        self.draining = False
        self._make_disk = disk
        self._open_storage = open_storage
        self._notify = notify
        self._tell_changed = changed
        self._changed_due = False
        self._memory = memory
        self._tuning = Tuning(lun.name, config.policy, kept, keep, self._apply_policy)
        self._engine = Engine(self.policy, config.budgets, random.random)
        self._commands: dict[Token, Command] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._reopening: asyncio.Task[None] | None = None
        self._identity: Identity | None = memory.record.identity if memory.record else None
        self._log = ReplayLog(REPLAY_BYTES) if config.cache == "writeback" else None
        self._watching: asyncio.TimerHandle | None = None
        self._hung_since: float | None = None
        self._closings = 0  # of the gate, that the pump has not confirmed yet
        self._withdrawn = False
        self._refused = False
        self._release_for: str | None = None  # a portal, or "" for a person: release as soon as the gate is closed
        self._disk: Disk
        self._backend: Backend
        self._pump: Pump
        self._loop: asyncio.AbstractEventLoop

    @property
    def name(self) -> str:
        return self.lun.name

    @property
    def policy(self) -> Policy:
        return self._tuning.policy

    @property
    def policy_changed(self) -> Mapping[str, str]:
        return self._tuning.changed

    # ---- coming and going

    async def attach(self, open_channel: Callable[[], Channel], fresh: bool) -> None:
        """Start serving. fresh: the LUN is just being made, and storage that cannot be used refuses it (BackendError).

        Otherwise, or if it had storage before, as after a reboot, it comes up `down` and its storage is opened when it
        is there. Raises OSError of the channel.
        """
        self._loop = asyncio.get_running_loop()
        lost = 0
        try:
            self._backend = await self._open_in_time()
        except BackendError as error:
            if fresh and self._memory.record is None:
                raise
            lost = error.errno
            self._backend_failed(error)
            self._backend = self._absent()
        else:
            self._identity = self._backend.identity
        try:
            channel = await offload(open_channel)
        except OSError:
            await offload(self._backend.close)
            raise
        known = self._memory.record if lost else None
        shown = known or self._backend  # what INQUIRY and READ CAPACITY say does not change with the weather
        self._disk = self._make_disk(shown.can_discard, shown.identity.physical)
        self._pump = make_pump(self.name, channel, self._backend, self.lun.block_size, self._disk.sense_reply)
        self._reshape()
        if lost:
            self._shut_gate()
        self._loop.add_reader(self._pump.fileno(), self._take_events)
        self._pump.start()
        self._watching = self._loop.call_later(WATCH_SECONDS, self._watch)
        if lost:
            self._act(self._engine.storage_lost(lost, time.monotonic()))
        self._check_promise()

    async def withdraw(self) -> None:
        """Answer everything and let nothing start any more; returns within DRAIN_SECONDS. Idempotent."""
        if self._withdrawn:
            return
        self._withdrawn = True
        self._close_gate()
        self._act(self._engine.drain(time.monotonic()))
        self._act(self._engine.release(time.monotonic()))
        await self._quiet(DRAIN_SECONDS)
        self._act(self._engine.stopping(time.monotonic()))

    async def detach(self) -> None:
        """Give the ring back to the kernel. Commands not fetched yet stay there for the next daemon."""
        for handle in (self._timer, self._expiry, self._reopening, self._watching):
            if handle is not None:
                handle.cancel()
        self._take_events()
        self._loop.remove_reader(self._pump.fileno())
        self._pump.stop()
        try:
            await asyncio.wait_for(offload(self._backend.close), 1.0)
        except TimeoutError:
            log.warning("LUN %s: its storage does not let itself be closed; left to the kernel", self.name)

    def _absent(self) -> Backend:
        return AbsentBackend(Identity("", self.lun.size, ""), self.lun.block_size)

    async def _open_in_time(self) -> Backend:
        """Raises BackendError."""
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                return await offload(self._open_checked)
        except TimeoutError:
            raise BackendError(
                f"{self.config.path} did not let itself be opened within {OPEN_SECONDS:g} s; bring its storage back",
                errno.ETIMEDOUT,
            ) from None

    def _open_checked(self) -> Backend:
        """Blocking. Raises BackendError."""
        backend = self._open_storage()
        problem = None
        if self._identity is not None:
            problem = self._identity.difference(backend.identity)
        if problem is None and backend.identity.size < self.lun.size:
            problem = f"it has {backend.identity.size} bytes and the LUN {self.lun.size}"
        if problem is None and self.lun.block_size % backend.block_size:
            problem = f"its block size is {backend.block_size} and the LUN's {self.lun.block_size}"
        if problem:
            backend.close()
            what, advice = "is not the storage of", "bring the right one back, or unexport the LUN"
            if self._identity is None:
                what, advice = "does not do for", "choose other storage, or make the LUN to fit"
            raise BackendError(f"{self.config.path} {what} LUN {self.name}: {problem}; {advice}", errno.EMEDIUMTYPE)
        if self._log is None:
            self._memory.keep(backend.identity, backend.can_discard)
            return backend
        try:
            logged = self._log.over(backend)
            self._memory.keep(backend.identity, backend.can_discard)
            return logged
        except OSError as error:
            backend.close()
            raise BackendError(
                f"{self.config.path} does not take what was written since its last flush: {error.strerror}; it is tried"
                " again",
                error.errno or errno.EIO,
            ) from error

    async def _reopen(self) -> None:
        """While I/O is out the old file cannot be closed, and its lock keeps everybody else from opening it."""
        error = errno.EBUSY
        if not self._pump.statistics().in_flight:
            old, self._backend = self._backend, self._absent()
            self._pump.use(self._backend)
            await offload(old.close)
            try:
                self._backend = await offload(self._open_checked)
            except BackendError as failure:
                error = failure.errno
                self._backend_failed(failure)
            else:
                error = 0
                self._identity = self._backend.identity
                if self._refused:
                    self._refused = False
                    self._emit(events.STORAGE_ACCEPTED, None, {})
                self.backend_error = ""
                self._pump.use(self._backend)
        self._reopening = None
        self._act(self._engine.reopened(error, time.monotonic()))

    def _backend_failed(self, failure: BackendError) -> None:
        if self.backend_error != str(failure):
            log.warning("LUN %s: %s", self.name, failure)
            if failure.errno == errno.EMEDIUMTYPE and not self._refused:
                self._refused = True
                self._emit(events.STORAGE_REFUSED, None, {"reason": str(failure)})
        self.backend_error = str(failure)

    # ---- another size, another storage

    async def resize(self, size: int) -> None:
        """Take the LUN to `size` bytes within the storage it has. Raises BackendError; nothing was changed then."""
        if size <= 0 or size % self.lun.block_size:
            raise BackendError(
                f"{size} bytes is no size for {self.name}; give a multiple of its block size {self.lun.block_size}",
                errno.EINVAL,
            )
        if size > self.lun.size:
            self._check_room(await self._in_time(self._backend.size), size, self.config.path)
        async with self._drained():
            if size < self.lun.size and self._log is not None:  # what is written again must not lie beyond
                await self._in_time(self._backend.flush)
            beyond = [each for each in self._engine.held() if any(one.end > size for one in each.request.extents)]
            if beyond:
                raise BackendError(
                    f"{len(beyond)} held commands of {self.name} lie beyond {size} bytes; end them first, for example"
                    f" by `tcmu-retry queue fail {self.name} --all`",
                    errno.EBUSY,
                )
            self.lun = replace(self.lun, size=size)
            self._disk.resize(size)
            self._reshape()
        self._changed()
        log.info("LUN %s has %d bytes now", self.name, size)

    async def move(self, to: Place) -> None:
        """Serve from other storage, which has the LUN's data; what is held goes on there. Raises BackendError."""
        old, settings = self._backend, self.config
        if replace(to.config, path=settings.path, buffered=settings.buffered, filters=settings.filters) != settings:
            raise BackendError(
                f"{to.name} is not only other storage but other settings than LUN {self.name} is served with;"
                " change those with `tcmu-retry policy set`, or make the LUN anew",
                errno.EOPNOTSUPP,
            )
        new = await self._in_time(to.open)
        try:
            self._check_room(new.identity.size, self.lun.size, to.config.path)
            if self.lun.block_size % new.block_size:
                raise BackendError(
                    f"{to.config.path} has blocks of {new.block_size} bytes, LUN {self.name} of {self.lun.block_size};"
                    " choose other storage",
                    errno.EINVAL,
                )
            async with self._drained():
                if self._reopening is not None:
                    raise BackendError(f"the storage of LUN {self.name} is just being opened; try again", errno.EBUSY)
                served = await self._in_time(partial(self._log.over, new)) if self._log is not None else new
                self._backend, self._identity, self._open_storage = served, new.identity, to.open
                self.config, self._memory, self.lun = to.config, to.memory, replace(self.lun, config=to.name)
                self.backend_error = ""
                self._pump.use(served)
                self._disk.attention(MEDIUM_MAY_HAVE_CHANGED)
                self._reshape()
                self._act(self._engine.reopened(0, time.monotonic()))
        except BaseException:
            new.close()
            raise
        await offload(old.close)
        await offload(to.memory.keep, new.identity, new.can_discard)
        self._changed()
        log.info("LUN %s is served from %s now", self.name, to.config.path)

    @contextlib.asynccontextmanager
    async def _drained(self) -> AsyncIterator[None]:
        """No I/O is out; what is held stays held. Raises BackendError EBUSY."""
        for_a_person = self.draining
        try:
            await self.drain()
        except ApiError as error:
            raise BackendError(str(error), errno.EBUSY) from error
        try:
            yield
        finally:
            if not for_a_person:
                self.undrain()

    async def _in_time(self, ask: Callable[[], T]) -> T:
        """A question to the storage, which may hang. Raises BackendError."""
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                return await offload(ask)
        except TimeoutError:
            message, code = f"it did not answer within {DRAIN_SECONDS:g} s", errno.EBUSY
        except OSError as error:
            code = error.errno or errno.EIO
            message = os.strerror(code)
        raise BackendError(f"the storage of LUN {self.name} is not to be asked: {message}; bring it back first", code)

    def _check_room(self, available: int, size: int, path: str) -> None:
        if available < size:
            raise BackendError(
                f"{path} has {available} bytes and LUN {self.name} would have {size}; enlarge it first", errno.ENOSPC
            )

    # ---- the pump's events

    def _take_events(self) -> None:
        for event in self._pump.events():
            self._act(self._event(event, time.monotonic()))

    def _event(self, event: Event, now: float) -> list[Action]:
        match event:
            case Arrived(command, running):
                return self._closed(running, now) + self._arrived(command, now)
            case Finished(command, 0 | errno.ECANCELED as error, _, running):
                self._commands.pop(command.serial, None)
                self._told_end(command, error == 0)
                return self._closed(running, now) + self._engine.finished(command.serial, _request(command), error, now)
            case Finished(command, error, _, running):
                actions = self._closed(running, now)
                if not command.answered:
                    self._commands[command.serial] = command
                return actions + self._engine.finished(command.serial, _request(command), error, now)
            case TaskManagement(kind, commands, running):
                log.debug("LUN %s: task management %d names %d commands", self.name, kind, len(commands))
                named = [command.serial for command in commands if not command.answered]
                return self._closed(running, now) + self._engine.aborted(named, now)
            case Probed(direction, error):
                return self._engine.probed(direction, error, now)
            case Closed(running, asked):
                self._closings -= asked
                # Release before the turn that may open the gate: what is answered while it runs needs its fence.
                return self._closed(running, now) + self._release_waiting(now) + self._engine.tick(now)
            case Broken(message):
                log.error("%s", message)
                return []

    def storage_came(self) -> None:
        """Some storage came or changed: in an outage that is worth a try at once."""
        if self._engine.held_count or self.backend_error:
            self.kick()

    def login_waits(self, portal: str) -> None:
        """A login waits for commands of ours whose connection is dead; nobody can tell which, so all are answered."""
        self._release_for = portal
        self._close_gate()

    def _release_waiting(self, now: float) -> list[Action]:
        """What ran on the pump's own account is known only now that the gate is closed."""
        if self._release_for is None:
            return []
        portal, self._release_for = self._release_for, None
        if portal:
            opened = self._engine.held_count + self._engine.in_flight
            self._emit(events.LOGIN_WAITS, None, {"portal": portal, "released": opened})
        return self._engine.release(now)

    def _closed(self, running: Sequence[Command], now: float) -> list[Action]:
        for command in running:
            self._commands[command.serial] = command
        return self._engine.gate_closed([(command.serial, _request(command)) for command in running], now)

    def _arrived(self, command: Command, now: float) -> list[Action]:
        if command.cdb[0] == INQUIRY:
            self._disk.identity = replace(self._disk.identity, serial=self.lun.wwn())
        try:
            outcome = self._disk.handle(command.cdb, command.data_length, lambda: self._pump.data_out(command))
        except Exception:
            log.exception("LUN %s: CDB %s failed in our own code", self.name, command.cdb.hex(" "))
            outcome = self._disk.sense_reply(TARGET_FAILURE)
        if isinstance(outcome, Reply):
            self._answer(command, outcome)
            self._reshape()
            return []
        self._reshape()
        command.request = outcome
        self._commands[command.serial] = command
        return self._engine.arrived(command.serial, outcome, now)

    def _told_end(self, command: Command, good: bool) -> None:
        if command.request is not None and command.request.op is Op.COPY:
            self._disk.copied(command.request, good)

    def _answer(self, command: Command, reply: Reply) -> None:
        command.answered = True
        self._pump.complete(command, reply)

    def _reshape(self) -> None:
        plain = self._disk.plain
        self._pump.shape(
            Shape(self.lun.block_size, self.lun.size // self.lun.block_size, not self._disk.read_only)
            if plain
            else None
        )

    # ---- the engine's actions

    def _act(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Dispatch(token):
                    self._pump.dispatch(self._commands[token])
                case Complete(token, answer):
                    command = self._commands.pop(token)
                    self._told_end(command, False)
                    self._answer(command, self._render(command, answer))
                case Probe(direction):
                    self._pump.probe(direction)
                case Reopen():
                    self._reopening = self._loop.create_task(self._reopen())
                case Gate():
                    self._pump.gate(True)
                case Emit(code, direction, fields):
                    self._emit(code, direction, fields)
        self._arm()
        self._disk.health = view.health(self.config.health, self._engine)
        self._changed()

    def _render(self, command: Command, answer: Sense | Verdict) -> Reply:
        match answer:
            case Sense():
                return self._disk.sense_reply(answer)
            case Verdict.BUSY:
                return BUSY
            case Verdict.RESERVATION_CONFLICT:
                return Reply(Status.RESERVATION_CONFLICT)
            case Verdict.ABORTED:
                return Reply(Status.TASK_ABORTED)
            case Verdict.IGNORED:
                zeros = _request(command).op is Op.READ
                return Reply(Status.GOOD, data=bytes(command.data_length) if zeros else None)

    def _emit(self, code: str, direction: Direction | None, fields: Mapping[str, object]) -> None:
        self._notify(view.notice(code, self.name, direction, fields, time.time()))

    def _arm(self) -> None:
        due = self._engine.deadline()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if due is None else self._loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self._act(self._engine.tick(time.monotonic()))

    def _changed(self) -> None:
        if not self._changed_due:
            self._changed_due = True
            self._loop.call_later(CHANGED_SECONDS, self._say_changed)

    def _say_changed(self) -> None:
        self._changed_due = False
        self._tell_changed(self)

    # ---- looking

    def pulse(self) -> float:
        """As the pump's."""
        return self._pump.pulse()

    @property
    def busy(self) -> bool:
        """Whether it has commands open, as far as is known here."""
        return bool(self._engine.held_count or self._engine.in_flight or self._pump.statistics().in_flight)

    def status(self) -> DeviceStatus:
        now = time.monotonic()
        engine = self._engine
        oldest = min((entry.arrived for entry in engine.held()[:1]), default=now)
        return DeviceStatus(
            name=self.name,
            wwn=self._disk.identity.serial,
            path=self.config.path,
            size=self.lun.size,
            block_size=self.lun.block_size,
            uio=self.lun.uio,
            read=view.direction(engine, Direction.READ, now),
            write=view.direction(engine, Direction.WRITE, now),
            held=engine.held_count,
            held_bytes=engine.held_bytes,
            oldest_held=now - oldest,
            in_flight=self._pump.statistics().in_flight,
            hung=len(self._hung(now)),
            hold_reason=self.hold_reason,
            hold_expires_in=None if self._expiry is None else max(self._expiry.when() - self._loop.time(), 0.0),
            draining=self.draining,
            backend_error=self.backend_error,
            policy_generation=self._tuning.generation,
        )

    def held(self, offset: int = 0, limit: int = 0) -> list[HeldCommand]:
        now = time.monotonic()
        shown = [view.hung(command, self.lun.block_size, began, now) for command, began in self._hung(now)]
        shown += view.held(self._engine, self.lun.block_size, now)
        return shown[offset : offset + limit if limit else None]

    def _hung(self, now: float) -> list[tuple[Command, float]]:
        limit = self.config.io_warn_after
        return [(command, began) for command, began in self._pump.running() if now - began > limit]

    def _watch(self) -> None:
        """Once a second: I/O that neither fails nor returns makes no event by itself."""
        now = time.monotonic()
        hung = self._hung(now)
        if hung and self._hung_since is None:
            self._hung_since = min(began for _, began in hung)
            fields = {"count": len(hung), "seconds": self.config.io_warn_after}
            self._emit(events.HANGS, None, fields)
            self._changed()
        elif not hung and self._hung_since is not None:
            self._emit(events.HANGS_NO_MORE, None, {"seconds": round(now - self._hung_since, 1)})
            self._hung_since = None
            self._changed()
        self._watching = self._loop.call_later(WATCH_SECONDS, self._watch)

    def statistics(self) -> dict[str, int]:
        return view.statistics(self._pump.statistics())

    async def diagnose(self) -> list[Link]:
        return await offload(self._chain)

    def _chain(self) -> list[Link]:
        """Blocking."""
        profile = self.config.initiator
        windows: dict[str, tuple[int, int | None]] = {}
        for name, window in self.lun.windows().items():
            opened = self._engine.held_count + self._pump.statistics().in_flight  # by all sessions: at most this one's
            windows[name] = (window.depth, None if window.free is None else min(window.free + opened, window.depth))
        return [
            *storage_links(self.config.path),
            *policy_links(self.policy, profile),
            *kernel_links(self.lun.attributes(), ATTRIBUTES),
            *session_links(windows),
            initiator_link(profile),
        ]

    # ---- persons

    @property
    def policy_lock(self) -> asyncio.Lock:
        return self._tuning.lock

    def reconfigure(self, config: DeviceConfig) -> tuple[list[str], Callable[[], None]]:
        """With `policy_lock` held: what would change, a line each, and what makes it count. Raises PolicyError."""
        policy, use_policy = self._tuning.reconfigure(config.policy)
        before, after = flatten(self.policy), flatten(policy)
        lines = [f"{key} {before.get(key, 'unset')} -> {after[key]}" for key in after if before.get(key) != after[key]]
        lines += [f"{key} {before[key]} -> unset" for key in before.keys() - after.keys()]
        live = {name: getattr(config, name) for name in ("health", "io_warn_after", "initiator", "budgets")}
        lines += [f"{name} changed" for name, value in live.items() if value != getattr(self.config, name)]
        fixed = ("path", "buffered", "read_only", "cache", "filters")
        later = [name for name in fixed if getattr(config, name) != getattr(self.config, name)]
        lines += [f"{name} stays as it is until the LUN is exported anew" for name in later]

        def use() -> None:
            self.config = replace(self.config, policy=config.policy, **live)
            self._engine.set_budgets(config.budgets)
            use_policy()

        return lines, use

    async def set_policy(self, changes: Mapping[str, object], options: PolicyOptions) -> Policy:
        return await self._tuning.set(changes, options)

    def _apply_policy(self, policy: Policy) -> None:
        self._act(self._engine.set_policy(policy, time.monotonic()))
        self._check_promise()

    def _check_promise(self) -> None:
        for link in policy_links(self.policy, self.config.initiator):
            if link.wrong:
                self._emit(events.PROMISES_TOO_MUCH, None, {"reason": link.wrong})

    def kick(self, serials: Sequence[int] = ()) -> int:
        return self._verb(self._engine.kick(time.monotonic(), self._known(serials)))

    def fail(self, serials: Sequence[int] = ()) -> int:
        return self._verb(self._engine.fail(time.monotonic(), self._known(serials)))

    def release(self) -> int:
        count = self._engine.held_count + self._engine.in_flight
        self._release_for = ""
        self._close_gate()
        return count

    def _known(self, serials: Sequence[int]) -> Sequence[int]:
        held = {entry.token for entry in self._engine.held()} if serials else set()
        if missing := [serial for serial in serials if serial not in held]:
            raise ApiError(
                "NotFound", f"{self.name} holds no command {missing[0]}; `tcmu-retry queue list {self.name}` shows them"
            )
        return serials

    def _verb(self, actions: list[Action]) -> int:
        """How many commands an operator's verb touched."""
        self._act(actions)
        return len({action.token for action in actions if isinstance(action, Dispatch | Complete)})

    def hold(self, reason: str, expires_in: float | None = None) -> None:
        self.hold_reason = reason or "held by an operator"
        self._close_gate()
        self._act(self._engine.hold(time.monotonic(), self.hold_reason))
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry = None if expires_in is None else self._loop.call_later(expires_in, self.resume)

    def resume(self) -> None:
        self.hold_reason = ""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        self._act(self._engine.resume(time.monotonic()))

    async def drain(self) -> None:
        self.draining = True
        self._close_gate()
        self._act(self._engine.drain(time.monotonic()))
        if not await self._quiet(DRAIN_SECONDS):
            in_flight = self._pump.statistics().in_flight
            self.undrain()
            raise ApiError("Busy", f"{in_flight} I/O of {self.name} did not return within {DRAIN_SECONDS:g} s")

    def undrain(self) -> None:
        self.draining = False
        self._act(self._engine.undrain(time.monotonic()))

    def _shut_gate(self) -> None:
        self._closings += 1
        self._pump.gate(False)

    def _close_gate(self) -> None:
        """The pump confirms by Closed; until then the engine learns of nothing that runs unasked."""
        self._shut_gate()
        self._act(self._engine.gate_closed((), time.monotonic()))

    async def _quiet(self, seconds: float) -> bool:
        """Wait until no I/O is out; False if that took longer."""
        until = self._loop.time() + seconds
        while self._closings or self._pump.statistics().in_flight or self._engine.in_flight:
            if self._loop.time() >= until:
                return False
            await asyncio.sleep(0.02)
        return True


def _request(command: Command) -> Request:
    """What a command asks; it has been read as soon as it is anything but fresh from the ring."""
    assert command.request is not None
    return command.request
