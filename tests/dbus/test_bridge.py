"""What targetcli sees of us: its own code, over its own D-Bus library, on the private bus."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from importlib import resources

import pytest

from tests.dbus.conftest import World

NAME = "org.kernel.TCMUService1"
TARGETCLI = "/usr/bin/python3"  # Debian's, which has targetcli and its libraries


def targetcli(address: str, code: str) -> object:
    """Run code that prints JSON, with `found`: what targetcli finds; by handler (proxy, properties)."""
    prelude = """
        import json
        from targetcli.ui_backstore import UIBackstores
        found = {name: (proxy, properties) for name, proxy, properties in UIBackstores._user_backstores(None)}
    """
    done = subprocess.run(
        [TARGETCLI, "-W", "ignore", "-c", textwrap.dedent(prelude) + code],
        env={"DBUS_SYSTEM_BUS_ADDRESS": address, "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check(world: World, *configs: str) -> list[tuple[bool, str]]:
    code = f"print(json.dumps([found['retry'][0].CheckConfig('(s)', 'retry/' + each) for each in {configs}]))"
    return [(good, problem) for good, problem in targetcli(world.address, code)]  # type: ignore[attr-defined]


def test_targetcli_finds_one_backstore_and_its_description(world: World) -> None:
    world.lun("vm1")
    found = targetcli(world.address, "print(json.dumps({name: each[1] for name, each in found.items()}))")
    assert isinstance(found, dict)
    assert list(found) == ["retry"]
    [(interface, properties)] = found["retry"].items()
    assert interface == NAME
    assert "devices.d" in properties["ConfigDesc"]
    assert all(len(line) < 80 for line in properties["ConfigDesc"].splitlines())


def test_check_config_says_in_a_sentence_why_no_lun_can_be_made(world: World) -> None:
    world.lun("taken")
    image = world.directory / "free.img"
    image.write_bytes(bytes(1 << 20))
    (world.directory / "etc/devices.d").mkdir()
    (world.directory / "etc/devices.d/vm1.toml").write_text(f'path = "{image}"\nretry_timeout = "2m"\n')
    good = check(world, str(image), f"{image};retry_timeout=2m;write.fallback=readonly", "vm1", "vm1;health=down")
    assert good == [(True, "")] * 4
    wrong = {
        f"{image};retry_timeuot=2m": "did you mean retry_timeout?",
        f"{image};retry_timeout=2parsecs": "write 500ms, 30s, 2m or 1h",
        "vm2": "did you mean vm1?",
        "free.img": "there is no",
        f"{world.directory}/nothing.img": "does not exist",
        f"{world.directory}/taken.img": "locked by another LUN",
        f"{world.directory}": "neither a file nor a block device",
        f"{image},x": "must not contain ','",
        "": "the configuration string is empty",
    }
    for (config, word), (fine, problem) in zip(wrong.items(), check(world, *wrong), strict=True):
        assert not fine, config
        assert word in problem
        assert "\n" not in problem


def test_introspection_is_the_xml(world: World) -> None:
    shown = subprocess.run(
        [
            "busctl",
            f"--address={world.address}",
            "--xml-interface",
            "introspect",
            NAME,
            f"/{NAME.replace('.', '/')}/retry",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    source = (resources.files("tcmu_retry.dbus") / f"{NAME}.xml").read_text()

    def members(text: str) -> set[tuple[str, str, tuple[str, ...]]]:
        [interface] = [each for each in ET.fromstring(text).iter("interface") if each.attrib["name"] == NAME]
        return {
            (item.tag, item.attrib["name"], tuple(arg.attrib["type"] for arg in item.iter("arg"))) for item in interface
            if item.tag in ("method", "property", "signal")
        }  # fmt: skip

    assert members(shown) == members(source)


@pytest.fixture
def other_handler(bus: str) -> Iterator[subprocess.Popen[str]]:
    """Another program that has the name."""
    code = textwrap.dedent(f"""
        import asyncio
        from tcmu_retry.dbus._lib import MessageBus
        async def main():
            bus = await MessageBus(bus_address={bus!r}).connect()
            await bus.request_name({NAME!r})
            print("owned", flush=True)
            await asyncio.Event().wait()
        asyncio.run(main())
    """)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "owned\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_handler_that_has_the_name_is_named_and_followed(other_handler: subprocess.Popen[str], world: World) -> None:
    """Another program has the name: said with its process, LUNs are served all the same    it ends: the name is ours"""
    world.lun("vm1")
    assert f"{NAME} is taken" in world.said()
    assert f"by process {other_handler.pid} (" in world.said()
    assert "until that program is stopped" in world.said()
    other_handler.kill()
    until = time.monotonic() + 20
    while targetcli(world.address, "print(json.dumps(list(found)))") != ["retry"]:
        assert time.monotonic() < until
