"""A session whose window aborts have closed for good is told from one that is merely full."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from tcmu_retry.daemon import windows as module
from tcmu_retry.daemon.api import ApiError
from tcmu_retry.daemon.windows import PATIENCE, WindowWatch
from tcmu_retry.tcmu.configfs import Window
from tests.unit.daemon.rig import served, until

ACL, OTHER = Path("acls/iqn.a"), Path("acls/iqn.b")


def window(free: int, expected: int = 7) -> Window:
    return Window(512, free, expected)


def test_one_that_stays_closed_while_nothing_comes_is_closed_for_good() -> None:
    watch = WindowWatch()
    told = [watch.look({ACL: window(0), OTHER: window(3)}) for _ in range(PATIENCE)]
    assert told == [[]] * (PATIENCE - 1) + [[ACL]]


def test_a_full_window_through_which_commands_pass_is_alive() -> None:
    watch = WindowWatch()
    assert not any(watch.look({ACL: window(0, expected)}) for expected in range(10))


def test_one_that_opened_in_between_begins_anew() -> None:
    """So does one that was not looked at, because something of its LUN was open."""
    watch = WindowWatch()
    between: dict[Path, Window]
    for between in ({ACL: window(1)}, {}):
        for _ in range(PATIENCE - 1):
            assert not watch.look({ACL: window(0)})
        watch.look(between)


def test_it_is_told_again_only_after_as_many_looks() -> None:
    watch = WindowWatch()
    told = [bool(watch.look({ACL: window(0)})) for _ in range(3 * PATIENCE)]
    assert told == ([False] * (PATIENCE - 1) + [True]) * 3


def test_a_lun_is_looked_at_after_aborts_once_nothing_of_it_is_open() -> None:
    async def story() -> None:
        async with served() as rig:
            assert not rig.device.take_aborted()
            rig.storage.fail(errno.EIO)
            command = rig.write(0, b"held")
            await rig.held(1)
            assert not rig.device.settled
            rig.kernel.abort([command])
            assert await rig.answer(command) == "TASK ABORTED"
            assert rig.device.settled
            assert rig.device.take_aborted()
            assert not rig.device.take_aborted()

    asyncio.run(story())


@pytest.mark.parametrize("error", [OSError(2, "it goes"), ValueError("no number"), ApiError("NotFound", "it is gone")])
def test_the_watch_survives_whatever_a_look_fails_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """A LUN goes meanwhile, or LIO says what nobody expects; its end would be silent."""
    acl = Path("/acl")
    looks: list[Path] = []
    told: list[str] = []

    def sessions(path: Path) -> dict[Path, Window]:
        looks.append(path)
        if len(looks) == 1:
            raise error
        return {acl: Window(320, 0, 7)}

    def closed(name: str, initiator: str) -> None:
        told.append(name)
        if len(told) == 1:
            raise error

    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(module.configfs, "sessions", sessions)
    monkeypatch.setattr(module.configfs, "end_session", lambda acl, window: None)

    async def watched() -> None:
        watch = asyncio.create_task(module.watch_windows(lambda: {"vm1": Path("/vm1")}, lambda name: True, closed))
        await until(lambda: len(told) > 1 or watch.done(), "a session that is told of after that")
        watch.cancel()

    asyncio.run(watched())
    assert told[:2] == ["vm1"] * 2
