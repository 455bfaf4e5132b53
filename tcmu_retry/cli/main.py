"""tcmu-retry: runs one command."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

from tcmu_retry.cli import grammar
from tcmu_retry.cli.client import INTERRUPTED, OK, USAGE, Client, CliError


def main() -> int:
    """The exit status, one of `EXITS`."""
    parser = grammar.build()
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete  # only while a shell completes: it costs a start some milliseconds

        argcomplete.autocomplete(parser)
    arguments = parser.parse_args()
    try:
        if arguments.verb is None:
            arguments.local(arguments)
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
        return INTERRUPTED
    return OK


async def _run(arguments: argparse.Namespace) -> None:
    async with Client() as client:
        await arguments.verb(client, arguments)


if __name__ == "__main__":
    sys.exit(main())
