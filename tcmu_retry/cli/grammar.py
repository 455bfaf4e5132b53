"""The grammar of tcmu-retry; help, completion and the manual page are made from it."""

from __future__ import annotations

import argparse
import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from tcmu_retry import __version__
from tcmu_retry.cli import configs, devices, exports, histories, notices, policies, queues, shells, upgrades, watch
from tcmu_retry.cli import doctor as diagnoses
from tcmu_retry.cli.client import EXITS, USAGE, Client, CliError
from tcmu_retry.core.policy import KEYS
from tcmu_retry.core.words import nearest

Verb = Callable[[Client, argparse.Namespace], Awaitable[None]]
Local = Callable[[argparse.Namespace], None]  # needs no daemon
Parsers: TypeAlias = "argparse._SubParsersAction[Parser]"


class Parser(argparse.ArgumentParser):
    """Names what an unknown word was probably meant to be."""

    def error(self, message: str) -> NoReturn:
        match = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if match:
            near = nearest(match[1], re.findall(r"[\w-]+", match[2]))
            hint = f"did you mean {near}?" if near else f"known are {match[2].replace(chr(39), '')}"
            message = f"{self.prog} has no {match[1]}; {hint}"
        else:
            message += f"; `{self.prog} --help` tells more"
        self.exit(USAGE, f"tcmu-retry: {message}\n")


