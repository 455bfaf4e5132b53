"""A restart by systemd is known for one, and `tcmu-retry upgrade` asks for it and waits for its end.

What goes on in the new daemon is shown by `tests/unit/daemon/test_takeover.py` and, with systemd, by `tests/soak`.
"""

from __future__ import annotations

import asyncio
import gc
import warnings

import pytest

from tcmu_retry.cli import upgrades
from tcmu_retry.dbus.systemd import is_restart
from tests.dbus.conftest import World
from tests.dbus.systemd import systemd


@pytest.mark.parametrize(("job", "restart"), [("restart", True), ("stop", False), ("", False)])
def test_a_stop_is_known_to_be_the_first_half_of_a_restart(
    bus: str, job: str, restart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INVOCATION_ID", "1234")
    with systemd(bus, job):
        assert asyncio.run(is_restart(bus)) is restart


def test_where_nobody_knows_a_stop_is_the_end(bus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INVOCATION_ID", "1234")
    assert not asyncio.run(is_restart(bus))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # dbus-next leaves the socket to a bus that is not there
        assert not asyncio.run(is_restart("unix:path=/nowhere"))
        gc.collect()
    monkeypatch.delenv("INVOCATION_ID")
    with systemd(bus, "restart"):
        assert not asyncio.run(is_restart(bus))


def test_upgrade_waits_for_the_new_daemon_and_tells_its_version(world: World) -> None:
    with systemd(world.address, restart=world.restart) as manager:
        done = world.json("upgrade")["upgrade"]
    assert "RestartUnit" in manager.asked
    assert done["from"] == done["to"]
    assert done["luns"] == []


def test_upgrade_waits_as_long_as_systemd_does(world: World) -> None:
    """The restart lasts longer than the unit has to start: stopping has a time of its own."""
    with systemd(world.address, restart=world.restart, start_seconds=0.001):
        assert world.json("upgrade")["upgrade"]["luns"] == []


def test_upgrade_gives_up_when_the_unit_has_failed(world: World) -> None:
    with systemd(world.address, restart=world.stop, result="timeout"):
        result = world.call("upgrade")
    assert result.code == 1
    assert "tcmu-retryd.service is failed (timeout); `journalctl -u tcmu-retryd.service` says more" in result.err


def test_upgrade_gives_up_on_a_lun_that_is_not_served_in_the_time_that_the_unit_has_to_start(world: World) -> None:
    """The new daemon is ready, its kernel has no LUN."""
    world.lun("vm1")
    with systemd(world.address, restart=world.restart, start_seconds=0.5):
        result = world.call("upgrade")
    assert result.code == 1
    assert "vm1 is not served, 0.5 s after tcmu-retryd.service was ready" in result.err


def test_upgrade_of_a_daemon_that_systemd_did_not_start_says_what_to_do(world: World) -> None:
    result = world.call("upgrade")
    assert result.code == 1
    assert "systemd did not start this tcmu-retryd; end it with SIGUSR2" in result.err


def test_what_upgrade_tells_of_a_lun() -> None:
    told = [
        ["TR-044", "vm1", "", 0.0, {"count": 3, "failed": 2, "seconds": 0.8}],
        ["TR-041", "vm2", "", 0.0, {"count": 4, "reason": "it left no journal"}],
    ]
    assert upgrades._seen("vm1", told) == {"name": "vm1", "pause": 0.8, "count": 3, "held": 2, "busy": 0}
    assert upgrades._seen("vm2", told) == {"name": "vm2", "pause": None, "count": 0, "held": 0, "busy": 4}
