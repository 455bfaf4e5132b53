"""LIO's configuration tree: the attributes of a TCMU device, and who exports it."""

from __future__ import annotations

import contextlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from tcmu_retry.tcmu.uio import UioDevice

log = logging.getLogger(__name__)

TARGET = Path("/sys/kernel/config/target")
# Where targetcli, as a package, keeps what is to outlive a reboot: Debian's, and upstream's.
DATABASES = (Path("/etc/rtslib-fb-target"), Path("/etc/target"))
PARAMETERS = Path("/sys/module/target_core_user/parameters")
WIDEST = 512  # TA_DEFAULT_CMDSN_DEPTH_MAX
# Of an ACL's `info`. CmdSN/WC is MaxCmdSN - ExpCmdSN + 1: 0, and not below, once the window is closed.
_VALUES = re.compile(r"CmdSN/WR.*\n\s*0x[0-9a-f]{8}\s+0x(?P<free>[0-9a-f]{8})\s+0x(?P<expected>[0-9a-f]{8})")

# cmd_time_out: the default of 30 s ends in 02/08/00, which Linux takes for a hard error, and tells nobody here.
# qfull_time_out: commands that find ring or data area full wait in the kernel. -1 would mean 30 s once cmd_time_out is
# 0; the wait ends in TASK SET FULL, which Linux sends again until 180 s after the first time; 120 s stays clear.
# tmr_notification: without it ABORT TASK and LUN RESET wait for commands that nobody here knows to be aborted.
ATTRIBUTES = {"cmd_time_out": "0", "qfull_time_out": "120", "tmr_notification": "1"}


@dataclass(frozen=True, slots=True)
class Attributes:
    """What the kernel says of a device. Sizes in bytes."""

    size: int
    block_size: int
    write_cache: bool  # what it takes the device's for; it asks before it changes that


@dataclass(frozen=True, slots=True)
class Window:
    """The commands (CmdSN) that a session may have open.

    free: those it may send now; expected: ExpCmdSN, which each one that comes raises. None where LIO does not tell.
    """

    depth: int
    free: int | None = None
    expected: int | None = None


@dataclass(frozen=True, slots=True)
class Export:
    """A LUN of an iSCSI target group. portals: "address:port", IPv6 in brackets."""

    iqn: str
    tpg: int
    lun: int
    portals: tuple[str, ...]


def prepare(device: UioDevice) -> Attributes:
    """Set what makes holding safe and read what there is. Raises OSError.

    The right moment is the announcement of a new device: cmd_time_out cannot be set once a LUN is exported. On one that
    is exported already, a wrong one is left and said so.
    """
    attrib = device.configfs / "attrib"
    for name, value in ATTRIBUTES.items():
        if (attrib / name).read_text().strip() == value:
            continue
        try:
            (attrib / name).write_text(value)
        except OSError as error:
            log.error(
                "LUN %s: %s is %s and must be %s, but cannot be set while exported (%s); unexport and export it",
                device.name,
                name,
                (attrib / name).read_text().strip(),
                value,
                error,
            )
    size, block_size, write_cache = (
        int((attrib / name).read_text()) for name in ("dev_size", "hw_block_size", "emulate_write_cache")
    )
    return Attributes(size, block_size, bool(write_cache))


def settle_database(root: Path = TARGET) -> str:
    """Have LIO write down reservations where this system's targetcli will look for them; where they are written then.

    rtslib takes the directory of whoever packed it, and a second rtslib's cannot be taken once there is a backstore
    (Linux since 5.16; before, once a fabric was loaded). Raises OSError where LIO is not loaded.
    """
    file = root / "dbroot"
    now = file.read_text().strip()
    wanted = next((str(path) for path in DATABASES if path.is_dir()), now)
    if wanted != now:
        try:
            file.write_text(wanted + "\n")  # without it Linux keeps the end of a longer name that was there before
        except OSError as error:
            log.info("LIO's database stays in %s, it cannot be moved to %s: %s", now, wanted, error)
            return now
    return wanted


def make_room_for_reservations(root: Path = TARGET) -> None:
    """Make the directory in which LIO writes down persistent reservations; some distributions forget it.

    Without it every REGISTER is answered 02/08/00, also without APTPL: Linux 6.1 writes an empty file then.
    """
    try:
        base = (root / "dbroot").read_text().strip()
        Path(base, "pr").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.warning("persistent reservations may not work, LIO has no directory for them: %s", error)


def attributes(device: UioDevice) -> dict[str, str]:
    """Those of ATTRIBUTES as they are now."""
    found = {}
    for name in ATTRIBUTES:
        with contextlib.suppress(OSError):
            found[name] = (device.configfs / "attrib" / name).read_text().strip()
    return found


