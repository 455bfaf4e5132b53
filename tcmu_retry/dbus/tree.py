"""Objects on a message bus, from their XML: calls, properties, the object manager and its signals.

An object is any Python object with `interface`, `properties()` and a method per D-Bus method, in snake case, plain or
async; a tuple stands for several results. Every call runs in a task of its own: a slow one delays no other.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol

from tcmu_retry.dbus._lib import Message, MessageBus, MessageFlag, MessageType, Variant
from tcmu_retry.dbus.errors import CallError, explain
from tcmu_retry.dbus.interface import STANDARD, Interface, Method, describe
from tcmu_retry.dbus.names import INTROSPECTABLE, OBJECT_MANAGER, PROPERTIES

log = logging.getLogger(__name__)

_OURS = (INTROSPECTABLE, PROPERTIES, OBJECT_MANAGER)  # of the standard interfaces; Peer is the library's


class BusObject(Protocol):
    """What stands at an object path."""

    interface: Interface

    def properties(self) -> Mapping[str, object]: ...


def snake(name: str) -> str:
    """GetHeld -> get_held."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


class Tree:
    """The objects below one object manager."""

    def __init__(
        self,
        root: str,
        authorise: Callable[[Message, Method], Awaitable[None]],
        missing: Callable[[str], None],
    ) -> None:
        """authorise, and missing for a path without an object, raise what the caller is told."""
        self._root = root
        self._authorise = authorise
        self._missing = missing
        self._bus: MessageBus | None = None
        self._objects: dict[str, BusObject] = {}
        self._announced: dict[str, dict[str, Variant]] = {}
        self._calls: set[asyncio.Task[None]] = set()

    def attach(self, bus: MessageBus) -> None:
        """Answer on this connection from now on."""
        self._bus = bus
        bus.add_message_handler(self._handle)

    def detach(self) -> None:
        """Say nothing more. Calls that run go on to their end: half a drain would be worse than an unheard one."""
        self._bus = None

    # ---- objects

    def add(self, path: str, item: BusObject) -> None:
        self._objects[path] = item
        self._announced[path] = self._properties(item)
        self.emit(
            self._root,
            STANDARD[OBJECT_MANAGER],
            "InterfacesAdded",
            [path, {item.interface.name: self._announced[path]}],
        )

    def remove(self, path: str) -> None:
        item = self._objects.pop(path, None)
        if item is not None:
            del self._announced[path]
            self.emit(self._root, STANDARD[OBJECT_MANAGER], "InterfacesRemoved", [path, [item.interface.name]])

    def changed(self, path: str) -> None:
        """Announce those properties that differ from what was last announced."""
        item = self._objects.get(path)
        if item is None:
            return
        now, before = self._properties(item), self._announced[path]
        self._announced[path] = now
        different = {name: value for name, value in now.items() if value != before[name]}
        if different:
            self.emit(path, STANDARD[PROPERTIES], "PropertiesChanged", [item.interface.name, different, []])

    def emit(self, path: str, interface: Interface, signal: str, body: list[Any]) -> None:
        try:
            self._send(Message.new_signal(path, interface.name, signal, interface.signals[signal], body))
        except Exception:  # the teller is serving a LUN and must not fail for a listener's sake
            log.exception("the signal %s of %s could not be sent", signal, path)

    def _properties(self, item: BusObject) -> dict[str, Variant]:
        values = item.properties()
        return {name: Variant(signature, values[name]) for name, signature in item.interface.properties.items()}

    # ---- calls

    def _handle(self, message: Message) -> bool:
        """True where the call is ours to answer; replies and Peer are left to the library."""
        if message.message_type is not MessageType.METHOD_CALL or message.interface == "org.freedesktop.DBus.Peer":
            return False
        task = asyncio.get_running_loop().create_task(self._serve(message, self._bus))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return True

    async def _serve(self, message: Message, bus: MessageBus | None) -> None:
        def reply(message: Message) -> None:
            # On another connection the caller's unique name may be somebody else's.
            if heard and bus is self._bus:
                self._send(message)

        heard = not message.flags & MessageFlag.NO_REPLY_EXPECTED
        try:
            signature, body = await self._answer(message)
            reply(Message.new_method_return(message, signature, body))
        except Exception as error:  # whatever it was, the caller gets an answer
            reply(Message.new_error(message, *explain(error, message.member or "a call")))

    async def _answer(self, message: Message) -> tuple[str, list[Any]]:
        path, member = message.path or "/", message.member or ""
        item = self._objects.get(path)
        interfaces = self._interfaces(path)
        if item is None and not self._children(path):
            self._missing(path)
            raise CallError("UnknownObject", f"there is no object {path}")
        for interface in interfaces:
            if message.interface in (None, interface.name) and member in interface.methods:
                break
        else:
            raise CallError("UnknownMethod", f"{path} has no method {message.interface}.{member}")
        method = interface.methods[member]
        if message.signature != method.inputs:
            raise CallError(
                "InvalidArgs", f"{method.name} takes arguments of type '{method.inputs}', not '{message.signature}'"
            )
        await self._authorise(message, method)
        if interface.name in _OURS:
            return method.outputs, self._standard(path, item, method.name, message.body)
        result = getattr(item, snake(method.name))(*message.body)
        if inspect.isawaitable(result):
            result = await result
        if isinstance(result, tuple):
            return method.outputs, [*result]
        return method.outputs, [result] if method.outputs else []

    def _interfaces(self, path: str) -> list[Interface]:
        standard = [*STANDARD.values()]
        if path != self._root:
            standard.remove(STANDARD[OBJECT_MANAGER])
        item = self._objects.get(path)
        return [*standard, item.interface] if item else standard

    def _children(self, path: str) -> list[str]:
        prefix = path.rstrip("/") + "/"
        below: Iterable[str] = (self._root, *self._objects)
        return sorted({other.removeprefix(prefix).split("/")[0] for other in below if other.startswith(prefix)})

    def _standard(self, path: str, item: BusObject | None, member: str, arguments: list[Any]) -> list[Any]:
        match member:
            case "Introspect":
                return [describe(self._interfaces(path), self._children(path))]
            case "GetManagedObjects":
                return [
                    {path: {item.interface.name: self._properties(item)} for path, item in self._objects.items()},
                ]
        name = arguments[0]
        if item is None or name != item.interface.name:
            if name in (interface.name for interface in self._interfaces(path)) and member == "GetAll":
                return [{}]
            raise CallError("UnknownInterface", f"{path} has no properties of {name}")
        values = self._properties(item)
        if member == "GetAll":
            return [values]
        if arguments[1] not in values:
            raise CallError("UnknownProperty", f"{name} has no property {arguments[1]}")
        if member == "Set":
            raise CallError("PropertyReadOnly", f"{arguments[1]} cannot be set; methods change a LUN")
        return [values[arguments[1]]]

    def _send(self, message: Message) -> None:
        """Raises where the body does not fit its signature; a connection that is gone is the service's to notice."""
        if self._bus is not None:
            self._bus.send(message).add_done_callback(lambda sent: sent.cancelled() or sent.exception())
