"""A LUN in LIO's configuration, by rtslib: backstore, target, portal and ACL in one step, or nothing of it.

Everything here blocks: the kernel answers `enable` and `delete` of a backstore only after this daemon's main loop has.
Each LUN gets a target of its own: commands held for one must not fill the command window of another's session.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

from rtslib import (
    LUN,
    TPG,
    FabricModule,
    MappedLUN,
    NetworkPortal,
    NodeACL,
    RTSRoot,
    Target,
    UserBackedStorageObject,
)
from rtslib.utils import RTSLibError

from tcmu_retry.backends.base import BackendError
from tcmu_retry.core.words import nearest
from tcmu_retry.daemon.api import ApiError, ExportRequest, ExportResult
from tcmu_retry.scsi.cdb import MAXIMUM_TRANSFER
from tcmu_retry.tcmu import configfs

SUBTYPE = "retry"
BLOCK_SIZES = (512, 1024, 2048, 4096)
# Read while a session logs in; the most that LIO takes. Each aborted command costs the session a place: core/chain.py.
WINDOW = {"default_cmdsn_depth": "512"}
OPEN_TO_ALL = {"generate_node_acls": "1", "cache_dynamic_acls": "1", "demo_mode_write_protect": "0"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_WWN = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_IQN = re.compile(r"(iqn\.\d{4}-\d{2}\.[a-z0-9.-]+(:\S+)?|eui\.[0-9A-Fa-f]{16}|naa\.[0-9A-Fa-f]{16,32})")
_PORTAL = re.compile(r"(?P<address>\[[0-9A-Fa-f:.]+\]|[0-9.]+)(:(?P<port>\d{1,5}))?")
_creating = threading.Lock()  # rtslib takes the next free index of a backstore by looking


def export(request: ExportRequest, measure: Callable[[], tuple[int, int]]) -> ExportResult:
    """Make the LUN. measure: see `storage.measure`, of its storage. Raises ApiError; nothing is left then."""
    portals = [_portal(text) for text in request.portals]
    _check(request)
    request = _fitted(request, measure)
    with _creating, contextlib.ExitStack() as undo, _told(f"export of {request.name} failed, nothing is left of it"):
        if _find(request.name) is not None:
            raise ApiError("InvalidArgument", f"there is a backstore {request.name} already; choose another name")
        store = UserBackedStorageObject(
            request.name,
            config=f"{SUBTYPE}/{request.config}",
            size=request.size,
            wwn=request.wwn or None,
            hw_max_sectors=MAXIMUM_TRANSFER // request.block_size,
            control=f"hw_block_size={request.block_size}",
        )
        undo.callback(store.delete)
        _verify(store)
        target = Target(FabricModule("iscsi"), request.target or _iqn(request.name), mode="create")
        undo.callback(target.delete)
        group = TPG(target, 1, mode="create")
        attributes = {**WINDOW, "authentication": "0", **(OPEN_TO_ALL if request.any_initiator else {})}
        for name, value in attributes.items():
            group.set_attribute(name, value)
        lun = LUN(group, 0, storage_object=store)
        for address, port in portals:
            NetworkPortal(group, address, port, mode="any")
        for initiator in request.initiators:
            MappedLUN(NodeACL(group, initiator, mode="create"), 0, lun)
        group.enable = True
        undo.pop_all()
    where = f"backstore {request.name}"
    settings = [(where, name, store.get_attribute(name)) for name in (*configfs.ATTRIBUTES, "hw_max_sectors")]
    settings += [(f"target {target.wwn}", name, group.get_attribute(name)) for name in attributes]
    return ExportResult(target.wwn, [f"{address}:{port}" for address, port in portals], 0, store.wwn, settings)


def check_ours(name: str) -> None:
    """Raises ApiError where there is no backstore of this name, or it is not this handler's."""
    store = _find(name)
    if store is None:
        near = nearest(name, [each.name for each in _stores()])
        raise ApiError("NotFound", f"there is no LUN {name}" + (f"; did you mean {near}?" if near else ""))
    if not _is_ours(store):
        raise ApiError("InvalidArgument", f"{name} is not a LUN of user:{SUBTYPE}; remove it with targetcli")


def unexport(name: str) -> None:
    """Remove the LUN, wherever it is exported, and targets that it leaves empty. Raises ApiError."""
    with _told(f"unexport of {name} failed, look with targetcli at what is left of it"):
        store = _find(name)
        if store is None:
            return
        groups = []
        for lun in list(store.attached_luns):
            groups.append(lun.parent_tpg)
            lun.delete()
        for group in groups:
            if not list(group.luns):
                target = group.parent_target
                group.delete()
                if not list(target.tpgs):
                    target.delete()
        store.delete()


