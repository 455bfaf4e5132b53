"""org.tcmu.Retry1 on a bus, for as long as the daemon runs."""

from __future__ import annotations

import logging

from tcmu_retry.daemon.api import DeviceApi, Notice, ServiceApi, Watcher
from tcmu_retry.dbus._lib import Message
from tcmu_retry.dbus.device import DeviceObject
from tcmu_retry.dbus.interface import Method
from tcmu_retry.dbus.manager import Manager, event
from tcmu_retry.dbus.names import BUS_NAME, MANAGER_PATH, ROOT, device_name, device_path
from tcmu_retry.dbus.presence import OwnerEndsError, Presence
from tcmu_retry.dbus.tree import Tree

log = logging.getLogger(__name__)


async def serve(service: ServiceApi, *, address: str | None = None) -> Running:
    """Offer the service on the system bus, or the bus at `address`. Raises BusError."""
    running = Running(service, address)
    await running.start()
    return running


class Running:
    """The service while it is offered."""

    def __init__(self, service: ServiceApi, address: str | None) -> None:
        self._service = service
        self._tree = Tree(ROOT, self._authorise, self._missing)
        self._presence = Presence(BUS_NAME, self._tree, address, "another tcmu-retryd is running, stop it first")
        self._manager = Manager(service)

    async def start(self) -> None:
        """Raises BusError; then nothing was left behind.

        Behind a killed daemon whose I/O hangs it is not waited for: the LUNs must be answered BUSY meanwhile.
        """
        self._service.watch(Watcher(self._changed, self._added, self._removed, self._notice))
        self._tree.add(MANAGER_PATH, self._manager)
        for device in self._service.devices():
            self._added(device)
        try:
            await self._presence.join()
        except OwnerEndsError as error:
            log.warning("%s", error)
        self._presence.keep()

    async def close(self) -> None:
        """Leave the bus; calls that still run are not answered."""
        await self._presence.close()

    # ---- callers

    async def _authorise(self, message: Message, method: Method) -> None:
        await self._presence.authorise(message, method)

    def _missing(self, path: str) -> None:
        name = device_name(path)
        if name is not None:
            self._service.device(name)

    # ---- what the daemon tells

    def _changed(self, device: DeviceApi) -> None:
        self._tree.changed(device_path(device.name))

    def _added(self, device: DeviceApi) -> None:
        self._tree.add(device_path(device.name), DeviceObject(device))

    def _removed(self, name: str) -> None:
        self._tree.remove(device_path(name))

    def _notice(self, notice: Notice) -> None:
        self._tree.emit(MANAGER_PATH, self._manager.interface, "Event", event(notice))
