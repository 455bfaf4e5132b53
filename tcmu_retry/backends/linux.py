"""The few system calls that storage needs and Python's os module lacks."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import uuid

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10  # linux/falloc.h
BLKSSZGET, BLKALIGNOFF, BLKPBSZGET = 0x1268, 0x127A, 0x127B
F_OFD_SETLK = 37
AT_EMPTY_PATH = 0x1000
MAX_HANDLE = 128
STATX_DIOALIGN = 0x2000
STATX_SIZE, STATX_DIO_OFFSET_ALIGN = 256, 0x9C  # struct statx: its size, and where stx_dio_offset_align is

# Who tells a file system's UUID: (request, argument, where the UUID is in it). Each is unknown to the others' files.
_UUID_IOCTLS = (
    (0x80111500, bytes(17), 1),  # FS_IOC_GETFSUUID, Linux 6.9, any file system
    (0x8008662C, struct.pack("II16x", 16, 0), 8),  # EXT4_IOC_GETFSUUID, Linux 6.0
    (0x8070587C, bytes(112), 64),  # XFS_IOC_FSGEOMETRY_V4
    (0x8400941F, bytes(1024), 16),  # BTRFS_IOC_FS_INFO
)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2); on block devices too since Linux 4.9. Raises OSError."""
    if _libc.fallocate(fd, mode, offset, length):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def file_handle(fd: int) -> str:
    """The file's handle (name_to_handle_at(2)): the same for one file over remounts. "" where there is none."""
    buffer = ctypes.create_string_buffer(struct.pack("Ii", MAX_HANDLE, 0), 8 + MAX_HANDLE)
    mount = ctypes.c_int()
    if _libc.name_to_handle_at(fd, b"", buffer, ctypes.byref(mount), AT_EMPTY_PATH):
        return ""
    size, kind = struct.unpack_from("Ii", buffer.raw)
    return f"{kind}:{buffer.raw[8 : 8 + size].hex()}"


def file_system_uuid(fd: int) -> str:
    """The UUID of the file system that a file is on. "" where it does not tell."""
    for request, argument, place in _UUID_IOCTLS:
        try:
            answer = fcntl.ioctl(fd, request, argument)
        except OSError:
            continue
        found = uuid.UUID(bytes=answer[place : place + 16])
        if found.int:
            return str(found)
    return ""


def direct_alignment(fd: int) -> int | None:
    """What O_DIRECT asks of offsets and lengths in a file, in bytes; 0: it cannot be had, None: nobody knows.

    statx(2) tells since Linux 6.1, for some file systems.
    """
    buffer = ctypes.create_string_buffer(STATX_SIZE)
    if _libc.statx(fd, b"", AT_EMPTY_PATH, STATX_DIOALIGN, buffer):
        return None
    (mask,) = struct.unpack_from("I", buffer.raw)
    return int(struct.unpack_from("I", buffer.raw, STATX_DIO_OFFSET_ALIGN)[0]) if mask & STATX_DIOALIGN else None


def logical_block_size(fd: int) -> int:
    """Bytes, of a block device."""
    return _number(fd, BLKSSZGET)


def physical_block_size(fd: int) -> int:
    """Bytes that a block device writes in one piece; 0 where such pieces do not begin at its first block."""
    return 0 if _number(fd, BLKALIGNOFF) else _number(fd, BLKPBSZGET)


def _number(fd: int, request: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(fd, request, b"\0" * 4))[0])


def lock(fd: int) -> None:
    """Take the whole file's OFD write lock, which goes with the last reference to this open file, I/O in the kernel
    included. Raises BlockingIOError while another open file has it.
    """
    fcntl.fcntl(fd, F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
