"""Debian's targetcli, unmodified, makes, saves, restores, resizes and moves LUNs."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.vm.guest import ROOT
from tests.vm.lab import MIB, SOON, Lab, Lun, Storage, eventually

IQN = "iqn.2026-11.org.example:targetcli"
SAVED = "/run/saved.json"
NODE = "/backstores/user:retry"


def targetcli(lab: Lab, *lines: str, shell: str = "targetcli") -> str:
    """What a shell says to these lines."""
    text = "\n".join(lines)
    said = lab.guest.run(f"{shell} <<'LINES' 2>&1\n{text}\nLINES", timeout=240).out
    with (lab.guest.shared / "targetcli.log").open("a") as log:
        log.write(f"{text}\n----\n{said}\n====\n")
    return said


def clear(lab: Lab) -> None:
    lab.guest.run("targetctl clear; true", timeout=120)


@pytest.fixture
def made(lab: Lab) -> Iterator[Lun]:
    """A LUN of 32 MiB over 64, exported by targetcli; logged in."""
    storage = lab.storage("tc", 64)
    said = targetcli(
        lab,
        f"{NODE} create name=tc size=32M cfgstring={storage.path};retry_interval=1s;read.retry_timeout=2m",
        f"/iscsi create {IQN}",
        f"/iscsi/{IQN}/tpg1/luns create {NODE}/tc",
        f"/iscsi/{IQN}/tpg1 set attribute authentication=0 generate_node_acls=1 demo_mode_write_protect=0"
        " cache_dynamic_acls=1",
        f"saveconfig {SAVED}",
    )
    assert "Created user-backed storage object tc size 33554432" in said
    lun = Lun(lab, "tc", storage, IQN)
    lun.login()
    yield lun
    lab.guest.run(f"iscsiadm -m node -T {IQN} --logout", check=False)
    clear(lab)


def test_targetcli_says_in_a_sentence_what_is_wrong(lab: Lab) -> None:
    storage = lab.storage("tc", 8)
    lab.guest.run("cp /bin/sleep /run/tcmu-runner")
    said = targetcli(
        lab,
        f"{NODE} help create",
        f"{NODE} create bad 1M /run/nothing.img",
        f"{NODE} create bad 1M {storage.path};retry_timeuot=5s",
        f"{NODE} create bad 1M nosuchname",
        f"{NODE} create bad 1T {storage.path}",
    )
    assert "/srv/vm1.img;retry_timeout=2m;write.fallback=readonly" in said
    assert "cfgstring invalid: /run/nothing.img does not exist" in said
    assert "did you mean retry_timeout?" in said
    assert "there is no /etc/tcmu-retry/devices.d/nosuchname.toml" in said
    assert "UserBackedStorageObject creation failed" in said
    assert "TR-030" in lab.daemon_log()
    assert f"it has {8 * MIB} bytes and the LUN {1 << 40}" in lab.daemon_log()
    runner = lab.guest.start("exec /run/tcmu-runner 600", "tcmu-runner.log")
    said = targetcli(lab, f"{NODE} create bad 1M {storage.path}")
    lab.guest.run(f"kill {runner}")
    assert f"tcmu-runner is running (process {runner})" in said


def test_the_longest_and_oddest_configuration_strings_survive(lab: Lab) -> None:
    """configshell, rtslib, the kernel's parser and saveconfig, there and back."""
    odd = "/run/a-b_c.d+e=f~g!h#i$j@k%l(m)[n]<o>?&*\\p.img;buffered=true"
    longest = "/run/" + "x" * (249 - len("/run/;buffered=true")) + ";buffered=true"
    strings = {"odd": odd, "longest": longest, "named": "vm7;health=down"}
    for string in (odd, longest):
        lab.guest.run(f"truncate -s 1M '{string.split(';')[0]}'")
    lab.guest.run(
        "mkdir -p /etc/tcmu-retry/devices.d; cd /etc/tcmu-retry/devices.d; truncate -s 1M '/run/with blank, comma: x';"
        " printf 'path = \"/run/with blank, comma: x\"\\nbuffered = true\\n' > vm7.toml"
    )
    said = targetcli(
        lab,
        *(f"{NODE} create name={name} size=1M cfgstring={string}" for name, string in strings.items()),
        f"{NODE} create over 1M {longest.replace('/run/', '/run/x')}",
        f"saveconfig {SAVED}",
        "clearconfig confirm=True",
        f"restoreconfig {SAVED}",
        f"saveconfig {SAVED}.again",
        "clearconfig confirm=True",
    )
    assert "has 250 bytes, the kernel takes 249" in said
    for name in (SAVED, f"{SAVED}.again"):
        saved = json.loads(lab.guest.run(f"cat {name}").out)["storage_objects"]
        assert {each["name"]: each["config"] for each in saved} == {
            name: f"retry/{string}" for name, string in strings.items()
        }
    assert lab.daemon_log().count("LUN odd is served from") == 2
    assert lab.daemon_log().count("LUN longest is served from") == 2
    assert lab.daemon_log().count("LUN named is served from /run/with blank, comma: x") == 2
    assert "TR-031" not in lab.daemon_log()


