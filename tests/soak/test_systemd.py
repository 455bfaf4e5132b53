"""The daemon as a unit of a real systemd: started, frozen, kept away, and taken through a reboot while storage is down.

The initiator is QEMU's, on this side of the guest's network.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tcmu_retry.core.events import message_id
from tests.soak.conftest import Record
from tests.vm.guest import ROOT, Guest
from tests.vm.lab import eventually
from tests.vm.systemd import SystemdGuest

UNIT = "tcmu-retryd"
SECTORS = 64 << 11
# Also after a reboot there is storage before there is the daemon. Shortly after the daemon is gone, BUSY is the answer.
# Where the guest is emulated a daemon has taken more than its minute to start, and the tests' Python may lie in a home.
PREPARE = f"""
install_project
units=$new/etc/systemd/system
cat > "$units/store.service" <<'END'
[Unit]
DefaultDependencies=no
Before=tcmu-retryd.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=bash -c 'modprobe dm-mod; dmsetup create store --addnodeoncreate --table "0 {SECTORS} linear /dev/vda 0"'
END
mkdir "$units/tcmu-retry-unfreeze.service.d"
cat > "$units/tcmu-retry-unfreeze.service.d/soon.conf" <<'END'
[Service]
ExecStart=
ExecStart=sh -c 'sleep $$(cat /run/unfreeze-after || echo 5)'
ExecStart=tcmu-retryd --unfreeze
TimeoutStartSec=300
ProtectHome=no
END
mkdir "$units/tcmu-retryd.service.d"
printf '[Service]\nTimeoutStartSec=300\n' > "$units/tcmu-retryd.service.d/slow.conf"
# What `systemctl enable` does. Each process here takes a second.
mkdir "$units/rtslib-fb-targetctl.service.wants"
ln -s /usr/lib/systemd/system/{UNIT}.service /usr/lib/systemd/system/rtslib-fb-targetctl.service ../store.service \
    "$units/lab.target.wants/"
