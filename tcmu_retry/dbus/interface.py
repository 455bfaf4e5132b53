"""The XML beside this file, read: what the service has is what it says, and what it answers is held to these types."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from tcmu_retry.dbus.names import ACCESS

DOCTYPE = (
    '<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"\n'
    ' "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">\n'
)


@dataclass(frozen=True, slots=True)
class Method:
    """Signatures, and who may call it: "look", or a polkit action; "" for the methods every D-Bus object has."""

    name: str
    inputs: str
    outputs: str
    access: str


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface. Properties and signals by name, with their signatures."""

    name: str
    methods: Mapping[str, Method]
    properties: Mapping[str, str]
    signals: Mapping[str, str]
    xml: ET.Element


def _signature(element: ET.Element, direction: str, default: str) -> str:
    return "".join(arg.attrib["type"] for arg in element.iter("arg") if arg.get("direction", default) == direction)


def _access(element: ET.Element) -> str:
    return "".join(note.attrib["value"] for note in element.iter("annotation") if note.attrib["name"] == ACCESS)


@cache
def load(file: str) -> Mapping[str, Interface]:
    """The interfaces of one XML file, by name."""
    node = ET.fromstring((resources.files(__package__) / file).read_text(encoding="utf-8"))
    return {
        element.attrib["name"]: Interface(
            name=element.attrib["name"],
            methods={
                item.attrib["name"]: Method(
                    item.attrib["name"], _signature(item, "in", "in"), _signature(item, "out", "in"), _access(item)
                )
                for item in element.iter("method")
            },
            properties={item.attrib["name"]: item.attrib["type"] for item in element.iter("property")},
            signals={item.attrib["name"]: _signature(item, "out", "out") for item in element.iter("signal")},
            xml=element,
        )
        for element in node.iter("interface")
    }


STANDARD = load("standard.xml")


def own(name: str) -> Interface:
    """One of ours, from the file of its name."""
    return load(f"{name}.xml")[name]


def describe(interfaces: list[Interface], children: list[str]) -> str:
    """Introspection data of an object."""
    node = ET.Element("node")
    node.extend(interface.xml for interface in interfaces)
    for child in children:
        ET.SubElement(node, "node", name=child)
    return DOCTYPE + ET.tostring(node, encoding="unicode")
