"""A configuration string or file means what it says, or is refused with a sentence that names what and where."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tcmu_retry.core.initiators import FOR_EVER, PROFILES
from tcmu_retry.core.policy import Fallback
from tcmu_retry.daemon.config import LONGEST, ConfigError, Source


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    (tmp_path / "devices.d").mkdir()
    return tmp_path


def test_a_path_alone_has_the_defaults(etc: Path) -> None:
    config = Source(etc).device("/srv/vm1.img")
    assert config.path == "/srv/vm1.img"
    assert config.policy.write.retry
    assert config.policy.write.retry_timeout == 0
    assert not config.buffered
    assert config.health == "good"


def test_settings_follow_the_path(etc: Path) -> None:
    config = Source(etc).device(
        "/srv/a b.img".replace(" ", "_")
        + ";retry_timeout=2m;write.fallback=readonly;buffered=yes;health=down;max_held=7"
        ";max_held_bytes=2M;error.errno=EIO"
    )
    assert config.policy.read.retry_timeout == 120
    assert config.policy.write.fallback is Fallback.READONLY
    assert config.policy.read.fallback is Fallback.REPORT
    assert config.buffered
    assert config.health == "down"
    assert (config.budgets.held, config.budgets.held_bytes) == (7, 2 << 20)
    assert config.filters == {"error": {"errno": "EIO"}}


def test_what_stands_nearer_to_the_lun_wins(etc: Path) -> None:
    """defaults < devices.d < configuration string"""
    (etc / "tcmu-retry.toml").write_text(
        '[defaults]\nretry_timeout = "1m"\nretry_interval = "2s"\nretry_jitter = 0.5\n'
    )
    (etc / "devices.d/vm1.toml").write_text('path = "/srv/vm1.img"\nretry_timeout = "2m"\nretry_interval = "3s"\n')
    config = Source(etc).device("vm1;retry_interval=4s")
    assert config.path == "/srv/vm1.img"
    assert config.policy.read.retry_jitter == 0.5
    assert config.policy.read.retry_timeout == 120
    assert config.policy.read.retry_interval == 4


def test_an_edited_file_counts_for_the_next_lun(etc: Path) -> None:
    source = Source(etc)
    file = etc / "devices.d/vm1.toml"
    file.write_text('path = "/srv/vm1.img"\n')
    assert source.device("vm1").policy.read.retry_timeout == 0
    file.write_text('path = "/srv/vm1.img"\nread.retry_timeout = 1500\n')
    assert source.device("vm1").policy.read.retry_timeout == 1.5


def test_storage_is_confined_to_allowed_paths(etc: Path) -> None:
    """Of files for all LUNs the strongest counts; no LUN's own settings can widen it."""
    (etc / "tcmu-retry.toml").write_text('allowed_paths = ["/srv/luns", "/dev/mapper/"]\n[defaults]\nretry = true\n')
    source = Source(etc)
    assert source.device("/srv/luns/vm1.img").roots == ("/srv/luns", "/dev/mapper/")
    assert source.device("/dev/mapper/vm1").path == "/dev/mapper/vm1"
    for path in ("/srv/luns/../vm1", "/srv/lunsx/vm1", "/dev/sda", "/srv"):
        with pytest.raises(ConfigError, match="lies in none of allowed_paths") as failure:
            source.device(path)
        assert failure.value.errno == errno.EACCES
    with pytest.raises(ConfigError, match="allowed_paths"):
        source.device("/srv/x;allowed_paths=/")
    (etc / "conf.d").mkdir()
    (etc / "conf.d/50-site.toml").write_text("allowed_paths = []\n")
    assert source.device("/dev/sda").roots == ()
    (etc / "conf.d/50-site.toml").write_text('allowed_paths = "/srv"\n')
    with pytest.raises(ConfigError, match="list of absolute paths"):
        source.verify()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("", ["empty"]),
        ("srv/vm1.img", ["srv/vm1.img", "neither"]),
        ("/srv/a,b.img", ["','"]),
        ("/srv/a b.img", ["' '"]),
        ("/srv/a:b.img", ["':'"]),
        ("/" + "x" * LONGEST, ["250 bytes", "249"]),
        ("/srv/x;retry_timeout", ["retry_timeout", "key=value"]),
        ("/srv/x;=5", ["key=value"]),
        ("/srv/x;retry=true;retry=false", ["retry", "twice"]),
        ("/srv/x;path=/y", ["path"]),
        ("/srv/x;retry_timeuot=5s", ["retry_timeuot", "did you mean retry_timeout"]),
        ("/srv/x;write.retry_timeuot=5s", ["write.retry_timeuot", "retry_timeout"]),
        ("/srv/x;retry_timeout=5x", ["5x", "500ms"]),
        ("/srv/x;bufered=true", ["bufered", "did you mean buffered"]),
        ("/srv/x;cache=writeback;buffered=true", ["buffered=true"]),
        ("/srv/x;health=bad", ["health=bad"]),
        ("/srv/x;max_held=-1", ["max_held"]),
        ("/srv/x;error.errno=EWHAT", ["EWHAT"]),
        ("/srv/x;read.fallback=readonly", ["readonly"]),
    ],
)
def test_a_bad_string_is_refused(etc: Path, config: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as failure:
        Source(etc).device(config)
    assert "\n" not in str(failure.value)
    for word in words:
        assert word in str(failure.value)
    assert failure.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path = 5", ["path", "absolute"]),
        ('path = "relative"', ["absolute"]),
        ("", ["no path"]),
        ("\npath = x", ["not TOML", "line 2"]),
        ('path = "/x"\n[write]\nfalback = "stop"', ["write.falback", "fallback"]),
        ('path = "/x"\nretry = 5', ["retry"]),
    ],
)
def test_a_bad_file_is_named(etc: Path, text: str, words: list[str]) -> None:
    (etc / "devices.d/odd.toml").write_text(text)
    with pytest.raises(ConfigError) as failure:
        Source(etc).device("odd")
    for word in ["odd", *words]:
        assert word in str(failure.value)


