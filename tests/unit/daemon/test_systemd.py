"""What systemd is told: ready, status, and a watchdog that is fed only while everything turns."""

from __future__ import annotations

import logging
import os
import re
import resource
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tcmu_retry.daemon.systemd import Heart, Notifier, summary
from tests.statuses import DOWN, WELL

UNIT = Path(__file__).resolve().parents[3] / "packaging/systemd/tcmu-retryd.service"
TROUBLED = replace(WELL, write=DOWN, held=12)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as opened:
        opened.bind(str(tmp_path / "notify"))
        opened.setblocking(False)
        yield opened


def notifier(manager: socket.socket, **more: str) -> Notifier:
    return Notifier({"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "20000000", **more})


def told(manager: socket.socket) -> list[str]:
    heard = []
    try:
        while True:
            heard.append(manager.recv(4096).decode())
    except BlockingIOError:
        return heard


def test_a_pump_that_stands_still_starves_the_watchdog(
    manager: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    """20 s of watchdog: fed while the oldest turn is within 10 s; when it turns again, fed again."""
    caplog.set_level(logging.CRITICAL)
    turned, now = {"vm1": 100.0, "vm2": 100.0}, [100.0]
    heart = Heart(notifier(manager), lambda: turned, lambda: [WELL], lambda: now[0])
    fed = []
    for now[0] in (100.0, 105.0, 111.0, 116.0):
        turned["vm1"] = now[0]
        heart.beat()
        fed.append("WATCHDOG=1" in told(manager))
    assert fed == [True, True, False, False]
    assert caplog.text.count("LUN vm2: its pump has stood still") == 1
    turned["vm2"] = 116.0
    heart.beat()
    assert "WATCHDOG=1" in told(manager)


def test_a_main_loop_that_comes_late_is_not_taken_for_a_pump_that_stands_still(
    manager: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    """100 asked, turns at once    113 the loop is late: fed    118 not turned since 113, for 18 s: not fed."""
    caplog.set_level(logging.CRITICAL)
    turned, now = {"vm1": 99.0}, [100.0]
    heart = Heart(notifier(manager), lambda: turned, lambda: [WELL], lambda: now[0])
    heart.beat()
    turned["vm1"] = 100.1
    told(manager)
    now[0] = 113.0
    heart.beat()
    assert "WATCHDOG=1" in told(manager)
    assert not caplog.text
    now[0] = 118.0
    heart.beat()
    assert "WATCHDOG=1" not in told(manager)


def test_the_status_is_told_when_it_changes(manager: socket.socket) -> None:
    statuses = [WELL]
    heart = Heart(notifier(manager), dict, lambda: statuses)
    heart.beat()
    heart.beat()
    statuses[0] = TROUBLED
    heart.beat()
    assert [line for line in told(manager) if line.startswith("STATUS")] == [
        "STATUS=1 LUN, all is well",
        "STATUS=1 LUN; vm1: write down, 12 held",
    ]


def test_the_line_is_short_however_many_luns_fail() -> None:
    assert summary([]) == "no LUN yet"
    assert summary([replace(TROUBLED, name=f"vm{number}") for number in range(100)]).endswith("; 97 more")
    assert "held by a person (moving)" in summary([replace(WELL, hold_reason="moving")])
    assert "storage not open" in summary([replace(WELL, backend_error="gone")])


def test_without_a_manager_nothing_happens_and_one_that_does_not_read_is_not_waited_for(manager: socket.socket) -> None:
    Notifier({}).tell(READY="1")
    assert Notifier({}).watchdog is None
    assert notifier(manager, WATCHDOG_PID="1").watchdog is None
    assert notifier(manager, WATCHDOG_PID=str(os.getpid())).watchdog == 20
    loud = notifier(manager)
    for _ in range(10_000):
        loud.tell(STATUS="x" * 1000)


def test_the_watchdog_is_fed_with_no_file_descriptor_left(manager: socket.socket) -> None:
    """A daemon that has used up its own goes on; ended for it, each of its LUNs would pause."""
    notifier = Notifier({"NOTIFY_SOCKET": str(manager.getsockname())})
    low, high = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, high))
    try:
        notifier.tell(WATCHDOG="1")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (low, high))
    assert manager.recv(100) == b"WATCHDOG=1"


def test_the_unit_is_ordered_before_both_names_of_the_restore() -> None:
    settings = dict(re.findall(r"^(Before|Type|WatchdogSec)=(.*)$", UNIT.read_text(), re.MULTILINE))
    assert settings["Before"].split() == ["rtslib-fb-targetctl.service", "target.service"]
    assert (settings["Type"], settings["WatchdogSec"]) == ("notify", "20")


def test_the_unit_gives_no_more_rights_than_the_documentation_says() -> None:
    """The score is measured in a guest, `make soak PARTS=systemd`; what it rests on must not go unseen."""
    lines = UNIT.read_text().splitlines()
    [capabilities] = [line.partition("=")[2].split() for line in lines if line.startswith("CapabilityBoundingSet=")]
    assert capabilities == ["CAP_NET_ADMIN", "CAP_DAC_OVERRIDE"]
    documentation = (UNIT.parents[2] / "docs/systemd.md").read_text()
    for capability in capabilities:
        assert capability in documentation
    for needed in (
        "NoNewPrivileges=yes",
        "DevicePolicy=closed",
        "MemoryDenyWriteExecute=yes",
        "RestrictAddressFamilies=AF_UNIX AF_NETLINK",
        "SystemCallFilter=@system-service",
        "SystemCallFilter=~@privileged @resources",
        "UMask=0077",
    ):
        assert needed in lines
