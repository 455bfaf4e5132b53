"""Faults of the host that the daemon lives on, on a real kernel.

In every guest of these tests udevd is gone: `tests/vm/boot.sh` ends it before anything is made.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator

import pytest

from tests.soak.conftest import Record
from tests.vm.lab import CORE, SOON, Lab, Lun, eventually

SETTINGS = "retry_interval=500ms;retry_max_interval=2s"
STATE = "/var/lib/tcmu-retry"
# Writes to another process's memory, 4 bytes past the beginning of its mapping of a uio device: the ring's head.
DAMAGE = """
import re, struct, sys
pid, uio = sys.argv[1:]
maps = open(f"/proc/{pid}/maps").read()
start = int(re.search(rf"^([0-9a-f]+)-.*/dev/{uio}$", maps, re.M)[1], 16)
with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
    memory.seek(start + 12)
    memory.write(struct.pack("<I", 4))
"""


@pytest.fixture
def lun(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Lun]:
    """A LUN of this test's name, whose initiator waits for 300 s."""
    lab.guest.run("dmesg -C")
    yield lab.lun(request.node.name.removeprefix("test_").split("_")[0], SETTINGS, size=32, timeout=300)
    kernel = lab.guest.run("dmesg").out
    assert not re.search("I/O error|ring is broken", kernel), kernel[-3000:]


def held_write(lun: Lun, log: str) -> float:
    """A write that is held; when that began."""
    lun.storage.fail()
    lun.write(0, log, log)
    lun.wait_held()
    return time.monotonic()


def goes_on(lun: Lun, log: str, seconds: float = SOON) -> float:
    """The storage is back: what was held ends well; how long it took."""
    began = time.monotonic()
    lun.storage.back()
    lun.lab.call("queue", "retry", lun.name)
    assert lun.lab.wait_end(log, seconds) == 0, lun.lab.log(log)
    return time.monotonic() - began


def codes(lun: Lun) -> list[str]:
    return [event["code"] for event in lun.lab.json("history", lun.name)["events"]]


def damage(lun: Lun) -> None:
    """The daemon finds out at the next command."""
    lun.lab.guest.run([sys.executable, "-c", DAMAGE, str(lun.lab.daemon), lun.status()["uio"]])


def test_torn_ring(lab: Lab, lun: Lun, record: Record) -> None:
    """The ring's head is overwritten while a write is held: BUSY, a ring in order again, the write ends well."""
    held_write(lun, "torn")
    damage(lun)
    lun.write(8, "after", "after")  # the bell
    eventually(lambda: "TR-043" in codes(lun), SOON, "TR-043")
    told = codes(lun)
    assert told.index("TR-042") < told.index("TR-043")
    [mended] = re.findall(r"its ring is in order again after ([\d.]+) s", lab.daemon_log())
    goes_on(lun, "torn")
    assert lab.wait_end("after", SOON) == 0
    assert lab.guest.run(f"cat {CORE}/user_*/{lun.name}/action/block_dev").out.strip() in ("0", "unblocked", "")
    record(mended_after=f"{mended} s", errors=0)


def test_busy_torn_ring(lab: Lab, lun: Lun, record: Record) -> None:
    """The same while I/O over its buffers hangs in the kernel: nothing is emptied before that I/O has returned."""
    lun.storage.hang()
    lun.write(0, "out", "out")
    eventually(lambda: lun.status()["in_flight"], SOON, "I/O that is out")
    damage(lun)
    lun.write(8, "bell", "bell")
    eventually(lambda: "busy" in lun.status()["ring_error"], SOON, "what is in the way")
    assert "ring broken" in lab.cli("device", "list")
    assert "its ring is broken" in lab.call("doctor", lun.name).err
    time.sleep(5)
    assert "TR-043" not in codes(lun)
    assert lab.ended("out") is None
    lun.storage.go_on()
    eventually(lambda: "TR-043" in codes(lun), SOON, "TR-043")
    assert [lab.wait_end(log, SOON) for log in ("out", "bell")] == [0, 0]
    assert lun.storage.read(0, 1) == (b"out\n" * 128)[:512]
    record(errors=0)


