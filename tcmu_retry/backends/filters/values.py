"""The words that filters are configured with; every function raises ValueError with one sentence for a person."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from tcmu_retry.scsi.request import Direction

SIZE = re.compile(r"(\d+)([KMGT]?)")
DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m)")
SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0}


def check_keys(name: str, settings: Mapping[str, str], known: Iterable[str]) -> None:
    """Every key must be a known one."""
    for key in settings:
        if key not in known:
            raise ValueError(f"filter {name} has no setting {key}; {meant(key, known)}")


def meant(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown word."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"


def directions(settings: Mapping[str, str], name: str) -> frozenset[Direction]:
    """`direction`: read, write or both, which it is if not given."""
    word = str(settings.get("direction", "both"))
    names = {"read": {Direction.READ}, "write": {Direction.WRITE}, "both": {Direction.READ, Direction.WRITE}}
    if word not in names:
        raise ValueError(f"{name}.direction={word} is not a direction; {meant(word, names)}")
    return frozenset(names[word])


def error_code(word: str, key: str) -> int:
    """The number of an errno's name."""
    code = getattr(errno, word, None)
    if not isinstance(code, int):
        near = difflib.get_close_matches(word.upper(), errno.errorcode.values(), n=1)
        hint = f"did you mean {near[0]}?" if near else "write EIO or ENOSPC, for example"
        raise ValueError(f"{key}={word} is not the name of an errno; {hint}")
    return code


def size(word: object, key: str) -> int:
    """Bytes: 4096, 64K, 1M, 2G, 1T."""
    match = SIZE.fullmatch(str(word))
    if not match:
        raise ValueError(f"{key}={word} is not a size; write bytes, or a number with K, M, G or T")
    return int(match[1]) << 10 * " KMGT".index(match[2] or " ")


def count(word: object, key: str) -> int:
    """A whole number of 1 or more."""
    if not str(word).isdecimal() or not int(str(word)):
        raise ValueError(f"{key}={word} is not a count; write 1 or more")
    return int(str(word))


def duration(word: object, key: str) -> float:
    """Seconds of 250ms, 2s, 1m; a unit is asked for, since people differ in what they mean without."""
    match = DURATION.fullmatch(str(word))
    if not match:
        raise ValueError(f"{key}={word} is not a duration; write 250ms, 2s or 1m")
    return float(match[1]) * SECONDS[match[2]]


def chance(word: object, key: str) -> float:
    """A number from 0 to 1."""
    try:
        number = float(str(word))
    except ValueError:
        number = -1
    if not 0 <= number <= 1:
        raise ValueError(f"{key}={word} is not a number from 0 to 1")
    return number


def while_file(settings: Mapping[str, str], name: str) -> Path | None:
    """The trigger file, if one is given; absolute, for nobody knows a daemon's working directory."""
    if "while_file" not in settings:
        return None
    path = Path(str(settings["while_file"]))
    if not path.is_absolute():
        raise ValueError(f"{name}.while_file={path} is not an absolute path; begin it with /")
    return path
