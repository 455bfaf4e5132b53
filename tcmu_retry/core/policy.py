"""Policy: what is done with a command that failed, per direction and class of error, and the words it is written in.

One grammar serves configuration strings, TOML, D-Bus and the command line: flat keys, `retry_timeout` for both
directions, `read.retry_timeout` for one, `write.classes.space.fallback` for one class of error. QEMU's words (werror=,
rerror=, read-retry-timeout= …) are translated into these.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from tcmu_retry.core.errors import ErrorClass, ReportAs
from tcmu_retry.core.words import format_duration, format_number, meant, parse_bool, parse_duration, parse_number
from tcmu_retry.scsi.request import Direction

LEAST_WAIT = 0.01  # s; without any, one LUN would have the main loop for itself


class PolicyError(ValueError):
    """A setting that makes no sense: one sentence naming key, value and what would be right."""


class Fallback(enum.Enum):
    """What follows when retrying is over, or was never wanted."""

    REPORT = "report"
    IGNORE = "ignore"
    STOP = "stop"
    ENOSPC = "enospc"
    READONLY = "readonly"
    OFFLINE = "offline"
    BUSY = "busy"


@dataclass(frozen=True, slots=True)
class ClassPolicy:
    """What differs for one class of error; None inherits. attempts: in all, 0 for no limit."""

    retry: bool | None = None
    retry_interval: float | None = None
    retry_backoff: float | None = None
    retry_max_interval: float | None = None
    retry_jitter: float | None = None
    retry_timeout: float | None = None
    fallback: Fallback | None = None
    report_as: ReportAs | None = None
    attempts: int | None = None


_CLASSES = {
    ErrorClass.PERMANENT: ClassPolicy(retry=False),
    ErrorClass.MEDIUM: ClassPolicy(attempts=3, fallback=Fallback.REPORT),
}


@dataclass(frozen=True, slots=True)
class DirectionPolicy:
    """One direction's settings. Times in seconds; retry_timeout 0 is for ever."""

    retry: bool = True
    retry_interval: float = 1.0
    retry_backoff: float = 2.0
    retry_max_interval: float = 30.0
    retry_jitter: float = 0.1
    retry_timeout: float = 0.0
    fallback: Fallback = Fallback.REPORT
    report_as: ReportAs = ReportAs.AUTO
    attempts: int = 0  # of classes only
    classes: Mapping[ErrorClass, ClassPolicy] = field(default_factory=lambda: dict(_CLASSES))

    def of(self, group: ErrorClass) -> DirectionPolicy:
        """These settings as they are for one class of error."""
        override = self.classes.get(group)
        if override is None:
            return self
        changed = {item.name: value for item in fields(override) if (value := getattr(override, item.name)) is not None}
        return replace(self, **changed)

    def delay(self, attempts: int, chance: float) -> float:
        """Seconds to wait after so many attempts, LEAST_WAIT at least; chance: 0..1, spreads it by the jitter."""
        steps = min(max(attempts, 1) - 1, 64)  # beyond that every back-off has reached its maximum
        try:
            wait = min(self.retry_interval * self.retry_backoff**steps, self.retry_max_interval)
        except OverflowError:
            wait = self.retry_max_interval
        return max(wait * (1 + self.retry_jitter * (2 * chance - 1)), LEAST_WAIT)


@dataclass(frozen=True, slots=True)
class Policy:
    """A LUN's policy. allow_data_loss: permits `ignore`, which answers GOOD for what was not done."""

    read: DirectionPolicy = field(default_factory=DirectionPolicy)
    write: DirectionPolicy = field(default_factory=DirectionPolicy)
    allow_data_loss: bool = False

    def of(self, direction: Direction) -> DirectionPolicy:
        return self.read if direction is Direction.READ else self.write


@dataclass(frozen=True, slots=True)
class Budgets:
    """Most that a LUN holds; over it, BUSY. age in seconds. 0 for no limit.

    The defaults exceed what the sessions of one LUN can have open: Linux gives up on BUSY after 180 s.
    """

    held: int = 4096
    held_bytes: int = 512 << 20
    age: float = 0.0


DEFAULT = Policy()


def _choice(kind: type[enum.Enum]) -> Callable[[object, str], enum.Enum]:
    words = [str(item.value) for item in kind]

    def parse(value: object, key: str) -> enum.Enum:
        if value not in words:
            raise ValueError(f"{key}={value} is not known; {meant(str(value), words)}")
        return kind(value)

    return parse


def _attempts(value: object, key: str) -> int:
    number = parse_number(value, key, 0)
    if number != int(number):
        raise ValueError(f"{key}={value} is not a whole number")
    return int(number)


_PARSERS: dict[str, Callable[[object, str], Any]] = {
    "retry": parse_bool,
    "retry_interval": parse_duration,
    "retry_backoff": lambda value, key: parse_number(value, key, 1),
    "retry_max_interval": parse_duration,
    "retry_jitter": lambda value, key: parse_number(value, key, 0, 1),
    "retry_timeout": parse_duration,
    "fallback": _choice(Fallback),
    "report_as": _choice(ReportAs),
    "attempts": _attempts,
}
SETTINGS = tuple(name for name in _PARSERS if name != "attempts")
CLASSES = tuple(group.value for group in ErrorClass)
QEMU = (
    "werror",
    "rerror",
    "read-retry-interval",
    "read-retry-timeout",
    "write-retry-interval",
    "write-retry-timeout",
)
KEYS = (*SETTINGS, "allow_data_loss", *QEMU)  # the first parts of keys; `read.`, `write.`, `classes.X.` go before
_SIDES = {"read": (Direction.READ,), "write": (Direction.WRITE,)}


