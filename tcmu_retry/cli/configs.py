"""`tcmu-retry config check`: the configuration's files, read as the daemon reads them."""

from __future__ import annotations

from argparse import Namespace

from tcmu_retry.cli import output
from tcmu_retry.cli.client import FAILED, CliError
from tcmu_retry.daemon.config import VENDOR, Source


def check(arguments: Namespace) -> None:
    """All problems at once; fails if there is one."""
    files, problems = Source(arguments.directory, VENDOR).check()
    if arguments.json:
        output.as_json(valid=not problems, files=[str(file) for file in files], problems=problems)
    if problems:
        raise CliError("\n".join(problems) if not arguments.json else f"{len(problems)} problems", FAILED)
    if not arguments.json:
        for file in files:
            output.say(f"{file} is valid")
        if not files:
            output.say(f"there is no configuration in {arguments.directory}; the defaults hold")
