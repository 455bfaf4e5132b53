"""The daemon's log in systemd's journal, with fields.

The native protocol (systemd: docs/JOURNAL_NATIVE_PROTOCOL.md): a datagram of FIELD=value lines; a value with a line
break comes after its name and a 64-bit little-endian length.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

from tcmu_retry.core.events import GOOD_NEWS, edge, message_id
from tcmu_retry.daemon.api import Notice

SOCKET = Path("/run/systemd/journal/socket")
LONGEST = 64 << 10  # of a value; a datagram has to fit into the socket's buffer
PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}


def configure(debug: bool) -> None:
    """Log to the journal if it is what standard error leads to, else to standard error."""
    handler: logging.Handler
    if _is_journal(sys.stderr.fileno()) and SOCKET.exists():
        handler = JournalHandler(SOCKET)
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, handlers=[handler])
    for chatty in ("pyroute2", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.INFO)


def _is_journal(fd: int) -> bool:
    """systemd.exec(5): JOURNAL_STREAM is device:inode of the stream; processes inherit it whose output differs."""
    status = os.fstat(fd)
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class JournalHandler(logging.Handler):
    """Never waits: what the journal does not take at once is counted, and told of with the next line it takes.

    A record's `journal` (a mapping, given by `extra`) becomes fields besides the usual ones.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        with contextlib.suppress(OSError):  # what the system grants is enough for all but the longest
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            fields = {
                "MESSAGE": self.format(record),
                "PRIORITY": PRIORITIES.get(record.levelno, 6),
                "SYSLOG_IDENTIFIER": "tcmu-retryd",
                "LOGGER": record.name,
                "THREAD_NAME": record.threadName,
                "CODE_FILE": record.pathname,
                "CODE_LINE": record.lineno,
                "CODE_FUNC": record.funcName,
                **getattr(record, "journal", {}),
            }
            if self._lost:
                fields["TCMU_RETRY_LOST_LINES"] = self._lost
            self._socket.sendto(encode(fields), self._path)
            self._lost = 0
        except OSError:
            self._lost += 1
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        self._socket.close()
        super().close()


def encode(fields: Mapping[str, object]) -> bytes:
    """A datagram of the native protocol. Names in capitals; values are cut at LONGEST bytes."""
    parts = []
    for name, value in fields.items():
        data = str(value).encode(errors="replace")[:LONGEST]
        if b"\n" in data:
            parts.append(name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n")
        else:
            parts.append(name.encode() + b"=" + data + b"\n")
    return b"".join(parts)


def write(log: logging.Logger, notice: Notice) -> None:
    """An event as a line of the log, and its fields as the journal's."""
    fields = {f"TCMU_RETRY_{name.upper()}": value for name, value in notice.fields.items()}
    log.log(
        logging.INFO if notice.code in GOOD_NEWS else logging.WARNING,
        "%s %s: %s",
        notice.code,
        notice.device,
        notice.message,
        extra={
            "journal": {
                "MESSAGE_ID": message_id(notice.code),
                "TCMU_RETRY_CODE": notice.code,
                "TCMU_RETRY_EDGE": edge(notice.code),
                "TCMU_RETRY_DEVICE": notice.device,
                **fields,
            }
        },
    )
