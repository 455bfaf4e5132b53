"""The words that filters are configured with; every function raises ValueError with one sentence for a person."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from tcmu_retry.core.words import meant, nearest
from tcmu_retry.scsi.request import Direction

DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m)")
SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0}


def check_keys(name: str, settings: Mapping[str, str], known: Iterable[str]) -> None:
    """Every key must be a known one."""
    for key in settings:
        if key not in known:
            raise ValueError(f"filter {name} has no setting {key}; {meant(key, known)}")


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
        near = nearest(word.upper(), errno.errorcode.values())
        hint = f"did you mean {near}?" if near else "write EIO or ENOSPC, for example"
        raise ValueError(f"{key}={word} is not the name of an errno; {hint}")
    return code


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


def while_file(settings: Mapping[str, str], name: str) -> Path | None:
    """The trigger file, if one is given; absolute, for nobody knows a daemon's working directory."""
    if "while_file" not in settings:
        return None
    path = Path(str(settings["while_file"]))
    if not path.is_absolute():
        raise ValueError(f"{name}.while_file={path} is not an absolute path; begin it with /")
    return path
