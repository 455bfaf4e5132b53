"""libiscsi's test suite (iscsi-test-cu) in a guest: which tests there are, running them, reading what they say."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tests.vm.guest import Guest

SUITE_SECONDS = 900
INITIATOR = "iqn.2026-11.org.example:conformance"
# A message by itself, or a line of CUnit's list of assertions that failed.
_FAILED = re.compile(r"^\s+\d+\. .* - .*$|^FAILED$|\.\.\.FAILED$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one test ended. verdict: pass, fail, skip, or hang. why: the first thing it says of it, "" for a pass."""

    verdict: str
    why: str = ""


def names(guest: Guest) -> list[str]:
    """SUITE.TEST of the family ALL, in its order."""
    listed = guest.run("iscsi-test-cu -l 2>&1").out.split()
    return [name.removeprefix("ALL.") for name in listed if re.fullmatch(r"ALL\.\w+\.\S+", name)]


def run(guest: Guest, urls: Sequence[str], tests: Iterable[str], log: str) -> dict[str, Outcome]:
    """Run tests suite by suite, so that one that hangs costs its own suite only. log: a file of the shared directory.

    urls: the LUN by one path, or by two for the tests of multipath.
    """
    wanted = list(tests)
    found: dict[str, Outcome] = {}
    suites = dict.fromkeys(name.partition(".")[0] for name in wanted)
    for suite in suites:
        own = [name for name in wanted if name.startswith(f"{suite}.")]
        part = f"{log}-{suite}.log"
        options = f"--dataloss --allow-sanitize -i {INITIATOR}-1 -I {INITIATOR}-2 --test=ALL.{suite} {' '.join(urls)}"
        guest.start(
            f"stdbuf -o0 timeout {SUITE_SECONDS} iscsi-test-cu {options}; code=$?; echo; echo end $code",
            part,
        )
        text = _ended(guest, part)
        found |= {name: outcome for name, outcome in read(text) if name in own}
        for name in own:
            found.setdefault(name, Outcome("hang", f"no end within {SUITE_SECONDS} s"))
    return found


def _ended(guest: Guest, part: str) -> str:
    path = guest.shared / part
    until = time.monotonic() + SUITE_SECONDS + 60
    while time.monotonic() < until:
        text = path.read_text(errors="replace") if path.exists() else ""
        if re.search(r"^end \d+$", text, re.MULTILINE):
            return text
        time.sleep(0.2)
    return text


def read(text: str) -> Iterator[tuple[str, Outcome]]:
    """(SUITE.TEST, its outcome) from what iscsi-test-cu prints; a test without an end is left out."""
    suite, name, lines = "", "", []
    for line in [*text.splitlines(), "Run Summary:"]:
        heading = re.match(r"\s*Suite: (\S+)", line)
        test = re.match(r"\s*Test: (\S+) \.\.\.(.*)", line)
        if heading or test or "Run Summary:" in line:
            if name and (outcome := _outcome("\n".join(lines))):
                yield f"{suite}.{name}", outcome
            name, lines = "", []
        if heading:
            suite = heading[1]
        elif test:
            name, lines = test[1], [test[2]]
        else:
            lines.append(line)


def _outcome(text: str) -> Outcome | None:
    """The verdict stands behind the dots, or where the messages end: "passed" or "FAILED"."""
    if _FAILED.search(text):
        told = re.search(r"\[FAILED\] (.*)", text) or re.search(r"\d+\. (.*)", text)
        return Outcome("fail", told[1].strip() if told else "")
    if skipped := re.search(r"\[SKIPPED\] ?(.*)", text):
        return Outcome("skip", skipped[1].strip())
    return Outcome("pass") if re.search(r"passed", text) else None
