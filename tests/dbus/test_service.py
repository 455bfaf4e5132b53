"""What stands on the bus is what the XML says, and bad calls get a sentence."""

from __future__ import annotations

import asyncio
import subprocess
import threading
import xml.etree.ElementTree as ET
from importlib import resources
from typing import Any

import pytest

from tcmu_retry.dbus._lib import Message, MessageBus, MessageType, Variant, close
from tests.dbus.caller import MANAGER, NAME, Caller, CallFailed
from tests.dbus.conftest import World


def call(world: World, path: str, interface: str, member: str, signature: str = "", *body: object) -> Any:
    """The first value of the answer, or (error name, sentence)."""
    with Caller(world.address) as caller:
        try:
            return caller.call(path, interface, member, signature, *body)
        except CallFailed as failure:
            return failure.name, failure.text


def members(node: ET.Element, interface: str) -> set[tuple[str, str, str]]:
    """(kind, name, signature) of an interface's members."""
    [element] = [item for item in node.iter("interface") if item.attrib["name"] == interface]
    found = set()
    for item in element:
        if item.tag in ("method", "signal", "property"):
            arguments = "".join(f"{arg.get('direction', '')}{arg.attrib['type']}" for arg in item.iter("arg"))
            found.add((item.tag, item.attrib["name"], item.get("type", arguments)))
    return found


@pytest.mark.parametrize("which", ["Manager", "Device"])
def test_introspection_is_the_xml(world: World, which: str) -> None:
    world.lun("vm1")
    path = MANAGER if which == "Manager" else "/org/tcmu/Retry1/device/vm1"
    shown = ET.fromstring(call(world, path, "org.freedesktop.DBus.Introspectable", "Introspect"))
    source = ET.fromstring((resources.files("tcmu_retry.dbus") / f"{NAME}.{which}.xml").read_text())
    assert members(shown, f"{NAME}.{which}") == members(source, f"{NAME}.{which}")


