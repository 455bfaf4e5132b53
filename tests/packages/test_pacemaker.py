"""The OCF agent `lun`, as Pacemaker calls it, against a daemon whose kernel is simulated."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.dbus.conftest import SIZE, World, bus, world

__all__ = ["bus", "world"]  # pytest's fixtures

AGENT = Path(__file__).resolve().parents[2] / "packaging/ocf/lun"
RUNNING, NOT_RUNNING, CONFIGURED_WRONGLY = 0, 7, 6
WWN = "5f0d0b5c-6f0e-4e0c-9b43-0d2f6b6d3c11"
IQN = "iqn.2026-11.org.example:vm1"


class Cluster:
    """One node's part of it."""

    def __init__(self, world: World) -> None:
        storage = world.directory / "vm1.img"
        with storage.open("wb") as file:
            file.truncate(SIZE)
        command = world.directory / "bin/tcmu-retry"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tcmu_retry.cli.main "$@"\n')
        command.chmod(0o755)
        self.parameters = {
            "name": "vm1",
            "config": f"{storage};buffered=true;retry_timeout=2m",
            "wwn": WWN,
            "target": IQN,
            "initiators": "iqn.1993-08.org.debian:01:a iqn.1993-08.org.debian:01:b",
        }
        self.environment = {
            **os.environ,
            "PATH": f"{command.parent}:/usr/sbin:{os.environ['PATH']}",
            "TCMU_RETRY_BUS_ADDRESS": world.address,
            "OCF_ROOT": "/usr/lib/ocf",
            "HA_RSCTMP": str(world.directory),
        }

    def call(self, action: str, interval: int = 10_000, **others: str) -> tuple[int, str]:
        """What it returned and said. interval: ms; 0 is a probe."""
        given = {f"OCF_RESKEY_{name}": value for name, value in {**self.parameters, **others}.items()}
        done = subprocess.run(
            [str(AGENT), action],
            env={**self.environment, **given, "OCF_RESKEY_CRM_meta_interval": str(interval)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr


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


def test_what_is_configured_wrongly_is_told(world: World) -> None:
    cluster = Cluster(world)
    code, said = cluster.call("validate-all", config="/srv/vm1.img;retry_timeot=2m")
    assert code == CONFIGURED_WRONGLY
    assert "retry_timeout" in said
    code, said = cluster.call("start", wwn="")
    assert code == CONFIGURED_WRONGLY
    assert "wwn is missing" in said
