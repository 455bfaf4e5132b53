"""What stands on the bus is what the XML says, and bad calls get a sentence."""

from __future__ import annotations

import asyncio
import threading
import xml.etree.ElementTree as ET
from importlib import resources
from typing import Any

import pytest

from tcmu_retry.dbus._lib import Message, MessageBus, MessageType, Variant
from tests.dbus.conftest import World

NAME = "org.tcmu.Retry1"
MANAGER = "/org/tcmu/Retry1/manager"


def call(world: World, path: str, interface: str, member: str, signature: str = "", *body: object) -> Any:
    """The first value of the answer, or (error name, sentence)."""

    async def ask() -> Any:
        bus = await MessageBus(bus_address=world.address).connect()
        message = Message(
            destination=NAME, path=path, interface=interface, member=member, signature=signature, body=list(body)
        )
        reply = await bus.call(message)
        bus.disconnect()
        assert reply is not None
        if reply.message_type is MessageType.ERROR:
            return (reply.error_name, reply.body[0])
        return reply.body[0] if reply.body else None

    return asyncio.run(ask())


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


def test_signals_tell_of_luns_states_and_events(world: World) -> None:
    """a LUN comes, its storage goes and comes back, it goes: each edge once."""
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
        bus.disconnect()

    def note(message: Message) -> None:
        if message.message_type is MessageType.SIGNAL and message.sender != "org.freedesktop.DBus":
            detail = message.body[0] if message.member == "Event" else ""
            if message.member == "PropertiesChanged" and "WriteState" in message.body[1]:
                detail = message.body[1]["WriteState"].value
            heard.append((message.member or "", detail))
            if detail == "online":
                online.set()
            if message.member == "InterfacesRemoved":
                gone.set()

    def story() -> None:
        world.lun("vm1", "retry_interval=100ms")
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
    assert ("PropertiesChanged", "retrying") in edges
    assert ("PropertiesChanged", "online") in edges
    assert edges[-1] == ("InterfacesRemoved", "")
