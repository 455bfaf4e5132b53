"""Completion where argcomplete is Debian 12's, which knows bash alone."""

from __future__ import annotations

from argparse import Namespace

import argcomplete.shell_integration
import pytest

from tcmu_retry.cli import shells


def test_zsh_gets_bash_s_way_from_an_argcomplete_that_has_none_for_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def old(executables: list[str], shell: str) -> str:
        return f"complete -F _python_argcomplete {executables[0]}" if shell == "bash" else ""

    monkeypatch.setattr(argcomplete.shell_integration, "shellcode", old)
    shells.completion(Namespace(shell="zsh"))
    lines = capsys.readouterr().out.strip().split("\n")
    assert lines[0] == "#compdef tcmu-retry"
    assert "complete -F _python_argcomplete tcmu-retry" in lines
    assert lines[1].endswith("&& bashcompinit")


@pytest.mark.parametrize("shell", shells.SHELLS)
def test_a_shell_gets_code(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    shells.completion(Namespace(shell=shell))
    assert "tcmu-retry" in capsys.readouterr().out
