"""The uio device of a LUN: what sysfs says of it, and the open channel."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from tcmu_retry.tcmu.base import unmap
from tcmu_retry.tcmu.journal import Journal

SYS = Path("/sys/class/uio")
CONFIGFS = Path("/sys/kernel/config/target/core")


@dataclass(frozen=True, slots=True)
class UioDevice:
    """A TCMU device by the kernel's name for it, "tcm-user/HBA/NAME/SUBTYPE/CONFIG"."""

    uio: str  # "uio0"
    hba: int
    name: str  # the backstore's
    subtype: str
    config: str

    @property
    def configfs(self) -> Path:
        return CONFIGFS / f"user_{self.hba}" / self.name


def parse(uio: str, label: str) -> UioDevice | None:
    """A uio device from its label; None where it is not TCMU's."""
    parts = label.strip().split("/", 4)
    if len(parts) < 3 or parts[0] != "tcm-user" or not parts[1].isdigit():
        return None
    subtype, config = [*parts[3:], "", ""][:2]
    return UioDevice(uio, int(parts[1]), parts[2], subtype, config)


def find(uio: str) -> UioDevice | None:
    """The TCMU device on this uio; None if it is gone or another's."""
    try:
        return parse(uio, (SYS / uio / "name").read_text(encoding="utf-8", errors="backslashreplace"))
    except OSError:
        return None


def scan(subtype: str) -> list[UioDevice]:
    """All TCMU devices of a handler that exist now."""
    names = sorted(entry.name for entry in SYS.iterdir()) if SYS.is_dir() else []
    return [device for name in names if (device := find(name)) is not None and device.subtype == subtype]


class UioChannel:
    """The open device; see `tcmu.base.Channel`. Raises OSError: EBUSY while another process has it open."""

    def __init__(self, device: UioDevice) -> None:
        self._device = device
        self._fd = os.open(_node(device.uio), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            # Exactly the size of map 0, else EINVAL. Never populated or locked: pages come when the kernel hands out a
            # data block, and a touch outside one is SIGBUS.
            size = int((SYS / device.uio / "maps/map0/size").read_text(), 16)
            mapping = mmap.mmap(self._fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        except BaseException:
            os.close(self._fd)
            raise
        self._memory = memoryview(mapping)
        self.journal: Journal | None = None

    @property
    def memory(self) -> memoryview:
        return self._memory

    def fileno(self) -> int:
        return self._fd

    @property
    def bell(self) -> int:
        return self._fd

    def acknowledge(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 4)

    def doorbell(self) -> None:
        os.write(self._fd, b"\0\0\0\0")

    def free_kept_buffer(self, command_id: int) -> None:
        try:
            (self._device.configfs / "action/free_kept_buf").write_text(f"{command_id}\n")
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):  # the LUN was removed in the meantime
                raise

    def close(self) -> None:
        """Raises BufferError while views of the memory are alive: mmap dups the fd; the last view frees the device."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            unmap(self._memory)


def _node(uio: str) -> str:
    """The device node; made where nothing else makes it (no devtmpfs, no udevd)."""
    path = Path("/dev") / uio
    if not path.exists():
        major, minor = map(int, (SYS / uio / "dev").read_text().split(":"))
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(major, minor))
    return str(path)
