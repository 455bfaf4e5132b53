"""Regular files and block devices, read and written past the page cache."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from tcmu_retry.backends import linux
from tcmu_retry.backends.base import Backend, BackendError, Identity

SYS_BLOCK = Path("/sys/dev/block")
RUN_UDEV = Path("/run/udev/data")
IOV_MAX = 1024


def open_backend(path: str, *, buffered: bool = False) -> Backend:
    """Open storage for a LUN, for nobody else at the same time. May block. Raises BackendError."""
    # O_EXCL on a block device: not while it is mounted, part of a volume group, or another LUN's.
    flags = os.O_RDWR | os.O_CLOEXEC | (0 if buffered else os.O_DIRECT)
    try:
        mode = Path(path).stat().st_mode
        if stat.S_ISBLK(mode):
            flags |= os.O_EXCL
        elif not stat.S_ISREG(mode):
            raise BackendError(f"{path} is neither a file nor a block device; name one of these", errno.EINVAL)
        fd = os.open(path, flags)
    except OSError as error:
        raise _refusal(path, error) from error
    try:
        return FileBackend(path, fd)
    except OSError as error:
        os.close(fd)
        raise _refusal(path, error) from error
    except BackendError:
        os.close(fd)
        raise


def _refusal(path: str, error: OSError) -> BackendError:
    code = error.errno or errno.EIO
    match code:
        case errno.ENOENT:
            text = f"{path} does not exist; create it first, a file for example by `truncate -s 20G {path}`"
        case errno.EINVAL:
            text = f"{path} cannot be opened past the page cache (O_DIRECT); add `buffered=true` to use it all the same"
        case errno.EBUSY:
            text = f"{path} is in use, mounted, part of another device or served by another LUN; end that use first"
        case errno.EAGAIN | errno.EACCES if isinstance(error, BlockingIOError):
            text, code = f"{path} is locked by another program or LUN; end that use first", errno.EBUSY
        case _:
            text = f"{path} cannot be opened: {error.strerror}"
    return BackendError(text, code)


class FileBackend:
    """One open file or block device; see `backends.base.Backend`. Takes the fd over."""

    def __init__(self, path: str, fd: int) -> None:
        """Raises OSError, BackendError."""
        self._path = path
        self._fd = fd
        self._block = stat.S_ISBLK(os.fstat(fd).st_mode)
        size = os.lseek(fd, 0, os.SEEK_END)
        if self._block:
            self.block_size = linux.logical_block_size(fd)
            unique = _block_identity(os.fstat(fd).st_rdev)
        else:
            linux.lock(fd)
            self.block_size = _direct_alignment(fd, size)
            unique = _file_identity(fd)
        self.identity = Identity("block" if self._block else "file", size, unique)
        self.can_discard = self._discards()

    def read(self, offset: int, buffers: Sequence[memoryview]) -> int:
        return os.preadv(self._fd, buffers[:IOV_MAX], offset)

    def write(self, offset: int, buffers: Sequence[memoryview], durable: bool) -> int:
        return os.pwritev(self._fd, buffers[:IOV_MAX], offset, os.RWF_DSYNC if durable else 0)

    def flush(self) -> None:
        os.fdatasync(self._fd)

    def discard(self, offset: int, length: int) -> None:
        # Not BLKDISCARD: what it leaves behind is undefined. PUNCH_HOLE reads as zeros on files and block devices.
        linux.fallocate(self._fd, linux.PUNCH_HOLE | linux.KEEP_SIZE, offset, length)

    def zero(self, offset: int, length: int, discard: bool) -> None:
        mode = linux.PUNCH_HOLE if discard and self.can_discard else linux.ZERO_RANGE
        linux.fallocate(self._fd, mode | linux.KEEP_SIZE, offset, length)

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _discards(self) -> bool:
        if not self._block:
            try:  # beyond the end there is nothing to lose
                linux.fallocate(self._fd, linux.PUNCH_HOLE | linux.KEEP_SIZE, self.identity.size, 4096)
            except OSError:
                return False
            return True
        queue = _sysfs(os.fstat(self._fd).st_rdev) / "queue"
        # A block device zeroes and unmaps by one command or, without WRITE ZEROES, would have to be told which blocks.
        return _number(queue / "discard_max_bytes") > 0 and _number(queue / "write_zeroes_max_bytes") > 0


def _direct_alignment(fd: int, size: int) -> int:
    """What O_DIRECT asks of a file here: the smallest read that works (statx tells since 6.1 and not everywhere)."""
    if not size:
        return 512
    page = mmap.mmap(-1, 4096)
    for align in (512, 1024, 2048):
        try:
            os.preadv(fd, [memoryview(page)[:align]], 0)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        else:
            return align
    return 4096


def _sysfs(number: int) -> Path:
    """The disk or partition in sysfs; a partition's queue is its disk's."""
    return SYS_BLOCK / f"{os.major(number)}:{os.minor(number)}"


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _block_identity(number: int) -> str:
    """What stays when the device comes back under another number: dm's uuid or name, PARTUUID, WWID."""
    place = _sysfs(number)
    if (place / "dm").is_dir():
        return f"dm:{_text(place / 'dm/uuid') or _text(place / 'dm/name')}"
    for line in _text(RUN_UDEV / f"b{os.major(number)}:{os.minor(number)}").splitlines():
        if line.startswith("E:ID_PART_ENTRY_UUID="):
            return f"partuuid:{line.split('=', 1)[1]}"
    if (place / "partition").exists():
        parent = place.resolve().parent
        wwid = _text(parent / "device/wwid") or _text(parent / "wwid")
        return f"wwid:{wwid}:{_text(place / 'partition')}" if wwid else ""
    wwid = _text(place / "device/wwid") or _text(place / "wwid")
    serial = _text(place / "serial") or _text(place / "device/serial")
    return f"wwid:{wwid}" if wwid else f"serial:{serial}" if serial else ""


def _file_identity(fd: int) -> str:
    """The file system, by what survives a remount, and the file in it."""
    handle = linux.file_handle(fd)
    device = os.fstat(fd).st_dev
    for link in Path("/dev/disk/by-uuid").glob("*"):
        try:
            if link.stat().st_rdev == device:
                return f"uuid:{link.name}:{handle}"
        except OSError:
            continue
    # statvfs: for ext4, xfs and btrfs f_fsid comes from the file system's UUID.
    return f"fsid:{os.fstatvfs(fd).f_fsid:x}:{handle}"
