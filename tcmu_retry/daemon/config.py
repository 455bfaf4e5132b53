"""What a LUN is configured to be: a configuration string, TOML files, or one naming the other.

A configuration string (`cfgstring` in targetcli, `--config` of nothing else) is an absolute path, or the name of a file
in devices.d, each with settings behind it:

    /srv/vm1.img;retry_timeout=2m;write.fallback=readonly
    vm1;health=down

devices.d/vm1.toml has `path = "/srv/vm1.img"` and the same settings, nested or with dots. The table [defaults] of
tcmu-retry.toml and of the files in conf.d has settings for all LUNs. What stands nearer to the LUN wins: the vendor's
files, /etc/tcmu-retry/tcmu-retry.toml, conf.d by name, devices.d, the configuration string; over all of these, what
people change while the LUN is served (`daemon.tuning`).

    allowed_paths = ["/srv/luns", "/dev/mapper"]

above [defaults] confines where any LUN's storage may lie; the strongest file's counts.
"""

from __future__ import annotations

import errno
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tcmu_retry.backends import filters
from tcmu_retry.backends.file import within
from tcmu_retry.core import policy as policies
from tcmu_retry.core.initiators import FOR_EVER, PROFILES, Profile, parse_profile
from tcmu_retry.core.policy import DEFAULT, Budgets, Policy, change
from tcmu_retry.core.words import meant, parse_bool, parse_duration, parse_number, parse_size

LONGEST = 255 - len("retry/")  # the kernel's dev_config has 256 bytes, and cuts off what is beyond without a word
VENDOR = Path("/usr/lib/tcmu-retry")
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
    roots: tuple[str, ...] = ()  # directories that its storage must lie in; none: anywhere


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
    "max_held": lambda value, key: int(parse_number(value, key, 0)),
    "max_held_bytes": parse_size,
    "max_hold_age": parse_duration,
    "io_warn_after": parse_duration,
    "initiator": parse_profile,
    "initiator.silence": parse_duration,
    "initiator.busy": parse_duration,
}
PLAIN = (
    "buffered",
    "read_only",
    "cache",
    "health",
    "io_warn_after",
    "initiator",
)  # of OWN, as they stand in DeviceConfig
KNOWN = ("path", *OWN, *filters.KNOWN, "read", "write", "classes", *policies.KEYS)


@dataclass(frozen=True, slots=True)
class _Layer:
    """Settings of one place, with dotted keys."""

    place: str
    settings: Mapping[str, object]


class Source:
    """The configuration's files, read whenever they are needed: an edit counts for the next LUN, or with a reload."""

    def __init__(self, directory: Path, vendor: Path | None = None) -> None:
        self._directory = directory
        self._vendor = vendor

    def verify(self) -> None:
        """Raises ConfigError where the defaults are no good: better no daemon than one that does not do as told."""
        _build([*self._defaults(), _ANYWHERE])

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
        built = _build([*self._defaults(), self._named(first, place), _Layer(place, _pairs(settings, place))])
        roots = self._roots()
        if roots and not any(within(os.path.normpath(built.path), root) for root in roots):
            raise ConfigError(f"{built.path} lies in none of allowed_paths ({', '.join(roots)})", errno.EACCES)
        return replace(built, roots=roots)

    def _roots(self) -> tuple[str, ...]:
        given = [_read(file).get("allowed_paths") for file in self._default_files()]
        return next((tuple(roots) for roots in reversed(given) if roots is not None), ())

    def check(self) -> tuple[list[Path], list[str]]:
        """Reads every file: those that there are, and a sentence about each that cannot be used."""
        read: list[Path] = []
        problems: list[str] = []
        layers: list[_Layer] = []
        for file in self._default_files():
            read.append(file)
            try:
                layer = _defaults_of(file)
                _build([*layers, layer, _ANYWHERE])
                layers.append(layer)
            except ConfigError as error:
                problems.append(str(error))
        for file in sorted(self._devices.glob("*.toml")):
            read.append(file)
            try:
                _build([*layers, self._named(file.stem, str(file))])
            except ConfigError as error:
                problems.append(str(error))
        return read, problems

    @property
    def _devices(self) -> Path:
        return self._directory / "devices.d"

    def _default_files(self) -> list[Path]:
        """From the weakest: the vendor's, the administrator's, and what stands in conf.d by name."""
        found = []
        for directory in filter(None, (self._vendor, self._directory)):
            found += [file for file in (directory / "tcmu-retry.toml",) if file.exists()]
            found += sorted((directory / "conf.d").glob("*.toml"))
        return found

    def _defaults(self) -> list[_Layer]:
        return [_defaults_of(file) for file in self._default_files()]

    def _named(self, name: str, place: str) -> _Layer:
        if name.startswith("/"):
            return _Layer(place, {"path": name})
        path = self._devices / f"{name}.toml"
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name} is neither an absolute path nor the name of a file in {self._devices}")
        if not path.exists():
            known = sorted(file.stem for file in self._devices.glob("*.toml"))
            hint = meant(name, known) if known else f"make it, or give an absolute path like /{name}"
            raise ConfigError(f"there is no {path}; {hint}", errno.ENOENT)
        flat = _flatten(_read(path))
        if "path" not in flat:
            raise ConfigError(f'{path}: there is no path; add path = "/where/the/data/is"')
        return _Layer(str(path), flat)


