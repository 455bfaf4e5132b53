"""The time-outs of what lies under a LUN, as far as the kernel shows them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from tcmu_retry.backends.identity import device_directory, disk_directory, text
from tcmu_retry.core.chain import Link

MOUNTS = Path("/proc/self/mountinfo")


def storage_links(path: str) -> list[Link]:
    """Time-outs of a file's mount or a device's disks. May block; nothing where there is nothing to see."""
    try:
        found = os.stat(path)  # noqa: PTH116 - a path of the user's, not to be taken apart
    except OSError as error:
        return [Link("storage", path, error.strerror or "unreadable", 0.0, "bring the storage back")]
    if stat.S_ISBLK(found.st_mode):
        return list(_disks(disk_directory(device_directory(found.st_rdev))))
    return _mount(f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}")


def _disks(directory: Path) -> Iterator[Link]:
    """A disk, or those that a mapped one is made of."""
    slaves = sorted((directory / "slaves").glob("*"))
    for slave in slaves:
        yield from _disks(slave.resolve())
    if slaves:
        return
    name = directory.name
    if seconds := text(directory / "device/timeout"):
        yield Link("storage", f"{name} timeout", f"{seconds}s")
    device = (directory / "device").resolve()
    for parent in device.parents:
        for session in parent.glob("iscsi_session/session*/recovery_tmo"):
            yield Link("storage", f"{name} replacement_timeout", f"{text(session)}s")
            return


def _mount(number: str) -> list[Link]:
    links = []
    for line in MOUNTS.read_text(errors="backslashreplace").splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        if left.split()[2] != number or not kind.startswith("nfs"):
            continue
        words = options.split(" ")[-1].split(",")
        soft = next((word for word in words if word in ("soft", "softerr", "softreval")), None)
        times = " ".join(word for word in words if word.startswith(("timeo=", "retrans=")))
        wrong = ""
        if soft is None:
            wrong = "a hard NFS mount hangs instead of failing: policy has nothing to act on; mount it with softerr"
        links.append(Link("storage", f"{left.split()[4]} ({kind})", f"{soft or 'hard'} {times}".strip(), wrong=wrong))
    return links
