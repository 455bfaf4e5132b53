"""What happened can be asked for, and an outage be drawn."""

from __future__ import annotations

import time
import xml.etree.ElementTree as ET

import pytest

from tests.dbus.conftest import World
from tests.dbus.test_service import MANAGER, NAME, call

BUSY = 0x08


def outage(world: World, name: str, seconds: float) -> None:
    """Of one write; the policy is changed in the middle of it."""
    world.away.touch()
    number = world.write(name, 0)
    world.held(name, 1)
    world.cli("policy", "set", name, "retry_timeout=6m")
    time.sleep(seconds)
    world.away.unlink()
    assert world.status(number, 10) == 0


def test_an_outage_is_told_by_the_history(world: World) -> None:
    world.lun("vm1", "retry_interval=100ms")
    world.lun("vm2")
    assert "nothing has happened yet" in world.cli("history")
    outage(world, "vm1", 0.1)
    world.cli("device", "hold", "vm2", "--reason", "upgrade")
    shown = world.cli("history")
    assert "TR-008  vm1  its policy was changed: read.retry_timeout=6m write.retry_timeout=6m" in shown
    events = world.json("history", "vm1")["events"]
    assert [event["code"] for event in events if event["code"] != "TR-002"] == ["TR-001", "TR-008", "TR-004"]
    assert events[0]["fields"] == {"direction": "write", "errno": "EIO"}
    assert [event["message"] for event in world.json("history", "vm2")["events"]] == ["held by a person: upgrade"]
    assert len(world.json("history", "--limit", "1")["events"]) == 1
    assert world.json("history", "nobody")["events"] == []
    assert world.call("history", "--since", "yesterday").code == 2


def test_an_outage_is_drawn(world: World) -> None:
    """Held commands, age, rates, probes and the change of policy are in the picture."""
    world.lun("vm1", "retry_interval=200ms;retry_backoff=1")
    picture = world.directory / "outage.svg"
    none = world.call("history", "vm1", "--plot", str(picture))
    assert (none.code, "no outage of vm1" in none.err) == (1, True)
    outage(world, "vm1", 4)
    samples = world.json("history", "vm1")["samples"]
    assert max(sample["held"] for sample in samples) == 1
    assert max(sample["oldest_held"] for sample in samples) > 2
    assert sum(sample["errors"] for sample in samples) > 3
    assert "drawn into" in world.cli("history", "vm1", "--plot", str(picture))
    root = ET.parse(picture).getroot()
    drawn = {element.attrib.get("id", "") for element in root.iter()}
    assert {"held", "oldest", "read_rate", "write_rate", "probes", "policy-changed"} <= drawn
    assert any(name.startswith("state-") for name in drawn)
    assert any((element.text or "").startswith("vm1: ") for element in root.iter())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["history", "--plot", "x.svg"], "name it"),
        (["history", "vm1", "--plot", "x.jpeg"], "ends in one of"),
    ],
)
def test_a_picture_that_cannot_be_drawn_gets_a_sentence(world: World, arguments: list[str], sentence: str) -> None:
    world.lun("vm1")
    result = world.call(*arguments)
    assert (result.code, sentence in result.err) == (2, True), result


def test_who_takes_the_target_down_is_given_way(world: World) -> None:
    """Nothing is held for so long: what is, and what comes, is answered BUSY; then holding goes on."""
    world.lun("vm1", "retry_interval=100ms")
    world.away.touch()
    before = world.write("vm1", 0)
    world.held("vm1", 1)
    assert call(world, MANAGER, f"{NAME}.Manager", "GiveWay", "d", 3.0) is None
    assert world.status(before, 5) == BUSY
    assert world.status(world.write("vm1", 1), 5) == BUSY
    time.sleep(3)
    after = world.write("vm1", 2)
    world.held("vm1", 1)
    assert world.status(after, 0.5) is None
    assert "must be a number of seconds" in call(world, MANAGER, f"{NAME}.Manager", "GiveWay", "d", -1.0)[1]
    world.away.unlink()
    assert world.status(after, 10) == 0
