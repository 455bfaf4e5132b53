"""What happened, on disk and bounded: events, and the curve of each LUN while something was the matter with it.

SQLite in one file, touched by one thread alone: a disk that hangs must not hang the main loop. What it cannot take is
dropped, and said so once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import TypeVar

from tcmu_retry.daemon.api import ApiError, Notice, Sample

log = logging.getLogger(__name__)
T = TypeVar("T")

BACKLOG = 10_000  # changes that wait for the disk
ANSWER_SECONDS = 10.0
PRUNE_EVERY = 500  # rows written
VERSION = 1
TABLES = ("events", "samples")
_COLUMNS = ", ".join(field.name for field in fields(Sample))
_MARKS = ", ".join("?" for _ in fields(Sample))
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS events (id INTEGER PRIMARY KEY, device, code, message, time, fields);
CREATE TABLE IF NOT EXISTS samples (id INTEGER PRIMARY KEY, device, {_COLUMNS});
CREATE INDEX IF NOT EXISTS events_of ON events (device, id);
CREATE INDEX IF NOT EXISTS samples_of ON samples (device, id);
PRAGMA user_version = {VERSION};
"""


class History:
    """Writing returns at once; reading sees what was written before."""

    def __init__(self, path: Path | None, per_device: int = 20_000, total: int = 200_000) -> None:
        """path None: only in memory. per_device, total: rows of each table that are kept, the newest."""
        self._path = path
        self._per_device = per_device
        self._total = total
        self._work: queue.Queue[Callable[[sqlite3.Connection], None] | None] = queue.Queue(BACKLOG)
        self._written = 0
        self._troubled = False
        self._thread = threading.Thread(target=self._run, name="history", daemon=True)
        self._thread.start()

    def add_event(self, notice: Notice) -> None:
        row = (notice.device, notice.code, notice.message, notice.time, json.dumps(dict(notice.fields), default=str))
        self._put(
            lambda db: db.execute(
                "INSERT INTO events (device, code, message, time, fields) VALUES (?, ?, ?, ?, ?)", row
            ).close()
        )

    def add_samples(self, device: str, samples: Sequence[Sample]) -> None:
        rows = [(device, *astuple(sample)) for sample in samples]
        statement = f"INSERT INTO samples (device, {_COLUMNS}) VALUES (?, {_MARKS})"
        self._put(lambda db: db.executemany(statement, rows).close())

    async def events(self, device: str, since: float, limit: int) -> list[Notice]:
        """The last events, oldest first; device "": of all. Raises ApiError."""

        def read(db: sqlite3.Connection) -> list[Notice]:
            rows = db.execute(
                "SELECT code, device, message, time, fields FROM events"
                " WHERE (? = '' OR device = ?) AND time >= ? ORDER BY id DESC LIMIT ?",
                (device, device, since, limit),
            ).fetchall()
            return [
                Notice(code, name, message, when, json.loads(shown))
                for code, name, message, when, shown in reversed(rows)
            ]

        return await self._ask(read)

    async def samples(self, device: str, since: float, limit: int) -> list[Sample]:
        """The last samples, oldest first; since 0: those of the last stretch. Raises ApiError."""

        def read(db: sqlite3.Connection) -> list[Sample]:
            wanted = (
                "time >= ?"
                if since
                else "stretch = (SELECT stretch FROM samples WHERE device = ? ORDER BY id DESC LIMIT 1)"
            )
            rows = db.execute(
                f"SELECT {_COLUMNS} FROM samples WHERE device = ? AND {wanted} ORDER BY id DESC LIMIT ?",
                (device, since or device, limit),
            ).fetchall()
            return [Sample(*row) for row in reversed(rows)]

        return await self._ask(read)

    def close(self, seconds: float = 2.0) -> None:
        """Write what waits, for so long at most."""
        with contextlib.suppress(queue.Full):
            self._work.put_nowait(None)
            self._thread.join(seconds)

    # ---- the thread

    def _put(self, change: Callable[[sqlite3.Connection], None]) -> None:
        try:
            self._work.put_nowait(change)
        except queue.Full:
            self._trouble("the disk does not keep up")

    async def _ask(self, read: Callable[[sqlite3.Connection], T]) -> T:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def settle(error: Exception | None, result: T | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)  # type: ignore[arg-type]

        def work(db: sqlite3.Connection) -> None:
            result, error = None, None
            try:
                result = read(db)
            except (sqlite3.Error, ValueError) as failure:
                error = ApiError("Failed", f"the history cannot be read: {failure}")
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(settle, error, result)

        try:
            self._work.put_nowait(work)
            return await asyncio.wait_for(answer, ANSWER_SECONDS)
        except (TimeoutError, queue.Full):
            raise ApiError("Busy", f"the history's disk ({self._path}) does not answer") from None

    def _run(self) -> None:
        db = self._open()
        while (work := self._work.get()) is not None:
            try:
                work(db)
                self._written += 1
                if self._written % PRUNE_EVERY == 0:
                    self._prune(db)
                if self._work.empty():
                    db.commit()
                    self._troubled = False
            except Exception as error:  # not only SQLite's: what it cannot encode, for example
                self._trouble(str(error))
        with contextlib.suppress(sqlite3.Error):
            db.commit()
            db.close()

    def _open(self) -> sqlite3.Connection:
        if self._path is None:
            return _connect(":memory:")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                return _connect(str(self._path))
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                aside = self._path.with_suffix(".damaged")
                log.error("the history %s is damaged (%s); it is kept as %s and begun anew", self._path, error, aside)
                self._path.rename(aside)
                return _connect(str(self._path))
        except (OSError, sqlite3.Error) as error:
            log.error("the history cannot be kept in %s (%s); it is kept in memory only", self._path, error)
            return _connect(":memory:")

    def _prune(self, db: sqlite3.Connection) -> None:
        for table in TABLES:
            for (device,) in db.execute(f"SELECT DISTINCT device FROM {table}").fetchall():
                db.execute(
                    f"DELETE FROM {table} WHERE device = ? AND id <="
                    f" (SELECT id FROM {table} WHERE device = ? ORDER BY id DESC LIMIT 1 OFFSET ?)",
                    (device, device, self._per_device),
                )
            db.execute(
                f"DELETE FROM {table} WHERE id <= (SELECT id FROM {table} ORDER BY id DESC LIMIT 1 OFFSET ?)",
                (self._total,),
            )

    def _trouble(self, what: str) -> None:
        if not self._troubled:
            self._troubled = True
            log.error("the history %s has gaps from now on: %s", self._path or "in memory", what)


def _connect(path: str) -> sqlite3.Connection:
    """Raises sqlite3.DatabaseError where the file is no database, or one of another version."""
    db = sqlite3.connect(path, timeout=1.0)
    try:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, VERSION):
            raise sqlite3.DatabaseError(f"its version is {version}, not {VERSION}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.executescript(_SCHEMA)
    except sqlite3.Error:
        db.close()
        raise
    return db
