"""Scripts for `tcmu-retryd --sim`: which LUNs there are, and what happens to them when. A line each:

    lun vm1 64M retry_timeout=2m     a LUN of this size, with settings of a configuration string
    0s   vm1  load 200               its initiator sends so many commands a second, every other one a write
    5s   vm1  error ENOLINK          its storage fails; `error EIO write` for one direction only
    20s  vm1  delay 3s read          or answers late; what waits returns at the next `ok` at the latest
    45s  vm1  ok                     its storage is well again
    60s  repeat                      from the beginning

Times count from the start of the script. What follows a # is for people.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tcmu_retry.backends.filters import values
from tcmu_retry.core.words import meant, parse_duration, parse_number, parse_size
from tcmu_retry.scsi.request import Direction


class ScriptError(Exception):
    """A line that makes no sense: one sentence with its number."""


@dataclass(frozen=True, slots=True)
class NewLun:
    """size in bytes; settings as behind the path of a configuration string."""

    name: str
    size: int
    settings: str = ""


@dataclass(frozen=True, slots=True)
class Fault:
    """delay in seconds; 0: it fails with errno."""

    errno: int = 0
    delay: float = 0.0
    directions: frozenset[Direction] = frozenset(Direction)


@dataclass(frozen=True, slots=True)
class Ok:
    """The storage is well."""


@dataclass(frozen=True, slots=True)
class Load:
    """Commands a second."""

    rate: float


@dataclass(frozen=True, slots=True)
class Step:
    """at: seconds from the start. what None: repeat, and no LUN."""

    at: float
    lun: str = ""
    what: Fault | Ok | Load | None = None


@dataclass(frozen=True, slots=True)
class Script:
    """Steps in the order of their times; a `repeat` is the last."""

    luns: tuple[NewLun, ...]
    steps: tuple[Step, ...]


def parse(text: str) -> Script:
    """Raises ScriptError."""
    luns: dict[str, NewLun] = {}
    steps: list[Step] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            if words[0] == "lun":
                lun = _lun(words)
                luns[lun.name] = lun
            else:
                steps.append(_step(words, luns))
        except ValueError as error:
            raise ScriptError(f"line {number} ({' '.join(words)}): {error}") from None
    steps.sort(key=lambda step: step.at)
    if any(step.what is None for step in steps[:-1]):
        raise ScriptError("repeat must be the last step, and the only one of its kind")
    if steps and steps[-1].what is None and not steps[-1].at:
        raise ScriptError("repeat needs a time after 0s")
    return Script(tuple(luns.values()), tuple(steps))


def _lun(words: list[str]) -> NewLun:
    if len(words) not in (3, 4):
        raise ValueError("write lun NAME SIZE [key=value;…]")
    size = parse_size(words[2], "size")
    if not size or size % 4096:
        raise ValueError(f"size {words[2]} is not a multiple of 4K")
    return NewLun(words[1], size, "".join(words[3:]))


def _step(words: list[str], luns: dict[str, NewLun]) -> Step:
    at = parse_duration(words[0], "time")
    if words[1:] == ["repeat"]:
        return Step(at)
    if len(words) < 3:
        raise ValueError("write TIME LUN load|error|delay|ok …, or TIME repeat")
    _, name, verb, *rest = words
    if name not in luns:
        raise ValueError(f"there is no line `lun {name} …` before it; {meant(name, luns)}")
    if verb not in _VERBS:
        raise ValueError(f"{verb} is not known; {meant(verb, _VERBS)}")
    return Step(at, name, _VERBS[verb](rest))


def _ok(rest: list[str]) -> Ok:
    if rest:
        raise ValueError("nothing follows ok")
    return Ok()


def _load(rest: list[str]) -> Load:
    if len(rest) != 1:
        raise ValueError("write load COMMANDS-PER-SECOND")
    return Load(parse_number(rest[0], "load", 0, 10_000))


def _error(rest: list[str]) -> Fault:
    code, directions = _directed(rest, "error ERRNO [read|write]")
    return Fault(errno=values.error_code(code, "error"), directions=directions)


def _delay(rest: list[str]) -> Fault:
    time, directions = _directed(rest, "delay DURATION [read|write]")
    return Fault(delay=parse_duration(time, "delay") or math.ulp(0), directions=directions)


def _directed(rest: list[str], usage: str) -> tuple[str, frozenset[Direction]]:
    if len(rest) not in (1, 2):
        raise ValueError(f"write {usage}")
    return rest[0], values.directions({"direction": rest[1]} if rest[1:] else {}, "fault")


_VERBS: dict[str, Callable[[list[str]], Fault | Ok | Load]] = {
    "ok": _ok,
    "load": _load,
    "error": _error,
    "delay": _delay,
}
