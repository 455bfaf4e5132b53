"""What is changed of a policy while it runs: kept only where that was asked for, and taken back whole."""

from __future__ import annotations

import signal
import time

from tests.dbus.conftest import World


def policy(world: World) -> dict[str, str]:
    shown: dict[str, str] = world.json("policy", "show", "vm1")["policy"]
    return shown


def test_only_what_is_persisted_outlives_the_daemon(world: World) -> None:
    world.lun("vm1", "retry_interval=2s")
    world.cli("policy", "set", "vm1", "retry_timeout=5m", "write.retry_jitter=0.3")
    world.cli("policy", "set", "vm1", "write.retry_timeout=5m", "--persist")
    assert policy(world)["read.retry_timeout"] == "5m"
    world.restart()
    world.lun("vm1", "retry_interval=3s")
    now = policy(world)
    assert now["write.retry_timeout"] == "5m"
    assert now["read.retry_timeout"] == "0s"
    assert now["write.retry_jitter"] == "0.1"
    assert now["read.retry_interval"] == "3s"


def test_a_dry_run_keeps_nothing(world: World) -> None:
    world.lun("vm1")
    world.cli("policy", "set", "vm1", "retry_timeout=5m", "--persist", "--dry-run")
    assert not (world.directory / "state/policy").exists()


def test_reset_goes_back_to_the_configuration_and_may_forget_what_was_kept(world: World) -> None:
    world.lun("vm1", "retry_interval=2s")
    configured = policy(world)
    world.cli("policy", "set", "vm1", "retry_interval=9s", "--persist")
    world.cli("policy", "reset", "vm1")
    assert policy(world) == configured
    world.restart()
    world.lun("vm1", "retry_interval=2s")
    assert policy(world)["read.retry_interval"] == "9s"
    world.cli("policy", "reset", "vm1", "--persist")
    world.restart()
    world.lun("vm1", "retry_interval=2s")
    assert policy(world) == configured


def test_what_makes_sense_only_with_changes_that_are_not_kept_is_not_kept(world: World) -> None:
    world.lun("vm1")
    world.cli("policy", "set", "vm1", "allow_data_loss=true")
    result = world.call("policy", "set", "vm1", "write.fallback=ignore", "--persist")
    assert result.code == 1
    assert "needs allow_data_loss=true" in result.err
    assert policy(world)["write.fallback"] == "report"


def test_what_was_kept_for_other_storage_or_is_damaged_is_left_out_and_said(world: World) -> None:
    world.lun("vm1")
    world.cli("policy", "set", "vm1", "retry_timeout=5m", "--persist")
    kept = world.directory / "state/policy/vm1.toml"
    good = kept.read_text()
    for text, said in (
        (good.replace("vm1.img", "other.img"), "made for other storage"),
        (good + "x", "cannot be read"),
        (good + 'retry_timeuot = "1s"', "did you mean retry_timeout?"),
    ):
        kept.write_text(text)
        world.restart()
        world.lun("vm1")
        assert policy(world)["read.retry_timeout"] == "0s"
        assert said in world.said()


def test_a_policy_that_cannot_be_kept_is_not_changed(world: World) -> None:
    world.lun("vm1")
    (world.directory / "state/policy").write_text("not a directory")
    result = world.call("policy", "set", "vm1", "retry_timeout=5m", "--persist")
    assert result.code == 1
    assert "cannot be kept, so it is not changed" in result.err
    assert policy(world)["read.retry_timeout"] == "0s"


def reload(world: World, said: str) -> None:
    """SIGHUP, until the daemon has said something again."""
    before = world.said().count(said)
    world.daemon.send_signal(signal.SIGHUP)
    until = time.monotonic() + 10
    while world.said().count(said) == before:
        assert time.monotonic() < until, world.said()
        time.sleep(0.02)


def test_sighup_applies_the_files_to_all_luns_or_to_none_and_tells_what_changed(world: World) -> None:
    devices = world.directory / "etc/devices.d"
    devices.mkdir()
    for name in ("vm1", "vm2"):
        (world.directory / f"{name}.img").write_bytes(bytes(8 << 20))
        (devices / f"{name}.toml").write_text(f'path = "{world.directory}/{name}.img"\n')
        world.cli("export", name, name, "--any-initiator")
    world.cli("policy", "set", "vm1", "write.retry_timeout=9m")
    (world.directory / "etc/tcmu-retry.toml").write_text('[defaults]\nretry_timeout = "5m"\n')
    (devices / "vm2.toml").write_text((devices / "vm2.toml").read_text() + 'fallback = "stopp"\nbuffered = true\n')
    reload(world, "left as it was")
    assert "did you mean stop?" in world.said()
    assert policy(world)["read.retry_timeout"] == "0s"
    (devices / "vm2.toml").write_text((devices / "vm2.toml").read_text().replace("stopp", "stop"))
    reload(world, "read again")
    assert policy(world)["read.retry_timeout"] == "5m"
    assert policy(world)["write.retry_timeout"] == "9m", "what was changed while it runs stays"
    said = world.said()
    assert "LUN vm1: read.retry_timeout 0s -> 5m" in said
    assert "LUN vm1: write.retry_timeout" not in said
    assert "LUN vm2: write.fallback report -> stop" in said
    assert "LUN vm2: buffered stays as it is until the LUN is exported anew" in said
    world.cli("policy", "reset", "vm1")
    assert policy(world)["write.retry_timeout"] == "5m"
