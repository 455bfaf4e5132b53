"""Blocking calls in threads of their own."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tcmu_retry.daemon.offload import offload, offload_opening


class Thing:
    def __init__(self) -> None:
        self.closed = threading.Event()

    def close(self) -> None:
        self.closed.set()


def test_what_is_opened_is_given_or_its_error() -> None:
    thing = Thing()

    def refuse() -> Thing:
        raise OSError("no")

    async def whole() -> None:
        assert await offload_opening(lambda: thing) is thing
        with pytest.raises(OSError, match="no"):
            await offload_opening(refuse)

    asyncio.run(whole())
    assert not thing.closed.is_set()


def test_what_is_open_when_nobody_waits_any_more_is_closed_again() -> None:
    """It would keep its device, or its storage's lock, until the daemon ends."""
    thing, go_on = Thing(), threading.Event()

    def hang() -> Thing:
        go_on.wait(10)
        return thing

    async def whole() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(offload_opening(hang), 0.001)
        assert not thing.closed.is_set()
        go_on.set()
        assert await offload(thing.closed.wait, 10)

    asyncio.run(whole())
