"""Regular files and block devices, read and written past the page cache."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

from tcmu_retry.backends import linux
from tcmu_retry.backends.base import Backend, BackendError, Identity
from tcmu_retry.backends.identity import block_identity, device_directory, disk_directory, file_identity, text

IOV_MAX = 1024
PAGE = mmap.PAGESIZE
ZEROS = memoryview(mmap.mmap(-1, 1 << 20)).toreadonly()
NOWHERE = os.open("/", os.O_PATH | os.O_CLOEXEC)  # I/O on it is EBADF


def within(path: str, root: str) -> bool:
    """Whether a path without `..` lies in a directory."""
    return os.path.commonpath((path, root)) == os.path.normpath(root)


def open_backend(path: str, *, buffered: bool = False, roots: Sequence[str] = ()) -> Backend:
    """Open storage for a LUN, for nobody else at the same time. May block. Raises BackendError.

    buffered: through the page cache, for file systems without O_DIRECT; only with a write-through LUN.
    roots: directories that it must lie in, wherever links lead; none: anywhere.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_LARGEFILE | (0 if buffered else os.O_DIRECT)
    try:
        mode = Path(path).stat().st_mode
        if stat.S_ISBLK(mode):
            flags |= os.O_EXCL  # not while it is mounted, part of a volume group, or another LUN's
        elif not stat.S_ISREG(mode):
            raise BackendError(f"{path} is neither a file nor a block device; name one of these", errno.EINVAL)
        fd = os.open(path, flags)
    except OSError as error:
        raise _refusal(path, error) from error
    # What was opened counts, not what the path meant a moment ago.
    if roots and not _confined(path, str(Path(f"/proc/self/fd/{fd}").readlink()), roots):
        os.close(fd)
        raise BackendError(f"{path} leads out of allowed_paths ({', '.join(roots)})", errno.EACCES)
    try:
        return FileBackend(path, fd, buffered)
    except OSError as error:
        os.close(fd)
        raise _refusal(path, error) from error


def _confined(path: str, opened: str, roots: Sequence[str]) -> bool:
    """A link counts as what it leads to, except in /dev, where root alone makes links."""
    path = os.path.normpath(path)
    return any(
        within(opened, os.path.realpath(root))
        or (within(root, "/dev") and within(path, root) and within(opened, "/dev"))
        for root in roots
    )


def _refusal(path: str, error: OSError) -> BackendError:
    code = error.errno or errno.EIO
    match code:
        case errno.ENOENT:
            text = f"{path} does not exist; create it first, a file for example by `truncate -s 20G {path}`"
        case errno.EINVAL:
            text = f"{path} cannot be opened past the page cache (O_DIRECT); add `buffered=true` to use it all the same"
        case errno.EBUSY:
            text = (
                f"{path} is in use: mounted, part of another device, served by another LUN, "
                "or I/O of an earlier opening has not returned; end that use first"
            )
        case errno.EAGAIN:
            text, code = (
                f"{path} is locked by another LUN, a virtual machine or another program, "
                "or I/O of an earlier opening has not returned; end that use first",
                errno.EBUSY,
            )
        case errno.ENOLCK:
            text = f"{path} cannot be locked against a second user; mount its file system with locks"
        case _:
            text = f"{path} cannot be opened: {os.strerror(code)}; check the path and its storage"
    return BackendError(text, code)


