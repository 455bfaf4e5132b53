"""`tcmu-retry upgrade`: another daemon in the place of this one, and what initiators saw of it."""

from __future__ import annotations

import asyncio
import time
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from tcmu_retry.cli import output
from tcmu_retry.cli.client import Client, CliError
from tcmu_retry.cli.unit import Unit
from tcmu_retry.core.events import HANDED_OVER, NOT_ADOPTED
from tcmu_retry.dbus._lib import Variant
from tcmu_retry.dbus.names import MANAGER, MANAGER_PATH

LOOK_SECONDS = 0.2


async def upgrade(client: Client, arguments: Namespace) -> None:
    """Restart the daemon; all that is open goes on in the new one."""
    luns, former = await client.names(), await client.process()
    version = await _version(client)
    unit = await Unit.of(client, former)
    began = time.time()
    await unit.restart()
    await _served(client, unit, former, luns)
    told = await client.manager("GetHistory", "sa{sv}", "", {"since": Variant("d", began)})
    found = [_seen(name, told) for name in luns]
    now = await _version(client)
    if arguments.json:
        output.as_json(upgrade={"from": version, "to": now, "luns": found})
        return
    rows = [
        (
            each["name"],
            "-" if each["pause"] is None else f"{each['pause']:.2f} s",
            each["count"],
            each["held"],
            each["busy"],
        )
        for each in found
    ]
    output.table(("NAME", ">PAUSE", ">WENT ON", ">HELD", ">BUSY"), rows, "there is no LUN")
    output.say(f"tcmu-retryd {version} -> {now}")


async def _version(client: Client) -> str:
    return str(await client.property(MANAGER_PATH, MANAGER, "Version"))


async def _served(client: Client, unit: Unit, former: int, luns: Sequence[str]) -> None:
    """Wait until all is as it was. Raises CliError once it will not be.

    systemd says whether the unit comes up. LUNs that it then does not serve have as long as it had to start.
    """
    ready = 0.0
    while problem := await _problem(client, former, luns):
        if not await unit.restarting():
            ready = ready or time.monotonic()
            if down := await unit.down():
                raise _given_up(unit, f"{unit.name} is {down}")
            if time.monotonic() - ready > (limit := await unit.start_seconds()):
                raise _given_up(unit, f"{problem}, {limit:g} s after {unit.name} was ready")
        await asyncio.sleep(LOOK_SECONDS)


def _given_up(unit: Unit, why: str) -> CliError:
    return CliError(f"{why}; `journalctl -u {unit.name}` says more, and LUNs that nobody serves answer BUSY")


async def _problem(client: Client, former: int, luns: Sequence[str]) -> str:
    """What is not yet as it was, "" once all is."""
    if await client.process() in (0, former):
        return "there is no new tcmu-retryd"
    try:
        missing = sorted(set(luns) - set(await client.names()))
    except CliError:
        return "the new tcmu-retryd does not answer"
    return f"{', '.join(missing)} is not served" if missing else ""


def _seen(name: str, told: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """pause in seconds, None where it was not handed over; count of commands that went on, those held, those BUSY."""
    fields = {code: fields for code, device, _, _, fields in told if device == name}
    over = fields.get(HANDED_OVER, {})
    return {
        "name": name,
        "pause": over.get("seconds"),
        "count": over.get("count", 0),
        "held": over.get("failed", 0),
        "busy": fields.get(NOT_ADOPTED, {}).get("count", 0),
    }
