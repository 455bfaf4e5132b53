"""Files as storage: what is read, written, zeroed and refused. Block devices are the VM tier's."""

from __future__ import annotations

import contextlib
import errno
import gc
import mmap
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tcmu_retry.backends import file as file_module
from tcmu_retry.backends import linux
from tcmu_retry.backends.base import Backend, BackendError
from tcmu_retry.backends.file import open_backend

SIZE = 1 << 20
DATA = bytes(range(1, 256)) * 4113


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A file full of bytes that are not zero."""
    path = tmp_path / "image"
    path.write_bytes(DATA[:SIZE])
    return path


@pytest.fixture(params=[False, True], ids=["direct", "buffered"])
def backend(image: Path, request: pytest.FixtureRequest) -> Iterator[Backend]:
    opened = open_backend(str(image), buffered=request.param)
    yield opened
    opened.close()


def aligned(length: int) -> memoryview:
    return memoryview(mmap.mmap(-1, length))


def test_geometry(backend: Backend) -> None:
    """The size is the file's, and every power of two from the block size on works for I/O."""
    assert (backend.identity.kind, backend.identity.size) == ("file", SIZE)
    assert backend.block_size in (512, 1024, 2048, 4096)
    assert backend.read(SIZE - backend.block_size, [aligned(backend.block_size)]) == backend.block_size


@pytest.mark.parametrize("durable", [False, True])
def test_write_then_read(backend: Backend, image: Path, durable: bool) -> None:
    """Scattered buffers land in a row at the offset, and nowhere else."""
    memory = aligned(16384)
    memory[:] = os.urandom(16384)
    assert backend.write(8192, [memory[:4096], memory[8192:]], durable) == 12288
    backend.flush()
    written = bytes(memory[:4096]) + bytes(memory[8192:])
    into = aligned(12288)
    assert backend.read(8192, [into[:8192], into[8192:]]) == 12288
    assert into == written
    assert image.read_bytes() == DATA[:8192] + written + DATA[20480:SIZE]


def test_what_the_page_cache_has_of_it_is_dropped(image: Path) -> None:
    """Or the kernel would hand the first write to each such block to a thread; an image that was copied is cached."""
    with image.open("r+b", buffering=0) as file:
        file.write(bytes(4096))
        os.fsync(file.fileno())
        block = bytearray(4096)
        assert os.preadv(file.fileno(), [block], 0, os.RWF_NOWAIT) == 4096
        backend = open_backend(str(image))
        with pytest.raises(BlockingIOError):
            os.preadv(file.fileno(), [block], 0, os.RWF_NOWAIT)
        del backend


def test_memory_that_direct_io_refuses(backend: Backend) -> None:
    """Buffers at odd addresses, as only a simulated ring has them, work through a copy."""
    odd = memoryview(bytearray(os.urandom(8192 + 64)))
    pieces = [odd[1:1001], odd[1001:4097], odd[4100:8196]]
    assert backend.write(4096, pieces, True) == 8192
    into = memoryview(bytearray(8192 + 64))
    back = [into[3:6003], into[6010:8202]]
    assert backend.read(4096, back) == 8192
    assert b"".join(back) == b"".join(pieces)


def test_read_behind_the_end_is_short(backend: Backend) -> None:
    """A file that shrank gives what is left; the pump makes EIO of nothing."""
    into = memoryview(bytearray(8192))
    assert backend.read(SIZE - 4096, [into]) == 4096
    assert into[:4096] == DATA[SIZE - 4096 : SIZE]
    assert backend.read(SIZE, [into]) == 0


