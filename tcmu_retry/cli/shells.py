"""`tcmu-retry completion`: what makes a shell complete the words of this command."""

from __future__ import annotations

from argparse import Namespace

from tcmu_retry.cli import output

SHELLS = ("bash", "zsh")
# argcomplete before 3 knows no zsh; zsh knows bash's way. As a file of completions it is run at the first TAB, which
# nothing else answers.
ZSH = """#compdef tcmu-retry
autoload -U +X bashcompinit && bashcompinit
{bash}
[[ ${{zsh_eval_context[-1]}} != loadautofunc ]] || _bash_complete -o nospace -F _python_argcomplete
"""


def completion(arguments: Namespace) -> None:
    """For the shell's start-up file, or the directory of completions."""
    from argcomplete.shell_integration import shellcode  # needed here and while completing, not on every start

    code = shellcode(["tcmu-retry"], shell=arguments.shell)
    if arguments.shell == "zsh" and "compdef" not in code:
        code = ZSH.format(bash=shellcode(["tcmu-retry"], shell="bash"))
    output.say(code)
