"""The guest tier's lab, and a record of what was measured."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest

from tests.soak.parts import RESULTS
from tests.vm.conftest import lab, pytest_runtest_makereport, running_lab
from tests.vm.guest import Guest
from tests.vm.lab import Lab

__all__ = ["lab", "pytest_runtest_makereport", "running_lab"]

Record = Callable[..., None]


@pytest.fixture
def guest(lab: Lab) -> Guest:
    """What a part measures in; parts with a guest of their own say which."""
    return lab.guest


@pytest.fixture
def record(request: pytest.FixtureRequest, guest: Guest) -> Iterator[Record]:
    """Call it with what was measured, name=text; kept once the test has passed."""
    figures: dict[str, str] = {}
    began = time.monotonic()
    yield lambda **measured: figures.update({name: str(value) for name, value in measured.items()})
    report = getattr(request.node, "passed", False)
    if report:
        RESULTS.mkdir(parents=True, exist_ok=True)
        promise = (request.node.function.__doc__ or "").strip().split("\n")[0]
        (RESULTS / f"{request.node.name}.json").write_text(
            json.dumps(
                {
                    "part": request.node.path.stem.removeprefix("test_"),
                    "promise": promise,
                    "date": time.strftime("%Y-%m-%d"),
                    "seconds": round(time.monotonic() - began),
                    "kernel": guest.run("uname -v").out.strip(),
                    "figures": figures,
                },
                indent=1,
            )
        )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    result = yield
    item.passed = True  # type: ignore[attr-defined]
    return result