def test_an_unknown_name_is_answered_with_the_nearest(etc: Path) -> None:
    (etc / "devices.d/vm1.toml").write_text('path = "/x"')
    with pytest.raises(ConfigError, match="did you mean vm1") as failure:
        Source(etc).device("vm2")
    assert failure.value.errno == errno.ENOENT


@pytest.mark.parametrize("text", ["[default]\n", "defaults = 5\n", "[defaults]\nretry_timeuot = 5\n", "["])
def test_a_daemon_does_not_start_with_bad_defaults(etc: Path, text: str) -> None:
    (etc / "tcmu-retry.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"tcmu-retry\.toml"):
        Source(etc).verify()


def test_vendor_then_etc_then_conf_d_by_name(tmp_path: Path) -> None:
    """Each layer has a setting that the next one overrides, and one that it does not."""
    vendor, etc = tmp_path / "usr", tmp_path / "etc"
    for directory in (vendor / "conf.d", etc / "conf.d"):
        directory.mkdir(parents=True)
    layers = [vendor / "tcmu-retry.toml", vendor / "conf.d/50-a.toml", etc / "tcmu-retry.toml"]
    layers += [etc / "conf.d/10-b.toml", etc / "conf.d/20-a.toml"]
    settings = ["retry_timeout", "retry_interval", "retry_max_interval", "retry_jitter", "retry_backoff", "max_held"]
    values = [("1s", "2s"), ("2s", "3s"), ("40s", "50s"), (0.1, 0.2), (2, 3), (7, 8)]
    for number, file in enumerate(layers):
        low, high = settings[number], settings[number + 1]
        file.write_text(f"[defaults]\n{low} = {values[number][1]!r}\n{high} = {values[number + 1][0]!r}\n")
    (etc / "conf.d/notes.txt").write_text("not a layer")
    config = Source(etc, vendor).device("/x")
    read = config.policy.read
    assert (read.retry_timeout, read.retry_interval, read.retry_max_interval) == (2, 3, 50)
    assert (read.retry_jitter, read.retry_backoff, config.budgets.held) == (0.2, 3, 7)


def test_a_stronger_layer_wins_for_both_directions_over_a_weaker_one_for_one(etc: Path) -> None:
    (etc / "tcmu-retry.toml").write_text('[defaults]\nretry_timeout = "1m"\nread.retry_timeout = "2m"\n')
    assert Source(etc).device("/x").policy.read.retry_timeout == 120
    assert Source(etc).device("/x;retry_timeout=3m").policy.read.retry_timeout == 180


def test_a_bad_layer_is_named_and_not_the_lun(etc: Path) -> None:
    (etc / "conf.d").mkdir()
    (etc / "conf.d/50-x.toml").write_text('[defaults]\nfallback = "stopp"\n')
    with pytest.raises(ConfigError, match=r"conf\.d/50-x\.toml: .*did you mean stop"):
        Source(etc).device("/x")


def test_check_reads_every_file_and_tells_every_problem(etc: Path) -> None:
    (etc / "conf.d").mkdir()
    (etc / "tcmu-retry.toml").write_text("[defaults]\nretry_jitter = 2\n")
    (etc / "conf.d/50-x.toml").write_text('[defaults]\nretry_timeout = "1m"\n')
    (etc / "devices.d/good.toml").write_text('path = "/x"\n')
    (etc / "devices.d/bad.toml").write_text('path = "x"\n')
    (etc / "devices.d/b@d.toml").write_text('path = "/x"\n')
    files, problems = Source(etc).check()
    assert [file.name for file in files] == ["tcmu-retry.toml", "50-x.toml", "b@d.toml", "bad.toml", "good.toml"]
    assert len(problems) == 3
    for problem, words in zip(problems, ["tcmu-retry.toml: retry_jitter=2", "b@d", "bad.toml: path must"], strict=True):
        assert words in problem


def test_no_configuration_is_a_good_one(tmp_path: Path) -> None:
    assert Source(tmp_path / "none").check() == ([], [])
    Source(tmp_path / "none").verify()


def test_an_initiator_of_ones_own(etc: Path) -> None:
    """By what was measured of it; what is not said is as with the named one, or with plain Linux."""
    source = Source(etc)
    (etc / "tcmu-retry.toml").write_text('[defaults]\ninitiator = "esxi"\n')
    (etc / "devices.d/vm1.toml").write_text('path = "/x"\n[initiator]\nsilence = "200s"\nbusy = 0\n')
    own = source.device("vm1").initiator
    assert (own.name, own.silence, own.busy) == ("custom", 200, FOR_EVER)
    half = source.device("/x;initiator=linux;initiator.silence=90s").initiator
    assert (half.silence, half.busy) == (90, PROFILES["linux"].busy)
    assert source.device("/x").initiator is PROFILES["esxi"]
    with pytest.raises(ConfigError, match=r"initiator\.silnce.*did you mean initiator\.silence"):
        source.device("/x;initiator.silnce=90s")
