"""Between Python's values and D-Bus's: records become a{sv} with kebab-case keys, what does not apply is left out."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from tcmu_retry.core.words import meant
from tcmu_retry.daemon.api import ApiError
from tcmu_retry.dbus._lib import Variant

KINDS: dict[str, type] = {"text": str, "number": int, "switch": bool, "list of texts": list}


def variant(value: object) -> Variant:
    """Whole numbers travel as t, or x if negative; what D-Bus has no type for as text."""
    match value:
        case Variant():
            return value
        case enum.Enum():
            return variant(value.value)
        case bool():
            return Variant("b", value)
        case int():
            return Variant("t" if value >= 0 else "x", value)
        case float():
            return Variant("d", value)
        case Mapping():
            return Variant("a{sv}", {str(key): variant(item) for key, item in value.items()})
        case str():
            return Variant("s", value)
        case Sequence():
            return Variant("as", [str(item) for item in value])
        case _:
            return Variant("s", str(value))


def record(item: Any, **special: Variant) -> dict[str, Variant]:
    """A dataclass as a{sv}; fields named in `special` are given."""
    result: dict[str, Variant] = {}
    for field in fields(item):
        value = getattr(item, field.name)
        if value is None:
            continue
        key = field.name.replace("_", "-")
        if field.name in special:
            result[key] = special[field.name]
        elif hasattr(value, "__dataclass_fields__"):
            result[key] = Variant("a{sv}", record(value))
        else:
            result[key] = variant(value)
    return result


def plain(value: Any) -> Any:
    """Without variants, at any depth."""
    match value:
        case Variant():
            return plain(value.value)
        case dict():
            return {key: plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case _:
            return value


def options(given: Mapping[str, Variant], known: Mapping[str, str]) -> dict[str, Any]:
    """Options as keyword arguments; `known` gives each one's kind. Raises ApiError InvalidArgument."""
    result = {}
    for key, value in plain(dict(given)).items():
        if key not in known:
            raise ApiError("InvalidArgument", f"there is no option {key}; {meant(key, known)}")
        kind = KINDS[known[key]]
        items = value if kind is list and isinstance(value, list) else []
        if type(value) is not kind or not all(isinstance(item, str) for item in items):
            raise ApiError("InvalidArgument", f"the option {key} must be a {known[key]}")
        if isinstance(value, int) and value < 0:
            raise ApiError("InvalidArgument", f"the option {key} must not be negative")
        result[key.replace("-", "_")] = value
    return result


def seconds(value: float, what: str) -> float | None:
    """A time from the bus, None for 0. Raises ApiError InvalidArgument."""
    if not math.isfinite(value) or value < 0:
        raise ApiError("InvalidArgument", f"{what} must be a number of seconds, 0 for no end")
    return value or None