def windows(device_path: Path, root: Path = TARGET) -> dict[str, Window]:
    """The command windows of the initiators that may use a backstore, by name.

    LIO tells what is free only of initiators with an ACL of their own, and of one session of each.
    """
    found: dict[str, Window] = {}
    for export in exports(device_path, root):
        group = root / f"iscsi/{export.iqn}/tpgt_{export.tpg}"
        default = int((group / "attrib/default_cmdsn_depth").read_text())
        found |= dict.fromkeys(
            (group / "dynamic_sessions").read_text(errors="replace").replace("\0", "").split(), Window(default)
        )
        for acl in sorted((group / "acls").iterdir()):
            found[acl.name] = _window(acl)
    return found


def sessions(device_path: Path, root: Path = TARGET) -> dict[Path, Window]:
    """By the directories of their ACLs, the windows of those who use a backstore and nothing else behind its target."""
    groups = [root / f"iscsi/{export.iqn}/tpgt_{export.tpg}" for export in exports(device_path, root)]
    alone = [group for group in groups if len(list((group / "lun").iterdir())) == 1]
    return {acl: _window(acl) for group in alone for acl in sorted((group / "acls").iterdir())}


def sharers(device_path: Path, root: Path = TARGET) -> str:
    """Who else uses a backstore or a target of it, in a few words; "" if its one initiator has them for itself."""
    logged_in = 0
    for export in exports(device_path, root):
        group = root / f"iscsi/{export.iqn}/tpgt_{export.tpg}"
        luns = len(list((group / "lun").iterdir()))
        if luns > 1:
            return f"{export.iqn} has {luns} LUNs"
        logged_in += len((group / "dynamic_sessions").read_text(errors="replace").replace("\0", "").split())
        for acl in (group / "acls").iterdir():
            logged_in += not (acl / "info").read_text(errors="replace").startswith("No active")
    return f"{logged_in} initiators are logged in" if logged_in > 1 else ""


def end_session(acl: Path, window: Window) -> None:
    """Its initiator logs in again. The kernel ends an ACL's sessions when its depth becomes another. Raises OSError."""
    for depth in (window.depth - 1 if window.depth == WIDEST else window.depth + 1, window.depth):
        (acl / "cmdsn_depth").write_text(str(depth))


def _window(acl: Path) -> Window:
    depth = int((acl / "cmdsn_depth").read_text())
    told = _VALUES.search((acl / "info").read_text(errors="replace"))
    return Window(depth, int(told["free"], 16), int(told["expected"], 16)) if told else Window(depth)


def wwn(device: UioDevice) -> str:
    """The unit serial number, "" until it is set (rtslib sets it after the device is enabled)."""
    text = (device.configfs / "wwn/vpd_unit_serial").read_text(errors="replace")
    return text.split(":", 1)[-1].strip()


def block(device: UioDevice, blocked: bool) -> None:
    """Answer BUSY in the kernel to all commands from now on, or no longer. Raises OSError."""
    (device.configfs / "action/block_dev").write_text("1" if blocked else "0")


def is_blocked(device: UioDevice) -> bool:
    """Whether the kernel answers BUSY to all. Raises OSError."""
    return (device.configfs / "action/block_dev").read_text().strip() == "blocked"


def change(device: UioDevice, attribute: str, value: str) -> None:
    """Set an attribute; the kernel asks the handler before it takes it over. Blocks until then. Raises OSError."""
    (device.configfs / "attrib" / attribute).write_text(value)


def reset_ring(device: UioDevice) -> None:
    """Answer BUSY to every command in the ring and empty it. Raises OSError."""
    (device.configfs / "action/reset_ring").write_text("1")


def reset_netlink() -> None:
    """Everybody who waits in the kernel for a handler's answer gets an error; a netlink of all handlers' LUNs.

    Raises OSError.
    """
    for name, value in (("block_netlink", "1"), ("reset_netlink", "1"), ("block_netlink", "0")):
        (PARAMETERS / name).write_text(value)


def exports(device_path: Path, root: Path = TARGET) -> list[Export]:
    """Where a backstore (its configfs directory) is exported over iSCSI."""
    found = []
    for link in root.glob("iscsi/*/tpgt_*/lun/lun_*/*"):
        if link.is_symlink() and link.resolve() == device_path.resolve():
            lun = link.parent
            group = lun.parent.parent
            portals = tuple(sorted(portal.name for portal in (group / "np").iterdir()))
            number = int(lun.name.removeprefix("lun_"))
            found.append(Export(group.parent.name, int(group.name.removeprefix("tpgt_")), number, portals))
    return found
