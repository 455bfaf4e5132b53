"""What a LUN is configured to be: a configuration string, TOML files, or one naming the other.

A configuration string (`cfgstring` in targetcli, `--config` of nothing else) is an absolute path, or the name of a file
in devices.d, each with settings behind it:

    /srv/vm1.img;retry_timeout=2m;write.fallback=readonly
    vm1;health=down

devices.d/vm1.toml has `path = "/srv/vm1.img"` and the same settings, nested or with dots; the table [defaults] of
tcmu-retry.toml has settings for all LUNs. What stands nearer to the LUN wins.
"""

from __future__ import annotations

import errno
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tcmu_retry.backends import filters
from tcmu_retry.core import policy as policies
from tcmu_retry.core.initiators import FOR_EVER, PROFILES, Profile, parse_profile
from tcmu_retry.core.policy import DEFAULT, Budgets, Policy, PolicyError, change
from tcmu_retry.core.words import meant, parse_bool, parse_duration, parse_number, parse_size

LONGEST = 255 - len("retry/")  # the kernel's dev_config has 256 bytes, and cuts off what is beyond without a word
HEALTH = ("good", "transitioning", "down")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class ConfigError(Exception):
    """A configuration that cannot be used: one sentence that says what, where and what to do. errno: for the kernel."""

    def __init__(self, message: str, code: int = errno.EINVAL) -> None:
        super().__init__(message)
        self.errno = code


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """A LUN's configuration. filters: by name, their settings."""

    path: str
    buffered: bool = False
    read_only: bool = False
    cache: str = "writethrough"
    policy: Policy = DEFAULT
    budgets: Budgets = field(default_factory=Budgets)
    health: str = "good"
    initiator: Profile = PROFILES["linux"]
    io_warn_after: float = 10.0  # seconds that I/O may be out before it counts as hung
    filters: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def _word(words: tuple[str, ...]) -> Callable[[object, str], object]:
    def parse(value: object, key: str) -> object:
        if value not in words:
            raise ValueError(f"{key}={value} is not known; {meant(str(value), words)}")
        return value

    return parse


OWN: dict[str, Callable[[object, str], object]] = {
    "buffered": parse_bool,
    "read_only": parse_bool,
    "health": _word(HEALTH),
    "cache": _word(("writethrough", "writeback")),
    "max_held": lambda value, key: int(parse_number(value, key, 1)),
    "max_held_bytes": parse_size,
    "max_hold_age": parse_duration,
    "io_warn_after": parse_duration,
    "initiator": parse_profile,
    "initiator.silence": parse_duration,
    "initiator.busy": parse_duration,
}
KNOWN = ("path", *OWN, *filters.KNOWN, "read", "write", "classes", *policies.KEYS)


class Source:
    """The configuration directory. Files are read when a LUN is looked up, so that an edit counts for the next one."""

    def __init__(self, directory: Path) -> None:
        """Raises ConfigError where tcmu-retry.toml is no good: better no daemon than one that does not do as told."""
        self._directory = directory
        self._build({**self._defaults(), "path": "/"}, directory / "tcmu-retry.toml")

    def device(self, config: str) -> DeviceConfig:
        """What a configuration string means. Raises ConfigError."""
        if not config:
            raise ConfigError("the configuration string is empty; give an absolute path, or a name in devices.d")
        # The kernel ends a value at a comma or blank; rtslib refuses a colon.
        if bad := next((each for each in config if each in ",: " or not each.isprintable()), None):
            raise ConfigError(
                f"the configuration string must not contain {bad!r}; use another path, or a file in"
                f" {self._directory}/devices.d, whose name is the configuration string"
            )
        if len(config.encode()) > LONGEST:
            raise ConfigError(
                f"the configuration string has {len(config.encode())} bytes, the kernel takes {LONGEST};"
                f" put it into {self._directory}/devices.d/NAME.toml and give NAME"
            )
        first, *settings = config.split(";")
        place = f"configuration string {config}"
        flat = {**self._defaults(), **self._named(first), **_pairs(settings, place)}
        return self._build(flat, place)

    def _defaults(self) -> dict[str, object]:
        path = self._directory / "tcmu-retry.toml"
        table = _read(path) if path.exists() else {}
        for key in table:
            if key != "defaults":
                raise ConfigError(f"{path}: there is no table {key}; {meant(key, ['defaults'])}")
        defaults = table.get("defaults", {})
        if not isinstance(defaults, dict):
            raise ConfigError(f"{path}: defaults must be a table, [defaults]")
        return _flatten(defaults)

    def _named(self, name: str) -> dict[str, object]:
        if name.startswith("/"):
            return {"path": name}
        folder = self._directory / "devices.d"
        path = folder / f"{name}.toml"
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name} is neither an absolute path nor the name of a file in {folder}")
        if not path.exists():
            known = sorted(file.stem for file in folder.glob("*.toml"))
            hint = meant(name, known) if known else f"make it, or give an absolute path like /{name}"
            raise ConfigError(f"there is no {path}; {hint}", errno.ENOENT)
        flat = _flatten(_read(path))
        if "path" not in flat:
            raise ConfigError(f'{path}: there is no path; add path = "/where/the/data/is"')
        return flat

    def _build(self, flat: Mapping[str, object], place: object) -> DeviceConfig:
        own: dict[str, Any] = {}
        layers: dict[str, dict[str, str]] = {}
        rules: dict[str, object] = {}
        try:
            for key, value in flat.items():
                first = key.split(".")[0]
                if key in OWN:
                    own[key] = OWN[key](value, key)
                elif first in filters.KNOWN:
                    layers.setdefault(first, {})[key.partition(".")[2]] = str(value)
                elif key != "path":
                    if first not in KNOWN or first in OWN:
                        raise ValueError(f"{key} is not a setting; {meant(key, KNOWN)}")
                    rules[key] = value
            policy = change(DEFAULT, rules)
            filters.parse(layers)
        except (PolicyError, ValueError) as error:
            raise ConfigError(f"{place}: {error}") from None
        path = flat.get("path")
        if not isinstance(path, str) or not path.startswith("/"):
            raise ConfigError(f"{place}: path must be an absolute path, not {path!r}")
        if own.get("buffered") and own.get("cache") == "writeback":
            raise ConfigError(
                f"{place}: cache=writeback with buffered=true would lose writes whose error the page cache forgets;"
                " leave one of them out"
            )
        usual = Budgets()
        budgets = Budgets(
            own.get("max_held", usual.held), own.get("max_held_bytes", usual.held_bytes), own.get("max_hold_age", 0.0)
        )
        if measured := {key: value or FOR_EVER for key, value in own.items() if key.startswith("initiator.")}:
            base = own.get("initiator", PROFILES["linux"])
            own["initiator"] = Profile(
                "custom",
                measured.get("initiator.silence", base.silence),
                measured.get("initiator.busy", base.busy),
                "configured",
            )
        plain = {
            key: own[key]
            for key in ("buffered", "read_only", "cache", "health", "io_warn_after", "initiator")
            if key in own
        }
        return DeviceConfig(path, policy=policy, budgets=budgets, filters=layers, **plain)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", error.errno or errno.EIO) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Nested tables as dotted keys."""
    flat: dict[str, object] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _pairs(settings: list[str], place: str) -> dict[str, object]:
    pairs: dict[str, object] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not setting:
            continue
        if not equals or not key:
            raise ConfigError(f"{place}: {setting} is not key=value")
        if key == "path":
            raise ConfigError(f"{place}: the path stands first, without path=")
        if key in pairs:
            raise ConfigError(f"{place}: {key} is given twice")
        pairs[key] = value
    return pairs
