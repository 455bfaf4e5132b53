"""org.tcmu.Retry1, over the D-Bus library that targetcli uses itself."""

from __future__ import annotations

import re
from typing import Any

from gi.repository import Gio, GLib

NAME = "org.tcmu.Retry1"
ROOT = "/org/tcmu/Retry1"
MANAGER_PATH = f"{ROOT}/manager"
SECONDS = 25.0


class RetryError(Exception):
    """One sentence of the daemon's, or about it."""


def call(path: str, interface: str, member: str, signature: str = "()", *arguments: Any) -> tuple[Any, ...]:
    """Call a method of the daemon. signature: of all arguments, in brackets. Raises RetryError."""
    try:
        connection = Gio.bus_get_sync(Gio.BusType.SYSTEM, None)
        body = GLib.Variant(signature, arguments)
        answer = connection.call_sync(
            NAME, path, interface, member, body, None, Gio.DBusCallFlags.NONE, int(SECONDS * 1000), None
        )
    except GLib.Error as error:
        if error.matches(Gio.DBusError.quark(), Gio.DBusError.SERVICE_UNKNOWN):
            raise RetryError("tcmu-retryd is not running; start it, `systemctl start tcmu-retryd`") from None
        raise RetryError(re.sub(r"^GDBus\.Error:\S+: ", "", error.message)) from None
    return tuple(answer.unpack())


class Device:
    """One LUN, by the name of its backstore. Everything raises RetryError."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._path = ""

    def call(self, member: str, signature: str = "()", *arguments: Any) -> Any:
        """The method's result, None where it has none; keys with _ for -."""
        results = call(self._find(), f"{NAME}.Device", member, signature, *arguments)
        return _plain(results[0]) if results else None

    def policy(self) -> dict[str, str]:
        """Setting by key."""
        found: dict[str, str] = call(
            self._find(), "org.freedesktop.DBus.Properties", "Get", "(ss)", f"{NAME}.Device", "Policy"
        )[0]
        return found

    def set_policy(self, key: str, value: str) -> None:
        self.call("SetPolicy", "(a{sv}a{sv})", {key: GLib.Variant("s", value)}, {})

    def _find(self) -> str:
        """Its object path, which is the daemon's to choose."""
        if not self._path:
            [objects] = call(ROOT, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
            for path, interfaces in objects.items():
                if interfaces.get(f"{NAME}.Device", {}).get("Name") == self.name:
                    self._path = path
                    return str(path)
            raise RetryError(f"tcmu-retryd does not serve {self.name}; its log says why")
        return self._path


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key.replace("-", "_"): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def last_refusal(name: str) -> str:
    """Why the daemon refused the LUN that was just to be made; "" where it did not, or cannot be asked."""
    try:
        latest = {"limit": GLib.Variant("t", 1)}
        [events] = call(MANAGER_PATH, f"{NAME}.Manager", "GetHistory", "(sa{sv})", name, latest)
    except RetryError:
        return ""
    for code, _device, message, _time, *_ in events:
        if code == "TR-030":
            return str(message)
    return ""
