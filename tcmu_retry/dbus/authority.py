"""Who may call what: looking is free; changing is for root, for the daemon's own user, and for whom polkit says.

The caller is who the bus says it is. Root is not asked about, so that a host without polkit works.
"""

from __future__ import annotations

import os
from typing import Any

from tcmu_retry.daemon.api import ApiError
from tcmu_retry.dbus._lib import Message, MessageBus, MessageFlag, MessageType, Variant
from tcmu_retry.dbus.interface import Method
from tcmu_retry.dbus.names import ACTION

_POLKIT = "org.freedesktop.PolicyKit1"
_MAY_ASK = 1  # CheckAuthorization's flag AllowUserInteraction


async def ask_bus(bus: MessageBus, member: str, argument: str) -> int:
    """What the bus knows of a connection, such as GetConnectionUnixUser. Raises LookupError once it is gone."""
    body = await _ask(
        bus,
        Message(
            destination="org.freedesktop.DBus",
            path="/org/freedesktop/DBus",
            interface="org.freedesktop.DBus",
            member=member,
            signature="s",
            body=[argument],
        ),
    )
    return int(body[0])


async def authorise(bus: MessageBus, message: Message, method: Method) -> None:
    """Raises ApiError NotAuthorized. A method of ours without a declared access is nobody's but root's."""
    if method.access == "look" or (message.interface or "").startswith("org.freedesktop.DBus."):
        return
    sender = message.sender or ""
    try:
        uid = await ask_bus(bus, "GetConnectionUnixUser", sender)
    except LookupError:
        raise ApiError("NotAuthorized", f"{method.name} needs a caller that can be asked about; it has left") from None
    if uid in (0, os.geteuid()):
        return
    action = f"{ACTION}.{method.access}"
    interactive = bool(message.flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION)
    try:
        granted, could_ask = await _ask_polkit(bus, sender, action, interactive) if method.access else (False, False)
    except LookupError as error:
        raise ApiError(
            "NotAuthorized",
            f"{method.name} needs root, or polkit's action {action}, and polkit does not answer ({error});"
            " repeat it as root",
        ) from None
    if not granted:
        hint = "repeat it where a password can be asked for, or as root" if could_ask else "repeat it as root"
        raise ApiError("NotAuthorized", f"{method.name} needs root, or polkit's action {action}; {hint}")


async def _ask_polkit(bus: MessageBus, sender: str, action: str, interactive: bool) -> tuple[bool, bool]:
    """Whether it is granted, and whether it would be for a password. Waits for a person who types one."""
    [(granted, challenge, _)] = await _ask(
        bus,
        Message(
            destination=_POLKIT,
            path=f"/{_POLKIT.replace('.', '/')}/Authority",
            interface=f"{_POLKIT}.Authority",
            member="CheckAuthorization",
            signature="(sa{sv})sa{ss}us",
            body=[
                ["system-bus-name", {"name": Variant("s", sender)}],
                action,
                {},
                _MAY_ASK if interactive else 0,
                "",
            ],
        ),
    )
    return bool(granted), bool(challenge)


async def _ask(bus: MessageBus, message: Message) -> list[Any]:
    """Raises LookupError with the reason."""
    try:
        reply = await bus.call(message)
    except (OSError, EOFError) as error:
        raise LookupError(str(error)) from error
    if reply is None or reply.message_type is not MessageType.METHOD_RETURN:
        raise LookupError(str(reply.body[0]) if reply and reply.body else "no answer")
    return list(reply.body)
