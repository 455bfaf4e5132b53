"""One guest for the whole run; each test gets it empty and leaves it so. What is needed to see a failure is kept."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.vm.guest import Guest
from tests.vm.lab import Lab


@pytest.fixture(scope="session")
def running_lab() -> Iterator[Lab]:
    guest = Guest(forward=3260)
    try:
        lab = Lab(guest)
        lab.up()
        lab.begin_spares()
        yield lab
    finally:
        guest.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if report.failed and (lab := item.funcargs.get("lab")) is not None:  # type: ignore[attr-defined]
        kept = lab.guest.shared
        dmesg = lab.guest.run("dmesg | tail -n 80", check=False).out
        states = lab.call("device", "list").out
        report.sections.append(("guest kernel", dmesg))
        report.sections.append(("LUNs", states))
        report.sections.append((f"tcmu-retryd, all of it in {kept}", lab.daemon_log()[-6000:]))
    return report


@pytest.fixture
def lab(running_lab: Lab) -> Iterator[Lab]:
    assert running_lab.guest.alive, "the guest has died; see its console.log"
    with running_lab.scene():
        yield running_lab
