"""The pumps of the tests: each file of tests says by `make_rig` what is pumped, and over which storage."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.unit.pump.rig import Rig


@pytest.fixture
def make_rig() -> Callable[..., Rig]:
    return Rig


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Iterator[Rig]:
    rig = make_rig()
    rig.start()
    yield rig
    rig.end()


@pytest.fixture
def batch(make_rig: Callable[..., Rig]) -> Iterator[Rig]:
    """Not started yet; with room for many."""
    rig = make_rig(ring=1 << 18)
    yield rig
    rig.end()