def test_a_lun_is_saved_and_restored_with_its_data_even_before_its_storage_is_there(lab: Lab, made: Lun) -> None:
    """written    daemon restarted    cleared, the storage gone    restored: down    the storage comes: data is there"""
    made.write(7, "kept", "kept.log")
    assert lab.wait_end("kept.log", SOON) == 0
    lab.stop_daemon()
    lab.start_daemon()
    made.wait_served()
    eventually(lambda: made.state() == "online", SOON, "the LUN served by the new daemon")
    lab.guest.run(f"iscsiadm -m node -T {IQN} --logout")
    assert "tc" in targetcli(lab, f"ls {NODE}", "clearconfig confirm=True")
    assert lab.json("device", "list")["devices"] == []
    made.storage.remove()

    said = targetcli(lab, f"restoreconfig {SAVED}")
    status = made.status()
    assert status["write"]["state"] == "down", said
    assert status["size"] == 32 * MIB
    assert "/dev/mapper/tc" in status["backend_error"]
    assert "TR-031" not in lab.daemon_log()
    made.storage.make()
    eventually(lambda: made.state("read") == "online", SOON, "healed")
    made.login()
    assert lab.guest.run(f"dd if={made.disk} bs=512 skip=7 count=1 iflag=direct status=none").out.startswith("kept")
    assert lab.guest.run(
        "cat /sys/kernel/config/target/core/user_*/tc/attrib/{cmd_time_out,tmr_notification}"
    ).out.split() == ["0", "1"]


def test_set_attribute_dev_size_is_seen_by_a_real_initiator(lab: Lab, made: Lun) -> None:
    """32 MiB, of 64    128: no    64: told by a unit attention, seen by a rescan    48: seen too    I/O hangs: EBUSY"""

    def seen() -> int:
        lab.guest.run("iscsiadm -m session -R")
        return int(lab.guest.run(f"blockdev --getsize64 {made.disk}").out) // MIB

    def told() -> int:
        return int(lab.guest.run("dmesg | grep -c 'Capacity data has changed'; true").out)

    before = told()
    said = targetcli(
        lab, f"{NODE}/tc set attribute dev_size={128 * MIB}", f"{NODE}/tc set attribute dev_size={64 * MIB}"
    )
    assert "No space left on device" in said
    assert "enlarge it first" in lab.daemon_log()
    assert f"Parameter dev_size is now '{64 * MIB}'" in said
    assert seen() == 64
    assert told() == before + 1
    made.write(100000, "beyond", "beyond.log")
    assert lab.wait_end("beyond.log", SOON) == 0
    assert made.storage.read(100000, 1).startswith(b"beyond")
    lab.guest.run(f"echo {48 * MIB} > /sys/kernel/config/target/core/user_*/tc/attrib/dev_size")
    assert seen() == 48
    assert told() == before + 2
    made.storage.hang()
    made.write(0, "hangs", "hangs.log")
    eventually(lambda: made.status()["in_flight"], SOON, "a write in flight")
    refused = lab.guest.run(f"echo {32 * MIB} > /sys/kernel/config/target/core/user_*/tc/attrib/dev_size", check=False)
    assert "Device or resource busy" in refused.err
    made.storage.go_on()
    assert lab.wait_end("hangs.log", SOON) == 0
    assert seen() == 48


def test_changemedium_moves_a_lun_to_other_storage_that_has_its_data(lab: Lab, made: Lun) -> None:
    """The storage dies under a write    its copy takes over, larger: the write ends there, and it is what is saved"""
    made.write(3, "before", "before.log")
    assert lab.wait_end("before.log", SOON) == 0
    copy: Storage = lab.storage("copy", 96)
    lab.guest.run(f"dd if={made.storage.path} of={copy.path} bs=1M oflag=direct status=none")
    made.storage.fail()
    made.write(5, "after", "after.log")
    made.wait_held()
    settings = "retry_interval=1s;read.retry_timeout=2m"
    said = targetcli(
        lab,
        f"{NODE} changemedium tc 1G {copy.path};{settings}",
        f"{NODE} changemedium tc 64M {copy.path}",
        f"{NODE} changemedium tc 96M {copy.path};{settings}",
        f"saveconfig {SAVED}",
    )
    assert f"ChangeMedium failed: {copy.path} has {96 * MIB} bytes" in said
    assert "other settings" in said
    assert "Medium Changed." in said
    assert lab.wait_end("after.log", SOON) == 0
    assert copy.read(3, 1).startswith(b"before")
    assert copy.read(5, 1).startswith(b"after")
    [saved] = json.loads(lab.guest.run(f"cat {SAVED}").out)["storage_objects"]
    assert saved["config"] == f"retry/{copy.path};{settings}"
    assert saved["size"] == 96 * MIB
    assert made.status()["path"] == copy.path


def test_targetcli_retry_is_targetcli_with_more_in_it(lab: Lab, made: Lun) -> None:
    """A refused LUN says why    the storage dies: seen, held by a person, its policy changed    back: retried"""
    shell = f"PYTHONPATH={ROOT}/targetcli-plugin PYTHONDONTWRITEBYTECODE=1 /usr/bin/python3 -m targetcli_retry.shell"
    made.storage.fail()
    made.write(5, "held", "held.log")
    made.wait_held()
    said = targetcli(
        lab,
        f"{NODE} create bad 1T {made.storage.path}.missing",
        f"ls {NODE}",
        f"{NODE}/tc get state write held write_error",
        f"{NODE}/tc set policy write-retry_timeout=1h",
        f"{NODE}/tc hold reason=upgrade",
        shell=shell,
    )
    assert "cfgstring invalid" in said
    assert "write LBA 5, 1 blocks" in said
    assert "write=retrying" in said
    assert "write_error=EIO" in said
    assert "Parameter write-retry_timeout is now '1h'" in said
    assert made.status()["hold_reason"] == "upgrade"
    made.storage.back()
    other = lab.storage("other", 8)
    said = targetcli(
        lab, f"{NODE} create bad 1T {other.path}", f"{NODE}/tc resume", f"{NODE}/tc retry", f"ls {NODE}", shell=shell
    )
    assert f"bad: it cannot be made: {other.path} does not do for LUN bad: it has {8 * MIB} bytes" in said
    assert "Resumed." in said
    assert lab.wait_end("held.log", SOON) == 0
    assert made.storage.read(5, 1).startswith(b"held")
