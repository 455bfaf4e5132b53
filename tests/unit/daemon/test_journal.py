"""The log in systemd's journal: its wire format, its fields, and that it never waits."""

from __future__ import annotations

import logging
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tcmu_retry.core import events
from tcmu_retry.daemon import journal
from tcmu_retry.daemon.api import Notice

CATALOG = Path(__file__).resolve().parents[3] / "packaging/systemd/tcmu-retry.catalog"


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as opened:
        opened.bind(str(tmp_path / "socket"))
        opened.settimeout(5)
        yield opened


@pytest.fixture
def log(receiver: socket.socket) -> Iterator[logging.Logger]:
    handler = journal.JournalHandler(Path(receiver.getsockname()))
    logger = logging.Logger("tcmu_retry.test")
    logger.addHandler(handler)
    yield logger
    handler.close()


def decode(data: bytes) -> dict[str, str]:
    """The reading side of the native protocol."""
    fields = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if equals:
            data = rest
        else:
            [length] = struct.unpack("<Q", rest[:8])
            value, data = rest[8 : 8 + length], rest[8 + length + 1 :]
        fields[name.decode()] = value.decode()
    return fields


def test_an_event_has_its_message_id_and_its_fields(log: logging.Logger, receiver: socket.socket) -> None:
    fields = {"direction": "write", "errno": "EIO"}
    journal.write(log, Notice(events.OUTAGE_BEGAN, "vm1", "writes: an outage began", 1.0, fields))
    got = decode(receiver.recv(1 << 16))
    assert got["MESSAGE"] == "TR-001 vm1: writes: an outage began"
    assert got["MESSAGE_ID"] == events.message_id("TR-001")
    assert (got["TCMU_RETRY_CODE"], got["TCMU_RETRY_EDGE"], got["TCMU_RETRY_DEVICE"]) == ("TR-001", "begin", "vm1")
    assert (got["TCMU_RETRY_DIRECTION"], got["TCMU_RETRY_ERRNO"]) == ("write", "EIO")
    assert (got["PRIORITY"], got["SYSLOG_IDENTIFIER"]) == ("4", "tcmu-retryd")
    assert got["CODE_FUNC"] == "write"


def test_line_breaks_and_tracebacks_stay_in_one_entry(log: logging.Logger, receiver: socket.socket) -> None:
    try:
        raise ValueError("one\nTWO=2")
    except ValueError:
        log.exception("failed")
    got = decode(receiver.recv(1 << 16))
    assert got["MESSAGE"].startswith("failed\nTraceback")
    assert got["MESSAGE"].endswith("one\nTWO=2")
    assert "TWO" not in got


def test_a_journal_that_does_not_read_is_not_waited_for(log: logging.Logger, receiver: socket.socket) -> None:
    """More lines than fit: none waits, and the next that gets through says how many were lost."""
    for number in range(5000):
        log.info("line %d %s", number, "x" * 1000)
    taken = 0
    receiver.setblocking(False)
    try:
        while receiver.recv(1 << 16):
            taken += 1
    except BlockingIOError:
        pass
    log.info("again")
    got = decode(receiver.recv(1 << 16))
    assert got["MESSAGE"] == "again"
    assert int(got["TCMU_RETRY_LOST_LINES"]) == 5000 - taken > 0


def test_the_catalog_explains_every_event() -> None:
    """`journalctl -x` shows what `tcmu-retry explain` does."""
    text = "\n".join(
        f"-- {events.message_id(code)}\nSubject: {code}: @MESSAGE@\nDefined-By: tcmu-retry\n\n{meaning.explain}\n"
        for code, meaning in events.MEANINGS.items()
    )
    assert CATALOG.read_text() == text, f"put this into {CATALOG}:\n{text}"


def test_message_ids_are_stable() -> None:
    assert events.message_id("TR-001") == "2c794e34ba04556b9eb1cbccae7372c7"
    assert len({events.message_id(code) for code in events.MEANINGS}) == len(events.MEANINGS)
    assert all(re.fullmatch(r"[0-9a-f]{32}", events.message_id(code)) for code in events.MEANINGS)