def test_memory_limit(lab: Lab, lun: Lun, record: Record) -> None:
    """A cgroup's limit is reached and the daemon killed for it (OOM): what was held goes on in the next one."""
    held_write(lun, "memory")
    group = "/sys/fs/cgroup/small"
    lab.guest.run(
        "mountpoint -q /sys/fs/cgroup || mount -t cgroup2 none /sys/fs/cgroup;"
        " echo +memory > /sys/fs/cgroup/cgroup.subtree_control;"
        f" mkdir {group}; echo {lab.daemon} > {group}/cgroup.procs"
    )
    rss = lab.guest.run(f"grep VmRSS /proc/{lab.daemon}/status").out.split()[1]
    # What it had before was charged elsewhere: only what comes counts.
    lab.guest.run(f"echo 1M > {group}/memory.max")
    for number in range(200):
        lab.call("queue", "list", lun.name)
        if lab.guest.run(f"grep -q 'oom_kill [1-9]' {group}/memory.events", check=False).code == 0:
            break
        lab.guest.run(f"echo {max(1000 - 100 * number, 4)}K > {group}/memory.max")
    events = lab.guest.run(f"cat {group}/memory.events").out
    assert re.search(r"oom_kill [1-9]", events), events
    eventually(lambda: not lab.guest.look(f"cat {group}/cgroup.procs"), SOON, "its end")
    lab.start_daemon()
    lun.wait_served()
    eventually(lambda: "TR-040" in codes(lun), SOON, "what was held went on")
    took = goes_on(lun, "memory")
    lab.guest.run(f"rmdir {group}")
    record(killed_by="the OOM killer", resident=f"{rss} KiB before", errors=0, went_on_in=f"{took:.1f} s")


def test_bus_restart(lab: Lab, lun: Lun, record: Record) -> None:
    """dbus-daemon is killed and begins again: LUNs are served on, the daemon joins it, nothing held was lost."""
    held_write(lun, "bus")
    before = lun.held()[0]["serial"]
    lab.guest.run("kill -9 $(cat /run/dbus/pid); rm -f /run/dbus/pid /run/dbus/system_bus_socket")
    assert lab.call("device", "list").code != 0
    lun.storage.back()
    assert lab.wait_end("bus", SOON) == 0, "storage came back without a bus"
    lun.storage.fail()
    lun.write(16, "bus2", "bus2")
    lab.guest.run("dbus-daemon --system --fork")
    began = time.monotonic()
    eventually(lambda: not lab.call("device", "list").code, 90, "the daemon on the bus")
    joined = time.monotonic() - began
    lun.wait_held()
    assert lun.held()[0]["serial"] > before
    goes_on(lun, "bus2")
    record(joined_after=f"{joined:.1f} s", errors=0)


def test_full_var(lab: Lab, record: Record) -> None:
    """/var/lib/tcmu-retry is full: LUNs are made, held and served all the same; what cannot be kept is said."""
    lab.stop_daemon()
    lab.guest.run(f"mkdir -p {STATE}; mount -t tmpfs -o size=512k none {STATE}")
    try:
        lab.start_daemon()
        lab.wait_daemon()
        lun = lab.lun("var", SETTINGS, size=32, timeout=300)
        lab.guest.run(f"dd if=/dev/zero of={STATE}/ballast bs=4k; true")
        held_write(lun, "var")
        refused = lab.call("policy", "set", lun.name, "retry_timeout=5m", "--persist")
        assert refused.code != 0
        assert "No space left on device" in refused.err, refused
        lun.policy("retry_timeout=5m")
        goes_on(lun, "var")
        for number in range(3):
            held_write(lun, f"again{number}")
            goes_on(lun, f"again{number}")
        other = lab.lun("more", SETTINGS, size=32, timeout=300)
        assert other.state() == "online"
        lab.json("history", lun.name)
        log = lab.daemon_log()
        assert "cannot be written" in log, "a record"
        assert "Traceback" not in log
        record(errors=0, history="has gaps from now on" in log)
    finally:
        for each in list(lab.luns):
            lab.guest.run(f"iscsiadm -m node -T {each.iqn} --logout; true", check=False)
            lab.call("unexport", each.name)
        lab.luns.clear()
        lab.stop_daemon()
        lab.guest.run(f"umount {STATE}")
        lab.start_daemon()
        lab.wait_daemon()


