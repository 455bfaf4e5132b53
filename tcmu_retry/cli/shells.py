"""`tcmu-retry completion`: what makes a shell complete the words of this command."""

from __future__ import annotations

from argparse import Namespace

from tcmu_retry.cli import output

SHELLS = ("bash", "zsh")


def completion(arguments: Namespace) -> None:
    """For the shell's start-up file, or the directory of completions."""
    from argcomplete.shell_integration import shellcode  # needed here and while completing, not on every start

    output.say(shellcode(["tcmu-retry"], shell=arguments.shell))
