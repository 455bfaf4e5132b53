"""Words that people write: durations, sizes, booleans, and the nearest of those we know."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from decimal import Decimal

# Decimal, for what is shown must be read back as it was, and a float has no thousandth.
_UNITS = {"": Decimal("0.001"), "ms": Decimal("0.001"), "s": Decimal(1)}
_UNITS |= {"m": Decimal(60), "min": Decimal(60), "h": Decimal(3600)}
_SIZES = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
LONGEST = 100 * 365.25 * 86400.0  # seconds; what is longer is a mistake, and no clock counts to infinity
_DURATION = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([a-z]*)")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was most likely meant to be."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def meant(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown word."""
    known = list(known)
    near = nearest(word, known)
    return f"did you mean {near}?" if near else f"known are {', '.join(known)}"


def parse_duration(value: object, key: str) -> float:
    """Seconds from "500ms", "30s", "2m", "1h"; a bare number is milliseconds, as QEMU writes it. Raises ValueError."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
        seconds = value / 1000 if value <= LONGEST * 1000 else math.inf
    else:
        match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None or match[2] not in _UNITS:
            raise ValueError(
                f"{key}={value} is not a duration; write 500ms, 30s, 2m or 1h, or a number of milliseconds"
            )
        seconds = float(Decimal(match[1]) * _UNITS[match[2]])
    if seconds > LONGEST:
        raise ValueError(f"{key}={value} is more than 100 years; 0 stands for ever where that makes sense")
    return seconds


def format_duration(seconds: float) -> str:
    """What parse_duration reads back: "1.5s", "250ms", "2m", "0s"."""
    exact = Decimal(repr(seconds))
    if exact and exact < 1:
        return f"{format_number(exact * 1000)}ms"
    for unit, factor in (("h", 3600), ("m", 60)):
        if exact and exact % factor == 0:
            return f"{format_number(exact / factor)}{unit}"
    return f"{format_number(exact)}s"


def format_number(value: float | Decimal) -> str:
    """All digits and no exponent, so that it can be read back."""
    text = format(value if isinstance(value, Decimal) else Decimal(repr(value)), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def parse_bool(value: object, key: str) -> bool:
    """True or false by the words people use. Raises ValueError."""
    if isinstance(value, bool):
        return value
    word = str(value).lower()
    if word in ("true", "yes", "on", "1"):
        return True
    if word in ("false", "no", "off", "0"):
        return False
    raise ValueError(f"{key}={value} is neither true nor false")


def parse_number(value: object, key: str, low: float, high: float = math.inf) -> float:
    """A finite number between low and high. Raises ValueError."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not low <= number <= high or not math.isfinite(number):
        bounds = f"of at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise ValueError(f"{key}={value} is not a number {bounds}")
    return number


def parse_size(value: object, key: str) -> int:
    """Bytes from 4096, "512M", "20G" (powers of 1024). Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = re.fullmatch(r"(\d+)\s*([kmgt]?)(i?b)?", str(value).strip().lower())
    if match is None:
        raise ValueError(f"{key}={value} is not a size; write bytes, or 512M, 20G, 1T")
    return int(match[1]) * _SIZES.get(match[2], 1)


def format_size(size: int) -> str:
    """For people: "20 GiB", "1.5 GiB", "512 B"."""
    number, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if number < 1024:
            break
        number, unit = number / 1024, larger
    return f"{number:.4g} {unit}"
