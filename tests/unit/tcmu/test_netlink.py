"""Announcements of the kernel, word by word as it sends them, and the answers that it understands.

Messages are put together and taken apart by hand here, from linux/target_core_user.h, and not by what is tested.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tcmu_retry.tcmu import netlink
from tcmu_retry.tcmu.netlink import Added, Event, Reconfigured, Removed, TcmuNetlink, decode
from tcmu_retry.tcmu.uio import UioDevice

FAMILY_ID, GROUP_ID = 0x1C, 9
CONTROL = 0x10  # GENL_ID_CTRL, and its group "notify"
ADDED, REMOVED, RECONFIG = 1, 2, 3
DEVICE, MINOR, DEV_CFG, DEV_SIZE, WRITECACHE, CMD_STATUS, DEVICE_ID, SUPP_REPLY = 1, 2, 4, 5, 6, 7, 8, 9
LABEL = b"tcm-user/1/vm1/tcmu_retry/file\0"
VM1 = UioDevice("uio3", 1, "vm1", "tcmu_retry", "file")


def attribute(kind: int, value: bytes) -> bytes:
    size = 4 + len(value)
    return struct.pack("<HH", size, kind) + value + bytes(-size % 4)


def message(command: int, *attributes: bytes, kind: int = FAMILY_ID, version: int = 2) -> bytes:
    body = struct.pack("<BBH", command, version, 0) + b"".join(attributes)
    return struct.pack("<IHHII", 16 + len(body), kind, 0, 0, 0) + body


def announcement(command: int, *more: bytes, label: bytes = LABEL) -> bytes:
    identity = (
        attribute(DEVICE, label),
        attribute(MINOR, struct.pack("<I", 3)),
        attribute(DEVICE_ID, struct.pack("<I", 77)),
    )
    return message(command, *identity, *more)


def taken_apart(data: bytes) -> tuple[int, int, dict[int, bytes]]:
    """Message type, command and attributes."""
    size, kind, flags, _, _ = struct.unpack_from("<IHHII", data)
    assert size == len(data)
    assert flags & 1, "not a request"
    attributes = {}
    at = 20
    while at < size:
        length, number = struct.unpack_from("<HH", data, at)
        attributes[number] = data[at + 4 : at + length]
        at += length + -length % 4
    return kind, data[16], attributes


# ---- what is announced


def test_a_device_that_is_being_enabled():
    assert decode(announcement(ADDED)) == Added(VM1, 77)


def test_a_device_that_goes():
    assert decode(announcement(REMOVED)) == Removed(VM1, 77)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (attribute(DEV_SIZE, struct.pack("<Q", 1 << 40)), {"size": 1 << 40}),
        (attribute(DEV_CFG, b"tcmu_retry/other\0"), {"config": "tcmu_retry/other"}),
        (attribute(WRITECACHE, b"\1"), {"write_cache": True}),
        (attribute(WRITECACHE, b"\0"), {"write_cache": False}),
    ],
)
def test_one_value_that_is_about_to_change(change, expected):
    assert decode(announcement(RECONFIG, change)) == Reconfigured(VM1, 77, **expected)


def test_padding_before_a_wide_value_is_passed_over():
    """The kernel aligns DEV_SIZE by an attribute PAD where 64-bit values need it."""
    event = decode(announcement(RECONFIG, attribute(3, b""), attribute(DEV_SIZE, struct.pack("<Q", 4096))))
    assert event == Reconfigured(VM1, 77, size=4096)


def test_a_device_of_another_handler_is_told_with_its_subtype():
    event = decode(announcement(ADDED, label=b"tcm-user/1/x/file_optical/path\0"))
    assert event == Added(UioDevice("uio3", 1, "x", "file_optical", "path"), 77)


@pytest.mark.parametrize(
    "data",
    [
        announcement(9),
        announcement(ADDED, label=b"igb_uio\0"),
        message(ADDED),
        message(ADDED, attribute(MINOR, struct.pack("<I", 3))),
    ],
    ids=["later command", "other device", "empty", "without name"],
)
def test_what_is_none_of_ours_is_left_alone(data):
    assert decode(data) is None


# ---- the conversation


@dataclass
class Kernel:
    """The other end of the socket."""

    end: socket.socket
    ours: socket.socket
    options: list[tuple[int, int, int]] = field(default_factory=list)
    overrun: bool = False  # the next recv fails as after lost announcements

    # ---- as the socket of TcmuNetlink

    def bind(self, address: tuple[int, int]) -> None:
        assert address == (0, 0)

    def setsockopt(self, level: int, option: int, value: int) -> None:
        self.options.append((level, option, value))

    def sendto(self, data: bytes, address: tuple[int, int]) -> None:
        assert address == (0, 0)
        self.ours.send(data)

    def recv(self, size: int) -> bytes:
        if self.overrun:
            self.overrun = False
            raise OSError(errno.ENOBUFS, "No buffer space available")
        return self.ours.recv(size)

    def setblocking(self, flag: bool) -> None:
        self.ours.setblocking(flag)

    def fileno(self) -> int:
        return self.ours.fileno()

    def close(self) -> None:
        self.ours.close()

    # ---- as the kernel

    def answer_family(self, number: int = FAMILY_ID, group_number: int = GROUP_ID, name: bytes = b"TCM-USER") -> None:
        group = attribute(2, struct.pack("<I", group_number)) + attribute(1, b"config\0")
        body = attribute(2, name + b"\0") + attribute(1, struct.pack("<H", number))
        self.end.send(message(1, body, attribute(7, attribute(1, group)), kind=CONTROL))

    def refuse(self, code: int) -> None:
        """NLMSG_ERROR with the header of what is refused."""
        self.end.send(struct.pack("<IHHIIi16x", 36, 2, 0, 0, 0, -code))

    def heard(self) -> tuple[int, int, dict[int, bytes]]:
        return taken_apart(self.end.recv(65536))


class Module:
    """Stands for the module `socket`; asyncio keeps the real one."""

    AF_NETLINK, SOCK_RAW, SOCK_CLOEXEC = socket.AF_NETLINK, socket.SOCK_RAW, socket.SOCK_CLOEXEC

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def socket(self, *_: int) -> Kernel:
        return self._kernel


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    end, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end.setblocking(False)
    kernel = Kernel(end, ours)
    monkeypatch.setattr(netlink, "socket", Module(kernel))
    yield kernel
    end.close()
    ours.close()


class Listener:
    """A started TcmuNetlink and what it told."""

    def __init__(self, kernel: Kernel) -> None:
        self.told: asyncio.Queue[Event | str] = asyncio.Queue()
        self.netlink = TcmuNetlink()
        kernel.answer_family()
        self.netlink.start(self.told.put_nowait, lambda: self.told.put_nowait("overrun"))
        kernel.heard()

    async def next(self) -> Event | str:
        return await asyncio.wait_for(self.told.get(), 5)


def test_the_family_is_asked_for_by_name_and_its_group_joined(kernel):
    async def main() -> None:
        kernel.answer_family()
        conversation = TcmuNetlink()
        conversation.start(lambda _: None, lambda: None)
        kind, command, attributes = kernel.heard()
        assert (kind, command, attributes[2]) == (0x10, 3, b"TCM-USER\0")
        assert kernel.options == [(270, 1, GROUP_ID), (270, 1, CONTROL)]
        conversation.close()
        assert kernel.ours.fileno() == -1

    asyncio.run(main())


def test_without_the_module_the_socket_is_closed_and_enoent_raised(kernel):
    async def main() -> None:
        kernel.refuse(errno.ENOENT)
        with pytest.raises(FileNotFoundError, match="TCM-USER"):
            TcmuNetlink().start(lambda _: None, lambda: None)
        assert kernel.ours.fileno() == -1

    asyncio.run(main())


def test_announcements_reach_the_callback(kernel):
    async def main() -> None:
        listener = Listener(kernel)
        kernel.end.send(announcement(ADDED))
        assert await listener.next() == Added(VM1, 77)
        kernel.end.send(announcement(REMOVED))
        assert await listener.next() == Removed(VM1, 77)
        listener.netlink.close()

    asyncio.run(main())


@pytest.mark.parametrize(("event", "command"), [(Added(VM1, 77), 4), (Removed(VM1, 77), 5), (Reconfigured(VM1, 77), 6)])
@pytest.mark.parametrize("status", [0, -errno.ENODEV])
def test_an_answer_names_the_device_and_the_command_of_its_event(kernel, event, command, status):
    """A wrong command makes the kernel wait for ever."""

    async def main() -> None:
        listener = Listener(kernel)
        listener.netlink.reply(event, status)
        assert kernel.heard() == (
            FAMILY_ID,
            command,
            {CMD_STATUS: struct.pack("<i", status), DEVICE_ID: struct.pack("<I", 77)},
        )
        listener.netlink.close()

    asyncio.run(main())


@pytest.mark.parametrize("wanted", [True, False])
def test_the_kernel_is_told_whether_to_wait_for_answers(kernel, wanted):
    async def main() -> None:
        listener = Listener(kernel)
        listener.netlink.set_features(reply=wanted)
        assert kernel.heard() == (FAMILY_ID, 7, {SUPP_REPLY: bytes((wanted,))})
        listener.netlink.close()

    asyncio.run(main())


def test_lost_announcements_are_told_and_later_ones_still_come(kernel):
    async def main() -> None:
        listener = Listener(kernel)
        kernel.overrun = True
        kernel.end.send(announcement(ADDED))
        assert await listener.next() == "overrun"
        assert await listener.next() == Added(VM1, 77)
        listener.netlink.close()

    asyncio.run(main())


def test_a_module_that_is_loaded_again_is_listened_to_again(kernel):
    """Another family and group    its answers are waited for as before    what came between is looked for."""

    async def main() -> None:
        listener = Listener(kernel)
        listener.netlink.set_features(reply=True)
        kernel.heard()
        kernel.answer_family(FAMILY_ID + 5, 12, name=b"other")
        kernel.answer_family(FAMILY_ID + 1, 12)
        assert await listener.next() == "overrun"
        assert kernel.options[2:] == [(270, 1, 12)]
        assert kernel.heard() == (FAMILY_ID + 1, 7, {SUPP_REPLY: b"\1"})
        kernel.end.send(message(ADDED, attribute(DEVICE, LABEL), kind=FAMILY_ID))
        renewed = bytearray(announcement(ADDED))
        struct.pack_into("<H", renewed, 4, FAMILY_ID + 1)
        kernel.end.send(renewed)
        assert await listener.next() == Added(VM1, 77)
        listener.netlink.close()

    asyncio.run(main())


def test_a_refused_answer_is_said_and_harms_nothing(kernel, caplog):
    """Another TCMU handler answered first."""

    async def main() -> None:
        listener = Listener(kernel)
        kernel.refuse(errno.ENODEV)
        kernel.end.send(announcement(ADDED))
        assert await listener.next() == Added(VM1, 77)
        listener.netlink.close()

    asyncio.run(main())
    (record,) = caplog.records
    assert "No such device" in record.getMessage()


def test_messages_of_other_families_are_left_alone(kernel):
    async def main() -> None:
        listener = Listener(kernel)
        kernel.end.send(message(ADDED, attribute(DEVICE, LABEL), kind=FAMILY_ID + 1))
        kernel.end.send(announcement(REMOVED))
        assert await listener.next() == Removed(VM1, 77)
        listener.netlink.close()

    asyncio.run(main())


def test_nothing_is_told_after_the_end_and_ending_twice_is_harmless(kernel):
    async def main() -> None:
        listener = Listener(kernel)
        kernel.end.send(announcement(ADDED))
        listener.netlink.close()
        listener.netlink.close()
        await asyncio.sleep(0)
        assert listener.told.empty()

    asyncio.run(main())


def test_a_name_that_is_no_text_is_announced_all_the_same() -> None:
    """Whoever enabled the LUN, perhaps in another locale, waits unkillably for an answer."""
    device = UioDevice("uio3", 1, r"f\xfcr", "tcmu_retry", r"f\xfcr")
    label = b"tcm-user/1/f\xfcr/tcmu_retry/f\xfcr\0"
    assert decode(announcement(ADDED, label=label)) == Added(device, 77)
    changed = announcement(RECONFIG, attribute(DEV_CFG, b"tcmu_retry/\xfc\0"), label=label)
    assert decode(changed) == Reconfigured(device, 77, config=r"tcmu_retry/\xfc")
