"""A daemon that stays away: whose LUNs are let go, and whose are not."""

from __future__ import annotations

import errno

import pytest

from tcmu_retry.daemon import unfreeze as module
from tcmu_retry.tcmu.uio import UioDevice

ORPHAN, SERVED, BROKEN = (
    UioDevice(uio, 0, name, "retry", "/x") for uio, name in (("uio0", "orphan"), ("uio1", "served"), ("uio2", "broken"))
)


class Channel:
    """What opening a device gives."""

    def __init__(self, device: UioDevice) -> None:
        if device is SERVED:
            raise OSError(errno.EBUSY, "Device or resource busy")
        if device is BROKEN:
            raise OSError(errno.ENODEV, "No such device")
        done.append("open")

    def close(self) -> None:
        done.append("close")


done: list[str] = []


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    done.clear()
    monkeypatch.setattr(module, "UioChannel", Channel)
    monkeypatch.setattr(module.rival, "find", lambda: "")
    for name in ("block", "reset_ring", "reset_netlink"):
        monkeypatch.setattr(
            module.configfs,
            name,
            lambda *given, name=name: done.append(" ".join([name, *(str(each) for each in given[1:])])),
        )
    return monkeypatch


def test_only_what_nobody_serves_is_blocked_and_only_while_no_daemon_can_take_it(
    kernel: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Blocked before the ring is emptied, so that nothing comes between; both before another may open it."""
    kernel.setattr(module, "scan", lambda subtype: [SERVED, ORPHAN])
    assert module.unfreeze() == 0
    assert done == ["reset_netlink", "open", "block True", "reset_ring", "close"]
    assert "LUN orphan: no daemon serves it" in caplog.text
    assert "served" not in caplog.text.replace("serves", "")


def test_one_that_cannot_be_let_go_does_not_keep_the_others(
    kernel: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernel.setattr(module, "scan", lambda subtype: [BROKEN, ORPHAN])
    assert module.unfreeze() == 1
    assert "reset_ring" in done
    assert "LUN broken cannot be unfrozen: [Errno 19] No such device" in caplog.text


def test_another_handlers_announcements_are_left_alone(kernel: pytest.MonkeyPatch) -> None:
    kernel.setattr(module, "scan", lambda subtype: [])
    kernel.setattr(module.rival, "find", lambda: "tcmu-runner is running")
    module.unfreeze()
    assert done == []
