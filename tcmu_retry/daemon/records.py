"""What storage a LUN had when it was last seen: a LUN restored after a reboot is served before its storage is there,
and other storage that has taken its path is not taken for it.

One JSON file a LUN, by the backstore's name. It stays when the LUN goes: whether for good or until the next boot, the
kernel does not say. It counts only for a LUN of the same configuration string.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

from tcmu_retry.backends.base import Identity

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Record:
    """A LUN's storage. identity.size: bytes of the storage, which may be more than the LUN's."""

    config: str
    identity: Identity
    can_discard: bool


class Memory:
    """The record of one LUN. keep blocks."""

    def __init__(self, records: Records, name: str, config: str) -> None:
        """Blocks: the record is read now."""
        self._records = records
        self._name = name
        self._config = config
        self.record = records.find(name, config)

    def keep(self, identity: Identity, can_discard: bool) -> None:
        self._records.keep(self._name, Record(self._config, identity, can_discard))


class Records:
    """The directory of them. Everything blocks; what cannot be written is logged, for a LUN must not fail for it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def find(self, name: str, config: str) -> Record | None:
        """The record of a LUN; None where there is none, or none that can be read."""
        try:
            plain = json.loads(self._path(name).read_text(encoding="utf-8"))
            record = Record(plain["config"], Identity(**plain["identity"]), plain["can_discard"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s is no record of LUN %s (%r); its storage is not compared", self._path(name), name, error)
            return None
        return record if record.config == config else None

    def keep(self, name: str, record: Record) -> None:
        if self.find(name, record.config) == record:
            return
        path = self._path(name)
        beside = path.with_suffix(".new")
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with beside.open("w", encoding="utf-8") as file:
                json.dump(asdict(record), file)
                file.flush()
                os.fsync(file.fileno())
            beside.rename(path)
        except OSError as error:
            log.warning("%s cannot be written (%s); after a reboot LUN %s needs its storage at once", path, error, name)

    def drop(self, name: str) -> None:
        try:
            self._path(name).unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be removed: %s", self._path(name), error)

    def _path(self, name: str) -> Path:
        return self._directory / f"{quote(name, safe='')}.json"
