"""The daemon, called over D-Bus."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

from tcmu_retry.dbus._lib import (
    AuthError,
    BusType,
    InvalidAddressError,
    Message,
    MessageBus,
    MessageFlag,
    MessageType,
)
from tcmu_retry.dbus.names import (
    BUS_NAME,
    DEVICE,
    ERROR,
    MANAGER,
    MANAGER_PATH,
    OBJECT_MANAGER,
    PROPERTIES,
    ROOT,
    device_path,
)
from tcmu_retry.dbus.systemd import SYSTEMD
from tcmu_retry.dbus.values import plain

DBUS = "org.freedesktop.DBus"
DBUS_PATH = "/org/freedesktop/DBus"
ADDRESS = "TCMU_RETRY_BUS_ADDRESS"
OK, FAILED, USAGE, UNREACHABLE, NOT_AUTHORISED, NOT_FOUND = range(6)
INTERRUPTED = 130
EXITS = {
    OK: "done",
    FAILED: "failed; nothing was changed",
    USAGE: "the command line makes no sense",
    UNREACHABLE: "the bus or the daemon is not to be reached",
    NOT_AUTHORISED: "not allowed",
    NOT_FOUND: "there is no such LUN, held command or code",
    INTERRUPTED: "ended by ^C",
}
_UNREACHABLE = ("ServiceUnknown", "NameHasNoOwner", "NoReply", "Disconnected")
_CODES = {"NotFound": NOT_FOUND, "NotAuthorized": NOT_AUTHORISED, "AccessDenied": NOT_AUTHORISED}


class CliError(Exception):
    """What went wrong, in a sentence, and the exit status that says so."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


class Client:
    """A connection to the daemon; an async context manager. Raises CliError."""

    def __init__(self) -> None:
        self._bus: MessageBus

    async def __aenter__(self) -> Client:
        address = os.environ.get(ADDRESS)
        try:
            self._bus = await asyncio.wait_for(MessageBus(bus_address=address, bus_type=BusType.SYSTEM).connect(), 10)
        except (OSError, EOFError, AuthError, InvalidAddressError) as error:
            where = f"bus {address} ({ADDRESS})" if address else "system bus"
            reason = "no answer within 10 s" if isinstance(error, TimeoutError) else error
            raise CliError(f"the {where} is not to be reached: {reason}", UNREACHABLE) from None
        return self

    async def __aexit__(self, *_: object) -> None:
        self._bus.disconnect()

    async def manager(self, member: str, signature: str = "", *arguments: object) -> Any:
        """Call the manager."""
        return await self._call(MANAGER_PATH, MANAGER, member, signature, arguments)

    async def device(self, name: str, member: str, signature: str = "", *arguments: object) -> Any:
        """Call a LUN."""
        return await self._call(device_path(name), DEVICE, member, signature, arguments)

    async def properties(self, name: str, interface: str) -> dict[str, Any]:
        """All properties of a LUN."""
        found: dict[str, Any] = await self._call(device_path(name), PROPERTIES, "GetAll", "s", (interface,))
        return found

    async def property(self, path: str, interface: str, name: str) -> Any:
        """One property."""
        return await self._call(path, PROPERTIES, "Get", "ss", (interface, name))

    async def names(self) -> list[str]:
        """All LUNs' names, sorted."""
        objects = await self._call(ROOT, OBJECT_MANAGER, "GetManagedObjects", "", ())
        return sorted(item[DEVICE]["Name"] for item in objects.values() if DEVICE in item)

    async def process(self) -> int:
        """The daemon's pid; 0 while there is none."""
        try:
            answer = await self._request(DBUS, DBUS_PATH, DBUS, "GetConnectionUnixProcessID", "s", (BUS_NAME,))
        except CliError:
            return 0
        return int(answer)

    async def systemd(self, path: str, interface: str, member: str, signature: str, *arguments: object) -> Any:
        """Call systemd."""
        return await self._request(SYSTEMD, path, interface, member, signature, arguments)

    async def events(self, heard: Callable[[list[Any]], None]) -> None:
        """Call `heard` with the body of each Event until the connection ends."""
        await self._call(MANAGER_PATH, "org.freedesktop.DBus.Peer", "Ping", "", ())
        rule = f"type='signal',sender='{BUS_NAME}',interface='{MANAGER}',member='Event'"
        await self._request(DBUS, DBUS_PATH, DBUS, "AddMatch", "s", (rule,))

        def handle(message: Message) -> None:
            if message.message_type is MessageType.SIGNAL and message.interface == MANAGER:
                heard(plain(message.body))

        self._bus.add_message_handler(handle)
        await self._bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
        raise CliError("the bus is gone", UNREACHABLE)

    async def _call(self, path: str, interface: str, member: str, signature: str, arguments: tuple[object, ...]) -> Any:
        return await self._request(BUS_NAME, path, interface, member, signature, arguments)

    async def _request(
        self, service: str, path: str, interface: str, member: str, signature: str, arguments: tuple[object, ...]
    ) -> Any:
        message = Message(
            destination=service,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=list(arguments),
            flags=MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION,
        )
        try:
            reply = await asyncio.wait_for(self._bus.call(message), 60)
        except TimeoutError:
            raise CliError("tcmu-retryd does not answer within 60 s; its log may say why", UNREACHABLE) from None
        except (OSError, EOFError) as error:
            raise CliError(f"the bus is gone: {error}", UNREACHABLE) from None
        assert reply is not None
        if reply.message_type is MessageType.METHOD_RETURN:
            return plain(reply.body[0]) if reply.body else None
        kind = (reply.error_name or "").rsplit(".", 1)[-1]
        text = str(reply.body[0]) if reply.body else kind
        if kind in _UNREACHABLE and not (reply.error_name or "").startswith(ERROR):
            raise CliError(
                "tcmu-retryd does not answer on the bus; start it (systemctl start tcmu-retryd)", UNREACHABLE
            )
        raise CliError(text, _CODES.get(kind, FAILED))