ln -s /usr/lib/systemd/system/tcmu-retry-yield.service "$units/rtslib-fb-targetctl.service.wants/"
"""


class Machine:
    """The guest as a storage server with one LUN, `vm1`."""

    def __init__(self, guest: SystemdGuest) -> None:
        self.guest = guest
        self.iqn = ""

    def show(self, name: str) -> str:
        """A property of the unit."""
        return self.guest.run(f"systemctl show --value -p {name} {UNIT}").out.strip()

    def json(self, *arguments: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.guest.run(["tcmu-retry", "--json", *arguments], timeout=120).out)
        return answer

    def journal(self, *match: str) -> str:
        return self.guest.run(["journalctl", "-b", "-o", "cat", "--no-pager", *match]).out

    def fail(self) -> None:
        """Every I/O of the storage ends in EIO."""
        self.guest.run(
            f"dmsetup suspend --noflush --nolockfs store && dmsetup load store --table '0 {SECTORS} error'"
            " && dmsetup resume store"
        )

    def back(self) -> None:
        self.guest.run(
            f"dmsetup suspend --noflush --nolockfs store && dmsetup load store --table '0 {SECTORS} linear"
            " /dev/vda 0' && dmsetup resume store"
        )

    def io(self, command: str) -> subprocess.Popen[str]:
        """One command of qemu-io at the LUN."""
        return self._qemu_io(["-c", command])

    def connect(self) -> subprocess.Popen[str]:
        """qemu-io, logged in, that takes commands from its standard input."""
        process = self._qemu_io([])
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("read 0 512\n")
        process.stdin.flush()
        for line in process.stdout:
            if "read 512/512" in line:
                return process
        pytest.fail("qemu-io has not logged in")

    def _qemu_io(self, options: list[str]) -> subprocess.Popen[str]:
        target = f"iscsi://127.0.0.1:{self.guest.forwarded}/{self.iqn}/0"
        return subprocess.Popen(
            ["qemu-io", "-f", "raw", *options, target],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def done(self, command: str, seconds: float = 90) -> str:
        return self.io(command).communicate(timeout=seconds)[0]

    def wait_active(self) -> None:
        eventually(lambda: self.show("ActiveState") == "active" and self.show("SubState") == "running", 400, UNIT)


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    guest = SystemdGuest(forward=3260, prepare=PREPARE)
    try:
        made = Machine(guest)
        made.wait_active()
        made.iqn = made.json("export", "vm1", "/dev/mapper/store;retry_interval=1s", "--any-initiator")["export"]["iqn"]
        guest.run("targetctl save", timeout=120)
        assert "wrote 512/512" in made.done("write -P 0x77 1M 512")
        yield made
    finally:
        guest.close()


@pytest.fixture
def guest(machine: Machine) -> Guest:
    return machine.guest


def test_it_is_ready_says_how_it_is_and_is_confined(machine: Machine, record: Record) -> None:
    """The unit under systemd: ready, a line of status, the journal, and the score that docs/systemd.md tells."""
    assert machine.show("Type") == "notify"
    eventually(lambda: machine.show("StatusText") == "1 LUN, all is well", 30, "the line of status")
    analysis = machine.guest.run(f"systemd-analyze security --no-pager {UNIT}", timeout=120).out
    score = float(re.findall(r"exposure level for .*: ([\d.]+)", analysis)[0])
    assert score <= 2.5
    assert f"**{score}**" in (ROOT / "docs/systemd.md").read_text()
    record(exposure=score)
    entries = machine.journal("SYSLOG_IDENTIFIER=tcmu-retryd", "CODE_FUNC=serve")
    assert "LUN vm1 is served" in entries


def test_policy_is_changed_by_every_way_and_only_by_those_who_may(machine: Machine, record: Record) -> None:
    """Policy by CLI, busctl, gdbus, targetcli-retry, reload; a plain user looks, and changes what polkit grants."""
    run = machine.guest.run
    device, interface = "/org/tcmu/Retry1/device/vm1", "org.tcmu.Retry1.Device"

    def policy(key: str = "read.retry_timeout") -> str:
        return str(machine.json("policy", "show", "vm1")["policy"][key])

    def busctl(value: str) -> str:
        return (
            f"busctl call org.tcmu.Retry1 {device} {interface} SetPolicy 'a{{sv}}a{{sv}}' 1 retry_timeout s {value} 0"
        )

    run("tcmu-retry policy set vm1 retry_timeout=1m", timeout=120)
    assert policy() == "1m"
    run(busctl("2m"))
    assert policy() == "2m"
    run(
        f"gdbus call --system --dest org.tcmu.Retry1 --object-path {device} --method {interface}.SetPolicy"
        " \"{'retry_timeout': <'3m'>}\" {}"
    )
    assert policy() == "3m"
    shell = f"PYTHONPATH={ROOT}/targetcli-plugin /usr/bin/python3 -m targetcli_retry.shell"
    run(f"{shell} /backstores/user:retry/vm1 set policy retry_timeout=4m", timeout=120)
    assert policy() == "4m"
    said = ["TCMU_RETRY_DEVICE=vm1", f"MESSAGE_ID={message_id('TR-008')}"]
    eventually(lambda: machine.journal(*said).count("its policy was changed") == 4, 30, "the journal's entries")

    refused = run(f"runuser -u nobody -- {busctl('5m')}", check=False)
    assert "SetPolicy needs root, or polkit's action org.tcmu.retry1.set-policy" in refused.err
    assert "password" in refused.err  # so polkit was there, and would ask for one
    assert "online" in run(f"runuser -u nobody -- busctl call org.tcmu.Retry1 {device} {interface} GetStatus").out
    rule = 'action.id == "org.tcmu.retry1.set-policy" && subject.user == "nobody"'
    run(
        "mkdir -p /etc/polkit-1/rules.d; echo 'polkit.addRule(function(action, subject)"
        f" {{ if ({rule}) return polkit.Result.YES; }});' > /etc/polkit-1/rules.d/10-nobody.rules"
    )
    eventually(lambda: not run(f"runuser -u nobody -- {busctl('5m')}", check=False).code, 30, "polkit's new rule")
    assert policy() == "5m"

    assert policy("write.retry_max_interval") == "30s"
    settings = "/etc/tcmu-retry/tcmu-retry.toml"
    run(f"printf '[defaults]\nretry_max_interval = \"7s\"\n' > {settings}; systemctl reload {UNIT}")
    eventually(lambda: policy("write.retry_max_interval") == "7s", 60, "the reload")
    assert policy() == "5m"
    run(f"printf '[defaults]\nretry_max_intervall = \"8s\"\n' > {settings}; systemctl reload {UNIT}")
    eventually(lambda: "did you mean retry_max_interval" in machine.journal("-u", UNIT), 60, "what is wrong")
    assert policy("write.retry_max_interval") == "7s"
    run(f"rm {settings}; systemctl reload {UNIT}")
    record(ways=5)


def test_a_frozen_daemon_is_killed_and_the_next_one_goes_on(machine: Machine, record: Record) -> None:
    """SIGSTOP    a write comes    the watchdog's SIGABRT within 30 s, a new process: the write ends GOOD."""
    before = machine.show("MainPID")
    initiator = machine.connect()
    began = time.monotonic()
    machine.guest.run(f"kill -STOP {before}")
    assert initiator.stdin is not None
    initiator.stdin.write("write -P 0x78 2M 512\n")
    initiator.stdin.flush()
    eventually(lambda: machine.show("NRestarts") == "1", 60, "a restart")
    machine.wait_active()
    assert machine.show("MainPID") != before
    assert "wrote 512/512" in initiator.communicate("quit\n", timeout=120)[0]
    record(write_took=f"{time.monotonic() - began:.0f} s")
    assert "Watchdog timeout" in machine.journal("-u", UNIT)


