"""`tcmu-retry device …`: LUNs as they are, and a person's holds."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from tcmu_retry.cli import output
from tcmu_retry.cli.client import Client
from tcmu_retry.core.words import format_size, parse_duration


def seconds(value: float | None) -> str:
    """For people."""
    if value is None:
        return "-"
    if value < 100:
        return f"{value:.1f} s"
    return f"{value // 60:.0f} min {value % 60:.0f} s"


def _state(status: dict[str, Any]) -> str:
    if status["ring-error"]:
        return "ring broken"
    read, write = status["read"]["state"], status["write"]["state"]
    return read if read == write else f"read {read}, write {write}"


async def list_devices(client: Client, arguments: Namespace) -> None:
    """All LUNs."""
    statuses = [await client.device(name, "GetStatus") for name in await client.names()]
    if arguments.json:
        output.as_json(devices=statuses)
        return
    rows = [
        (
            status["name"],
            _state(status) + (f", {status['hung']} hung" if status["hung"] else ""),
            status["held"],
            seconds(status["oldest-held"]) if status["held"] else "-",
            status["in-flight"],
            format_size(status["size"]),
            status["path"],
        )
        for status in statuses
    ]
    output.table(
        ("NAME", "STATE", ">HELD", ">OLDEST", ">IN FLIGHT", ">SIZE", "STORAGE"),
        rows,
        "no LUN yet; `tcmu-retry export NAME PATH` makes one",
    )


async def show(client: Client, arguments: Namespace) -> None:
    """One LUN in full."""
    status = await client.device(arguments.name, "GetStatus")
    counters = await client.device(arguments.name, "GetStatistics")
    if arguments.json:
        output.as_json(device=status, statistics=counters)
        return
    lines: list[tuple[str, object]] = [
        ("name", status["name"]),
        ("wwn", status["wwn"]),
        ("storage", status["path"]),
        ("size", f"{format_size(status['size'])} ({status['size']} bytes, blocks of {status['block-size']})"),
    ]
    for side in ("read", "write"):
        half = status[side]
        text = half["state"]
        if "outage" in half:
            text += f", outage of {seconds(half['outage'])} by {half['error']}"
            if half["stopped"]:
                text += f", {seconds(half['stopped'])} of it stopped"
            if "next-probe-in" in half:
                text += f", next probe in {seconds(half['next-probe-in'])}"
        lines.append((side, text))
    lines.append(("held", f"{status['held']} commands, {format_size(status['held-bytes'])}"))
    if status["held"]:
        lines.append(("oldest", seconds(status["oldest-held"])))
    lines.append(("in flight", status["in-flight"]))
    if status["hung"]:
        lines.append(("hung", f"{status['hung']} of these; the storage neither fails nor returns"))
    lines += [
        (key.replace("-", " "), status[key]) for key in ("hold-reason", "backend-error", "ring-error") if status[key]
    ]
    if "hold-expires-in" in status:
        lines.append(("hold ends in", seconds(status["hold-expires-in"])))
    if status["draining"]:
        lines.append(("draining", "yes"))
    lines += [(name.replace("_", " "), value) for name, value in sorted(counters.items())]
    output.pairs(lines)


async def hold(client: Client, arguments: Namespace) -> None:
    """Try nothing until `resume`."""
    expires = parse_duration(arguments.expires, "--for") if arguments.expires else 0.0
    await client.device(arguments.name, "Hold", "sd", arguments.reason, expires)
    done(arguments)


async def resume(client: Client, arguments: Namespace) -> None:
    """End holds and stops."""
    await client.device(arguments.name, "Resume")
    done(arguments)


async def drain(client: Client, arguments: Namespace) -> None:
    """Start nothing more, wait for what runs."""
    await client.device(arguments.name, "Drain")
    done(arguments)


async def undrain(client: Client, arguments: Namespace) -> None:
    """Go on."""
    await client.device(arguments.name, "Undrain")
    done(arguments)


async def release(client: Client, arguments: Namespace) -> None:
    """Answer BUSY to what is held."""
    counted(arguments, await client.device(arguments.name, "Release"), "answered BUSY")


def done(arguments: Namespace) -> None:
    """People hear nothing when a thing was done; programs get their object."""
    if arguments.json:
        output.as_json(name=arguments.name)


def counted(arguments: Namespace, count: int, done: str) -> None:
    """Tell how many commands a verb touched."""
    if arguments.json:
        output.as_json(count=count)
    else:
        output.say(f"{count} command{'' if count == 1 else 's'} {done}")
