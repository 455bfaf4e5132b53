"""What sysfs says of a uio device, and the open channel over files that stand for the device."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tcmu_retry.tcmu import uio
from tcmu_retry.tcmu.uio import UioChannel, UioDevice, find, parse, scan

Sysfs = Callable[..., None]


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sysfs:
    """Adds a uio device to an empty /sys/class/uio."""
    root = tmp_path / "sys"
    monkeypatch.setattr(uio, "SYS", root)

    def add(name: str, label: str, size: str = "0x2000\n") -> None:
        (root / name / "maps/map0").mkdir(parents=True)
        (root / name / "name").write_text(label)
        (root / name / "maps/map0/size").write_text(size)

    return add


# ---- labels


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("tcm-user/1/vm1/tcmu_retry/file\n", UioDevice("uio3", 1, "vm1", "tcmu_retry", "file")),
        ("tcm-user/12/vm1/tcmu_retry//dev/sdb", UioDevice("uio3", 12, "vm1", "tcmu_retry", "/dev/sdb")),
        ("tcm-user/1/vm1/tcmu_retry/a/b/c", UioDevice("uio3", 1, "vm1", "tcmu_retry", "a/b/c")),
        ("tcm-user/1/vm1/tcmu_retry", UioDevice("uio3", 1, "vm1", "tcmu_retry", "")),
        ("tcm-user/1/vm1", UioDevice("uio3", 1, "vm1", "", "")),
    ],
)
def test_a_label_is_read_with_slashes_in_its_configuration(label, expected):
    assert parse("uio3", label) == expected


@pytest.mark.parametrize(
    "label", ["", "\n", "igb_uio", "tcm-user", "tcm-user/1", "tcm-user/x/vm1/tcmu_retry/file", "tcm-user//vm1/a/b"]
)
def test_a_label_that_is_not_of_tcmu_is_nobody(label):
    assert parse("uio3", label) is None


def test_the_configfs_directory_follows_from_the_label():
    path = UioDevice("uio0", 7, "vm1", "tcmu_retry", "file").configfs
    assert path == Path("/sys/kernel/config/target/core/user_7/vm1")


def test_a_device_is_found_by_its_uio(sysfs):
    sysfs("uio2", "tcm-user/1/vm1/tcmu_retry/file\n")
    assert find("uio2") == UioDevice("uio2", 1, "vm1", "tcmu_retry", "file")


def test_a_device_that_is_gone_is_not_found(sysfs):
    assert find("uio2") is None


def test_a_scan_finds_the_handlers_own_devices_alone(sysfs):
    sysfs("uio0", "tcm-user/1/vm1/tcmu_retry/file\n")
    sysfs("uio1", "tcm-user/1/other/tcmu_retry2/file\n")
    sysfs("uio2", "igb_uio\n")
    sysfs("uio10", "tcm-user/2/vm2/tcmu_retry/\n")
    (uio.SYS / "uio3").mkdir()  # about to go: no name any more
    assert {device.name for device in scan("tcmu_retry")} == {"vm1", "vm2"}


def test_a_name_that_is_no_text_hides_no_other_device(sysfs, tmp_path):
    """Whoever made it, with another handler or in another locale: a scan that ended here would end the daemon."""
    sysfs("uio0", "")
    (tmp_path / "sys/uio0/name").write_bytes(b"tcm-user/1/f\xfcr/tcmu_retry/f\xfcr\n")
    sysfs("uio1", "tcm-user/1/vm1/tcmu_retry/a\n")
    assert [device.name for device in scan("tcmu_retry")] == [r"f\xfcr", "vm1"]


def test_a_scan_without_uio_in_the_kernel_finds_nothing(sysfs):
    assert scan("tcmu_retry") == []


# ---- the channel


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for /dev/uio0, two pages."""
    path = tmp_path / "uio0"
    path.write_bytes(bytes(2 * mmap.PAGESIZE))
    monkeypatch.setattr(uio, "_node", lambda name: str(tmp_path / name))
    return path


