"""org.tcmu.Retry1 on a bus, for as long as the daemon runs: a bus that is restarted is joined again."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from tcmu_retry.daemon.api import DeviceApi, Notice, ServiceApi
from tcmu_retry.dbus._lib import (
    AuthError,
    BusType,
    InvalidAddressError,
    Message,
    MessageBus,
    NameFlag,
    RequestNameReply,
)
from tcmu_retry.dbus.authority import ask_bus, authorise
from tcmu_retry.dbus.device import DeviceObject
from tcmu_retry.dbus.interface import Method
from tcmu_retry.dbus.manager import Manager, event
from tcmu_retry.dbus.names import BUS_NAME, MANAGER_PATH, ROOT, device_name, device_path
from tcmu_retry.dbus.tree import Tree

log = logging.getLogger(__name__)

REJOIN_SECONDS = 1.0


class BusError(Exception):
    """The service cannot be offered: one sentence that says why and what to do."""


async def serve(service: ServiceApi, *, address: str | None = None) -> Running:
    """Offer the service on the system bus, or the bus at `address`. Raises BusError."""
    running = Running(service, address)
    await running.start()
    return running


class Running:
    """The service while it is offered."""

    def __init__(self, service: ServiceApi, address: str | None) -> None:
        self._service = service
        self._address = address
        self._bus: MessageBus
        self._tree = Tree(ROOT, self._authorise, self._missing)
        self._manager = Manager(service)
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises BusError; then nothing was left behind."""
        self._service.watch(self._changed, self._added, self._removed, self._notice)
        self._tree.add(MANAGER_PATH, self._manager)
        for device in self._service.devices():
            self._added(device)
        await self._join()
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    async def close(self) -> None:
        """Leave the bus; calls that still run are not answered."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        self._tree.detach()
        self._bus.disconnect()
        await _ended(self._bus)

    # ---- the connection

    async def _join(self) -> None:
        where = f"the bus at {self._address}" if self._address else "the system bus"
        try:
            self._bus = await MessageBus(bus_address=self._address, bus_type=BusType.SYSTEM).connect()
        except (OSError, EOFError, AuthError, InvalidAddressError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise BusError(f"{where} is not to be reached ({reason}); is dbus-daemon running?") from error
        self._tree.attach(self._bus)
        try:
            await self._own(where)
        except BaseException:
            self._tree.detach()
            self._bus.disconnect()
            raise

    async def _own(self, where: str) -> None:
        try:
            reply = await self._bus.request_name(BUS_NAME, NameFlag.DO_NOT_QUEUE)
        except Exception as error:
            raise BusError(f"{where} does not let us be {BUS_NAME} ({error}); is {BUS_NAME}.conf installed?") from error
        if reply is RequestNameReply.PRIMARY_OWNER:
            return
        owner = ""
        with contextlib.suppress(LookupError):
            owner = f", process {await ask_bus(self._bus, 'GetConnectionUnixProcessID', BUS_NAME)}"
        raise BusError(f"{BUS_NAME} is taken on {where}{owner}; another tcmu-retryd is running, stop it first")

    async def _keep(self) -> None:
        """The LUNs live on without a bus, and a person must be able to end a hold: join again when it is back."""
        while True:
            await _ended(self._bus)
            self._tree.detach()
            log.error("the bus is gone; LUNs are served on, and it is joined again once it is back")
            while True:
                await asyncio.sleep(REJOIN_SECONDS)
                try:
                    await self._join()
                    break
                except BusError as error:
                    log.debug("not yet: %s", error)
            log.info("the bus is back")

    # ---- callers

    async def _authorise(self, message: Message, method: Method) -> None:
        await authorise(self._bus, message, method)

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


async def _ended(bus: MessageBus) -> None:
    """Returns when the connection is gone, however it went."""
    with contextlib.suppress(Exception):
        # Shielded: a waiter that is cancelled would cancel the library's future, and with it every other waiter.
        await asyncio.shield(bus.wait_for_disconnect())  # type: ignore[no-untyped-call]