def build() -> Parser:
    """The whole of it."""
    parser = Parser(
        prog="tcmu-retry",
        description="LUNs that outlive their storage: see what is held, decide what becomes of it.",
        epilog="Exit status: " + ", ".join(f"{code} {meaning}" for code, meaning in EXITS.items()) + ".",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--json", action="store_true", help="JSON instead of tables")
    nouns: Parsers = parser.add_subparsers(required=True, metavar="COMMAND")

    export = _verb(nouns, "export", exports.export, "make a LUN and the iSCSI target that shows it")
    export.add_argument("name", metavar="NAME", help="the new LUN's")
    export.add_argument("config", metavar="CONFIG", help="PATH[;key=value…], or a name in /etc/tcmu-retry/devices.d")
    export.add_argument("--size", help="bytes, or 512M, 20G; the storage's own if not given")
    export.add_argument("--block-size", type=int, default=0, help="512, 1024, 2048 or 4096 (default: the storage's)")
    export.add_argument("--portal", action="append", metavar="ADDRESS:PORT", help="0.0.0.0:3260 if not given")
    export.add_argument("--initiator", action="append", metavar="IQN", help="who may log in; more than once")
    export.add_argument("--wwn", default="", help="that of the same storage on another host; a new one if not given")
    export.add_argument("--target", metavar="IQN", default="", help="the target's name; by this host's if not given")
    export.add_argument("--any-initiator", action="store_true", help="everybody may log in")
    _named(_verb(nouns, "unexport", exports.unexport, "remove a LUN and its target; the storage is left alone"))

    device = _noun(nouns, "device", "LUNs: state, hold, drain")
    _verb(device, "list", devices.list_devices, "all LUNs")
    _named(_verb(device, "show", devices.show, "one LUN in full"))
    hold = _named(_verb(device, "hold", devices.hold, "try nothing until resume"))
    hold.add_argument("--reason", default="held by an operator", help="shown to whoever looks")
    hold.add_argument("--for", dest="expires", metavar="DURATION", help="the hold ends by itself after so long")
    _named(_verb(device, "resume", devices.resume, "end a hold, and a stop, readonly or offline"))
    _named(_verb(device, "drain", devices.drain, "start nothing more and wait for what runs"))
    _named(_verb(device, "undrain", devices.undrain, "go on after drain"))
    _named(_verb(device, "release", devices.release, "answer BUSY to everything held"))

    queue = _noun(nouns, "queue", "held commands")
    _named(_verb(queue, "list", queues.list_held, "each: what, where, how long, why, when next"))
    retry = _named(_verb(queue, "retry", queues.retry, "try now"))
    retry.add_argument("serials", metavar="SERIAL", type=int, nargs="*", help="these; all if none is named")
    fail = _named(_verb(queue, "fail", queues.fail, "answer with an error now"))
    chosen = fail.add_mutually_exclusive_group(required=True)
    chosen.add_argument("serials", metavar="SERIAL", type=int, nargs="*", default=[], help="these")
    chosen.add_argument("--all", action="store_true", help="all that are held")

    policy = _noun(nouns, "policy", "what is done with commands that fail")
    _named(_verb(policy, "show", policies.show, "the effective policy"))
    change = _named(_verb(policy, "set", policies.set_policy, "change it, for held commands too"))
    _completed(
        change.add_argument("settings", metavar="KEY=VALUE", nargs="+", help="settings as in `policy show`"), _keys
    )
    change.add_argument("--dry-run", action="store_true", help="only show what it would be")
    change.add_argument(
        "--persist", action="store_true", help="keep these changes when the daemon stops and over a reboot"
    )
    change.add_argument("--if-generation", type=int, metavar="N", help="refuse if it was changed since")
    reset = _named(_verb(policy, "reset", policies.reset, "back to the policy as it is configured"))
    reset.add_argument("--persist", action="store_true", help="also drop what was persisted")
    string = _verb(policy, "check", policies.check, "check a configuration string")
    string.add_argument("config", metavar="CONFIG", help="as behind `export NAME`")

    _verb(nouns, "upgrade", upgrades.upgrade, "restart the daemon; what is open goes on in the new one")

    config = _noun(nouns, "config", "the configuration's files")
    check = _local(config, "check", configs.check, "read all files as the daemon would; needs no daemon")
    check.add_argument("--directory", type=Path, default=Path("/etc/tcmu-retry"), help="instead of /etc/tcmu-retry")

    look = _verb(nouns, "watch", watch.watch, "all LUNs, live: state, held commands, next probe, throughput")
    look.add_argument("--interval", metavar="DURATION", default="1s", help="between two looks, 1s if not given")
    look.add_argument("--count", metavar="N", type=int, default=0, help="end after so many looks")
    doctor = _verb(nouns, "doctor", diagnoses.diagnose, "the chain of time-outs, and the link that breaks first")
    _lun(doctor.add_argument("name", metavar="NAME", nargs="?", help="this LUN; all if none is named"))
    events = _verb(nouns, "events", notices.events, "what happened last, or what happens from now on")
    _lun(events.add_argument("name", metavar="NAME", nargs="?", help="of this LUN only"))
    events.add_argument("-f", "--follow", action="store_true", help="print events as they come, until ^C")
    history = _verb(nouns, "history", histories.show, "what has happened; an outage drawn")
    _lun(history.add_argument("name", metavar="NAME", nargs="?", help="of this LUN only"))
    history.add_argument("--since", metavar="DURATION", help="only the last so long, as 90m or 24h")
    history.add_argument("--limit", type=int, metavar="N", help="only the last so many events")
    history.add_argument(
        "--plot", metavar="FILE", help="draw the LUN's last outage, or all since --since: .svg, .png or .pdf"
    )
    explain = _local(nouns, "explain", notices.explain, "what an event's code means")
    _completed(explain.add_argument("code", metavar="CODE", help="such as TR-002"), notices.codes)
    completion = _local(
        nouns, "completion", shells.completion, "print what makes a shell complete the words of this command"
    )
    completion.add_argument("shell", metavar="SHELL", choices=shells.SHELLS, help=" or ".join(shells.SHELLS))
    return parser


def _noun(nouns: Parsers, name: str, help: str) -> Parsers:
    return nouns.add_parser(name, help=help, description=help).add_subparsers(required=True, metavar="VERB")


def _verb(verbs: Parsers, name: str, verb: Verb, help: str) -> Parser:
    parser = verbs.add_parser(name, help=help, description=help)
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="JSON instead of tables")
    parser.set_defaults(verb=verb)
    return parser


def _local(verbs: Parsers, name: str, local: Local, help: str) -> Parser:
    parser = verbs.add_parser(name, help=help, description=help)
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="JSON instead of text")
    parser.set_defaults(verb=None, local=local)
    return parser


def _named(parser: Parser) -> Parser:
    _lun(parser.add_argument("name", metavar="NAME", help="the LUN"))
    return parser


def _lun(action: argparse.Action) -> None:
    _completed(action, _names)


def _completed(action: argparse.Action, completer: Callable[..., list[str]]) -> None:
    """What argcomplete asks for words."""
    action.completer = completer  # type: ignore[attr-defined]


def _names(**_: Any) -> list[str]:
    """The LUNs there are; none where the daemon does not answer."""

    async def ask() -> list[str]:
        async with Client() as client:
            return await client.names()

    try:
        return asyncio.run(ask())
    except CliError:
        return []


def _keys(**_: Any) -> list[str]:
    return [f"{side}{key}=" for side in ("", "read.", "write.") for key in KEYS]
