"""What is kept over restarts of the policy changes that somebody asked to persist: a TOML file per LUN.

    # Changed with persist; `tcmu-retry policy reset vm1 --persist` takes it back.
    path = "/srv/vm1.img"
    "write.retry_timeout" = "2m"

It counts only for the storage it was made for: another LUN of the same name starts with its own configuration.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

log = logging.getLogger(__name__)


class Keep:
    """A directory; made when something is kept. All of it may block."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def load(self, name: str, path: str) -> dict[str, str]:
        """A LUN's kept changes. A file that cannot be used is left out, and the log says why."""
        file = self._file(name)
        try:
            table = tomllib.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            log.error("LUN %s: %s cannot be read, so no kept policy counts: %s", name, file, error)
            return {}
        if table.pop("path", path) != path:
            log.warning("LUN %s: %s was made for other storage and is left out; remove it", name, file)
            return {}
        return {key: str(value) for key, value in table.items()}

    def save(self, name: str, path: str, changes: Mapping[str, str]) -> None:
        """Atomically, and on stable media when it returns. Raises OSError."""
        if not changes:
            self.forget(name)
            return
        lines = [f"# Changed with persist; `tcmu-retry policy reset {name} --persist` takes it back."]
        lines += [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in {"path": path, **changes}.items()]
        self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        file = self._file(name)
        new = file.with_suffix(".new")
        with new.open("w", encoding="utf-8") as stream:
            stream.write("\n".join(lines) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(file)
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def forget(self, name: str) -> None:
        """Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            self._file(name).unlink()

    def _file(self, name: str) -> Path:
        """Backstores made elsewhere may have any name."""
        return self._directory / (re.sub(r"[^A-Za-z0-9_-]", lambda match: f"%{ord(match[0]):x}", name) + ".toml")
