"""`tcmu-retry queue …`: the held commands of a LUN."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from tcmu_retry.cli import output
from tcmu_retry.cli.client import Client
from tcmu_retry.cli.devices import counted, seconds


async def list_held(client: Client, arguments: Namespace) -> None:
    """Who, what, where, how long, why, when next."""
    held: list[dict[str, Any]] = []
    while page := await client.device(arguments.name, "GetHeld", "uu", len(held), 0):
        held += page
    if arguments.json:
        output.as_json(held=held)
        return
    rows = [
        (
            command["serial"],
            command["operation"],
            command["lba"],
            command["blocks"],
            seconds(command["age"]),
            command["attempts"],
            command["error"] or "-",
            command["waits-for"],
            seconds(command.get("next-in")),
            seconds(command.get("deadline-in")),
        )
        for command in held
    ]
    columns = (">SERIAL", "OPERATION", ">LBA", ">BLOCKS", ">AGE", ">TRIES", "ERROR", "WAITS FOR", ">NEXT", ">DEADLINE")
    output.table(columns, rows, f"{arguments.name} holds nothing")


async def retry(client: Client, arguments: Namespace) -> None:
    """Try now."""
    counted(arguments, await client.device(arguments.name, "Kick", "at", arguments.serials), "tried")


async def fail(client: Client, arguments: Namespace) -> None:
    """Answer with an error now."""
    counted(arguments, await client.device(arguments.name, "Fail", "at", arguments.serials), "failed")
