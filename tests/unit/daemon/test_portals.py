"""A login that waits is told from one that is being served."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from tcmu_retry.daemon import portals
from tcmu_retry.daemon.portals import PATIENCE, PortalWatch, watch_portals
from tests.unit.daemon.rig import until

ANY = ("0.0.0.0", 3260)
SIX = ("2001:db8::1", 3261)


def looks(*queues: int) -> list[list[str]]:
    watch = PortalWatch()
    return [watch.look({ANY: queued}) for queued in queues]


def test_a_queue_that_stays_filled_is_a_login_that_waits() -> None:
    assert looks(*[1] * PATIENCE) == [[]] * (PATIENCE - 1) + [["0.0.0.0:3260"]]


def test_a_queue_that_empties_in_between_is_not() -> None:
    assert not any(looks(*([1] * (PATIENCE - 1) + [0]) * 3))


def test_it_is_told_again_only_after_as_many_looks() -> None:
    told = looks(*[2] * (3 * PATIENCE))
    assert [bool(portals) for portals in told] == ([False] * (PATIENCE - 1) + [True]) * 3


def test_each_portal_counts_for_itself() -> None:
    watch = PortalWatch()
    for _ in range(PATIENCE - 1):
        assert not watch.look({ANY: 0, SIX: 1})
    assert watch.look({ANY: 1, SIX: 1}) == ["[2001:db8::1]:3261"]


def test_a_look_that_was_left_out_begins_anew() -> None:
    """Nothing is held: the queues are not asked for, and what is counted is forgotten."""
    watch = PortalWatch()
    for _ in range(PATIENCE - 1):
        watch.look({ANY: 1})
    watch.look({})
    assert not watch.look({ANY: 1})


@pytest.mark.parametrize("error", [OSError(5, "no"), NetlinkError(2, "no diagnosis module"), ValueError("no address")])
def test_the_watch_survives_whatever_a_look_fails_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Its end would be silent, and from then on every login would freeze with a dead connection's commands."""
    looked = 0

    def backlogs() -> portals.Queues:
        nonlocal looked
        looked += 1
        if looked == 1:
            raise error
        return {ANY: 1}

    told: list[tuple[str, str]] = []
    monkeypatch.setattr(portals, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(portals, "backlogs", backlogs)
    monkeypatch.setattr(portals, "_behind", lambda path, portal: True)

    async def watched() -> None:
        watch = asyncio.create_task(watch_portals(lambda: {"vm1": Path()}, lambda *what: told.append(what)))
        await until(lambda: bool(told) or watch.done(), "a login that waits")
        watch.cancel()

    asyncio.run(watched())
    assert told[:1] == [("vm1", "0.0.0.0:3260")]
