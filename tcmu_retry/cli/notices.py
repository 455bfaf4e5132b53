"""`tcmu-retry events` and `explain`."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from typing import Any

from tcmu_retry.cli import histories, output
from tcmu_retry.cli.client import NOT_FOUND, Client, CliError
from tcmu_retry.core.events import MEANINGS
from tcmu_retry.core.words import meant

RECENT = 20


async def events(client: Client, arguments: Namespace) -> None:
    """The last ones, or with --follow those that come."""
    if arguments.follow:
        await follow(client, arguments)
    else:
        await histories.show(client, Namespace(**vars(arguments), since=None, limit=RECENT, plot=None))


async def follow(client: Client, arguments: Namespace) -> None:
    """Print events as they come: lines for people, one JSON object a line for programs."""

    def heard(body: list[Any]) -> None:
        code, device, message, when, fields = body
        if arguments.name and device != arguments.name:
            return
        if arguments.json:
            event = {"code": code, "device": device, "message": message, "time": when, "fields": fields}
            output.say(json.dumps({"schema": output.SCHEMA, **event}))
        else:
            output.say(f"{time.strftime('%H:%M:%S', time.localtime(when))}  {code}  {device}  {message}")
        sys.stdout.flush()

    await client.events(heard)


def explain(arguments: Namespace) -> None:
    """What an event's code means and what to do."""
    code = arguments.code.upper()
    meaning = MEANINGS.get(code)
    if meaning is None:
        raise CliError(f"there is no event {arguments.code}; {meant(code, MEANINGS)}", NOT_FOUND)
    if arguments.json:
        output.as_json(code=code, summary=meaning.summary, explain=meaning.explain)
    else:
        output.say(f"{code}: {meaning.summary}\n\n{meaning.explain}")


def codes(**_: Any) -> list[str]:
    """For completion."""
    return list(MEANINGS)
