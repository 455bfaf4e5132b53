"""tcmu-retry: nouns, then verbs.

Exit status: 0 done, 1 failed, 2 bad usage, 3 the daemon is not to be reached, 4 not authorised, 5 no such LUN.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from tcmu_retry import __version__
from tcmu_retry.cli import devices, exports, histories, notices, policies, queues
from tcmu_retry.cli import doctor as diagnoses
from tcmu_retry.cli.client import OK, USAGE, Client, CliError

Verb = Callable[[Client, argparse.Namespace], Awaitable[None]]
Parsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main() -> int:
    """Run one command; the exit status."""
    arguments = _parser().parse_args()
    try:
        if arguments.verb is None:
            notices.explain(arguments.code)
        else:
            asyncio.run(_run(arguments))
    except CliError as error:
        sys.stderr.write(f"tcmu-retry: {error}\n")
        return error.code
    except ValueError as error:
        sys.stderr.write(f"tcmu-retry: {error}\n")
        return USAGE
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    return OK


async def _run(arguments: argparse.Namespace) -> None:
    async with Client() as client:
        await arguments.verb(client, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tcmu-retry", description="LUNs that outlive their storage.", epilog=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--json", action="store_true", help="JSON instead of tables")
    nouns = parser.add_subparsers(required=True, metavar="COMMAND")

    export = _verb(nouns, "export", exports.export, "make a LUN and the iSCSI target that shows it")
    export.add_argument("name", metavar="NAME")
    export.add_argument("config", metavar="CONFIG", help="PATH[;key=value…], or a name in /etc/tcmu-retry/devices.d")
    export.add_argument("--size", help="bytes, or 512M, 20G; the storage's own if not given")
    export.add_argument("--block-size", type=int, default=512, help="512 (default), 1024, 2048 or 4096")
    export.add_argument("--portal", action="append", metavar="ADDRESS:PORT", help="0.0.0.0:3260 if not given")
    export.add_argument("--initiator", action="append", metavar="IQN", help="who may log in; more than once")
    export.add_argument("--wwn", default="", help="that of the same storage on another host; a new one if not given")
    export.add_argument("--any-initiator", action="store_true", help="everybody may log in")
    _named(_verb(nouns, "unexport", exports.unexport, "remove a LUN and its target; the storage is left alone"))

    device = _noun(nouns, "device", "LUNs: state, hold, drain")
    _verb(device, "list", devices.list_devices, "all LUNs")
    _named(_verb(device, "show", devices.show, "one LUN in full"))
    hold = _named(_verb(device, "hold", devices.hold, "try nothing until resume"))
    hold.add_argument("--reason", default="held by an operator", help="shown to whoever looks")
    hold.add_argument("--for", dest="expires", metavar="DURATION", help="resume by itself after so long")
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
    change.add_argument("settings", metavar="KEY=VALUE", nargs="+")
    change.add_argument("--dry-run", action="store_true", help="only show what it would be")
    change.add_argument("--persist", action="store_true", help="keep these changes over restarts of the daemon")
    change.add_argument("--if-generation", type=int, metavar="N", help="refuse if it was changed since")
    reset = _named(_verb(policy, "reset", policies.reset, "back to the policy as it is configured"))
    reset.add_argument("--persist", action="store_true", help="also drop what was kept over restarts")
    _verb(policy, "check", policies.check, "check a configuration string").add_argument("config", metavar="CONFIG")

    doctor = _verb(nouns, "doctor", diagnoses.diagnose, "the chain of time-outs, and the link that breaks first")
    doctor.add_argument("name", metavar="NAME", nargs="?", help="this LUN; all if none is named")
    events = _verb(nouns, "events", notices.follow, "what happens, as it happens")
    events.add_argument("name", metavar="NAME", nargs="?", help="of this LUN only")
    history = _verb(nouns, "history", histories.show, "what has happened; an outage drawn")
    history.add_argument("name", metavar="NAME", nargs="?", help="of this LUN only")
    history.add_argument("--since", metavar="DURATION", help="only the last so long, as 90m or 24h")
    history.add_argument("--limit", type=int, metavar="N", help="only the last so many events")
    history.add_argument(
        "--plot", metavar="FILE", help="draw the LUN's last outage, or all since --since: .svg, .png or .pdf"
    )
    explain = nouns.add_parser("explain", help="what an event's code means")
    explain.add_argument("code", metavar="CODE")
    explain.set_defaults(verb=None)
    return parser


def _noun(nouns: Parsers, name: str, help: str) -> Parsers:
    return nouns.add_parser(name, help=help).add_subparsers(required=True, metavar="VERB")


def _verb(verbs: Parsers, name: str, verb: Verb, help: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=help, description=help)
    parser.set_defaults(verb=verb)
    return parser


def _named(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("name", metavar="NAME", help="the LUN")
    return parser


if __name__ == "__main__":
    sys.exit(main())