_ANYWHERE = _Layer("", {"path": "/"})


def _defaults_of(file: Path) -> _Layer:
    table = _read(file)
    for key in table:
        if key not in ("defaults", "allowed_paths"):
            raise ConfigError(f"{file}: there is no table {key}; {meant(key, ['defaults', 'allowed_paths'])}")
    roots = table.get("allowed_paths", [])
    if not isinstance(roots, list) or not all(isinstance(root, str) and root.startswith("/") for root in roots):
        raise ConfigError(f'{file}: allowed_paths must be a list of absolute paths, like ["/srv/luns"]')
    defaults = table.get("defaults", {})
    if not isinstance(defaults, dict):
        raise ConfigError(f"{file}: defaults must be a table, [defaults]")
    if "path" in defaults:
        raise ConfigError(f"{file}: path is a LUN's own; put it into devices.d/NAME.toml")
    return _Layer(str(file), _flatten(defaults))


def _build(layers: Sequence[_Layer]) -> DeviceConfig:
    """One over the other, the last one the strongest. A layer must make sense over those below it."""
    own: dict[str, Any] = {}
    wrapped: dict[str, dict[str, str]] = {}
    policy = DEFAULT
    for layer in layers:
        rules: dict[str, object] = {}
        try:
            for key, value in layer.settings.items():
                first, _, rest = key.partition(".")
                if key == "path":
                    if not isinstance(value, str) or not value.startswith("/"):
                        raise ValueError(f"path must be an absolute path, not {value!r}")
                    own["path"] = value
                elif key in OWN:
                    own[key] = OWN[key](value, key)
                elif first in filters.KNOWN:
                    wrapped.setdefault(first, {})[rest] = str(value)
                elif first not in KNOWN or first in OWN:
                    raise ValueError(f"{key} is not a setting; {meant(key, KNOWN)}")
                else:
                    rules[key] = value
            policy = change(policy, rules)
            filters.parse(wrapped)
            if own.get("buffered") and own.get("cache") == "writeback":
                raise ValueError(
                    "cache=writeback with buffered=true would lose writes whose error the page cache forgets;"
                    " leave one of them out"
                )
        except ValueError as error:
            raise ConfigError(f"{layer.place}: {error}") from None
    usual = Budgets()
    budgets = Budgets(
        own.get("max_held", usual.held), own.get("max_held_bytes", usual.held_bytes), own.get("max_hold_age", usual.age)
    )
    if measured := {key: value or FOR_EVER for key, value in own.items() if key.startswith("initiator.")}:
        base = own.get("initiator", PROFILES["linux"])
        own["initiator"] = Profile(
            "custom",
            measured.get("initiator.silence", base.silence),
            measured.get("initiator.busy", base.busy),
            "configured",
        )
    plain = {key: own[key] for key in PLAIN if key in own}
    return DeviceConfig(own["path"], policy=policy, budgets=budgets, filters=wrapped, **plain)


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
