"""targetcli-retry's nodes in configshell itself, over the daemon with a simulated kernel. The tree is the VM tier's."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.dbus.conftest import World

PLUGIN = Path(__file__).resolve().parents[2] / "targetcli-plugin"
TARGETCLI = "/usr/bin/python3"  # Debian's, which has targetcli and its libraries
SHELL = """
import importlib, sys
from targetcli.ui_node import ExecutionError, UINode
from targetcli_retry.nodes import Controls
shell = importlib.import_module(ExecutionError.__module__.split(".")[0]).ConfigShell(sys.argv[1])
root = UINode("/", shell=shell)
node = Controls(sys.argv[2], root)
node.add_controls(sys.argv[2])
print("@@@@", flush=True)
for line in sys.stdin:
    try:
        shell.run_cmdline(f"/{sys.argv[2]} {line.strip()}")
    except ExecutionError as error:
        print("ERROR", error)
    print("@@@@", flush=True)
"""


def shell(world: World, lun: str, *lines: str) -> list[str]:
    """What each line of the shell is answered."""
    done = subprocess.run(
        [TARGETCLI, "-W", "ignore", "-c", SHELL, str(world.directory / "prefs"), lun],
        env={"DBUS_SYSTEM_BUS_ADDRESS": world.address, "PATH": os.environ["PATH"], "PYTHONPATH": str(PLUGIN)},
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = done.stdout.split("@@@@\n")
    assert len(answers) == len(lines) + 2, done.stdout
    return answers[1:-1]


def test_policy_is_a_parameter_group(world: World) -> None:
    world.lun("vm1")
    both, one, shown, differs, whole, bad, unknown = shell(
        world,
        "vm1",
        "set policy retry_timeout=2m",
        "set policy write-fallback=readonly",
        "get policy retry_timeout read-retry_timeout write-fallback",
        "get policy fallback",
        "get policy",
        "set policy retry_timeout=soon",
        "set policy retry_timeuot=2m",
    )
    assert "Parameter retry_timeout is now '2m'" in both
    assert "Parameter write-fallback is now 'readonly'" in one
    assert [line.split()[0] for line in shown.splitlines()] == [
        "retry_timeout=2m",
        "read-retry_timeout=2m",
        "write-fallback=readonly",
    ]
    assert "fallback=read: report, write: readonly" in differs
    assert "write-classes-medium-attempts=3" in whole
    assert bad.startswith("ERROR retry_timeout=soon is not a duration")
    assert bad.count("\n") == 1
    assert "Unknown parameter retry_timeuot" in unknown
    policy = world.json("policy", "show", "vm1")["policy"]
    assert policy["read.retry_timeout"] == policy["write.retry_timeout"] == "2m"
    assert policy["write.fallback"] == "readonly"


def test_state_and_held_commands_are_shown_and_ended(world: World) -> None:
    world.lun("vm1", "retry_interval=1h;retry_max_interval=1h")
    world.away.touch()
    first, second = world.write("vm1", 7), world.write("vm1", 9)
    held = world.held("vm1", 2)
    serial = next(command["serial"] for command in held if command["lba"] == 9)
    state, listed, failed, wrong, nobody = shell(
        world, "vm1", "get state held write read write_error", "ls", f"fail {serial}", "fail x", "fail 123456"
    )
    assert [line.split()[0] for line in state.splitlines()] == [
        "held=2",
        "write=retrying",
        "read=online",
        "write_error=EIO",
    ]
    assert "held" in listed
    assert "write LBA 7, 1 blocks" in listed
    assert "EIO after 1 attempts, waits for retry in" in listed
    assert "1 command failed." in failed
    assert wrong.startswith("ERROR x is no serial")
    assert nobody.startswith("ERROR vm1 holds no command 123456")
    assert world.status(second, 5) == 2
    world.away.unlink()
    [tried] = shell(world, "vm1", "retry")
    assert "1 command tried." in tried
    assert world.status(first, 5) == 0


def test_hold_drain_and_retry(world: World) -> None:
    world.lun("vm1")
    lines = (
        "hold reason=upgrade expires=1h", "get state hold_reason", "resume", "drain", "get state draining", "undrain",
        "retry", "release", "hold expires=soon",
    )  # fmt: skip
    said = shell(world, "vm1", *lines)
    assert "Held." in said[0]
    assert "hold_reason=upgrade" in said[1]
    assert "Resumed." in said[2]
    assert "Drained." in said[3]
    assert "draining=True" in said[4]
    assert "Going on." in said[5]
    assert "0 commands tried." in said[6]
    assert "0 commands released." in said[7]
    assert said[8].startswith("ERROR soon is not a duration")


def test_a_lun_that_is_not_served_and_a_daemon_that_is_gone_are_told(world: World) -> None:
    [not_served] = shell(world, "nobody", "retry")
    assert not_served.startswith("ERROR tcmu-retryd does not serve nobody")
    world.lun("vm1")
    world.daemon.terminate()
    world.daemon.wait()
    [gone] = shell(world, "vm1", "retry")
    assert gone.startswith("ERROR tcmu-retryd is not running")
