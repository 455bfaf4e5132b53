"""What makes a file or a block device the same storage after a remount, or under another device number.

Each answer begins with its scheme, because a later look may find other sources (no udev yet, another kernel) and two
schemes say nothing about each other.
"""

from __future__ import annotations

import os
from pathlib import Path

from tcmu_retry.backends import linux

SYS_BLOCK = Path("/sys/dev/block")
UDEV_DATA = Path("/run/udev/data")

# What a whole device is known by, the surest first: device mapper, md, NVMe, SCSI, virtio.
DISK_NAMES = ("dm/uuid", "md/uuid", "wwid", "device/wwid", "serial")


def file_identity(fd: int) -> str:
    """The file system and the file in it. "" where the file system has no UUID, as NFS.

    Not statfs's f_fsid, which XFS makes of the device number; not a handle alone, which FUSE changes at a remount.
    """
    uuid = linux.file_system_uuid(fd) or _udev_property(os.fstat(fd).st_dev, "ID_FS_UUID", UDEV_DATA)
    return f"fs:{uuid}:{linux.file_handle(fd)}" if uuid else ""


def block_identity(number: int, sys_block: Path = SYS_BLOCK, udev_data: Path = UDEV_DATA) -> str:
    """The name that a disk or volume carries itself; for a partition its disk's name, number and start."""
    place = device_directory(number, sys_block)
    partition = text(place / "partition")
    disk = disk_directory(place)
    for source in DISK_NAMES:
        if name := text(disk / source):
            part = f":{partition}@{text(place / 'start')}" if partition else ""
            return f"{source.replace('/', '-')}:{name}{part}"
    uuid = _udev_property(number, "ID_PART_ENTRY_UUID", udev_data)
    return f"partuuid:{uuid}" if uuid else ""


def _udev_property(number: int, name: str, udev_data: Path) -> str:
    for line in text(udev_data / f"b{os.major(number)}:{os.minor(number)}").splitlines():
        key, _, value = line.partition("=")
        if key == f"E:{name}":
            return value
    return ""


def device_directory(number: int, sys_block: Path = SYS_BLOCK) -> Path:
    """A disk's or partition's place in sysfs."""
    return (sys_block / f"{os.major(number)}:{os.minor(number)}").resolve()


def disk_directory(place: Path) -> Path:
    """The disk's place in sysfs: its own, or a partition's parent."""
    return place.parent if (place / "partition").exists() else place


def text(path: Path) -> str:
    """The stripped content. "" where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
