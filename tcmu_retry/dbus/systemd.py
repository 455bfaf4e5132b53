"""What systemd is about to do with our unit, asked on the bus."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any

from tcmu_retry.dbus._lib import AuthError, BusType, InvalidAddressError, Message, MessageBus, MessageType, close
from tcmu_retry.dbus.names import PROPERTIES

log = logging.getLogger(__name__)

SYSTEMD = "org.freedesktop.systemd1"
SYSTEMD_PATH = "/org/freedesktop/systemd1"
SYSTEMD_MANAGER = f"{SYSTEMD}.Manager"
ASK_SECONDS = 1.0


async def is_restart(address: str | None = None) -> bool:
    """Whether the stop that this process was told of is the first half of a restart. False where nobody knows."""
    if "INVOCATION_ID" not in os.environ:  # systemd.exec(5): not started by it
        return False
    try:
        return await asyncio.wait_for(_job(address), ASK_SECONDS) == "restart"
    except (OSError, EOFError, LookupError, AuthError, InvalidAddressError) as error:
        log.info("systemd does not say whether this is a restart (%s): it is taken for the end", error or "no answer")
        return False


async def _job(address: str | None) -> str:
    """The type of our unit's job, "" without one. Raises LookupError with what the bus says."""
    bus = await MessageBus(bus_address=address, bus_type=BusType.SYSTEM).connect()
    try:
        (unit,) = await _ask(bus, SYSTEMD_PATH, SYSTEMD_MANAGER, "GetUnitByPID", "u", os.getpid())
        (job,) = await _ask(bus, unit, PROPERTIES, "Get", "ss", f"{SYSTEMD}.Unit", "Job")
        number, path = job.value
        if not number:
            return ""
        (kind,) = await _ask(bus, path, PROPERTIES, "Get", "ss", f"{SYSTEMD}.Job", "JobType")
        return str(kind.value)
    finally:
        await close(bus)


async def _ask(bus: MessageBus, path: str, interface: str, member: str, signature: str, *body: object) -> list[Any]:
    message = Message(
        destination=SYSTEMD, path=path, interface=interface, member=member, signature=signature, body=list(body)
    )
    reply = await bus.call(message)
    if reply is None or reply.message_type is not MessageType.METHOD_RETURN:
        raise LookupError(str(reply.body[0]) if reply and reply.body else "no answer")
    return list(reply.body)
