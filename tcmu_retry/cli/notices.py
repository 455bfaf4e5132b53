"""`tcmu-retry events` and `explain`."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from typing import Any

from tcmu_retry.cli import output
from tcmu_retry.cli.client import NOT_FOUND, Client, CliError
from tcmu_retry.core.events import MEANINGS
from tcmu_retry.core.words import meant


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


def explain(code: str) -> None:
    """What an event's code means and what to do."""
    meaning = MEANINGS.get(code.upper())
    if meaning is None:
        raise CliError(f"there is no event {code}; {meant(code.upper(), MEANINGS)}", NOT_FOUND)
    output.say(f"{code.upper()}: {meaning.summary}\n\n{meaning.explain}")