def test_more_buffers_than_the_kernel_takes(backend: Backend) -> None:
    """More than IOV_MAX pieces are a short transfer, not EINVAL."""
    piece = aligned(backend.block_size)[: backend.block_size]
    assert backend.read(0, [piece] * 1025) == min(1024 * len(piece), SIZE)


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, SIZE), (4096, 8192), (512, 512), (512, 8192), (4096, 4608), (3584, 1024), (SIZE - 512, 512), (8192, 0)],
)
@pytest.mark.parametrize("how", ["discard", "zero", "zero and discard"])
def test_zeroed_to_the_byte(backend: Backend, image: Path, how: str, offset: int, length: int) -> None:
    """Discarded and zeroed ranges read as zeros, also where they cut a file system's block, and no byte more does."""
    expected = DATA[:offset] + bytes(length) + DATA[offset + length : SIZE]
    try:
        if how == "discard":
            backend.discard(offset, length)
        else:
            backend.zero(offset, length, discard=how.endswith("discard"))
    except OSError as error:  # tmpfs has no ZERO_RANGE
        assert error.errno == errno.EOPNOTSUPP and (how != "discard" or not backend.can_discard)
        expected = DATA[:SIZE]
    backend.flush()
    assert image.read_bytes() == expected


def test_discard_gives_space_back(backend: Backend, image: Path) -> None:
    """Where discard is promised, the file gets smaller on its disk and not in size."""
    backend.flush()
    before = image.stat()
    with contextlib.nullcontext() if backend.can_discard else pytest.raises(OSError):
        backend.discard(0, SIZE // 2)
    backend.flush()
    assert (image.stat().st_blocks < before.st_blocks) == backend.can_discard
    assert image.stat().st_size == SIZE


def test_looking_for_discard_changes_nothing(backend: Backend, image: Path) -> None:
    """Opening asks what the file system can by a hole behind the end."""
    assert image.read_bytes() == DATA[:SIZE]


def test_second_opening_is_refused(backend: Backend, image: Path) -> None:
    """Two LUNs, or two daemons, never have the same file open; the sentence says why, the errno is one to retry."""
    with pytest.raises(BackendError, match="is locked by another") as raised:
        open_backend(str(image))
    assert raised.value.errno == errno.EBUSY
    backend.close()
    open_backend(str(image)).close()


def test_closed_storage_is_out_of_reach(image: Path) -> None:
    """A worker that comes late gets EBADF, and never another file that was given the same number since."""
    backend = open_backend(str(image))
    backend.close()
    backend.close()
    others = [os.open(image.with_name("other"), os.O_CREAT | os.O_RDWR) for _ in range(3)]
    page = aligned(4096)
    late: list[Callable[[], object]] = [
        lambda: backend.read(0, [page]),
        lambda: backend.write(0, [page], True),
        backend.flush,
        lambda: backend.discard(0, 4096),
        lambda: backend.zero(0, 4096, False),
    ]
    for call in late:
        with pytest.raises(OSError) as raised:
            call()
        assert raised.value.errno == errno.EBADF
    assert image.with_name("other").stat().st_size == 0
    for number in others:
        os.close(number)


def test_descriptors_go_with_their_backend(image: Path) -> None:
    """Reopening for weeks does not use descriptors up, neither when it succeeds nor when it fails."""

    def count() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    gc.collect()  # descriptors of other tests' garbage
    before = count()
    for _ in range(5):
        backend = open_backend(str(image))
        with pytest.raises(BackendError):
            open_backend(str(image))
        backend.close()
        del backend
    assert count() == before


def test_same_file_is_same_storage(image: Path) -> None:
    """A reopen finds the same identity, though the file was written to, renamed and linked in between."""
    first = open_backend(str(image))
    first.write(0, [aligned(4096)], True)
    first.close()
    moved = image.rename(image.with_name("moved"))
    second = open_backend(str(moved))
    assert first.identity.difference(second.identity) is None
    assert first.identity.unique == second.identity.unique
    second.close()


def test_other_file_is_other_storage(image: Path, tmp_path: Path) -> None:
    """A copy that took the file's place, equal in size and content, is refused where the file system has a UUID."""
    first = open_backend(str(image))
    first.close()
    copy = tmp_path / "copy"
    copy.write_bytes(DATA[:SIZE])
    copy.replace(image)
    second = open_backend(str(image))
    second.close()
    refused = first.identity.difference(second.identity)
    assert "its identity was" in (refused or "") if first.identity.unique else refused is None


def test_grown_file_is_the_same_storage(image: Path) -> None:
    """The size is looked at anew whenever somebody asks, and at every opening."""
    first = open_backend(str(image))
    os.truncate(image, SIZE * 2)
    assert first.identity.size == SIZE
    assert first.size() == SIZE * 2
    first.close()
    with pytest.raises(OSError):
        first.size()
    second = open_backend(str(image))
    second.close()
    assert second.identity.size == SIZE * 2
    assert first.identity.difference(second.identity) is None


def failing(code: int) -> Callable[..., Any]:
    def call(*arguments: object, **named: object) -> None:
        raise OSError(code, os.strerror(code))

    return call


@pytest.mark.parametrize(
    ("name", "sentence", "code"),
    [
        ("missing", "does not exist; create it first", errno.ENOENT),
        (".", "is neither a file nor a block device", errno.EINVAL),
        ("image/under", "Not a directory; check the path", errno.ENOTDIR),
    ],
)
def test_refused_paths(image: Path, name: str, sentence: str, code: int) -> None:
    """What cannot be storage is refused in a sentence with the path in it."""
    path = str(image.parent / name)
    with pytest.raises(BackendError, match=sentence) as raised:
        open_backend(path)
    assert raised.value.errno == code
    assert str(raised.value).startswith(path)


def test_file_system_without_direct_io(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence names the setting that helps, whether open refuses O_DIRECT or statx says it cannot be had."""
    monkeypatch.setattr(linux, "direct_alignment", lambda fd: 0)
    with pytest.raises(BackendError, match="buffered=true"):
        open_backend(str(image))
    open_backend(str(image), buffered=True).close()
    monkeypatch.setattr(os, "open", failing(errno.EINVAL))
    with pytest.raises(BackendError, match="buffered=true"):
        open_backend(str(image))


@pytest.mark.parametrize(("told", "smallest", "found"), [(4096, 512, 4096), (None, 512, 512), (None, 2048, 2048)])
def test_alignment(image: Path, monkeypatch: pytest.MonkeyPatch, told: int | None, smallest: int, found: int) -> None:
    """statx's word counts; where it is silent, the smallest read that the file takes."""
    preadv = os.preadv

    def picky(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        if sum(map(len, buffers)) % smallest:
            raise OSError(errno.EINVAL, "")
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(linux, "direct_alignment", lambda fd: told)
    monkeypatch.setattr(os, "preadv", picky)
    backend = open_backend(str(image))
    assert backend.block_size == found
    backend.close()


def test_file_system_without_holes(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """can_discard is false where the file system says so; other errors are the storage's and refuse the opening."""
    monkeypatch.setattr(linux, "fallocate", failing(errno.EOPNOTSUPP))
    backend = open_backend(str(image))
    assert not backend.can_discard
    backend.close()
    monkeypatch.setattr(linux, "fallocate", failing(errno.EIO))
    with pytest.raises(BackendError) as raised:
        open_backend(str(image))
    assert raised.value.errno == errno.EIO


def test_buffered_writes_go_one_at_a_time(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the page cache no other call can come between a write and the news of its write-back error."""
    backend = open_backend(str(image), buffered=True)
    inside = threading.Event()
    go_on = threading.Event()
    order: list[str] = []

    def slow_write(*arguments: object) -> int:
        inside.set()
        assert go_on.wait(10)
        order.append("write")
        return 512

    monkeypatch.setattr(os, "pwritev", slow_write)
    monkeypatch.setattr(os, "fdatasync", lambda fd: order.append("flush"))
    writer = threading.Thread(target=backend.write, args=(0, [aligned(512)], True))
    flusher = threading.Thread(target=backend.flush)
    writer.start()
    assert inside.wait(10)
    flusher.start()
    go_on.set()
    writer.join()
    flusher.join()
    backend.close()
    assert order == ["write", "flush"]


def test_short_write_of_zeros_goes_on(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The edges of a zeroed range are written whole, or the call fails."""
    backend = open_backend(str(image))
    block = backend.block_size
    monkeypatch.setattr(backend, "_granule", 8 * block)
    pwritev = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, at, flags: pwritev(fd, [buffers[0][:block]], at, flags))
    backend.zero(block, 5 * block, False)
    monkeypatch.setattr(os, "pwritev", lambda *arguments: 100)
    with pytest.raises(OSError) as raised:
        backend.zero(block, 5 * block, False)
    assert raised.value.errno == errno.EIO
    backend.close()
    assert image.read_bytes() == DATA[:block] + bytes(5 * block) + DATA[6 * block : SIZE]


def test_zeros_are_zeros() -> None:
    """The memory that zeroes are written from can be changed by nobody."""
    assert file_module.ZEROS.readonly
    assert not any(file_module.ZEROS)


def test_an_error_of_a_file_that_was_replaced_asks_for_a_reopen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A remount, or a disk pulled and plugged: what is open says EIO for ever, what the path leads to is well."""
    path = tmp_path / "lun.img"
    path.write_bytes(bytes(8192))
    backend = open_backend(str(path), buffered=True)

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "pwritev", broken)
    with pytest.raises(OSError, match="broken") as failure:
        backend.write(0, [memoryview(bytes(512))], durable=False)
    assert failure.value.errno == errno.EIO
    path.rename(tmp_path / "old.img")
    with pytest.raises(OSError, match="broken"):  # it may be renamed and be well: no path, no opinion
        backend.write(0, [memoryview(bytes(512))], durable=False)
    path.write_bytes(bytes(8192))
    with pytest.raises(OSError, match="No such device") as failure:
        backend.write(0, [memoryview(bytes(512))], durable=False)
    assert failure.value.errno == errno.ENODEV


def test_storage_outside_of_allowed_paths_is_not_opened_whatever_links_say(tmp_path: Path) -> None:
    """A link out of the root, as a file and as a directory; one that leads back into it is as good as a file."""
    root, outside = tmp_path / "luns", tmp_path / "secret"
    root.mkdir()
    outside.mkdir()
    for file in (root / "vm1.img", outside / "disk"):
        file.write_bytes(bytes(4096))
    (root / "link").symlink_to(outside / "disk")
    (root / "directory").symlink_to(outside)
    (root / "alias").symlink_to(root / "vm1.img")
    roots = (str(root),)
    for name in ("link", "directory/disk"):
        with pytest.raises(BackendError, match="leads out of allowed_paths") as failure:
            open_backend(str(root / name), buffered=True, roots=roots)
        assert failure.value.errno == errno.EACCES
    for name in ("vm1.img", "alias"):
        open_backend(str(root / name), buffered=True, roots=roots).close()
    linked = tmp_path / "linked"
    linked.symlink_to(root)
    open_backend(str(linked / "vm1.img"), buffered=True, roots=(str(linked),)).close()


@pytest.mark.parametrize(
    ("path", "opened", "roots", "good"),
    [
        ("/dev/mapper/vm1", "/dev/dm-3", ["/dev/mapper"], True),
        ("/dev/mapper/vm1", "/dev/dm-3", ["/srv", "/dev/vg0"], False),
        ("/dev/mapper/../sda", "/dev/sda", ["/dev/mapper"], False),
        ("/dev/mapper/vm1", "/srv/x", ["/dev/mapper"], False),
        ("/srv/disk", "/dev/sda", ["/srv"], False),
        ("/srv/x", "/srv/x", ["/"], True),
    ],
)
def test_links_count_as_what_they_lead_to_but_for_those_of_dev(
    path: str, opened: str, roots: list[str], good: bool
) -> None:
    assert file_module._confined(path, opened, roots) is good
