"""`tcmu-retry watch`: all LUNs as they are now, live."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from argparse import Namespace
from collections import deque
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tcmu_retry.cli import output
from tcmu_retry.cli.client import Client
from tcmu_retry.cli.devices import seconds
from tcmu_retry.core.words import format_size, parse_duration

MINUTE = 60  # looks that the curve of held commands shows
EVENTS = 5
BARS = " ▁▂▃▄▅▆▇█"
STYLES = {"online": "green", "retrying": "yellow", "down": "red", "failed": "bold red", "stopped": "cyan"}


class View:
    """What is shown; rates are those between the last two looks."""

    def __init__(self) -> None:
        self._looks: dict[str, tuple[float, int, int]] = {}  # by LUN: time, bytes read, bytes written
        self._held: dict[str, deque[int]] = {}
        self._events: deque[tuple[str, str, str]] = deque(maxlen=EVENTS)
        self._rows: list[dict[str, Any]] = []

    def look(self, now: float, luns: list[tuple[dict[str, Any], dict[str, int]]]) -> list[dict[str, Any]]:
        """Take in status and counters of each LUN; each status with its rates in bytes a second, None at first."""
        self._rows = []
        for status, counters in luns:
            name = status["name"]
            read, written = counters["read_bytes"], counters["written_bytes"]
            before = self._looks.get(name)
            self._looks[name] = now, read, written
            rates: dict[str, float | None] = {"read-rate": None, "write-rate": None}
            if before is not None and now > before[0]:
                rates = {
                    "read-rate": max(read - before[1], 0) / (now - before[0]),
                    "write-rate": max(written - before[2], 0) / (now - before[0]),
                }
            self._held.setdefault(name, deque(maxlen=MINUTE)).append(status["held"])
            self._rows.append({**status, **rates})
        return self._rows

    def hear(self, event: list[Any]) -> None:
        """Take in the body of an Event."""
        code, device, message, when, _ = event
        self._events.append((time.strftime("%H:%M:%S", time.localtime(when)), f"{code}  {device}", message))

    def render(self) -> Group:
        """For a console of any width."""
        table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
        for head in (
            "LUN",
            "STATE",
            ">HELD",
            ">OLDEST",
            ">NEXT PROBE",
            ">IN FLIGHT",
            ">READ",
            ">WRITE",
            "HELD, LAST MINUTE",
        ):
            table.add_column(
                head.lstrip(">"), justify="right" if head.startswith(">") else "left", no_wrap=head != "STATE"
            )
        for row in self._rows:
            table.add_row(
                row["name"],
                _state(row),
                str(row["held"]),
                seconds(row["oldest-held"]) if row["held"] else "-",
                seconds(min((side["next-probe-in"] for side in _sides(row) if "next-probe-in" in side), default=None)),
                str(row["in-flight"]) + (f" ({row['hung']} hung)" if row["hung"] else ""),
                _rate(row["read-rate"]),
                _rate(row["write-rate"]),
                Text(_bars(self._held[row["name"]]), style="yellow"),
            )
        parts: list[Table | Text] = [
            table if self._rows else Text("no LUN yet; `tcmu-retry export NAME PATH` makes one")
        ]
        if self._events:
            events = Table(box=None, pad_edge=False, show_header=False)
            for event in self._events:
                events.add_row(*map(Text, event))
            parts += [Text(), events]
        return Group(*parts)


async def gather(client: Client) -> list[tuple[dict[str, Any], dict[str, int]]]:
    """Status and counters of every LUN."""
    return [
        (await client.device(name, "GetStatus"), await client.device(name, "GetStatistics"))
        for name in await client.names()
    ]


async def watch(client: Client, arguments: Namespace) -> None:
    """Until ^C, or so many looks: a live view on a terminal, else a table or a line of JSON a look."""
    interval = parse_duration(arguments.interval, "--interval")
    view = View()
    listening = asyncio.create_task(client.events(view.hear))
    console = Console(highlight=False)
    live = None
    if console.is_terminal and not arguments.json:
        live = Live(console=console, screen=not arguments.count, auto_refresh=False)
        live.start()
    try:
        looks = 0
        while True:
            rows = view.look(time.monotonic(), await gather(client))
            looks += 1
            if live is not None:
                live.update(view.render(), refresh=True)
            elif arguments.json:
                output.say(
                    json.dumps({"schema": output.SCHEMA, "time": time.time(), "devices": output.underscored(rows)})
                )
                sys.stdout.flush()
            else:
                Console(highlight=False, width=160).print(view.render())
            if looks == arguments.count:
                return
            await asyncio.wait([listening], timeout=interval)
            if listening.done():
                listening.result()
    finally:
        listening.cancel()
        await asyncio.wait([listening])
        if not listening.cancelled():
            listening.exception()  # if it ended by an error, `gather` met the same one
        if live is not None:
            live.stop()


def _sides(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [row["read"], row["write"]]


def _state(row: dict[str, Any]) -> Text:
    read, write = (Text(side["state"], style=STYLES.get(side["state"], "")) for side in _sides(row))
    text = read if row["read"]["state"] == row["write"]["state"] else Text.assemble("read ", read, ", write ", write)
    note = row["hold-reason"] or ("draining" if row["draining"] else "")
    return Text.assemble(text, f" ({note})") if note else text


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{format_size(round(value))}/s"


def _bars(counts: deque[int]) -> str:
    most = max(counts)
    return "".join(BARS[-(-count * (len(BARS) - 1) // most)] if most else BARS[0] for count in counts)
