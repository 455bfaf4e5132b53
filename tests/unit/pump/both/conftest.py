"""Both pumps, write-through and write-back, between the simulated kernel and storage in memory.

Storage in memory has no file, so the native pump runs its I/O in workers here; `../test_native.py` is about its loop.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tcmu_retry.pump.native.pump import NativePump
from tcmu_retry.pump.reference import ReferencePump
from tests.unit.pump.rig import Rig


@pytest.fixture(
    scope="module",
    params=[(pump, cache) for pump in (ReferencePump, NativePump) for cache in ("writethrough", "writeback")],
    ids=lambda param: f"{param[0].__name__}-{param[1]}",
    autouse=True,
)
def pump_class(request):
    Rig.pump_class, cache = request.param
    Rig.write_back = cache == "writeback"
    yield
    Rig.write_back = False


@pytest.fixture
def single() -> Iterator[Rig]:
    """With one worker: a second I/O waits for the first."""
    rig = Rig(workers=1)
    rig.start()
    yield rig
    rig.end()
