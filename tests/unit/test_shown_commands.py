"""What README and docs/ tell people to type is understood: commands, settings, targets of make, links, codes, paths."""

from __future__ import annotations

import argparse
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tcmu_retry.cli import grammar
from tcmu_retry.core.events import MEANINGS
from tcmu_retry.core.policy import DEFAULT, change
from tcmu_retry.daemon.config import Source
from tcmu_retry.retryd import parser as daemon_parser
from tests import shown
from tests.shown import COMMANDS, PAGES, ROOT, blocks

PROGRAMS = {"tcmu-retry": grammar.build, "tcmu-retryd": daemon_parser}
COMMAND = re.compile(r"(?:^|[\s(/=])(tcmu-retryd?)(?=\s)\s+(.*)")
READ = {"text", "toml", "ini", "xml", "mermaid"}  # not typed

pages = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])


def spans(text: str) -> Iterator[str]:
    """What stands in a sentence, between backticks."""
    for span in re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)):
        yield " ".join(span.split())


def commands(line: str) -> Iterator[tuple[str, list[str]]]:
    """Each of ours in a line of a shell: the program and its words."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";|&<>")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if not re.fullmatch(r"[;|&<>]+", word):
            words.append(word)
            continue
        names = [Path(each).name for each in words]
        for program in PROGRAMS:
            if program in names[:1] or (program in names[1:2] and names[0] in ("sudo", "exec", "watch")):
                yield program, words[names.index(program) + 1 :]
        words = []


def nested(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def check_beginning(program: str, words: list[str]) -> None:
    """A command that a sentence names, perhaps without its arguments: nouns, verbs and options exist."""
    parser = PROGRAMS[program]()
    for word in words:
        if word.startswith("--"):
            assert word.partition("=")[0] in parser._option_string_actions, f"{parser.prog} has no option {word}"
        elif (verbs := nested(parser)) and re.fullmatch(r"[a-z-]+", word):
            assert word in verbs, f"{parser.prog} has no {word}"
            parser = verbs[word]  # type: ignore[assignment]


def test_each_command_that_is_shown_is_run_somewhere_or_says_why_not() -> None:
    """By its page and section; what stands in tests/shown.py is there, and a test that is to run it names it."""
    found = [block for page in PAGES for block in blocks(page)]
    assert {block.language for block in found} <= {COMMANDS, *READ}
    places = [*shown.SIMULATED, *shown.IN_A_GUEST, *shown.NOT_RUN]
    assert sorted(places) == sorted({(block.page, block.section) for block in found if block.language == COMMANDS})
    for place, path in shown.IN_A_GUEST.items():
        assert all(f'"{name}"' in (ROOT / path).read_text() for name in place), f"{path} does not paste {place}"


@pages
def test_a_command_that_is_shown_is_one(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for block in blocks(page):
        for line in block.lines if block.language == COMMANDS else ():
            if not COMMAND.search(" " + line):
                continue
            for program, words in commands(line):
                try:
                    given = PROGRAMS[program]().parse_args(words)
                except SystemExit as end:
                    assert end.code == 0, f"{line}\n{capsys.readouterr().err}"
                    continue
                if getattr(given, "settings", None):
                    change(DEFAULT, dict(setting.split("=", 1) for setting in given.settings))
    for span in spans(page.read_text(encoding="utf-8")):
        program, _, rest = span.partition(" ")
        if program in PROGRAMS:
            check_beginning(program, rest.split())


@pages
def test_a_target_of_make_that_is_shown_exists(page: Path) -> None:
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    parts = {path.stem.removeprefix("test_") for path in (ROOT / "tests/soak").glob("test_*.py")}
    lines = [line for block in blocks(page) for line in block.lines if block.language == COMMANDS]
    for typed in [*lines, *spans(page.read_text(encoding="utf-8"))]:
        found = re.match(r"make ([a-z].*?)(?:\s+#.*)?$", typed)
        for word in found[1].split() if found else ():
            if re.fullmatch(r"[a-z-]+", word):
                assert word in known, f"make has no {word}: {typed}"
        for asked in re.findall(r"make soak PARTS=\"?([\w ]+)", typed):
            assert set(asked.split()) <= parts, typed


@pages
def test_a_file_of_settings_that_is_shown_is_read(page: Path, tmp_path: Path) -> None:
    for block in blocks(page):
        if block.language != "toml":
            continue
        shown = tomllib.loads(block.text)
        where = "tcmu-retry.toml" if "defaults" in shown else "devices.d/vm1.toml"
        of_a_lun = "" if {"defaults", "path"} & shown.keys() else 'path = "/srv/vm1.img"\n'
        (tmp_path / where).parent.mkdir(exist_ok=True)
        (tmp_path / where).write_text(of_a_lun + block.text)
        _, problems = Source(tmp_path).check()
        assert not problems, block


@pages
def test_a_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pages
def test_a_code_that_is_shown_is_explained(page: Path) -> None:
    for code in re.findall(r"TR-\d{3}", page.read_text(encoding="utf-8")):
        assert code in MEANINGS, code


def test_what_hacking_says_of_the_files_is_so() -> None:
    """Its table has each room, and each path that it names is there."""
    text = (ROOT / "HACKING.md").read_text()
    rooms = {path.name for path in (ROOT / "tcmu_retry").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert set(re.findall(r"^tcmu_retry/(\w+)/ ", text, re.MULTILINE)) == rooms
    for named in re.findall(r"`([\w./-]+/[\w.-]*)`", text):
        if not named.startswith("build/"):
            assert (ROOT / named).exists() or (ROOT / "tcmu_retry" / named).exists(), named
    begins = re.search(r"begin with its theory:(.*?)Start there", text, re.DOTALL)
    assert begins
    sources = [path for path in (ROOT / "tcmu_retry").rglob("*") if path.suffix in (".py", ".c", ".pyx")]
    assert set(re.findall(r"`([^`]+)`", begins[1])) == {
        str(path.relative_to(ROOT / "tcmu_retry")) for path in sources if "Theory of operation" in path.read_text()
    }
