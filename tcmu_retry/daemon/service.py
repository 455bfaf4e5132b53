"""All LUNs of this daemon: what the kernel announces becomes a device, what an operator asks becomes a change in LIO.

The kernel waits, unkillably and without a limit, for the answer to an announcement; every way through `_answered`
ends in a reply. Whoever made the kernel announce something holds locks of LIO's tree in configfs meanwhile: the main
loop writes nothing to the tree and reads there only the serial number of a LUN that is being made or is exported, which
nobody can be removing; and nobody touches a LUN's directory once its removal was announced.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import time
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path

from tcmu_retry import __version__
from tcmu_retry.backends.base import Backend, BackendError
from tcmu_retry.backends.replay import ReplayLog
from tcmu_retry.core import events
from tcmu_retry.core.words import nearest
from tcmu_retry.daemon import export, reload, rival, storage, takeover, view
from tcmu_retry.daemon.api import ApiError, DeviceApi, ExportRequest, ExportResult, Notice, Sample, Watcher
from tcmu_retry.daemon.config import ConfigError, DeviceConfig, Source
from tcmu_retry.daemon.device import Device
from tcmu_retry.daemon.door import KernelDoor
from tcmu_retry.daemon.export import SUBTYPE
from tcmu_retry.daemon.history import History
from tcmu_retry.daemon.keep import Keep
from tcmu_retry.daemon.lun import Lun
from tcmu_retry.daemon.offload import offload
from tcmu_retry.daemon.portals import watch_portals
from tcmu_retry.daemon.recorder import Recorder
from tcmu_retry.daemon.records import Memory, Records
from tcmu_retry.daemon.storage import Place
from tcmu_retry.daemon.uevents import Uevents
from tcmu_retry.daemon.unfreeze import end_waits
from tcmu_retry.daemon.watchers import Watchers
from tcmu_retry.daemon.windows import watch_windows
from tcmu_retry.daemon.wishes import Wishes
from tcmu_retry.scsi.disk import Disk, DiskIdentity
from tcmu_retry.tcmu import configfs
from tcmu_retry.tcmu.base import Door
from tcmu_retry.tcmu.netlink import Added, Event, Reconfigured, Removed, TcmuNetlink
from tcmu_retry.tcmu.ring import RingError
from tcmu_retry.tcmu.uio import UioDevice, find, scan

log = logging.getLogger(__name__)

GIVE_WAY_SECONDS = 0.2
ENABLE_SECONDS = 20.0  # whoever enables a LUN waits for us, unkillably
CHECK_SECONDS = 10.0  # targetcli waits 25 s for an answer
WANTED_SECONDS = 60.0  # between CheckConfig and the LUN that it was asked for
SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # something of the host's, for the moment
CATCH_UP_SECONDS = 0.1  # between looks at whether all that was heard is answered
LATE_SECONDS = 1.0  # how long the kernel's own announcement may trail a hint, or a lock may be kept by a dying daemon


class Service:
    """Implements `daemon.api.ServiceApi` over the running kernel."""

    version = __version__

    def __init__(self, source: Source, state: Path) -> None:
        """state: the directory of what outlives the daemon."""
        self._source = source
        self._keep = Keep(state / "policy")
        self._history = History(state / "history.db")
        self._recorder = Recorder(self._history)
        self._records = Records(state / "luns")
        self._wanted: dict[str, float] = {}  # until when a LUN of a configuration string is taken for a new one
        self._refused: dict[str, str] = {}  # why a change of a LUN was, by its name
        self._devices: dict[str, Device] = {}  # by uio name
        self._places: dict[str, Path] = {}  # configfs directory, by uio name
        self._attaching: set[str] = set()
        self._going: dict[str, UioDevice] = {}  # by uio name: the kernel shows it on after its removal was announced
        self._netlink = TcmuNetlink()
        self._uevents = Uevents(self._uio_came, self._storage_came)
        self._ending = False
        self._answering = 0  # announcements
        self._catching_up = False
        self._watchers = Watchers()
        self._tasks: set[asyncio.Task[None]] = set()
        recorder = self._recorder
        self.watch(Watcher(added=recorder.added, removed=recorder.removed, notice=recorder.notice))

    async def start(self) -> None:
        """Take over what is there and listen for what comes. Raises OSError where the kernel lacks TCMU."""
        self._netlink.start(self._announced, self._announcements_lost)
        await offload(end_waits)
        self._uevents.start()
        self._netlink.set_features(reply=True)
        self._look_for_devices()
        self._spawn(watch_portals(self._open_luns, self._login_waits))
        self._spawn(watch_windows(self._aborted_luns, self._settled, self._window_closed))

    def _look_for_devices(self) -> None:
        for device in scan(SUBTYPE):
            if self._is_new(device):
                self._spawn(self._adopt(device))

    def _announcements_lost(self) -> None:
        if not self._catching_up and not self._ending:
            self._catching_up = True
            self._spawn(self._catch_up())

    async def _catch_up(self) -> None:
        """Whoever waits for the answer to one that was lost would wait for ever; those that were heard come first."""
        for _ in range(round(ENABLE_SECONDS / CATCH_UP_SECONDS)):
            await asyncio.sleep(CATCH_UP_SECONDS)
            if not self._answering:
                break
        self._catching_up = False
        await offload(end_waits)
        self._look_for_devices()

    def _is_new(self, uio: UioDevice) -> bool:
        return uio.uio not in self._devices and self._going.get(uio.uio) != uio

    async def stop(self, hand_over: bool = False) -> None:
        """Answer what is held and leave the LUNs to the next daemon; storage that hangs delays it by 5 s at most.

        hand_over: the next one comes at once; it gets what is held too, and nothing is answered.
        """
        self._uevents.close()
        await self._leave_all(hand_over)
        # Sticky in the kernel: with nobody there to answer, the next `enable` would wait for ever.
        self._netlink.set_features(reply=False)
        self._netlink.close()

    async def _leave_all(self, hand_over: bool = False) -> None:
        self._ending = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)  # the last thing they do is to answer the kernel
        leave = Device.hand_over if hand_over else Device.stop
        await asyncio.gather(*(leave(device) for device in self._devices.values()))
        self._devices.clear()
        self._recorder.close()

    async def _leave(self, device: Device) -> None:
        await device.withdraw()
        await device.detach()

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the service failed", exc_info=error)

    def _open_storage(self, name: str, config: DeviceConfig) -> Backend:
        """Blocking. Raises BackendError."""
        return storage.open_configured(config)

    # ---- the kernel's announcements

    def _announced(self, event: Event) -> None:
        if event.device.subtype != SUBTYPE:
            return  # another handler's; an answer of ours would be taken for its
        if self._ending:
            self._netlink.reply(event, -errno.ESHUTDOWN)
            return
        match event:
            case Added():
                self._going.pop(event.device.uio, None)
                self._spawn(self._answered(event, self._added(event.device)))
            case Removed():
                self._going[event.device.uio] = event.device
                self._spawn(self._answered(event, self._removed(event.device)))
            case Reconfigured():
                self._spawn(self._answered(event, self._reconfigured(event)))

    async def _answered(self, event: Event, handling: Awaitable[int]) -> None:
        status = -errno.EIO
        self._answering += 1
        try:
            status = await handling
        except Exception:
            log.exception("%s of %s failed in our own code", type(event).__name__, event.device.name)
        finally:
            self._answering -= 1
            self._netlink.reply(event, status)

    async def _added(self, uio: UioDevice) -> int:
        try:
            await asyncio.wait_for(self._attach(uio, fresh=True), ENABLE_SECONDS)
        except TimeoutError:
            why, code = f"its device did not let itself be opened within {ENABLE_SECONDS:g} s", errno.ETIMEDOUT
        except (BackendError, ConfigError) as error:
            why, code = str(error), error.errno or errno.EINVAL
        except OSError as error:
            why, code = str(error), error.errno or errno.EIO
        else:
            return 0
        return self._refuse(events.LUN_REFUSED, uio.name, why, code)

    def _refuse(self, code: str, name: str, why: str, error: int) -> int:
        """An answer for the kernel, which passes on no more than the number: the sentence goes out as an event."""
        self._watchers.notice(view.notice(code, name, None, {"reason": why}, time.time()))
        return -error

    async def _removed(self, uio: UioDevice) -> int:
        await self.forget(uio.uio)
        await offload(takeover.forget, uio, True)
        return 0

    def _lost(self, device: Device) -> None:
        """Its removal was not announced, or that was not heard."""
        self._spawn(self.forget(device.lun.uio))

    async def forget(self, uio: str) -> None:
        """End to serve a LUN, if it is served."""
        device = self._devices.pop(uio, None)
        if device is not None:
            await self._leave(device)
            self._watchers.removed(device.name)
            log.info("LUN %s is gone", device.name)

    async def _reconfigured(self, event: Reconfigured) -> int:
        """Restoring a saved configuration writes every value again; only a new one is a change."""
        device = self._devices.get(event.device.uio)
        if device is None:
            return 0
        try:
            if event.size not in (None, device.lun.size):
                await device.resize(event.size)
            config = event.config.strip() if event.config is not None else None
            if config not in (None, f"{SUBTYPE}/{device.lun.config}"):
                await device.move(await self._place(device.name, config))
            if event.write_cache not in (None, device.lun.write_cache):
                raise BackendError(
                    "whether it has a write cache is said by cache= in its configuration", errno.EOPNOTSUPP
                )
        except (BackendError, ConfigError) as error:
            self._refused[device.name] = str(error)
            return self._refuse(events.CHANGE_REFUSED, device.name, str(error), error.errno)
        return 0

    async def _place(self, name: str, config: str) -> Place:
        """Raises ConfigError."""
        subtype, _, string = config.partition("/")
        if subtype != SUBTYPE:
            raise ConfigError(f"{config} is of another handler; it must begin with {SUBTYPE}/")
        device = self._source.device(string)
        return Place(
            string,
            device,
            partial(self._open_storage, name, device),
            await offload(Memory, self._records, name, string),
        )

    async def _adopt(self, uio: UioDevice) -> None:
        """A LUN that was there before us. What its last daemon had open goes on, or is answered BUSY: `takeover`.

        One that was found blocked, or whose ring was reset, stays so until its storage could be opened: I/O of that
        daemon may be out, and would land in buffers that new commands have, and over what they write.
        """
        if uio.uio in self._attaching:
            return
        fenced = blocked = False
        with contextlib.suppress(OSError):  # it is just going
            fenced = await offload(configfs.is_blocked, uio)
        while True:
            try:
                fenced = not await self._attach(uio, fresh=False) or fenced
                break
            except (ConfigError, RingError) as error:
                log.error("LUN %s is not served: %s", uio.name, error)
                return
            except OSError as error:
                if error.errno not in (errno.EBUSY, *SHORT):
                    log.error("LUN %s is not served: %s", uio.name, error)
                    return
                # The old process still has I/O in the kernel, which may yet write to the buffers and to the storage.
                with contextlib.suppress(OSError):  # EINVAL while it is being enabled: its announcement is on the way
                    await offload(configfs.block, uio, True)
                    blocked = True
                await asyncio.sleep(LATE_SECONDS)
        device = self._devices.get(uio.uio)
        if fenced and device is not None:
            if device.status().backend_error:
                log.warning(
                    "LUN %s: it answers BUSY until its storage can be opened, for then nobody uses it", uio.name
                )
            await device.storage_had()
        if device is None or self._devices.get(uio.uio) is not device:
            return
        try:
            await offload(configfs.block, uio, False)
        except OSError as error:
            if blocked or fenced:
                log.error("LUN %s answers BUSY to all: its action/block_dev cannot be set to 0: %s", uio.name, error)

    async def _attach(self, uio: UioDevice, fresh: bool) -> bool:
        """Whether all that a former daemon had open is known. Raises as `serve` does."""
        if uio.uio in self._devices or uio.uio in self._attaching:
            return True
        proven = True
        self._attaching.add(uio.uio)
        try:
            config = self._source.device(uio.config)
            if fresh and self._wanted.pop(uio.config, 0) > time.monotonic():
                await offload(self._records.drop, uio.name)
            attributes = await offload(configfs.prepare, uio)
            await offload(configfs.make_room_for_reservations)
            lun = Lun(
                uio.name,
                partial(configfs.wwn, uio),
                uio.config,
                attributes.size,
                attributes.block_size,
                uio.uio,
                partial(configfs.attributes, uio),
                partial(configfs.windows, uio.configfs),
                attributes.write_cache,
                partial(configfs.sharers, uio.configfs),
            )
            self._places[uio.uio] = uio.configfs
            loop = asyncio.get_running_loop()

            def unproven(count: int, reason: str) -> None:
                nonlocal proven
                proven = False
                if count:
                    loop.call_soon_threadsafe(self._not_taken_up, uio.name, count, reason)

            replay = await offload(takeover.open_log, uio, fresh) if config.cache == "writeback" else None
            wishes = await offload(takeover.open_wishes, uio, fresh)
            await self.serve(lun, config, KernelDoor(uio, fresh, unproven), fresh, replay, wishes)
        finally:
            self._attaching.discard(uio.uio)
        return proven

    def _not_taken_up(self, name: str, count: int, reason: str) -> None:
        self._watchers.notice(
            view.notice(events.NOT_ADOPTED, name, None, {"count": count, "reason": reason}, time.time())
        )

    async def serve(
        self,
        lun: Lun,
        config: DeviceConfig,
        door: Door,
        fresh: bool,
        replay: ReplayLog | None = None,
        wishes: Wishes | None = None,
    ) -> None:
        """Begin to serve a LUN. Raises as `Device.attach` does."""
        device = Device(
            lun,
            config,
            partial(_disk, lun, config),
            partial(self._open_storage, lun.name, config),
            self._watchers.notice,
            self._watchers.changed,
            self._lost,
            await offload(Memory, self._records, lun.name, lun.config),
            await offload(self._keep.load, lun.name, config.path),
            partial(self._keep.save, lun.name, config.path),
            replay,
            wishes,
        )
        await device.attach(door, fresh)
        self._devices[lun.uio] = device
        log.info("LUN %s is served from %s", lun.name, config.path)
        self._watchers.added(device)

    async def reload(self) -> list[str]:
        """As `reload.reload`."""
        return await reload.reload(self._source, lambda: list(self._devices.values()))

    # ---- hints

    def _uio_came(self, name: str) -> None:
        """The announcement comes by netlink; this finds the device if that was lost."""
        self._spawn(self._look_later(name))

    async def _look_later(self, name: str) -> None:
        await asyncio.sleep(LATE_SECONDS)
        uio = find(name)
        if uio is not None and uio.subtype == SUBTYPE and self._is_new(uio):
            await self._adopt(uio)

    def _storage_came(self, name: str) -> None:
        """Which storage stands on which block device is not always to be seen: whoever has an outage tries now."""
        for device in self._devices.values():
            device.storage_came()

    def _open_luns(self) -> Mapping[str, Path]:
        return {device.name: self._places[uio] for uio, device in self._devices.items() if device.busy}

    def _login_waits(self, name: str, portal: str) -> None:
        for device in self._devices.values():
            if device.name == name:  # it may have gone while the portals were looked at
                device.login_waits(portal)

    def _aborted_luns(self) -> Mapping[str, Path]:
        return {device.name: self._places[uio] for uio, device in self._devices.items() if device.take_aborted()}

    def _settled(self, name: str) -> bool:
        return any(device.settled for device in self._devices.values() if device.name == name)

    def _window_closed(self, name: str, initiator: str) -> None:
        for device in self._devices.values():
            if device.name == name:
                device.window_closed(initiator)

    def pulses(self) -> dict[str, float]:
        """When each LUN's pump last turned."""
        return {device.name: device.pulse() for device in self._devices.values()}

    # ---- ServiceApi

    def devices(self) -> Sequence[DeviceApi]:
        return sorted(self._devices.values(), key=lambda device: device.name)

    def device(self, name: str) -> DeviceApi:
        return self._find(name)

    def _find(self, name: str) -> Device:
        for device in self._devices.values():
            if device.name == name:
                return device
        known = [device.name for device in self._devices.values()]
        hint = nearest(name, known)
        raise ApiError("NotFound", f"there is no LUN {name}" + (f"; did you mean {hint}?" if hint else ""))

    async def export(self, request: ExportRequest) -> ExportResult:
        problem = rival.find() or self.check_config(request.config)
        if problem:
            raise ApiError("InvalidArgument", problem)
        self._want(request.config)
        return await offload(export.export, request, partial(storage.size_of, self._source.device(request.config)))

    async def unexport(self, name: str) -> None:
        await offload(export.check_ours, name)
        device = next((device for device in self._devices.values() if device.name == name), None)
        if device is not None:
            await device.withdraw()
        try:
            await offload(export.unexport, name)
        except BaseException:
            if device is not None:
                self._spawn(self._take_up_again(device))
            raise
        await offload(self._records.drop, name)
        await offload(self._keep.forget, name)

    async def _take_up_again(self, device: Device) -> None:
        """A withdrawn device answers BUSY for ever; where its LUN has stayed it needs another one."""
        if self._devices.get(device.lun.uio) is device:
            await self.forget(device.lun.uio)
            if (uio := find(device.lun.uio)) is not None and self._is_new(uio):
                await self._adopt(uio)

    def check_config(self, config: str) -> str:
        try:
            self._source.device(config)
        except ConfigError as error:
            return str(error)
        return ""

    def give_way(self, seconds: float) -> None:
        self._spawn(self._give_way(seconds))

    async def _give_way(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while loop.time() < until:
            for device in self._devices.values():
                status = device.status()
                if status.held or status.hung:
                    device.release()
            await asyncio.sleep(GIVE_WAY_SECONDS)

    async def history(self, device: str, since: float, limit: int) -> list[Notice]:
        return await self._history.events(device, since, limit)

    async def samples(self, device: str, since: float, limit: int) -> list[Sample]:
        return await self._history.samples(device, since, limit)

    async def check_new(self, config: str, size: int = 0) -> str:
        if problem := rival.find() or self.check_config(config):
            return problem
        device = self._source.device(config)
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                available = await offload(storage.size_of, device)
        except TimeoutError:
            return (
                f"{device.path} did not let itself be opened within {CHECK_SECONDS:g} s; bring its storage back first"
            )
        except BackendError as error:
            return str(error)
        if available < size:
            return f"{device.path} has {available} bytes, and {size} are asked for; enlarge it first"
        self._want(config)
        return ""

    def _want(self, config: str) -> None:
        """Somebody is about to make a LUN of it: what storage another of the same name once had does not count."""
        now = time.monotonic()
        self._wanted = {each: until for each, until in self._wanted.items() if until > now}
        self._wanted[config] = now + WANTED_SECONDS

    async def change_medium(self, name: str, size: int, config: str) -> None:
        device = self._find(name)
        uio = find(device.lun.uio)
        if uio is None:
            raise ApiError("NotFound", f"LUN {name} is just going")
        # By the kernel, which asks us and remembers: what it does not know, saveconfig does not save.
        changes = {"dev_size": str(size)}
        if config != device.lun.config:
            if problem := await self.check_new(config, size):
                raise ApiError("InvalidArgument", problem)
            changes = {"dev_config": f"{SUBTYPE}/{config}", **changes}
        self._refused.pop(name, None)
        try:
            for attribute in changes if size >= device.lun.size else reversed(changes):
                await offload(configfs.change, uio, attribute, changes[attribute])
        except OSError as error:
            raise ApiError("Failed", self._refused.get(name) or f"LUN {name} was not changed: {error}") from error

    def watch(self, watcher: Watcher) -> None:
        self._watchers.add(watcher)


def _disk(lun: Lun, config: DeviceConfig, can_discard: bool, physical: int) -> Disk:
    identity = DiskIdentity(lun.wwn(), lun.name)
    return Disk(
        identity,
        lun.block_size,
        lun.size,
        can_discard=can_discard,
        physical=physical,
        read_only=config.read_only,
        write_back=config.cache == "writeback",
    )