DEVICE = UioDevice("uio0", 1, "vm1", "tcmu_retry", "file")


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_the_mapping_is_the_device_and_has_the_size_that_sysfs_says(sysfs, node):
    sysfs("uio0", "tcm-user/1/vm1/tcmu_retry/file\n", size=f"{2 * mmap.PAGESIZE:#x}\n")
    channel = UioChannel(DEVICE)
    assert len(channel.memory) == 2 * mmap.PAGESIZE
    channel.memory[5] = 7
    assert node.read_bytes()[5] == 7
    assert not os.get_inheritable(channel.fileno())
    channel.close()


@pytest.mark.parametrize("size", ["no number\n", f"{3 * mmap.PAGESIZE:#x}\n"])
def test_a_device_that_cannot_be_mapped_is_not_left_open(sysfs, node, size):
    """Else the next try would find it busy."""
    sysfs("uio0", "tcm-user/1/vm1/tcmu_retry/file\n", size=size)
    before = descriptors()
    with pytest.raises((ValueError, OSError)):
        UioChannel(DEVICE)
    assert descriptors() == before


def test_closing_leaves_nothing_open(sysfs, node):
    sysfs("uio0", "tcm-user/1/vm1/tcmu_retry/file\n")
    before = descriptors()
    channel = UioChannel(DEVICE)
    channel.close()
    assert descriptors() == before


def test_closing_under_a_view_says_so_and_the_last_view_ends_the_mapping(sysfs, node):
    """A worker stuck in the kernel has such a view; whoever closes must learn that the device is still in use."""
    sysfs("uio0", "tcm-user/1/vm1/tcmu_retry/file\n")
    before = descriptors()
    channel = UioChannel(DEVICE)
    view = channel.memory[:8]
    with pytest.raises(BufferError):
        channel.close()
    del view
    channel.close()
    assert descriptors() == before


def test_acknowledging_takes_the_readiness_and_never_blocks(sysfs, node):
    sysfs("uio0", "tcm-user/1/vm1/tcmu_retry/file\n")
    channel = UioChannel(DEVICE)
    events, bell = os.pipe2(os.O_NONBLOCK)
    os.dup2(events, channel.fileno(), inheritable=False)
    os.close(events)
    os.write(bell, b"\1\0\0\0")
    channel.acknowledge()
    channel.acknowledge()
    os.close(bell)
    channel.close()


def test_the_doorbell_is_one_write_of_four_bytes(sysfs, node):
    """The kernel refuses any other length."""
    sysfs("uio0", "tcm-user/1/vm1/tcmu_retry/file\n")
    channel = UioChannel(DEVICE)
    ours, theirs = os.pipe2(os.O_NONBLOCK)
    os.dup2(theirs, channel.fileno(), inheritable=False)
    os.close(theirs)
    channel.doorbell()
    assert len(os.read(ours, 64)) == 4
    os.close(ours)
    channel.close()


@pytest.fixture
def channel(sysfs, node, tmp_path, monkeypatch) -> UioChannel:
    sysfs("uio0", "tcm-user/1/vm1/tcmu_retry/file\n")
    monkeypatch.setattr(uio, "CONFIGFS", tmp_path / "core")
    channel = UioChannel(DEVICE)
    yield channel
    channel.close()


def test_a_kept_buffer_is_freed_by_the_commands_id(channel):
    action = DEVICE.configfs / "action"
    action.mkdir(parents=True)
    channel.free_kept_buffer(65535)
    assert (action / "free_kept_buf").read_text().strip() == "65535"


def test_a_kept_buffer_of_a_lun_that_is_gone_needs_no_freeing(channel):
    channel.free_kept_buffer(1)


def test_a_refused_freeing_is_an_error(channel, monkeypatch):
    """EINVAL means that our books and the kernel's differ."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "")

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(OSError):
        channel.free_kept_buffer(1)


# ---- the device node


def test_an_existing_node_is_used(tmp_path):
    assert uio._node("null") == "/dev/null"


def test_a_missing_node_is_made_from_sysfs(sysfs, monkeypatch):
    made: list[tuple[object, ...]] = []
    sysfs("uio987", "tcm-user/1/vm1/tcmu_retry/file\n")
    (uio.SYS / "uio987/dev").write_text("243:987\n")
    monkeypatch.setattr(os, "mknod", lambda *arguments: made.append(arguments))
    assert uio._node("uio987") == "/dev/uio987"
    assert made == [(Path("/dev/uio987"), 0o020600, os.makedev(243, 987))]
