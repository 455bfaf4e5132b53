"""The OCF agent `lun`, as Pacemaker calls it, against a daemon whose kernel is simulated."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.dbus.conftest import SIZE, World, bus, world

__all__ = ["bus", "world"]  # pytest's fixtures

TARGET = "/sys/kernel/config/target"
AGENT = Path(__file__).resolve().parents[2] / "packaging/ocf/lun"
RUNNING, FAILED, CONFIGURED_WRONGLY, NOT_RUNNING = 0, 1, 6, 7
WWN = "5f0d0b5c-6f0e-4e0c-9b43-0d2f6b6d3c11"
IQN = "iqn.2026-11.org.example:vm1"


class Cluster:
    """One node's part of it."""

    def __init__(self, world: World) -> None:
        storage = world.directory / "vm1.img"
        with storage.open("wb") as file:
            file.truncate(SIZE)
        self.parameters = {
            "name": "vm1",
            "config": f"{storage};buffered=true;retry_timeout=2m",
            "wwn": WWN,
            "target": IQN,
            "initiators": "iqn.1993-08.org.debian:01:a iqn.1993-08.org.debian:01:b",
        }
        self.environment = {
            **os.environ,
            "PATH": f"/usr/sbin:{os.environ['PATH']}",
            "DBUS_SYSTEM_BUS_ADDRESS": world.address,
            "OCF_ROOT": "/usr/lib/ocf",
            "HA_RSCTMP": str(world.directory),
        }

    def begin(self, action: str, kernel: str = "", **others: str) -> subprocess.Popen[str]:
        """kernel: what makes its part of configfs, if any; by a shell that is there."""
        given = {f"OCF_RESKEY_{name}": value for name, value in {**self.parameters, **others}.items()}
        there = f"mount -t tmpfs tmpfs /sys/kernel; mkdir -p {TARGET}; cd {TARGET}; {kernel}"
        prefix = ["unshare", "--mount", "bash", "-euc", f'{there}; exec "$@"', "kernel"] if kernel else []
        return subprocess.Popen(
            [*prefix, str(AGENT), action],
            env={**self.environment, **given},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def call(self, action: str, interval: int = 10_000, kernel: str = "", **others: str) -> tuple[int, str]:
        """What it returned and said. interval: ms; 0 is a probe."""
        process = self.begin(action, kernel, CRM_meta_interval=str(interval), **others)
        said = process.communicate(timeout=60)[0]
        return process.returncode, said


def test_ocf_tester_finds_nothing_wrong(world: World) -> None:
    cluster = Cluster(world)
    arguments = [word for name, value in cluster.parameters.items() for word in ("-o", f"{name}={value}")]
    done = subprocess.run(
        ["ocf-tester", "-n", "vm1", *arguments, str(AGENT)],
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed all tests" in done.stdout


def test_a_lun_whose_storage_is_away_stays_where_it_is(world: World) -> None:
    """Started    its storage fails, a command is held: it runs    stopped all the same: answered BUSY, not running."""
    cluster = Cluster(world)
    cluster.parameters["config"] += f";error.errno=EIO;error.while_file={world.away}"
    assert cluster.call("monitor", interval=0)[0] == NOT_RUNNING
    assert cluster.call("start") == (RUNNING, "")
    world.away.touch()
    number = world.write("vm1", 0)
    world.held("vm1", 1)
    assert cluster.call("monitor") == (RUNNING, "")
    assert cluster.call("stop")[0] == 0
    assert world.status(number, 5) == 0x08
    assert cluster.call("monitor", interval=0)[0] == NOT_RUNNING


def test_all_that_may_be_given_reaches_the_daemon(world: World) -> None:
    cluster = Cluster(world)
    name = "vm-1_a.b"
    cluster.parameters |= {"name": name, "size": "4M", "portals": "[::]:3261 127.0.0.1:3262"}
    assert cluster.call("start") == (RUNNING, "")
    assert world.json("device", "show", name)["device"]["size"] == 4 << 20
    assert cluster.call("monitor") == (RUNNING, "")
    assert cluster.call("stop") == (0, "")
    assert cluster.call("monitor") == (NOT_RUNNING, "")


def test_a_daemon_that_is_restarted_is_waited_for(world: World) -> None:
    """The kernel has the LUN, the daemon not: half of the monitor's time it may take it up, then it has failed."""
    cluster = Cluster(world)
    kernel = f"mkdir -p core/user_0/vm1 iscsi/{IQN}/tpgt_1; echo 1 > iscsi/{IQN}/tpgt_1/enable"
    code, said = cluster.call("monitor", kernel=kernel, CRM_meta_timeout="4000")
    assert code == FAILED
    assert "no tcmu-retryd serves it" in said
    monitor = cluster.begin("monitor", kernel, CRM_meta_timeout="80000")
    world.cli("export", "vm1", cluster.parameters["config"], "--any-initiator")
    assert monitor.communicate(timeout=60) == ("", None)
    assert monitor.returncode == RUNNING
    code, said = cluster.call("monitor", kernel=kernel.replace("echo 1", "echo 0"))
    assert code == FAILED
    assert f"its target {IQN} is not enabled" in said


def test_why_a_lun_cannot_be_made_is_told(world: World) -> None:
    cluster = Cluster(world)
    code, said = cluster.call("start", config="/nowhere/vm1.img")
    assert code == FAILED
    assert "/nowhere/vm1.img" in said


def test_what_is_configured_wrongly_is_told(world: World) -> None:
    cluster = Cluster(world)
    code, said = cluster.call("validate-all", config="/srv/vm1.img;retry_timeot=2m")
    assert code == CONFIGURED_WRONGLY
    assert "retry_timeout" in said
    code, said = cluster.call("validate-all", size="20 cows")
    assert code == CONFIGURED_WRONGLY
    assert "20 cows" in said
    code, said = cluster.call("start", wwn="")
    assert code == CONFIGURED_WRONGLY
    assert "wwn is missing" in said
