"""What a block device is known by, as sysfs and udev tell it: the same under a new number."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tcmu_retry.backends.base import Identity
from tcmu_retry.backends.identity import block_identity

Files = dict[str, str]  # below the disk's directory in sysfs

WWID = "naa.600140512345"


def machine(root: Path, number: str, disk: Files, partition: Files | None = None, udev: str = "") -> tuple[Path, Path]:
    """A sysfs and a udev database with one disk, or one partition of it, under a device number."""
    place = root / "devices/disk"
    for name, content in disk.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(content)
    place.mkdir(parents=True, exist_ok=True)
    if partition is not None:
        place = place / "disk1"
        place.mkdir()
        for name, content in partition.items():
            (place / name).write_text(content)
    numbers, data = root / "dev/block", root / "udev"
    numbers.mkdir(parents=True)
    data.mkdir()
    (numbers / number).symlink_to(place)
    if udev:
        (data / f"b{number}").write_text(udev)
    return numbers, data


PARTITION = {"partition": "1\n", "start": "2048\n"}
UDEV = "S:disk/by-x/y\nE:ID_FS_TYPE=ext4\nE:ID_PART_ENTRY_UUID=11-22\n"

TABLE = [
    # what, disk's files, partition's files, udev → identity
    ("dm with a uuid", {"dm/uuid": "LVM-abc\n", "dm/name": "vg-lv\n"}, None, "", "dm-uuid:LVM-abc"),
    ("dm without", {"dm/uuid": "\n", "dm/name": "disk\n"}, None, "", ""),
    ("SCSI disk", {"device/wwid": f"{WWID}\n"}, None, "", f"device-wwid:{WWID}"),
    ("NVMe namespace", {"wwid": "eui.0025\n", "device/serial": "S1\n"}, None, "", "wwid:eui.0025"),
    ("virtio with a serial", {"serial": "disk-7\n"}, None, "", "serial:disk-7"),
    ("partition of a known disk", {"device/wwid": WWID}, PARTITION, UDEV, f"device-wwid:{WWID}:1@2048"),
    ("partition of an unnamed disk", {}, PARTITION, UDEV, "partuuid:11-22"),
    ("partition without udev", {}, PARTITION, "", ""),
    ("says nothing", {"serial": "\n"}, None, "E:ID_FS_TYPE=ext4\n", ""),
]


@pytest.mark.parametrize(("disk", "partition", "udev", "identity"), [row[1:] for row in TABLE],
                         ids=[row[0] for row in TABLE])  # fmt: skip
def test_identity(tmp_path: Path, disk: Files, partition: Files | None, udev: str, identity: str) -> None:
    """The surest name that the kernel has, then udev's, else none; and the number is no part of it."""
    for at, number in enumerate(("8:1", "252:37")):
        numbers, data = machine(tmp_path / str(at), number, disk, partition, udev)
        major, minor = map(int, number.split(":"))
        assert block_identity(os.makedev(major, minor), numbers, data) == identity


def test_device_that_is_not_there(tmp_path: Path) -> None:
    """A device that goes while it is looked at has no name; the open that follows tells the error."""
    assert block_identity(os.makedev(8, 0), tmp_path, tmp_path) == ""


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        (Identity("block", 8, "wwid:a"), Identity("block", 8, "wwid:a"), True),
        (Identity("block", 8, "wwid:a"), Identity("block", 8, "wwid:b"), False),
        (Identity("block", 8, "wwid:a"), Identity("block", 9, "wwid:a"), True),
        (Identity("block", 8, ""), Identity("file", 8, ""), False),
        (Identity("block", 8, "partuuid:a"), Identity("block", 8, "wwid:b"), True),
        (Identity("block", 8, "wwid:a"), Identity("block", 8, ""), True),
        (Identity("block", 8, ""), Identity("block", 8, ""), True),
    ],
)
def test_difference(before: Identity, after: Identity, same: bool) -> None:
    """Names are compared within one scheme; where one side has none, the kind decides. Storage may grow."""
    assert (before.difference(after) is None) == same