def _verify(store: UserBackedStorageObject) -> None:
    """The daemon sets them while the kernel announces the device; without them holding a command is not safe."""
    for name, value in configfs.ATTRIBUTES.items():
        if store.get_attribute(name) != value:
            raise ApiError(
                "Failed", f"{store.name}: {name} is {store.get_attribute(name)}, not {value}; does another handler run?"
            )


def _check(request: ExportRequest) -> None:
    if not _NAME.fullmatch(request.name):
        raise ApiError("InvalidArgument", f"{request.name!r} is no name for a LUN; use letters, digits, _ . and -")
    if request.wwn and not _WWN.fullmatch(request.wwn):
        raise ApiError(
            "InvalidArgument",
            f"{request.wwn} is no WWN; give that of the other host's LUN as `tcmu-retry device show` tells it, such as"
            " 5f0d0b5c-6f0e-4e0c-9b43-0d2f6b6d3c11",
        )
    if request.target and not _IQN.fullmatch(request.target):
        raise ApiError(
            "InvalidArgument", f"{request.target} is no target's name, such as iqn.2026-11.org.example:{request.name}"
        )
    if request.block_size not in (0, *BLOCK_SIZES):
        raise ApiError("InvalidArgument", f"block-size {request.block_size} is not one of 512, 1024, 2048 and 4096")
    for initiator in request.initiators:
        if not _IQN.fullmatch(initiator):
            raise ApiError(
                "InvalidArgument", f"{initiator} is not an initiator's name, such as iqn.1993-08.org.debian:01:abc"
            )
    if not request.portals:
        raise ApiError("InvalidArgument", "a target needs a portal, such as 0.0.0.0:3260")
    if not request.initiators and not request.any_initiator:
        raise ApiError(
            "InvalidArgument",
            f"nobody could log in to {request.name}; name an initiator (--initiator IQN), or let all in"
            " (--any-initiator)",
        )


def _fitted(request: ExportRequest, measure: Callable[[], tuple[int, int]]) -> ExportRequest:
    """With what its storage says."""
    try:
        available, least = measure()
    except BackendError as error:
        raise ApiError("BackendUnavailable", str(error)) from error
    size, block_size = request.size or available, request.block_size or least
    if block_size % least:
        raise ApiError(
            "InvalidArgument",
            f"block-size {block_size} is less than the {least} bytes of the storage's own blocks;"
            f" give --block-size {least}, or leave it out",
        )
    if size > available:
        raise ApiError("InvalidArgument", f"size {size} is more than the {available} bytes that the storage has")
    if size % block_size or not size:
        raise ApiError(
            "InvalidArgument",
            f"size {size} is not a multiple of the block size {block_size};"
            f" give --size {size - size % block_size} to use less",
        )
    return replace(request, size=size, block_size=block_size)


def _portal(text: str) -> tuple[str, int]:
    match = _PORTAL.fullmatch(text)
    address = match["address"] if match else ""
    try:
        family = socket.AF_INET6 if address.startswith("[") else socket.AF_INET
        socket.inet_pton(family, address.strip("[]"))
        port = int((match and match["port"]) or 3260)
        if not 0 < port < 65536:
            raise OSError
    except OSError:
        raise ApiError(
            "InvalidArgument",
            f"{text} is not a portal; write ADDRESS:PORT, such as 192.0.2.1:3260 or [2001:db8::1]:3260",
        ) from None
    return address, port


def _iqn(name: str) -> str:
    """By this host's name, so that it is the same after every restart."""
    host = re.sub(r"[^a-z0-9-]", "-", socket.gethostname().split(".")[0].lower()).strip("-") or "host"
    return f"iqn.2003-01.org.linux-iscsi.{host}:{name.lower().replace('_', '-')}"


def _stores() -> Iterator[UserBackedStorageObject]:
    """Raises ApiError."""
    try:
        RTSRoot._preferred_dbroot = configfs.settle_database()  # ours may be another than targetcli's
        root = RTSRoot()
    except (RTSLibError, OSError) as error:
        raise ApiError("Failed", f"LIO's configuration is out of reach: {error}") from error
    return (store for store in root.storage_objects if store.plugin == "user")


def _find(name: str) -> UserBackedStorageObject | None:
    return next((store for store in _stores() if store.name == name), None)


def _is_ours(store: UserBackedStorageObject) -> bool:
    return str(store.config).split("/")[0] == SUBTYPE


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except (RTSLibError, OSError) as error:
        raise ApiError("Failed", f"{what}: {error}") from error
