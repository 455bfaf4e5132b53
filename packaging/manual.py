"""The manual pages, from the parsers: manual.py DIRECTORY writes tcmu-retry.8 and tcmu-retryd.8."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from tcmu_retry import __version__
from tcmu_retry.cli import grammar
from tcmu_retry.cli.client import ADDRESS, EXITS
from tcmu_retry.retryd import EXITS as DAEMON_EXITS
from tcmu_retry.retryd import parser as daemon_parser

FILES = {
    "/etc/tcmu-retry/tcmu-retry.toml, /etc/tcmu-retry/conf.d/*.toml": "settings for all LUNs, over the vendor's"
    " in /usr/lib/tcmu-retry",
    "/etc/tcmu-retry/devices.d/NAME.toml": "a LUN's path and settings",
    "/var/lib/tcmu-retry": "policies that were persisted, and the history",
}
ENVIRONMENT = {
    ADDRESS: "address of the bus where tcmu-retryd is; the system bus if not set",
    "NO_COLOR": "if set and not empty, nothing is coloured",
}
SIGNALS = {
    "SIGHUP": "read the configuration again, for all LUNs or, if any of it is wrong, for none",
    "SIGTERM": "answer BUSY to what is held and end; it waits 5 s at most for I/O that does not return. While systemd"
    " restarts the unit, as SIGUSR2",
    "SIGUSR2": "end and answer nothing: the next daemon, which must come at once, goes on with all that is open",
}


def roff(text: str) -> str:
    """Plain text, safe at the beginning of a line too."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...")
    return "\\&" + text if text.startswith((".", "'")) else text


def entries(items: dict[str, str]) -> Iterator[str]:
    for term, text in items.items():
        yield from (".TP", f".B {roff(term)}", roff(text))


def arguments(parser: argparse.ArgumentParser) -> dict[str, str]:
    """What may follow, and what for."""
    found = {}
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            continue
        value = action.metavar or ("" if action.nargs == 0 else action.dest.upper())
        term = ", ".join(action.option_strings) + (f" {value}" if action.option_strings and value else "")
        found[term or str(value)] = action.help or ("print the version" if "--version" in term else "")
    return found


def leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Every verb, in the order of the grammar."""
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not nested:
        yield parser
    for action in nested:
        for child in action.choices.values():
            yield from leaves(child)


def usage(parser: argparse.ArgumentParser) -> str:
    return " ".join(parser.format_usage().removeprefix("usage:").split()).replace("[-h] ", "").replace(" [-h]", "")


def page(
    parser: argparse.ArgumentParser, summary: str, exits: dict[int, str], others: dict[str, dict[str, str]]
) -> str:
    """One manual page."""
    lines = [f'.TH {parser.prog.upper()} 8 "" "tcmu-retry {__version__}"']
    lines += [".SH NAME", roff(f"{parser.prog} - {summary}"), ".SH SYNOPSIS", f".B {roff(usage(parser))}"]
    lines += [".SH DESCRIPTION", roff(parser.description or "")]
    verbs = list(leaves(parser))
    if verbs != [parser]:
        lines.append(".SH COMMANDS")
        for verb in verbs:
            lines += [".TP", f".B {roff(usage(verb))}", roff(verb.description or "")]
            given = {term: text for term, text in arguments(verb).items() if term != "--json"}
            if given:
                lines += [".RS", *entries(given), ".RE"]
    lines += [".SH OPTIONS", *entries(arguments(parser))]
    lines += [".SH EXIT STATUS", *entries({str(code): meaning for code, meaning in exits.items()})]
    for title, items in others.items():
        lines += [f".SH {title}", *entries(items)]
    return "\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    """By file name."""
    return {
        "tcmu-retry.8": page(
            grammar.build(),
            "see and steer LUNs that outlive their storage",
            EXITS,
            {"ENVIRONMENT": ENVIRONMENT, "FILES": FILES},
        ),
        "tcmu-retryd.8": page(
            daemon_parser(), "serve LUNs that outlive their storage", DAEMON_EXITS, {"SIGNALS": SIGNALS, "FILES": FILES}
        ),
    }


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (directory / name).write_text(text, encoding="utf-8")
