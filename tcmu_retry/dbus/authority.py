"""Who may call what: looking is free, changing is root's."""

from __future__ import annotations

from tcmu_retry.daemon.api import ApiError
from tcmu_retry.dbus._lib import Message, MessageBus, MessageType
from tcmu_retry.dbus.interface import Method


async def ask_bus(bus: MessageBus, member: str, argument: str) -> int:
    """What the bus knows of a connection, such as GetConnectionUnixUser. Raises LookupError once it is gone."""
    reply = await bus.call(
        Message(
            destination="org.freedesktop.DBus",
            path="/org/freedesktop/DBus",
            interface="org.freedesktop.DBus",
            member=member,
            signature="s",
            body=[argument],
        )
    )
    if reply is None or reply.message_type is not MessageType.METHOD_RETURN:
        raise LookupError(argument)
    return int(reply.body[0])


async def authorise(bus: MessageBus, message: Message, method: Method) -> None:
    """Raises ApiError NotAuthorized. A method of ours without a declared access counts as one that changes."""
    if method.access == "look" or (message.interface or "").startswith("org.freedesktop.DBus."):
        return
    try:
        uid: int | None = await ask_bus(bus, "GetConnectionUnixUser", message.sender or "")
    except LookupError:
        uid = None  # the caller left; nobody is there to vouch for the call
    if uid != 0:
        raise ApiError("NotAuthorized", f"{method.name} changes a LUN, which only root may; repeat it as root")
