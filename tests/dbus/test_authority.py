"""Everybody may look. Changing is root's, and theirs to whom polkit grants it."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.dbus.caller import DEVICES, MANAGER, NAME, Caller
from tests.dbus.conftest import World
from tests.dbus.polkit import polkit

NOBODY = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


def as_nobody(world: World, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["busctl", f"--address={world.address}", *arguments],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        env={"PATH": os.environ["PATH"]},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def set_policy(world: World, *flags: str) -> subprocess.CompletedProcess[str]:
    arguments = ("SetPolicy", "a{sv}a{sv}", "1", "retry_timeout", "s", "2m", "0")
    return as_nobody(world, *flags, "call", NAME, DEVICES + "vm1", f"{NAME}.Device", *arguments)


def timeout(world: World) -> str:
    return str(world.json("policy", "show", "vm1")["policy"]["read.retry_timeout"])


def test_everybody_may_look(world: World) -> None:
    world.lun("vm1")
    done = as_nobody(world, "call", NAME, DEVICES + "vm1", f"{NAME}.Device", "GetStatus")
    assert done.returncode == 0, done
    assert "online" in done.stdout
    done = as_nobody(world, "get-property", NAME, MANAGER, f"{NAME}.Manager", "Version")
    assert done.returncode == 0, done


def test_without_polkit_only_root_may_change(world: World) -> None:
    world.lun("vm1")
    done = set_policy(world)
    assert done.returncode != 0
    assert "SetPolicy needs root, or polkit's action org.tcmu.retry1.set-policy" in done.stderr
    for call in (["Hold", "sd", "why", "0"], ["Fail", "at", "0"], ["Kick", "at", "0"], ["Drain"], ["Release"]):
        done = as_nobody(world, "call", NAME, DEVICES + "vm1", f"{NAME}.Device", *call)
        assert "needs root" in done.stderr, (call, done)
    done = as_nobody(world, "call", NAME, MANAGER, f"{NAME}.Manager", "Unexport", "s", "vm1")
    assert "manage-devices" in done.stderr
    # It opens the path with the daemon's rights, and tells what there is.
    handler = "org.kernel.TCMUService1"
    done = as_nobody(world, "call", handler, "/org/kernel/TCMUService1/retry", handler, "CheckConfig", "s", "retry//x")
    assert "manage-devices" in done.stderr
    assert timeout(world) == "0s"


def test_not_everybody_may_have_root_open_what_they_name(world: World) -> None:
    """CheckConfig opens the storage, locks it for that long, and has the next LUN of that name begin anew."""
    image = world.directory / "free.img"
    image.write_bytes(bytes(1 << 20))
    bridge, path = "org.kernel.TCMUService1", "/org/kernel/TCMUService1/retry"
    done = as_nobody(world, "call", bridge, path, bridge, "CheckConfig", "s", f"retry/{image}")
    assert "manage-devices" in done.stderr, done


def test_polkit_is_asked_about_the_caller_and_its_word_counts(world: World) -> None:
    world.lun("vm1")
    with polkit(world.address, "org.tcmu.retry1.set-policy") as authority:
        done = set_policy(world)
        assert done.returncode == 0, done
        assert timeout(world) == "2m"
        done = as_nobody(world, "call", NAME, DEVICES + "vm1", f"{NAME}.Device", "Fail", "at", "0")
        assert "NotAuthorized" in done.stderr or "needs root" in done.stderr
        [(kind, subject, action, _), second] = authority.asked
        assert (kind, action) == ("system-bus-name", "org.tcmu.retry1.set-policy")
        assert subject.startswith(":")
        assert second[2] == "org.tcmu.retry1.answer-commands"


@pytest.mark.parametrize(("word", "flags"), [("yes", 1), ("no", 0)])
def test_a_password_is_asked_for_only_where_the_caller_allows_it(world: World, word: str, flags: int) -> None:
    world.lun("vm1")
    with polkit(world.address) as authority:
        done = set_policy(world, f"--allow-interactive-authorization={word}")
        assert done.returncode != 0
        assert [asked[3] for asked in authority.asked] == [flags]
        assert ("where a password can be asked for" in done.stderr) is not bool(flags)


def test_root_is_not_asked_about(world: World) -> None:
    world.lun("vm1")
    with polkit(world.address) as authority, Caller(world.address) as caller:
        assert caller.call(DEVICES + "vm1", f"{NAME}.Device", "Release") == 0
        assert not authority.asked
