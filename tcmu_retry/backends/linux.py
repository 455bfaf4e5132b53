"""The few system calls that storage needs and Python's os module lacks."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10  # linux/falloc.h
BLKSSZGET = 0x1268
F_OFD_SETLK = 37
AT_EMPTY_PATH = 0x1000
MAX_HANDLE = 128

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


def logical_block_size(fd: int) -> int:
    """Bytes, of a block device."""
    return int(struct.unpack("i", fcntl.ioctl(fd, BLKSSZGET, b"\0" * 4))[0])


def lock(fd: int) -> None:
    """Take the whole file's OFD write lock, which goes with the last reference to this open file, I/O in the kernel
    included. Raises BlockingIOError while another open file has it.
    """
    fcntl.fcntl(fd, F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
