"""`tcmu-retry doctor`: the chain of time-outs, and the link that breaks first."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any

from tcmu_retry.cli import output
from tcmu_retry.cli.client import FAILED, Client, CliError
from tcmu_retry.core.words import format_duration


async def diagnose(client: Client, arguments: Namespace) -> None:
    """One LUN, or all; fails if something is to be done."""
    names = [arguments.name] if arguments.name else await client.names()
    chains = {name: await client.device(name, "Diagnose") for name in names}
    wrong = [f"{name}: {link['wrong']}" for name, links in chains.items() for link in links if link["wrong"]]
    if arguments.json:
        output.as_json(chains=[{"name": name, "links": links} for name, links in chains.items()])
    else:
        for name, links in chains.items():
            _print(name, links)
    if wrong:
        raise CliError("; ".join(wrong), FAILED)


def _print(name: str, links: list[dict[str, Any]]) -> None:
    output.say(name)
    rows = [
        (
            "  " + link["where"],
            link["setting"],
            link["value"],
            format_duration(link["lasts"]) if "lasts" in link else "-",
            "WRONG" if link["wrong"] else "ok",
        )
        for link in links
    ]
    output.table(("  LINK", "SETTING", "VALUE", ">LASTS", ""), rows, "  nothing to look at")
    output.say("  " + verdict(links))


def verdict(links: list[dict[str, Any]]) -> str:
    """How long a hold lasts, and which link ends it."""
    breaking = [link for link in links if "lasts" in link]
    if not breaking:
        return "Nothing ends a hold by itself."
    first = min(breaking, key=lambda link: float(link["lasts"]))
    lasts = format_duration(first["lasts"])
    return f"An outage is held for {lasts}; then {first['where']} ends it ({first['setting']})."


async def advise(client: Client, name: str, made: bool = False) -> None:
    """After something was done, which stands whatever is found here: on stderr, what the policy promises in vain.

    made: the LUN was made just now, so how long a hold lasts is worth a line too.
    """
    try:
        links = await client.device(name, "Diagnose")
    except CliError as error:
        sys.stderr.write(f"warning: {error}\n")
        return
    if made:
        output.say(verdict(links))
    for link in links:
        if link["where"] == "policy" and link["wrong"]:
            sys.stderr.write(f"warning: {name}: {link['wrong']}\n")