def test_clock_jump(lab: Lab, lun: Lun, record: Record) -> None:
    """The host's clock is set a day forth and two days back in an outage: ages and times of holding are not moved."""
    lun.policy("retry_timeout=2m")
    began = held_write(lun, "clock")
    for jump in ("+1 day", "-2 days"):
        lab.guest.run(f"date -s '{jump}'")
        time.sleep(3)
        [command] = lun.held()
        assert command["age"] < time.monotonic() - began + 10
        assert 60 < command["deadline_in"] <= 120
    took = goes_on(lun, "clock")
    lab.guest.run("date -s '+1 day'")
    assert lab.json("history", lun.name)["events"]
    record(jumps="+1 day, -2 days", errors=0, went_on_in=f"{took:.1f} s")


def test_descriptors(lab: Lab, lun: Lun, record: Record) -> None:
    """No file descriptor is left: what is held is tried and goes on, people are answered; a new LUN is refused."""
    new = lab.storage("refused", 16)
    lab.guest.run(
        f"n=0; while [ -e /proc/{lab.daemon}/fd/$n ]; do n=$((n + 1)); done; prlimit --pid {lab.daemon} --nofile=$n:"
    )
    held_write(lun, "fds")
    time.sleep(5)
    assert lun.held()[0]["attempts"] > 1
    assert lab.call("policy", "set", lun.name, "retry_max_interval=1s").code == 0
    refused = lab.call("export", "refused", new.path, "--any-initiator")
    assert refused.code != 0
    took = goes_on(lun, "fds")
    lab.guest.run(f"prlimit --pid {lab.daemon} --nofile=1024:")
    made = lab.call("export", "refused", new.path, "--any-initiator")
    assert made.code == 0, made
    lab.cli("unexport", "refused")
    log = lab.daemon_log()
    record(refused=refused.err.strip()[-120:], errors=0, went_on_in=f"{took:.1f} s", tracebacks=log.count("Traceback"))


def test_overrun(lab: Lab, lun: Lun, record: Record) -> None:
    """SIGSTOP, 600 announcements of another handler and one of ours: who waits for an answer gets one after SIGCONT."""
    base = f"{CORE}/user_77"
    image = f"{lab.guest.shared}/overrun.img"
    lab.guest.run(f"truncate -s 16M {image}; mkdir -p {base}; kill -STOP {lab.daemon}")
    try:
        lab.guest.run(
            "for n in $(seq 300); do d=" + base + "/x; mkdir $d && echo dev_config=other/x > $d/control &&"
            " echo dev_size=1048576 > $d/control && echo nl_reply_supported=-1 > $d/control && echo 1 > $d/enable;"
            " rmdir $d; done",
            timeout=300,
        )
        lab.guest.start(
            f"d={base}/ours; mkdir $d && echo 'dev_config=retry/{image};buffered=true' > $d/control &&"
            " echo dev_size=16777216 > $d/control && echo 1 > $d/enable; echo end $? $(date +%s.%N)",
            "enable",
        )
        time.sleep(5)
        assert lab.ended("enable") is None, lab.log("enable")
    finally:
        lab.guest.run(f"kill -CONT {lab.daemon}")
    began = time.monotonic()
    code = lab.wait_end("enable", SOON)
    took = time.monotonic() - began
    assert "announcements of the kernel were lost" in lab.daemon_log()
    lab.guest.run(f"rmdir {base}/ours {base}", timeout=60)
    eventually(lambda: lab.call("device", "show", "ours").code, SOON, "no such LUN any more")
    held_write(lun, "overrun")
    goes_on(lun, "overrun")
    other = lab.lun("later", SETTINGS, size=16, timeout=300)
    assert other.state() == "online"
    record(answered_after=f"{took:.1f} s", answer="error" if code else "made", errors=0)


def test_module_again(lab: Lab, record: Record) -> None:
    """target_core_user is unloaded and loaded again under the daemon: LUNs are announced, changed and removed again."""
    before = len(lab.daemon_log())  # without a file descriptor left (above) pyroute2 prints what it cannot close
    lab.guest.run(f"rmdir {CORE}/user_* 2>/dev/null; rmmod target_core_user && modprobe target_core_user")
    eventually(lambda: "target_core_user came anew" in lab.daemon_log(), SOON, "the new family")
    lun = lab.lun("module", SETTINGS, size=32, timeout=300)
    held_write(lun, "module")
    goes_on(lun, "module")
    assert "Traceback" not in lab.daemon_log()[before:]
    lab.guest.run(f"iscsiadm -m node -T {lun.iqn} --logout")
    lab.cli("unexport", lun.name)
    lab.luns.clear()
    assert not lab.guest.look(f"ls -d {CORE}/user_*/{lun.name}")
    record(errors=0)