def test_the_object_manager_lists_the_manager_and_each_lun(world: World) -> None:
    world.lun("vm1")
    world.lun("vm-2")
    objects = call(world, "/org/tcmu/Retry1", "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
    assert set(objects) == {MANAGER, "/org/tcmu/Retry1/device/vm1", "/org/tcmu/Retry1/device/vm_2d2"}
    assert objects["/org/tcmu/Retry1/device/vm_2d2"][f"{NAME}.Device"]["Name"].value == "vm-2"


def test_an_unknown_lun_method_or_argument_is_named(world: World) -> None:
    world.lun("vm1")
    device = "/org/tcmu/Retry1/device/"
    error, text = call(world, device + "vm2", f"{NAME}.Device", "GetStatus")
    assert (error, text) == (f"{NAME}.Error.NotFound", "there is no LUN vm2; did you mean vm1?")
    error, text = call(world, device + "vm1", f"{NAME}.Device", "GetStatsu")
    assert error.endswith("UnknownMethod")
    error, text = call(world, device + "vm1", f"{NAME}.Device", "Kick", "s", "all")
    assert error.endswith("InvalidArgs")
    assert "at" in text
    error, text = call(world, MANAGER, f"{NAME}.Manager", "Export", "a{sv}", {"nmae": Variant("s", "x")})
    assert (error, text) == (f"{NAME}.Error.InvalidArgument", "there is no option nmae; did you mean name?")
    error, _ = call(
        world,
        device + "vm1",
        "org.freedesktop.DBus.Properties",
        "Set",
        "ssv",
        f"{NAME}.Device",
        "Held",
        Variant("u", 1),
    )
    assert error.endswith("PropertyReadOnly")


def test_held_commands_are_given_in_pages(world: World) -> None:
    world.lun("vm1")
    world.cli("device", "hold", "vm1")
    for lba in (1, 2, 3):
        world.write("vm1", lba)
    world.held("vm1", 3)

    def page(offset: int, limit: int) -> list[int]:
        held = call(world, "/org/tcmu/Retry1/device/vm1", f"{NAME}.Device", "GetHeld", "uu", offset, limit)
        return [command["lba"].value for command in held]

    assert [page(0, 2), page(2, 2), page(3, 2)] == [[1, 2], [3], []]
    assert page(0, 0) == [1, 2, 3]


def test_signals_tell_of_luns_states_policies_and_events(world: World) -> None:
    """A LUN comes, its policy is changed, its storage goes and comes back, it goes: each edge once."""
    heard: list[tuple[str, str]] = []
    gone, online = asyncio.Event(), threading.Event()

    async def listen() -> None:
        bus = await MessageBus(bus_address=world.address).connect()
        bus.add_message_handler(note)
        rule = f"type='signal',sender='{NAME}'"
        await bus.call(
            Message(
                destination="org.freedesktop.DBus",
                path="/org/freedesktop/DBus",
                interface="org.freedesktop.DBus",
                member="AddMatch",
                signature="s",
                body=[rule],
            )
        )
        await asyncio.to_thread(story)
        await asyncio.wait_for(gone.wait(), 5)
        await close(bus)

    def note(message: Message) -> None:
        if message.message_type is MessageType.SIGNAL and message.sender != "org.freedesktop.DBus":
            detail = message.body[0] if message.member == "Event" else ""
            if message.member == "PropertiesChanged" and "WriteState" in message.body[1]:
                detail = message.body[1]["WriteState"].value
            if message.member == "PropertiesChanged" and "Policy" in message.body[1]:
                heard.append(("Policy", message.body[1]["Policy"].value["read.retry_timeout"]))
            heard.append((message.member or "", detail))
            if detail == "online":
                online.set()
            if message.member == "InterfacesRemoved":
                gone.set()

    def story() -> None:
        world.lun("vm1", "retry_interval=100ms")
        world.cli("policy", "set", "vm1", "retry_timeout=7m")
        world.away.touch()
        number = world.write("vm1", 0)
        world.held("vm1", 1)
        world.away.unlink()
        assert world.status(number, 10) == 0
        assert online.wait(5)  # told at most ten times a second, and not any more once the LUN is gone
        world.cli("unexport", "vm1")

    asyncio.run(listen())
    edges = [each for each in heard if each[1] or each[0] != "PropertiesChanged"]
    assert edges.count(("Event", "TR-001")) == 1
    assert edges.count(("Event", "TR-004")) == 1
    assert edges[0] == ("InterfacesAdded", "")
    assert edges.count(("Policy", "7m")) == 1
    assert ("PropertiesChanged", "retrying") in edges
    assert ("PropertiesChanged", "online") in edges
    assert edges[-1] == ("InterfacesRemoved", "")


@pytest.mark.parametrize("which", ["Manager", "Device"])
def test_busctl_reads_in_the_introspection_what_the_xml_says(world: World, which: str) -> None:
    world.lun("vm1")
    path = MANAGER if which == "Manager" else "/org/tcmu/Retry1/device/vm1"
    done = subprocess.run(
        ["busctl", f"--address={world.address}", "introspect", NAME, path, f"{NAME}.{which}"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    shown = {tuple(line.split()[:4]) for line in done.stdout.splitlines()[1:]}
    source = ET.fromstring((resources.files("tcmu_retry.dbus") / f"{NAME}.{which}.xml").read_text())
    for item in source.iter():
        if item.tag in ("method", "signal", "property"):
            inputs = "".join(arg.attrib["type"] for arg in item.iter("arg") if arg.get("direction") != "out") or "-"
            results = "".join(arg.attrib["type"] for arg in item.iter("arg") if arg.get("direction") == "out") or "-"
            [found] = [line for line in shown if line[0] == "." + item.attrib["name"]]
            assert found[1] == item.tag
            assert found[2] == item.get("type", inputs)
            assert item.tag == "property" or found[3] == results
            shown.remove(found)
    assert not shown, "not in the XML"