def test_a_restart_hands_over_what_is_held(machine: Machine, record: Record) -> None:
    """A write is held    `tcmu-retry upgrade`, then `systemctl restart`: held on, and older    back: it ends GOOD."""
    machine.guest.run("echo 300 > /run/unfreeze-after")  # an emulated processor starts a daemon slowly
    machine.fail()
    held = machine.io("write -P 0x7b 5M 512")
    eventually(lambda: machine.json("queue", "list", "vm1")["held"], 30, "a held write")
    [before] = machine.json("queue", "list", "vm1")["held"]
    [told] = machine.json("upgrade")["upgrade"]["luns"]
    assert (told["count"], told["held"], told["busy"]) == (1, 1, 0)
    machine.guest.run(f"systemctl restart {UNIT}", timeout=120)
    machine.wait_active()
    eventually(lambda: machine.json("queue", "list", "vm1")["held"], 60, "the write, held on")
    [after] = machine.json("queue", "list", "vm1")["held"]
    assert after["age"] > before["age"] + told["pause"]
    assert after["attempts"] >= before["attempts"]
    assert held.poll() is None
    assert machine.guest.run("systemctl is-failed tcmu-retry-unfreeze", check=False).out.strip() == "inactive"
    machine.guest.run("rm /run/unfreeze-after")
    machine.back()
    assert "wrote 512/512" in held.communicate(timeout=90)[0]
    events = machine.json("history", "vm1")["events"]
    pauses = [event["fields"]["seconds"] for event in events if event["code"] == "TR-044"]
    assert len(pauses) == 2
    record(pauses=f"{pauses[0]:.1f} s by `tcmu-retry upgrade`, {pauses[1]:.1f} s by `systemctl restart`")


def test_a_daemon_that_stays_away_leaves_no_login_waiting(machine: Machine, record: Record) -> None:
    """Stopped; a write waits in the kernel and its initiator goes: who logs in then gets an answer all the same."""
    machine.guest.run(f"systemctl stop {UNIT}", timeout=60)
    began = time.monotonic()
    orphan = machine.io("write -P 0x79 3M 512")
    with pytest.raises(subprocess.TimeoutExpired):
        orphan.communicate(timeout=3)
    orphan.kill()
    orphan.communicate()
    eventually(lambda: "no daemon serves it" in machine.journal("-u", "tcmu-retry-unfreeze"), 60, "unfreezing")
    assert "wrote" not in machine.done("write -P 0x79 3M 512")
    record(answered_after=f"{time.monotonic() - began:.0f} s")
    machine.guest.run(f"systemctl start {UNIT}", timeout=60)
    assert "wrote 512/512" in machine.done("write -P 0x79 3M 512")
    assert machine.guest.run("systemctl is-active tcmu-retry-unfreeze", check=False).out.strip() == "inactive"


def test_a_reboot_does_not_wait_for_storage_and_all_is_restored(machine: Machine, record: Record) -> None:
    """A write is held, its initiator connected: down within 30 s; up again, the LUN is restored and has its data."""
    machine.fail()
    held = machine.io("write -P 0x7a 4M 512")
    eventually(lambda: machine.json("queue", "list", "vm1")["held"], 30, "a held write")
    took = machine.guest.shut_down()
    held.kill()
    held.communicate()
    assert took < 30
    machine.guest.boot()
    machine.wait_active()
    eventually(lambda: machine.show("StatusText") == "1 LUN, all is well", 120, "the LUN restored")
    began = time.monotonic()
    assert "pattern verification failed" not in (out := machine.done("read -P 0x77 1M 512"))
    assert "read 512/512" in out
    assert time.monotonic() - began < 60
    codes = [event["code"] for event in machine.json("history", "vm1")["events"]]
    assert "TR-001" in codes  # told before the reboot
    record(down_within=f"{took:.1f} s")
