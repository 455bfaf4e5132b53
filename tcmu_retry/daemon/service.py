"""What this daemon offers for all its LUNs: it begins and ends, carries out what people ask, and passes on hints."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from tcmu_retry import __version__
from tcmu_retry.backends.base import Backend, BackendError
from tcmu_retry.core.words import nearest
from tcmu_retry.daemon import export, reload, rival, storage
from tcmu_retry.daemon.announcements import Announcements
from tcmu_retry.daemon.api import ApiError, DeviceApi, ExportRequest, ExportResult, Notice, Sample, Watcher
from tcmu_retry.daemon.config import ConfigError, DeviceConfig, Source
from tcmu_retry.daemon.device import Device
from tcmu_retry.daemon.export import SUBTYPE
from tcmu_retry.daemon.history import History
from tcmu_retry.daemon.keep import Keep
from tcmu_retry.daemon.luns import Luns
from tcmu_retry.daemon.offload import offload
from tcmu_retry.daemon.portals import watch_portals
from tcmu_retry.daemon.recorder import Recorder
from tcmu_retry.daemon.records import Records
from tcmu_retry.daemon.tasks import Tasks
from tcmu_retry.daemon.uevents import Uevents
from tcmu_retry.daemon.watchers import Watchers
from tcmu_retry.daemon.windows import watch_windows
from tcmu_retry.tcmu import configfs
from tcmu_retry.tcmu.uio import find

GIVE_WAY_SECONDS = 0.2
CHECK_SECONDS = 10.0  # targetcli waits 25 s for an answer


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
        self._watchers = Watchers()
        self._tasks = Tasks()
        self._luns = Luns(source, self._records, self._keep, self._open_storage, self._watchers, self._tasks)
        self._announcements = Announcements(self._luns, self._watchers, self._tasks)
        self._uevents = Uevents(self._luns.look_later, self._storage_came)
        recorder = self._recorder
        self.watch(Watcher(added=recorder.added, removed=recorder.removed, notice=recorder.notice))

    async def start(self) -> None:
        """Take over what is there and listen for what comes. Raises OSError where the kernel lacks TCMU."""
        await self._announcements.start()
        self._uevents.start()
        self._announcements.promise()
        self._luns.look()
        self._tasks.spawn(watch_portals(self._open_luns, self._login_waits))
        self._tasks.spawn(watch_windows(self._aborted_luns, self._settled, self._window_closed))

    async def stop(self, hand_over: bool = False) -> None:
        """Answer what is held and leave the LUNs to the next daemon; storage that hangs delays it by 5 s at most.

        hand_over: the next one comes at once; it gets what is held too, and nothing is answered.
        """
        self._uevents.close()
        await self._leave(hand_over)
        self._announcements.close()

    async def _leave(self, hand_over: bool = False) -> None:
        self._announcements.end()
        await self._tasks.cancel()  # the last thing they do is to answer the kernel
        await self._luns.leave(hand_over)
        self._recorder.close()

    def _open_storage(self, name: str, config: DeviceConfig) -> Backend:
        """Blocking. Raises BackendError."""
        return storage.open_configured(config)

    async def reload(self) -> list[str]:
        """As `reload.reload`."""
        return await reload.reload(self._source, lambda: list(self._luns))

    # ---- hints

    def _storage_came(self, name: str) -> None:
        """Which storage stands on which block device is not always to be seen: whoever has an outage tries now."""
        for device in self._luns:
            device.storage_came()

    def _open_luns(self) -> Mapping[str, Path]:
        return {device.name: self._luns.directory(device) for device in self._luns if device.busy}

    def _login_waits(self, name: str, portal: str) -> None:
        if device := self._luns.named(name):  # it may have gone while the portals were looked at
            device.login_waits(portal)

    def _aborted_luns(self) -> Mapping[str, Path]:
        return {device.name: self._luns.directory(device) for device in self._luns if device.take_aborted()}

    def _settled(self, name: str) -> bool:
        device = self._luns.named(name)
        return device is not None and device.settled

    def _window_closed(self, name: str, initiator: str) -> None:
        if device := self._luns.named(name):
            device.window_closed(initiator)

    def pulses(self) -> dict[str, float]:
        """When each LUN's pump last turned."""
        return {device.name: device.pulse() for device in self._luns}

    # ---- ServiceApi

    def devices(self) -> Sequence[DeviceApi]:
        return sorted(self._luns, key=lambda device: device.name)

    def device(self, name: str) -> DeviceApi:
        return self._find(name)

    def _find(self, name: str) -> Device:
        if device := self._luns.named(name):
            return device
        hint = nearest(name, [device.name for device in self._luns])
        raise ApiError("NotFound", f"there is no LUN {name}" + (f"; did you mean {hint}?" if hint else ""))

    async def export(self, request: ExportRequest) -> ExportResult:
        problem = rival.find() or self.check_config(request.config)
        if problem:
            raise ApiError("InvalidArgument", problem)
        self._luns.want(request.config)
        return await offload(export.export, request, partial(storage.measure, self._source.device(request.config)))

    async def unexport(self, name: str) -> None:
        await offload(export.check_ours, name)
        device = self._luns.named(name)
        if device is not None:
            await device.withdraw()
        try:
            await offload(export.unexport, name)
        except BaseException:
            if device is not None:
                self._tasks.spawn(self._luns.take_up_again(device))
            raise
        await offload(self._records.drop, name)
        await offload(self._keep.forget, name)

    def check_config(self, config: str) -> str:
        try:
            self._source.device(config)
        except ConfigError as error:
            return str(error)
        return ""

    def give_way(self, seconds: float) -> None:
        self._tasks.spawn(self._give_way(seconds))

    async def _give_way(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while loop.time() < until:
            for device in self._luns:
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
                available, _ = await offload(storage.measure, device)
        except TimeoutError:
            return (
                f"{device.path} did not let itself be opened within {CHECK_SECONDS:g} s; bring its storage back first"
            )
        except BackendError as error:
            return str(error)
        if available < size:
            return f"{device.path} has {available} bytes, and {size} are asked for; enlarge it first"
        self._luns.want(config)
        return ""

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
        self._announcements.refused.pop(name, None)
        try:
            for attribute in changes if size >= device.lun.size else reversed(changes):
                await offload(configfs.change, uio, attribute, changes[attribute])
        except OSError as error:
            raise ApiError(
                "Failed", self._announcements.refused.get(name) or f"LUN {name} was not changed: {error}"
            ) from error

    def watch(self, watcher: Watcher) -> None:
        self._watchers.add(watcher)
