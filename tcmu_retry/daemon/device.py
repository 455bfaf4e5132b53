"""A LUN: its life, its storage's changes, and what people ask of it.

A device lives in the main loop and never blocks. What its commands meet is in `commands.py`, what its storage does in
`storage.py`; whatever may block (open, reopen, close) runs by `offload`.

Leaving has two steps. `withdraw` answers everything (BUSY) and waits 5 s for I/O that runs; what does not return is
answered too and the kernel keeps its buffers. From then on arrivals are answered BUSY, so that an unlink in the kernel
does not wait for us. `detach` then gives the ring back.

Or it is handed over: what runs gets a second to end, and all that is open stays so, for the next daemon to go on with.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from tcmu_retry.backends.base import Backend, BackendError
from tcmu_retry.backends.replay import ReplayLog
from tcmu_retry.core import events
from tcmu_retry.core.actions import Action, Complete, Dispatch
from tcmu_retry.core.chain import Link, policy_links, ring_links
from tcmu_retry.core.engine import Engine
from tcmu_retry.core.policy import Policy
from tcmu_retry.daemon import diagnosis, difference, view
from tcmu_retry.daemon.api import ApiError, DeviceStatus, HeldCommand, Notice, PolicyOptions
from tcmu_retry.daemon.commands import Commands
from tcmu_retry.daemon.config import DeviceConfig
from tcmu_retry.daemon.hangs import Hangs
from tcmu_retry.daemon.lun import Lun
from tcmu_retry.daemon.mending import Mending
from tcmu_retry.daemon.offload import offload, offload_opening
from tcmu_retry.daemon.pauses import DRAIN_SECONDS, Pauses
from tcmu_retry.daemon.records import Memory
from tcmu_retry.daemon.sharing import Sharing
from tcmu_retry.daemon.storage import Place, Storage
from tcmu_retry.daemon.tuning import Tuning
from tcmu_retry.daemon.windows import LOOK_SECONDS
from tcmu_retry.daemon.wishes import Wishes
from tcmu_retry.pump.base import Command, Pump
from tcmu_retry.pump.select import make_pump
from tcmu_retry.scsi.disk import Disk
from tcmu_retry.scsi.request import Direction
from tcmu_retry.scsi.sense import MEDIUM_MAY_HAVE_CHANGED
from tcmu_retry.tcmu.base import Channel, Door
from tcmu_retry.tcmu.journal import Journal

log = logging.getLogger(__name__)

HAND_OVER_SECONDS = 1.0  # of the pause that initiators see; what has not returned is run again, after it has
CHANGED_SECONDS = 0.1  # watchers hear of a device at most this often


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
        lost: Callable[[Device], None],
        memory: Memory,
        kept: Mapping[str, str],
        keep: Callable[[Mapping[str, str]], None],
        replay: ReplayLog | None = None,
        wishes: Wishes | None = None,
    ) -> None:
        """disk: makes the disk, told whether the storage can discard. open_storage: as `Place.open`.

        lost: the kernel has no such LUN any more, and did not say so.

        kept, keep: the policy's changes that outlive the daemon, see `Tuning`. replay: as for `Storage`. wishes: what a
        former daemon was asked.
        """
        self.lun = lun
        self.config = config
        self._make_disk = disk
        self._notify = notify
        self._tell_changed = changed
        self._lost = lost
        self._changed_due = False
        place = Place(lun.config, config, open_storage, memory)
        self._storage = Storage(lambda: self.lun, place, self._emit_for_all, replay)
        self._wishes = wishes or Wishes()
        self._tuning = Tuning(lun.name, config.policy, kept, keep, self._apply_policy, self._wishes)
        self._engine = Engine(self.policy, config.budgets, random.random)
        self._engine.set_initiator(config.initiator)
        self._sharing = Sharing(lun.name, lun.sharers, lambda: self._commands.act(self._engine.hurry(time.monotonic())))
        self._reopening: asyncio.Task[None] | None = None
        self._pauses = Pauses(
            lun.name,
            self._engine,
            self._wishes,
            lambda: self._commands,
            lambda: self._pump.statistics().in_flight,
            lambda: self._mend.problem,
        )
        self._disk: Disk
        self._journal: Journal | None = None
        self._pump: Pump
        self._commands: Commands
        self._hangs: Hangs
        self._mend: Mending
        self._door: Door
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

    async def attach(self, door: Door, fresh: bool) -> None:
        """Start serving. fresh: the LUN is just being made, and storage that cannot be used refuses it (BackendError).

        Otherwise, or if it had storage before, as after a reboot, it comes up `down` and its storage is opened when it
        is there. Raises OSError and RingError of the channel.
        """
        self._loop, self._door = asyncio.get_running_loop(), door
        known = self._storage.place.memory.record
        lost = 0
        try:
            await self._storage.open()
        except BackendError as error:
            if fresh and known is None:
                raise
            lost = error.errno
            self._storage.failed(error)
        backend = self._storage.backend
        try:
            channel = await offload_opening(door.open)
        except BaseException:
            await offload(backend.close)
            raise
        self._mend = Mending(
            door,
            self._lock_storage,
            self._stop_commands,
            self._serve_on,
            self._emit_for_all,
            self._changed,
            lambda: self._lost(self),
        )
        shown = known if known and lost else backend  # INQUIRY and READ CAPACITY do not change with the weather
        try:
            self._disk = self._make_disk(shown.can_discard, shown.identity.physical)
            self._begin(channel)
        except BaseException:
            await offload(backend.close)
            raise
        if lost or self._wishes.hold:
            self._commands.shut_gate()
        self._commands.start()
        self._pauses.hold_on()
        self._say_handed_over()
        self._hangs = Hangs(self._running, lambda: self.config.io_warn_after, self._emit_for_all, self._changed)
        if lost:
            self._commands.act(self._engine.storage_lost(lost, time.monotonic()))
        self._check_promise()

    def _say_handed_over(self) -> None:
        journal = self._journal
        if journal is not None and journal.left_at:
            failed = sum(left.attempts > 0 for left in journal.left)
            pause = round(time.monotonic() - journal.left_at, 3)
            fields = {"count": len(journal.left), "failed": failed, "seconds": pause}
            self._emit_for_all(events.HANDED_OVER, fields)

    def _begin(self, channel: Channel) -> None:
        """Pump and commands over a ring; nothing runs yet. What goes wrong closes it."""
        self._journal = channel.journal
        try:
            self._pump = make_pump(
                self.name, channel, self._storage.backend, self.lun.block_size, self._disk.sense_reply
            )
        except BaseException:
            with contextlib.suppress(BufferError):  # what made it may still have views
                channel.close()
            raise
        self._commands = Commands(
            lambda: self.lun,
            self._pump,
            self._disk,
            self._engine,
            self._emit,
            self._begin_reopen,
            self._acted,
            self._ring_broke,
        )
        self._commands.reshape()

    async def withdraw(self) -> None:
        """Answer everything and let nothing start any more; returns within DRAIN_SECONDS. Idempotent."""
        if self._pauses.over:
            return
        self._pauses.over = True
        self._commands.close_gate()
        self._commands.act(self._engine.drain(time.monotonic()))
        self._commands.act(self._engine.release(time.monotonic()))
        await self._commands.quiet(DRAIN_SECONDS)
        self._commands.act(self._engine.stopping(time.monotonic()))

    async def detach(self) -> None:
        """Give the ring back to the kernel. Commands not fetched yet stay there for the next daemon."""
        self._wishes.drop()
        await self._detach(flush=True)

    async def stop(self) -> None:
        """`withdraw` and `detach`, by a daemon that ends."""
        await self.withdraw()
        await self._fence()
        await self.detach()

    async def hand_over(self) -> None:
        """Instead of `withdraw` and `detach`: leave all that is open to the next daemon, where a journal tells it."""
        if self._journal is None or self._journal.lost or self._pauses.over:
            await self.stop()
            return
        self._pauses.over = True
        self._commands.close_gate()
        self._commands.act(self._engine.drain(time.monotonic()))
        self._journal.hand_over(time.monotonic())
        await self._commands.quiet(HAND_OVER_SECONDS)
        await self._fence()
        await self._detach(flush=False)

    async def _fence(self) -> None:
        """The kernel gives up the buffers that it keeps for us when this process ends, and our I/O may still use them.

        No new command may have them: the kernel answers BUSY, until the next daemon has the storage's lock.
        """
        await self._commands.caught_up(DRAIN_SECONDS)
        if not self._pump.keeps_buffers():
            return
        try:
            await offload(self._door.block, True)
        except OSError as error:
            log.error("LUN %s cannot be blocked while its I/O hangs, which may spoil other data: %s", self.name, error)

    async def _detach(self, flush: bool) -> None:
        if self._reopening is not None:
            self._reopening.cancel()
        self._mend.stop()
        self._pauses.stop()
        self._sharing.stop()
        self._hangs.stop()
        self._commands.stop()
        await self._storage.close(flush)

    async def storage_had(self) -> None:
        """Wait until its storage was open once, and nobody else's I/O was out; for ever, perhaps."""
        await self._storage.had.wait()

    def storage_came(self) -> None:
        """Some storage came or changed: in an outage that is worth a try at once."""
        if self._engine.held_count or self._storage.error:
            self.kick()

    def login_waits(self, portal: str) -> None:
        """A login waits for commands of ours whose connection is dead; nobody can tell which, so all are answered."""
        if self._engine.late_count:
            log.warning(
                "LUN %s: a login waits while the answer to task management is put off; in this outage it is given at"
                " once from now on. If its initiators' time-outs are not Linux's usual ones, say so with initiator=",
                self.name,
            )
        self._commands.release(portal)

    # ---- a ring that is broken

    def _ring_broke(self, reason: str) -> None:
        if self._pauses.over:
            log.error("%s", reason)
            return
        self._mend.begin(reason)

    def _stop_commands(self) -> None:
        self._commands.stop()  # those there are now: each ring has its own

    def _serve_on(self, channel: Channel) -> None:
        """With an empty ring."""
        self._begin(channel)
        self._commands.shut_gate()
        try:
            self._commands.start()
        except RuntimeError:  # the host has no thread for it
            self._commands.stop()
            raise
        self._commands.act(self._engine.ring_lost(time.monotonic()))

    async def _lock_storage(self) -> int:
        """As `Storage.lock`."""
        return errno.EBUSY if self._reopening is not None else await self._storage.lock()

    # ---- its storage

    def _use(self, backend: Backend) -> None:
        self._pump.use(backend)  # that there is now: a ring that breaks brings another

    def _running(self) -> list[tuple[Command, float]]:
        return self._pump.running()

    def _begin_reopen(self) -> None:
        self._reopening = self._loop.create_task(self._reopen())

    async def _reopen(self) -> None:
        error = errno.EBUSY if self._pump.statistics().in_flight else await self._storage.reopen(self._use)
        self._reopening = None
        self._commands.act(self._engine.reopened(error, time.monotonic()))

    # ---- another size, another storage

    async def resize(self, size: int) -> None:
        """Take the LUN to `size` bytes within the storage it has. Raises BackendError; nothing was changed then."""
        if size <= 0 or size % self.lun.block_size:
            raise BackendError(
                f"{size} bytes is no size for {self.name}; give a multiple of its block size {self.lun.block_size}",
                errno.EINVAL,
            )
        if size > self.lun.size:
            await self._storage.has_room(size)
        async with self._pauses.drained():
            if size < self.lun.size:
                await self._storage.forget_unflushed()  # what is written again must not lie beyond
            waiting = [each for each in self._engine.held() if not each.late]
            beyond = [each for each in waiting if any(one.end > size for one in each.request.extents)]
            if beyond:
                raise BackendError(
                    f"{len(beyond)} held commands of {self.name} lie beyond {size} bytes; end them first, for example"
                    f" by `tcmu-retry queue fail {self.name} --all`",
                    errno.EBUSY,
                )
            self.lun = replace(self.lun, size=size)
            self._disk.resize(size)
            self._commands.reshape()
        self._changed()
        log.info("LUN %s has %d bytes now", self.name, size)

    async def move(self, to: Place) -> None:
        """Serve from other storage, which has the LUN's data; what is held goes on there. Raises BackendError."""
        old, settings = self._storage.backend, self.config
        where = {name: getattr(settings, name) for name in ("path", "buffered", "filters", "roots")}
        if replace(to.config, **where) != settings:
            raise BackendError(
                f"{to.name} is not only other storage but other settings than LUN {self.name} is served with;"
                " change those with `tcmu-retry policy set`, or make the LUN anew",
                errno.EOPNOTSUPP,
            )
        new = await self._storage.open_other(to)
        try:
            async with self._pauses.drained():
                if self._reopening is not None:
                    raise BackendError(f"the storage of LUN {self.name} is just being opened; try again", errno.EBUSY)
                await self._storage.take(to, new)
                self.config, self.lun = to.config, replace(self.lun, config=to.name)
                self._pump.use(self._storage.backend)
                self._disk.attention(MEDIUM_MAY_HAVE_CHANGED)
                self._commands.reshape()
                self._commands.act(self._engine.reopened(0, time.monotonic()))
        except BaseException:
            new.close()
            raise
        await offload(old.close)
        await offload(to.memory.keep, new.identity, new.can_discard)
        self._changed()
        log.info("LUN %s is served from %s now", self.name, to.config.path)

    # ---- telling

    def _acted(self) -> None:
        self._disk.health = view.health(self.config.health, self._engine)
        self._sharing.see(self._engine.late_count)
        self._changed()

    def _emit(self, code: str, direction: Direction | None, fields: Mapping[str, object]) -> None:
        self._notify(view.notice(code, self.name, direction, fields, time.time()))

    def _emit_for_all(self, code: str, fields: Mapping[str, object]) -> None:
        self._emit(code, None, fields)

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
        return time.monotonic() if self._mend.problem else self._pump.pulse()

    @property
    def busy(self) -> bool:
        """Whether it has commands open, as far as is known here."""
        return bool(self._engine.held_count or self._engine.in_flight or self._pump.statistics().in_flight)

    @property
    def settled(self) -> bool:
        """Whether nothing is open that was open at the last look at the windows."""
        since = time.monotonic() - LOOK_SECONDS
        known = self._engine.held_count or self._engine.in_flight
        return not known and all(began > since for _, began in self._pump.running())

    def take_aborted(self) -> bool:
        """Whether commands were aborted since this was last asked."""
        return self._commands.take_aborted()

    def window_closed(self, initiator: str) -> None:
        self._emit_for_all(events.WINDOW_CLOSED, {"initiator": initiator})

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
            hung=len(self._hangs.now(now)),
            hold_reason=self._pauses.hold_reason,
            hold_expires_in=self._pauses.hold_expires_in(),
            draining=self._pauses.draining,
            backend_error=self._storage.error,
            ring_error=self._mend.problem,
            policy_generation=self._tuning.generation,
        )

    def held(self, offset: int = 0, limit: int = 0) -> list[HeldCommand]:
        now = time.monotonic()
        shown = [view.hung(command, self.lun.block_size, began, now) for command, began in self._hangs.now(now)]
        shown += view.held(self._engine, self.lun.block_size, now)
        return shown[offset : offset + limit if limit else None]

    def statistics(self) -> dict[str, int]:
        return view.statistics(self._pump.statistics())

    async def diagnose(self) -> list[Link]:
        opened = self._engine.held_count - self._engine.late_count + self._pump.statistics().in_flight
        rest = await offload(diagnosis.links, self.lun, self.policy, self.config.initiator, opened)
        return [*ring_links(self._mend.problem), *await self._storage.links(), *rest]

    # ---- persons

    @property
    def policy_lock(self) -> asyncio.Lock:
        return self._tuning.lock

    def reconfigure(self, config: DeviceConfig) -> tuple[list[str], Callable[[], None]]:
        """With `policy_lock` held: what would change, a line each, and what makes it count. Raises PolicyError."""
        policy, use_policy = self._tuning.reconfigure(config.policy)
        lines = [*difference.policy_lines(self.policy, policy), *difference.lines(self.config, config)]

        def use() -> None:
            self.config = difference.applied(self.config, config)
            self._engine.set_budgets(config.budgets)
            self._engine.set_initiator(config.initiator)
            use_policy()

        return lines, use

    async def set_policy(self, changes: Mapping[str, object], options: PolicyOptions) -> Policy:
        return await self._tuning.set(changes, options)

    def _apply_policy(self, policy: Policy) -> None:
        self._commands.act(self._engine.set_policy(policy, time.monotonic()))
        self._check_promise()

    def _check_promise(self) -> None:
        for link in policy_links(self.policy, self.config.initiator):
            if link.wrong:
                self._emit_for_all(events.PROMISES_TOO_MUCH, {"reason": link.wrong})

    def kick(self, serials: Sequence[int] = ()) -> int:
        return self._verb(self._engine.kick(time.monotonic(), self._known(serials)))

    def fail(self, serials: Sequence[int] = ()) -> int:
        touched = self._verb(self._engine.fail(time.monotonic(), self._known(serials)))
        return len(set(serials)) or touched  # one that is out is answered when it returns

    def release(self) -> int:
        count = self._engine.held_count + self._engine.in_flight
        self._commands.release("")
        return count

    def _known(self, serials: Sequence[int]) -> Sequence[int]:
        if missing := [serial for serial in serials if not self._engine.holds(serial)]:
            raise ApiError(
                "NotFound", f"{self.name} holds no command {missing[0]}; `tcmu-retry queue list {self.name}` shows them"
            )
        return serials

    def _verb(self, actions: list[Action]) -> int:
        """How many commands an operator's verb touched."""
        self._commands.act(actions)
        return len({action.token for action in actions if isinstance(action, Dispatch | Complete)})

    def hold(self, reason: str, expires_in: float | None = None) -> None:
        self._pauses.hold(reason, expires_in)

    def resume(self) -> None:
        self._pauses.resume()

    async def drain(self) -> None:
        await self._pauses.drain()

    def undrain(self) -> None:
        self._pauses.undrain()