def change(policy: Policy, changes: Mapping[str, object]) -> Policy:
    """The policy with these changes, all or none. Raises PolicyError."""
    try:
        for key, value in _translate(policy, changes):
            policy = _set(policy, key, value)
        _check(policy)
    except PolicyError:
        raise
    except ValueError as error:
        raise PolicyError(str(error)) from None
    return policy


def _translate(policy: Policy, changes: Mapping[str, object]) -> list[tuple[str, object]]:
    """QEMU's words in ours. An action together with a retry time-out of its direction means: retry first, then that."""
    ours: list[tuple[str, object]] = []
    for key, value in changes.items():
        if key in ("werror", "rerror"):
            side = "write" if key == "werror" else "read"
            timed = any(name in changes for name in (f"{side}-retry-timeout", f"{side}.retry_timeout", "retry_timeout"))
            words = ("report", "ignore", "enospc", "stop", "retry", "auto")
            if value not in words:
                raise ValueError(f"{key}={value} is not known; {meant(str(value), words)}")
            if value == "auto":
                inherited = DEFAULT.of(_SIDES[side][0])
                ours += [(f"{side}.retry", inherited.retry), (f"{side}.fallback", inherited.fallback.value)]
            else:
                fallback = "report" if value == "retry" else value
                ours += [(f"{side}.retry", value == "retry" or timed), (f"{side}.fallback", fallback)]
        elif key in QEMU:
            side, _, name = key.partition("-")
            ours.append((f"{side}.{name.replace('-', '_')}", value))
        else:
            ours.append((key, value))
    return ours


def touched(changes: Mapping[str, object]) -> frozenset[str]:
    """The keys of `flatten` that valid changes set, whether to another value or not."""
    keys = set()
    for key, _ in _translate(DEFAULT, changes):
        first = key.partition(".")[0]
        both = key != "allow_data_loss" and first not in _SIDES
        keys |= {f"{side}.{key}" for side in _SIDES} if both else {key}
    return frozenset(keys)


def _set(policy: Policy, key: str, value: object) -> Policy:
    if key == "allow_data_loss":
        return replace(policy, allow_data_loss=parse_bool(value, key))
    first, _, rest = key.partition(".")
    sides = _SIDES.get(first, tuple(Direction))
    name = rest if first in _SIDES else key
    for side in sides:
        changed = _set_in(policy.of(side), name, key, value)
        policy = replace(policy, read=changed) if side is Direction.READ else replace(policy, write=changed)
    return policy


def _set_in(settings: DirectionPolicy, name: str, key: str, value: object) -> DirectionPolicy:
    if name.startswith("classes."):
        word, _, setting = name.removeprefix("classes.").partition(".")
        if word not in CLASSES:
            raise ValueError(f"{key}: there is no class of errors {word}; {meant(word, CLASSES)}")
        if setting not in _PARSERS:
            raise ValueError(f"{key} is not a setting; {meant(setting, _PARSERS)}")
        group = ErrorClass(word)
        changed = replace(settings.classes.get(group, ClassPolicy()), **{setting: _PARSERS[setting](value, key)})
        return replace(settings, classes={**settings.classes, group: changed})
    if name not in SETTINGS:
        raise ValueError(f"{key} is not a setting; {meant(name, (*SETTINGS, 'allow_data_loss', *QEMU))}")
    return replace(settings, **{name: _PARSERS[name](value, key)})


def _check(policy: Policy) -> None:
    for side in Direction:
        base = policy.of(side)
        for group in (None, *ErrorClass):
            settings = base if group is None else base.of(group)
            where = side.value if group is None else f"{side.value}.classes.{group.value}"
            if side is Direction.READ and settings.fallback is Fallback.READONLY:
                raise PolicyError(
                    f"{where}.fallback=readonly makes no sense: only writes can be refused so; use offline"
                )
            if settings.fallback is Fallback.IGNORE and not policy.allow_data_loss:
                raise PolicyError(f"{where}.fallback=ignore loses data; it needs allow_data_loss=true beside it")
            if settings.retry_max_interval < settings.retry_interval:
                raise PolicyError(
                    f"{where}.retry_max_interval={format_duration(settings.retry_max_interval)} is shorter than"
                    f" retry_interval={format_duration(settings.retry_interval)}"
                )


def flatten(policy: Policy) -> dict[str, str]:
    """The whole policy in the words that `change` reads."""
    flat: dict[str, str] = {}
    for side in Direction:
        settings = policy.of(side)
        flat |= {f"{side.value}.{name}": _word(name, getattr(settings, name)) for name in SETTINGS}
        for group, override in settings.classes.items():
            for item in fields(override):
                if (value := getattr(override, item.name)) is not None:
                    flat[f"{side.value}.classes.{group.value}.{item.name}"] = _word(item.name, value)
    flat["allow_data_loss"] = _word("allow_data_loss", policy.allow_data_loss)
    return flat


def _word(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, enum.Enum):
        return str(value.value)
    assert isinstance(value, float | int)
    if name in ("retry_interval", "retry_max_interval", "retry_timeout"):
        return format_duration(value)
    return format_number(value)
