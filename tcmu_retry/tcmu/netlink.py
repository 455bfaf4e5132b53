"""The generic netlink family TCM-USER: the kernel announces a LUN that comes, goes or changes, and waits for an answer.

pyroute2 words the messages; the socket is our own: it lives in the main loop, and pyroute2's brings a loop with it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

from pyroute2.netlink import (
    CTRL_CMD_GETFAMILY,
    CTRL_CMD_NEWFAMILY,
    GENL_ID_CTRL,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    ctrlmsg,
    genlmsg,
)

from tcmu_retry.tcmu.uio import UioDevice, parse

log = logging.getLogger(__name__)

FAMILY, VERSION, GROUP = "TCM-USER", 2, "config"
ADDED, REMOVED, RECONFIG = 1, 2, 3
DONE = 3  # an answer's command is its event's plus this
SET_FEATURES = 7
NETLINK_GENERIC = 16
SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 270, 1
NOTIFY = GENL_ID_CTRL  # the controller's group, which hears of families that come
RECEIVE = 65536


class _Message(genlmsg):  # type: ignore[misc]
    """linux/target_core_user.h, enum tcmu_genl_attr."""

    nla_map = (
        ("UNSPEC", "none"),
        ("DEVICE", "asciiz"),
        ("MINOR", "uint32"),
        ("PAD", "none"),
        ("DEV_CFG", "asciiz"),
        ("DEV_SIZE", "uint64"),
        ("WRITECACHE", "uint8"),
        ("CMD_STATUS", "int32"),
        ("DEVICE_ID", "uint32"),
        ("SUPP_KERN_CMD_REPLY", "uint8"),
    )


@dataclass(frozen=True, slots=True)
class Added:
    """A device is being enabled; its attributes can be set, and nothing exports it yet."""

    device: UioDevice
    device_id: int


@dataclass(frozen=True, slots=True)
class Removed:
    """A device is going; nothing exports it any more."""

    device: UioDevice
    device_id: int


@dataclass(frozen=True, slots=True)
class Reconfigured:
    """One value is about to change, if the answer is 0; the others are None. size in bytes."""

    device: UioDevice
    device_id: int
    size: int | None = None
    config: str | None = None
    write_cache: bool | None = None


Event = Added | Removed | Reconfigured
_COMMAND = {Added: ADDED, Removed: REMOVED, Reconfigured: RECONFIG}


def decode(data: bytes) -> Event | None:
    """One message of the family; None for a message that is none of ours."""
    message = _Message(data)
    message.decode()
    attributes = dict(message["attrs"])
    device = parse(f"uio{attributes.get('MINOR')}", _text(attributes.get("DEVICE", "")))
    if device is None:
        return None
    number = attributes["DEVICE_ID"]
    match message["cmd"]:
        case 1:
            return Added(device, number)
        case 2:
            return Removed(device, number)
        case 3:
            write_cache = attributes.get("WRITECACHE")
            return Reconfigured(
                device,
                number,
                attributes.get("DEV_SIZE"),
                _text(attributes["DEV_CFG"]) if "DEV_CFG" in attributes else None,
                None if write_cache is None else bool(write_cache),
            )
    return None


def _text(value: str | bytes) -> str:
    """What is no text comes as bytes, and whoever made it waits for an answer all the same."""
    return value if isinstance(value, str) else value.decode(errors="backslashreplace")


class TcmuNetlink:
    """Listens in the running loop from `start` to `close`; answers go out at once and never wait."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._family = 0
        self._sequence = 0
        self._features: bool | None = None
        self._callback: Callable[[Event], None]
        self._overrun: Callable[[], None]

    def start(self, callback: Callable[[Event], None], overrun: Callable[[], None]) -> None:
        """overrun: announcements were lost, look for devices yourself. Raises OSError: ENOENT without the module."""
        self._callback, self._overrun = callback, overrun
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_GENERIC)
        try:
            self._socket.bind((0, 0))
            self._join(self._discover())
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NOTIFY)
        except BaseException:
            self._socket.close()
            raise
        self._socket.setblocking(False)
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._readable)

    def close(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def reply(self, event: Event, status: int) -> None:
        """Answer an announcement: 0, or a negative errno that refuses it. Once: a second answer confuses the kernel."""
        self._send(_COMMAND[type(event)] + DONE, CMD_STATUS=status, DEVICE_ID=event.device_id)

    def set_features(self, reply: bool) -> None:
        """Have the kernel wait for answers for devices enabled from now on; global, and it outlives this process."""
        self._features = reply
        self._send(SET_FEATURES, SUPP_KERN_CMD_REPLY=int(reply))

    def _discover(self) -> ctrlmsg:
        message = ctrlmsg()
        message["cmd"], message["version"] = CTRL_CMD_GETFAMILY, 1
        message["attrs"] = [("CTRL_ATTR_FAMILY_NAME", FAMILY)]
        self._transmit(message, GENL_ID_CTRL)
        assert self._socket is not None
        answer = ctrlmsg(self._socket.recv(RECEIVE))
        answer.decode()
        if answer["header"]["type"] == NLMSG_ERROR:
            raise OSError(errno.ENOENT, f"the kernel has no generic netlink family {FAMILY}")
        return answer

    def _join(self, family: ctrlmsg) -> None:
        assert self._socket is not None
        groups = {
            group.get_attr("CTRL_ATTR_MCAST_GRP_NAME"): group.get_attr("CTRL_ATTR_MCAST_GRP_ID")
            for group in family.get_attr("CTRL_ATTR_MCAST_GROUPS", [])
        }
        self._family = family.get_attr("CTRL_ATTR_FAMILY_ID")
        self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, groups[GROUP])

    def _family_came(self, data: bytes) -> None:
        """The module was loaded again: its numbers are others, and it knows nothing of us."""
        message = ctrlmsg(data)
        message.decode()
        if message["cmd"] != CTRL_CMD_NEWFAMILY or message.get_attr("CTRL_ATTR_FAMILY_NAME") != FAMILY:
            return
        log.info("the kernel's module target_core_user came anew")
        self._join(message)
        if self._features is not None:
            self.set_features(self._features)
        self._overrun()

    def _send(self, command: int, **attributes: int) -> None:
        message = _Message()
        message["cmd"], message["version"] = command, VERSION
        message["attrs"] = list(attributes.items())
        self._transmit(message, self._family)

    def _transmit(self, message: genlmsg, kind: int) -> None:
        assert self._socket is not None
        self._sequence += 1
        message["header"]["type"] = kind
        message["header"]["flags"] = NLM_F_REQUEST
        message["header"]["sequence_number"] = self._sequence
        message.encode()
        self._socket.sendto(bytes(message.data), (0, 0))

    def _readable(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(RECEIVE)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            log.warning("announcements of the kernel were lost; make or change again what fails now")
            self._overrun()
            return
        kind = int.from_bytes(data[4:6], "little")
        if kind == NLMSG_ERROR:
            # A refused answer; the kernel took another program's before ours.
            code = -int.from_bytes(data[16:20], "little", signed=True)
            log.error("the kernel did not take an answer: %s; is another TCMU handler running?", os.strerror(code))
        elif kind == GENL_ID_CTRL:
            self._family_came(data)
        elif kind == self._family and (event := decode(data)) is not None:
            self._callback(event)