class FileBackend:
    """One open file or block device; see `backends.base.Backend`."""

    write_back = False

    def __init__(self, path: str, fd: int, buffered: bool) -> None:
        """Takes the fd over, unless it raises OSError: EAGAIN locked by another, EINVAL no O_DIRECT here."""
        self._path = path
        self._fd = fd
        self._buffered = buffered
        # The kernel tells a write-back error once per open file, to whichever thread asks first: through the page
        # cache, a write and the wait for its end must be one step, or another thread's call takes the bad news away.
        self._alone: contextlib.AbstractContextManager[object] = (
            threading.Lock() if buffered else contextlib.nullcontext()
        )
        found = os.fstat(fd)
        self._inode = (found.st_dev, found.st_ino)
        self._number = found.st_rdev
        size = os.lseek(fd, 0, os.SEEK_END)
        if stat.S_ISBLK(found.st_mode):
            self.block_size = linux.logical_block_size(fd)
            self._granule = self.block_size
            self.identity = Identity("block", size, block_identity(found.st_rdev), linux.physical_block_size(fd))
            self.can_discard = _device_discards(found.st_rdev)
        else:
            linux.lock(fd)
            self.block_size = 512 if buffered else _direct_alignment(fd)
            self._granule = os.fstatvfs(fd).f_bsize
            self.identity = Identity("file", size, file_identity(fd))
            self.can_discard = self._file_discards(size)
        if not buffered:
            # As long as a block is in the page cache, Linux (6.1: iomap, mm/filemap.c) refuses a write past it that may
            # not wait: io_uring would hand it to a thread, which makes a small one several times as slow.
            with contextlib.suppress(OSError):
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        weakref.finalize(self, os.close, fd).atexit = False

    @property
    def descriptor(self) -> int | None:
        return None if self._buffered else self._fd  # through the page cache an error goes to whoever asks first

    def meaning(self, code: int) -> int:
        return errno.ENODEV if code in (errno.EIO, errno.ENOSPC) and self._gone() else code

    def size(self) -> int:
        size = os.lseek(self._fd, 0, os.SEEK_END)
        if self._gone():
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return size

    def read(self, offset: int, buffers: Sequence[memoryview]) -> int:
        try:
            moved = os.preadv(self._fd, buffers[:IOV_MAX], offset)
            if moved or not self._gone():
                return moved
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        except OSError as error:
            if not self._misaligned(error):
                self._tell_gone(error)
                raise
        copy = memoryview(mmap.mmap(-1, sum(map(len, buffers))))
        moved = os.preadv(self._fd, [copy], offset)
        rest = copy[:moved]
        for view in buffers:
            piece, rest = rest[: len(view)], rest[len(view) :]
            view[: len(piece)] = piece
        return moved

    def write(self, offset: int, buffers: Sequence[memoryview], durable: bool) -> int:
        flags = os.RWF_DSYNC if durable else 0
        with self._alone:
            try:
                return os.pwritev(self._fd, buffers[:IOV_MAX], offset, flags)
            except OSError as error:
                if not self._misaligned(error):
                    self._tell_gone(error)
                    raise
            copy = mmap.mmap(-1, sum(map(len, buffers)))
            copy.write(b"".join(buffers))
            return os.pwritev(self._fd, [copy], offset, flags)

    def _misaligned(self, error: OSError) -> bool:
        """O_DIRECT may have refused the memory, which never happens to a ring's pages: an aligned copy tells."""
        return error.errno == errno.EINVAL and not self._buffered

    def _tell_gone(self, error: OSError) -> None:
        """For a disk that was pulled the block layer says EIO or, its size being 0, ENOSPC: only a reopen helps."""
        code = self.meaning(error.errno or errno.EIO)
        if code != error.errno:
            raise OSError(code, os.strerror(code)) from error

    def _gone(self) -> bool:
        """Whether what is open is a disk that was pulled, or no longer what the path leads to."""
        if self._number and (os.lseek(self._fd, 0, os.SEEK_END) == 0 or not device_directory(self._number).exists()):
            return True
        try:
            found = os.stat(self._path)  # noqa: PTH116 - a path of the user's, not to be taken apart
        except OSError:
            return False
        return (found.st_dev, found.st_ino) != self._inode

    def flush(self) -> None:
        with self._alone:
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                self._tell_gone(error)
                raise

    def discard(self, offset: int, length: int) -> None:
        # Not BLKDISCARD: what it leaves behind is undefined. PUNCH_HOLE reads as zeros on files and block devices.
        self._clear(linux.PUNCH_HOLE, offset, length)

    def zero(self, offset: int, length: int, discard: bool) -> None:
        self._clear(linux.PUNCH_HOLE if discard and self.can_discard else linux.ZERO_RANGE, offset, length)

    def close(self) -> None:
        """From now on every call is EBADF; what runs in the kernel keeps the storage, and its lock, until it returns.

        The number goes free only with this object: a worker may be about to use it, and it must not name another file.
        """
        os.dup2(NOWHERE, self._fd, inheritable=False)

    def _clear(self, mode: int, offset: int, length: int) -> None:
        """The file system zeroes parts of its blocks in the page cache, where an error gets lost: these we write."""
        start = -(-offset // self._granule) * self._granule
        end = (offset + length) // self._granule * self._granule
        if start >= end:
            self._write_zeros(offset, length)
            return
        with self._alone:
            try:
                linux.fallocate(self._fd, mode | linux.KEEP_SIZE, start, end - start)
            except OSError as error:
                self._tell_gone(error)
                raise
        self._write_zeros(offset, start - offset)
        self._write_zeros(end, offset + length - end)

    def _write_zeros(self, offset: int, length: int) -> None:
        end = offset + length
        while offset < end:
            moved = self.write(offset, [ZEROS[: end - offset]], durable=self._buffered)
            moved -= moved % self.block_size
            if not moved:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            offset += moved

    def _file_discards(self, size: int) -> bool:
        beyond = (size // self._granule + 1) * self._granule  # where there is nothing to lose
        try:
            linux.fallocate(self._fd, linux.PUNCH_HOLE | linux.KEEP_SIZE, beyond, self._granule)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            return False
        return True


def _device_discards(number: int) -> bool:
    """PUNCH_HOLE on a block device is one WRITE ZEROES that may unmap; without that it is refused."""
    queue = disk_directory(device_directory(number)) / "queue"
    return all(int(text(queue / limit) or 0) > 0 for limit in ("discard_max_bytes", "write_zeroes_max_bytes"))


def _direct_alignment(fd: int) -> int:
    """What O_DIRECT asks of this file. Raises OSError EINVAL where it cannot be had.

    Where the kernel does not tell, the smallest read that works; not first, since a hole takes any read.
    """
    told = linux.direct_alignment(fd)
    if told == 0:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if told is not None:
        return told
    page = memoryview(mmap.mmap(-1, PAGE))
    for align in (512, 1024, 2048):
        try:
            os.preadv(fd, [page[:align]], 0)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        else:
            return align
    return 4096
