"""The LUNs that are served: each from when it is found, or its kernel side is made, until it is gone."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tcmu_retry.backends.base import Backend
from tcmu_retry.backends.replay import ReplayLog
from tcmu_retry.core import events
from tcmu_retry.daemon import takeover, view
from tcmu_retry.daemon.config import ConfigError, DeviceConfig, Source
from tcmu_retry.daemon.device import Device
from tcmu_retry.daemon.door import KernelDoor
from tcmu_retry.daemon.export import SUBTYPE
from tcmu_retry.daemon.keep import Keep
from tcmu_retry.daemon.lun import Lun
from tcmu_retry.daemon.offload import offload
from tcmu_retry.daemon.records import Memory, Records
from tcmu_retry.daemon.storage import Place
from tcmu_retry.daemon.tasks import Tasks
from tcmu_retry.daemon.watchers import Watchers
from tcmu_retry.daemon.wishes import Wishes
from tcmu_retry.scsi.disk import Disk, DiskIdentity
from tcmu_retry.tcmu import configfs
from tcmu_retry.tcmu.base import Door
from tcmu_retry.tcmu.ring import RingError
from tcmu_retry.tcmu.uio import UioDevice, find, scan

log = logging.getLogger(__name__)

WANTED_SECONDS = 60.0  # between CheckConfig and the LUN that it was asked for
SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # something of the host's, for the moment
LATE_SECONDS = 1.0  # how long the kernel's own announcement may trail a hint, or a lock may be kept by a dying daemon


class Luns:
    """Those of this daemon, by the names of their uio devices, which the kernel uses again when a LUN is gone."""

    def __init__(
        self,
        source: Source,
        records: Records,
        keep: Keep,
        open_storage: Callable[[str, DeviceConfig], Backend],
        watchers: Watchers,
        tasks: Tasks,
    ) -> None:
        """open_storage: of a LUN by its name, blocking; raises BackendError."""
        self._source = source
        self._records = records
        self._keep = keep
        self._open_storage = open_storage
        self._watchers = watchers
        self._tasks = tasks
        self._wanted: dict[str, float] = {}  # until when a LUN of a configuration string is taken for a new one
        self._devices: dict[str, Device] = {}
        self._places: dict[str, Path] = {}  # configfs directories
        self._attaching: set[str] = set()
        self._going: dict[str, UioDevice] = {}  # the kernel shows it on after its removal was announced

    def __iter__(self) -> Iterator[Device]:
        return iter(list(self._devices.values()))

    def served(self, uio: str) -> Device | None:
        return self._devices.get(uio)

    def named(self, name: str) -> Device | None:
        return next((device for device in self._devices.values() if device.name == name), None)

    def directory(self, device: Device) -> Path:
        """A LUN's, in configfs."""
        return self._places[device.lun.uio]

    def comes(self, uio: UioDevice) -> None:
        """It was announced."""
        self._going.pop(uio.uio, None)

    def goes(self, uio: UioDevice) -> None:
        """Its removal was announced."""
        self._going[uio.uio] = uio

    def look(self) -> None:
        """Take up all that the kernel has and nobody serves."""
        for uio in scan(SUBTYPE):
            if self._is_new(uio):
                self._tasks.spawn(self._adopt(uio))

    def look_later(self, name: str) -> None:
        """For a uio device that came: its announcement comes by netlink, and this finds it if that was lost."""
        self._tasks.spawn(self._look_later(name))

    async def _look_later(self, name: str) -> None:
        await asyncio.sleep(LATE_SECONDS)
        uio = find(name)
        if uio is not None and uio.subtype == SUBTYPE and self._is_new(uio):
            await self._adopt(uio)

    def _is_new(self, uio: UioDevice) -> bool:
        return uio.uio not in self._devices and self._going.get(uio.uio) != uio

    def want(self, config: str) -> None:
        """Somebody is about to make a LUN of it: what storage another of the same name once had does not count."""
        now = time.monotonic()
        self._wanted = {each: until for each, until in self._wanted.items() if until > now}
        self._wanted[config] = now + WANTED_SECONDS

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
                fenced = not await self.attach(uio, fresh=False) or fenced
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

    async def attach(self, uio: UioDevice, fresh: bool) -> bool:
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

    def _lost(self, device: Device) -> None:
        """Its removal was not announced, or that was not heard."""
        self._tasks.spawn(self.forget(device.lun.uio))

    async def forget(self, uio: str) -> None:
        """End to serve a LUN, if it is served."""
        device = self._devices.pop(uio, None)
        if device is not None:
            await self._leave(device)
            self._watchers.removed(device.name)
            log.info("LUN %s is gone", device.name)

    async def take_up_again(self, device: Device) -> None:
        """A withdrawn device answers BUSY for ever; where its LUN has stayed it needs another one."""
        if self._devices.get(device.lun.uio) is device:
            await self.forget(device.lun.uio)
            if (uio := find(device.lun.uio)) is not None and self._is_new(uio):
                await self._adopt(uio)

    async def leave(self, hand_over: bool) -> None:
        """End to serve all. hand_over: as for `Service.stop`."""
        leave = Device.hand_over if hand_over else Device.stop
        await asyncio.gather(*(leave(device) for device in self._devices.values()))
        self._devices.clear()

    async def _leave(self, device: Device) -> None:
        await device.withdraw()
        await device.detach()

    async def place(self, name: str, config: str) -> Place:
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
