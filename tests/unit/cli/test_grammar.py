"""What can be typed, what is told where it cannot, and that help, manual and completion know all of it."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from tcmu_retry.cli import grammar
from tcmu_retry.cli.client import EXITS

ROOT = Path(__file__).resolve().parents[3]


def manual() -> ModuleType:
    spec = importlib.util.spec_from_file_location("manual", ROOT / "packaging/manual.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("devise list", "tcmu-retry has no devise; did you mean device?"),
        ("device lst", "tcmu-retry device has no lst; did you mean list?"),
        ("frobnicate", "known are export, unexport, device"),
        ("device show", "required: NAME; `tcmu-retry device show --help` tells more"),
        ("queue retry vm1 first", "invalid int value: 'first'"),
    ],
)
def test_an_unknown_word_is_answered_with_one_sentence(
    line: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        grammar.build().parse_args(line.split())
    said = capsys.readouterr().err
    assert exit.value.code == 2
    assert words in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("line", ["--json device list", "device list --json", "device show --json vm1"])
def test_json_may_stand_anywhere(line: str) -> None:
    assert grammar.build().parse_args(line.split()).json


def test_the_manual_has_every_verb_and_exit_status() -> None:
    pages = manual().pages()
    text = pages["tcmu-retry.8"].replace("\\-", "-")
    for verb in manual().leaves(grammar.build()):
        assert f".B {verb.prog} " in text or f".B {verb.prog}\n" in text, verb.prog
        assert verb.description
    for code, meaning in EXITS.items():
        assert f".B {code}\n{meaning}" in text
    assert "--sim SCRIPT" in pages["tcmu-retryd.8"].replace("\\-", "-")


@pytest.mark.skipif(not shutil.which("groff"), reason="no groff to read the pages with")
def test_the_manual_is_good_roff() -> None:
    for text in manual().pages().values():
        done = subprocess.run(
            ["groff", "-man", "-Tutf8", "-ww", "-z"], input=text, capture_output=True, text=True, check=True
        )
        assert not done.stderr
