"""`tcmu-retry history`: what happened, as a table, as JSON, or an outage drawn."""

from __future__ import annotations

import time
from argparse import Namespace
from typing import Any

from tcmu_retry.cli import output, plot
from tcmu_retry.cli.client import USAGE, Client, CliError
from tcmu_retry.core.words import parse_duration
from tcmu_retry.dbus._lib import Variant

EVENT = ("code", "device", "message", "time", "fields")
SAMPLE = (
    "time", "stretch", "held", "oldest_held", "read_rate", "write_rate", "errors", "probes",
    "read_state", "write_state",
)  # fmt: skip


async def show(client: Client, arguments: Namespace) -> None:
    """Events, oldest first."""
    name = arguments.name or ""
    if arguments.plot and not name:
        raise CliError("--plot draws one LUN; name it: tcmu-retry history NAME --plot FILE", USAGE)
    options: dict[str, Variant] = {}
    if arguments.since:
        options["since"] = Variant("d", time.time() - parse_duration(arguments.since, "--since"))
    limit = {"limit": Variant("t", arguments.limit)} if arguments.limit else {}
    events = [dict(zip(EVENT, row, strict=True)) for row in await client.manager(
        "GetHistory", "sa{sv}", name, {**options, **limit}
    )]  # fmt: skip
    if not (arguments.plot or arguments.json):
        rows = [(_when(event["time"]), event["code"], event["device"], event["message"]) for event in events]
        output.table(("WHEN", "CODE", "LUN", "WHAT"), rows, "nothing has happened yet")
        return
    samples: list[dict[str, Any]] = []
    if name:
        found = await client.manager("GetSamples", "sa{sv}", name, options)
        samples = [dict(zip(SAMPLE, row, strict=True)) for row in found]
    if arguments.plot:
        plot.draw(name, samples, events, arguments.plot)
        output.say(f"drawn into {arguments.plot}")
    else:
        output.as_json(events=events, samples=samples)


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
