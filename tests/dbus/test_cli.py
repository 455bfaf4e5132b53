"""An operator's day: an outage seen, ended, prevented, by the command line of a daemon whose storage goes away."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path

from tests.dbus.conftest import World

GOOD, CHECK_CONDITION, BUSY = 0, 2, 8


def test_a_held_command_is_shown_and_ends_good_when_the_storage_is_back(world: World) -> None:
    world.lun("vm1", "retry_interval=3s;retry_backoff=1")
    world.away.touch()
    number = world.write("vm1", 7)
    [command] = world.held("vm1", 1)
    assert command["operation"] == "write"
    assert command["lba"] == 7
    assert command["blocks"] == 1
    assert command["error"] == "EIO"
    assert command["error_class"] == "unknown"
    assert command["waits_for"] == "retry"
    assert "write retrying" in world.cli("device", "list")
    assert "EIO" in world.cli("queue", "list", "vm1")
    assert "by EIO" in world.cli("device", "show", "vm1")
    assert world.status(number, 0) is None
    world.away.unlink()
    assert world.status(number, 15) == GOOD
    assert world.cli("queue", "list", "vm1") == "vm1 holds nothing\n"
    assert (world.directory / "vm1.img").read_bytes()[7 * 512 :][:4] == b"text"


def test_queue_retry_tries_at_once(world: World) -> None:
    world.lun("vm1", "retry_interval=1h;retry_max_interval=1h")
    world.away.touch()
    number = world.write("vm1", 0)
    world.held("vm1", 1)
    world.away.unlink()
    assert world.status(number, 0.5) is None
    assert world.cli("queue", "retry", "vm1") == "1 command tried\n"
    assert world.status(number, 5) == GOOD


def test_queue_fail_answers_with_an_error_now_and_only_those_that_are_named(world: World) -> None:
    world.lun("vm1")
    world.away.touch()
    first, second = world.write("vm1", 0), world.write("vm1", 8)
    held = world.held("vm1", 2)
    assert world.call("queue", "fail", "vm1").code == 2
    assert world.call("queue", "fail", "vm1", "123456").code == 5
    serial = next(command["serial"] for command in held if command["lba"] == 8)
    assert world.json("queue", "fail", "vm1", str(serial))["count"] == 1
    assert world.status(second, 5) == CHECK_CONDITION
    assert world.status(first, 0) is None
    world.cli("queue", "fail", "vm1", "--all")
    assert world.status(first, 5) == CHECK_CONDITION


def test_device_release_answers_busy(world: World) -> None:
    world.lun("vm1")
    world.away.touch()
    number = world.write("vm1", 0)
    world.held("vm1", 1)
    world.cli("device", "release", "vm1")
    assert world.status(number, 5) == BUSY


def test_a_hold_parks_everything_until_resume(world: World) -> None:
    world.lun("vm1")
    world.cli("device", "hold", "vm1", "--reason", "switch is replaced")
    number = world.write("vm1", 0)
    [command] = world.held("vm1", 1)
    assert command["waits_for"] == "resume"
    assert command["attempts"] == 0
    assert "switch is replaced" in world.cli("device", "show", "vm1")
    world.cli("device", "resume", "vm1")
    assert world.status(number, 5) == GOOD


def test_a_hold_can_end_by_itself(world: World) -> None:
    world.lun("vm1")
    world.cli("device", "hold", "vm1", "--for", "500ms")
    assert world.status(world.write("vm1", 0), 10) == GOOD


def test_drain_and_undrain(world: World) -> None:
    world.lun("vm1")
    world.cli("device", "drain", "vm1")
    number = world.read("vm1", 0)
    assert world.held("vm1", 1)[0]["waits_for"] == "drain"
    world.cli("device", "undrain", "vm1")
    assert world.status(number, 5) == GOOD


def test_an_aborted_held_command_is_answered_and_never_written(world: World) -> None:
    world.lun("vm1", "retry_interval=200ms")
    world.away.touch()
    number = world.write("vm1", 3, "never")
    world.held("vm1", 1)
    world.ask(abort=number)
    assert world.status(number, 5) is not None
    world.away.unlink()
    assert world.status(world.write("vm1", 9), 5) == GOOD
    assert (world.directory / "vm1.img").read_bytes()[3 * 512 : 4 * 512] == bytes(512)


def test_io_that_hangs_is_shown_and_told_of(world: World) -> None:
    """0 s  a write whose storage neither fails nor returns    0.5 s  it counts as hung    8 s  it returns"""
    world.lun("vm1", "delay.write=8s;io_warn_after=500ms")
    number = world.write("vm1", 5)
    [command] = world.held("vm1", 1)
    assert command["waits_for"] == "io"
    assert command["lba"] == 5
    assert world.json("device", "show", "vm1")["device"]["hung"] == 1
    assert "1 hung" in world.cli("device", "list")
    assert world.status(number, 10) == GOOD
    world.held("vm1", 0)
    assert "TR-012" in world.said()


def test_policy_set_is_all_or_nothing_and_takes_effect_on_what_is_held(world: World) -> None:
    world.lun("vm1")
    before = world.json("policy", "show", "vm1")
    result = world.call("policy", "set", "vm1", "retry_interval=5s", "retry_timeuot=1s")
    assert result.code == 1
    assert result.err == "tcmu-retry: retry_timeuot is not a setting; did you mean retry_timeout?\n"
    assert world.json("policy", "show", "vm1") == before
    dry = world.json("policy", "set", "vm1", "retry_timeout=1s", "--dry-run")
    assert dry["policy"]["write.retry_timeout"] == "1s"
    assert world.json("policy", "show", "vm1") == before
    world.away.touch()
    number = world.write("vm1", 0)
    world.held("vm1", 1)
    world.cli("policy", "set", "vm1", "retry_timeout=1s", "--if-generation", "1")
    assert world.status(number, 5) == CHECK_CONDITION
    assert world.call("policy", "set", "vm1", "retry=false", "--if-generation", "1").code == 1


def test_qemu_s_words_are_understood(world: World) -> None:
    world.lun("vm1", "werror=retry;rerror=report")
    policy = world.json("policy", "set", "vm1", "write-retry-timeout=15000", "werror=stop")["policy"]
    assert policy["write.retry"] == "true"
    assert policy["write.fallback"] == "stop"
    assert policy["write.retry_timeout"] == "15s"
    assert policy["read.retry"] == "false"


def test_a_configuration_file_names_a_lun(world: World) -> None:
    folder = world.directory / "etc/devices.d"
    folder.mkdir()
    (world.directory / "data.img").write_bytes(bytes(8 << 20))
    (folder / "vm9.toml").write_text(
        f'path = "{world.directory}/data.img"\nretry_timeout = "2m"\n[write]\nfallback = "readonly"\n'
    )
    assert world.cli("policy", "check", "vm9") == "vm9 is valid\n"
    world.cli("export", "nine", "vm9", "--any-initiator")
    policy = world.json("policy", "show", "nine")["policy"]
    assert policy["read.retry_timeout"] == "2m"
    assert policy["write.fallback"] == "readonly"
    assert policy["read.fallback"] == "report"
    (folder / "odd.toml").write_text('path = "/x"\nwrite.falback = "readonly"\n')
    assert "write.falback" in world.call("policy", "check", "odd").err
    assert "did you mean vm9" in world.call("policy", "check", "vm8").err


def test_events_are_followed_and_explained(world: World) -> None:
    world.lun("vm1", "retry_interval=100ms")
    with subprocess.Popen(
        [sys.executable, "-m", "tcmu_retry.cli.main", "--json", "events", "--follow"],
        env={**os.environ, "TCMU_RETRY_BUS_ADDRESS": world.address},
        stdout=subprocess.PIPE,
        text=True,
    ) as follower:
        assert follower.stdout is not None
        hours = 0
        while not select.select([follower.stdout], [], [], 0.5)[0]:  # until it listens
            hours += 1
            world.cli("policy", "set", "vm1", f"retry_timeout={hours}h")
        world.away.touch()
        number = world.write("vm1", 0)
        world.held("vm1", 1)
        world.away.unlink()
        assert world.status(number, 5) == GOOD
        codes: list[str] = []
        while "TR-004" not in codes:
            codes.append(json.loads(follower.stdout.readline())["code"])
        assert codes[0] == "TR-008"
        assert "TR-001" in codes
        follower.terminate()
    assert "Look at the storage" in world.cli("explain", "tr-002")
    assert world.call("explain", "TR-999").code == 5


def test_exit_statuses(world: World) -> None:
    for line, code in (
        ("device list", 0),
        ("device show nobody", 5),
        ("device frobnicate", 2),
        ("policy set nobody retry=true", 5),
        ("policy set nobody retry", 2),
        ("export x relative/path --any-initiator", 1),
        ("export x /nothing/here.img --any-initiator", 1),
        ("export x /dev/null --size many", 2),
    ):
        result = world.call(*line.split())
        assert result.code == code, (line, result)
        if code:
            assert result.err.startswith("tcmu-retry: ")
            assert result.err.count("\n") == 1


def test_without_a_daemon_the_exit_status_is_3(world: World) -> None:
    for address in ("unix:path=/nothing", "gibberish"):
        done = subprocess.run(
            [sys.executable, "-m", "tcmu_retry.cli.main", "device", "list"],
            env={**os.environ, "TCMU_RETRY_BUS_ADDRESS": address},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 3, done
        assert done.stderr.count("\n") == 1
    world.stop()
    for command in ("device list", "watch", "events --follow"):
        result = world.call(*command.split())
        assert result.code == 3, result
        assert result.err.count("\n") == 1, result.err


def test_doctor_names_the_link_that_breaks_first_and_what_is_wrong(world: World) -> None:
    """A policy that promises ten minutes to an initiator that waits for eight."""
    world.lun("vm1", "retry_timeout=2m")
    result = world.call("doctor", "vm1")
    assert result.code == 0, result
    assert "An outage is held for 2m; then policy ends it" in result.out
    world.cli("policy", "set", "vm1", "retry_timeout=10m")
    result = world.call("doctor", "vm1")
    assert result.code == 1
    assert "then initiator ends it" in result.out
    assert "write.retry_timeout=10m is more than linux waits (8m)" in result.err
    world.lun("vm2", "retry_timeout=10m;initiator=15m")
    links = world.json_of(world.call("--json", "doctor", "vm2"))["chains"][0]["links"]
    assert [link["wrong"] for link in links if link["where"] in ("policy", "initiator")] == ["", "", ""]


def test_watch_shows_what_is_held_and_how_fast(world: World) -> None:
    world.lun("vm1")
    world.away.touch()
    world.write("vm1", 0)
    world.held("vm1", 1)
    out = world.cli("watch", "--count", "2", "--interval", "100ms", "--json")
    first, second = map(json.loads, out.splitlines())
    assert first["schema"] == 1
    assert first["devices"][0]["read_rate"] is None
    assert second["devices"][0]["read_rate"] == 0
    assert second["devices"][0]["held"] == 1
    assert "write retrying" in world.cli("watch", "--count", "1")


def test_events_without_follow_are_the_last_ones(world: World) -> None:
    world.lun("vm1")
    world.cli("policy", "set", "vm1", "retry_timeout=5m")
    assert "TR-008" in world.cli("events", "vm1")


def test_every_verb_answers_programs_with_an_object(world: World) -> None:
    world.lun("vm1")
    for line in ("device hold vm1", "device resume vm1", "device drain vm1", "device undrain vm1", "explain TR-001"):
        assert json.loads(world.cli(*line.split(), "--json"))["schema"] == 1
    assert world.json("config", "check", "--directory", str(world.directory / "etc"))["valid"]
    assert world.json("unexport", "vm1")["name"] == "vm1"


def completed(world: World, line: str) -> list[str]:
    """The words that a shell offers behind a line."""
    offered = world.directory / "offered"
    done = subprocess.run(
        [sys.executable, "-m", "tcmu_retry.cli.main"],
        env={
            **os.environ,
            "TCMU_RETRY_BUS_ADDRESS": world.address,
            "_ARGCOMPLETE": "1",
            "_ARGCOMPLETE_STDOUT_FILENAME": str(offered),
            "_ARGCOMPLETE_IFS": "\n",
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
        },
        check=False,
        timeout=60,
    )
    assert done.returncode == 0
    return [word.strip() for word in offered.read_text().split("\n")]


def test_a_shell_completes_verbs_luns_and_settings(world: World) -> None:
    world.lun("vm1")
    world.lun("vm2")
    assert completed(world, "tcmu-retry device dr") == ["drain"]
    assert completed(world, "tcmu-retry device show v") == ["vm1", "vm2"]
    assert "write.fallback=" in completed(world, "tcmu-retry policy set vm1 write.f")
    assert completed(world, "tcmu-retry explain TR-00")[0] == "TR-001"
    for shell in ("bash", "zsh"):
        assert "tcmu-retry" in world.cli("completion", shell)


def test_config_check_needs_no_daemon_and_tells_every_problem(tmp_path: Path) -> None:
    def check() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tcmu_retry.cli.main", "config", "check", "--directory", str(tmp_path)],
            env={**os.environ, "TCMU_RETRY_BUS_ADDRESS": "unix:path=/nothing"},
            capture_output=True,
            text=True,
            check=False,
        )

    assert check().returncode == 0
    (tmp_path / "tcmu-retry.toml").write_text("[defaults]\nretry_timeuot = 5\n")
    (tmp_path / "devices.d").mkdir()
    (tmp_path / "devices.d/vm1.toml").write_text('path = "x"\n')
    done = check()
    assert done.returncode == 1
    assert "did you mean retry_timeout?" in done.stderr
    assert "vm1.toml: path must be an absolute path" in done.stderr


def test_a_policy_that_promises_more_than_the_initiator_waits_is_warned_of(world: World) -> None:
    """Where it is written: at export, at a change; and as an event. It is done all the same."""
    world.lun("vm1")
    result = world.call("policy", "set", "vm1", "read.retry_timeout=10m")
    assert result.code == 0
    assert result.err.startswith("warning: vm1: read.retry_timeout=10m is more than linux waits (8m)")
    assert "TR-023 vm1: policy promises more than the chain holds" in world.said()
    assert world.call("policy", "set", "vm1", "read.retry_timeout=5m").err == ""
    path = world.directory / "vm2.img"
    path.write_bytes(bytes(8 << 20))
    result = world.call("export", "vm2", f"{path};write.retry_timeout=2m;initiator=windows", "--any-initiator")
    assert result.code == 0
    assert "warning: vm2: write.retry_timeout=2m is more than windows waits (1m)" in result.err
    assert "An outage is held for 1m; then initiator ends it" in result.out
    assert "never: the kernel's own time-out" in result.out
