"""Names on the bus. An incompatible interface would be Retry2 beside this one; members are only added."""

from __future__ import annotations

import re

BUS_NAME = "org.tcmu.Retry1"
ROOT = "/org/tcmu/Retry1"
MANAGER_PATH = f"{ROOT}/manager"
DEVICES_PATH = f"{ROOT}/device"

MANAGER = f"{BUS_NAME}.Manager"
DEVICE = f"{BUS_NAME}.Device"
ERROR = f"{BUS_NAME}.Error"
ACCESS = f"{BUS_NAME}.Access"  # annotation of a method: "look", or the last part of a polkit action
ACTION = "org.tcmu.retry1"  # polkit's actions; older ones take no capital letters

INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
PROPERTIES = "org.freedesktop.DBus.Properties"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
DBUS_ERROR = "org.freedesktop.DBus.Error"


def device_path(name: str) -> str:
    """The object path of a LUN."""
    escaped = re.sub(rb"[^A-Za-z0-9]", lambda match: b"_%02x" % match[0][0], name.encode())
    return f"{DEVICES_PATH}/{escaped.decode() or '_'}"


def device_name(path: str) -> str | None:
    """The LUN that an object path stands for, whether there is one or not; None for other paths."""
    escaped = path.removeprefix(f"{DEVICES_PATH}/")
    if escaped == path or "/" in escaped:
        return None
    raw = re.sub(rb"_([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), escaped.encode())
    return raw.decode(errors="replace")
