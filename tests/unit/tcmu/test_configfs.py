"""LIO's configuration tree, as files in a temporary directory."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from tcmu_retry.tcmu import configfs, uio
from tcmu_retry.tcmu.configfs import ATTRIBUTES, Attributes, Export, Window, exports, prepare
from tcmu_retry.tcmu.uio import UioDevice

DEVICE = UioDevice("uio0", 1, "vm1", "tcmu_retry", "file")
DEFAULTS = {"cmd_time_out": "30", "qfull_time_out": "-1", "tmr_notification": "0"}


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The backstore's directory, with the kernel's defaults."""
    monkeypatch.setattr(uio, "CONFIGFS", tmp_path / "core")
    path = DEVICE.configfs
    for directory in ("attrib", "action", "wwn"):
        (path / directory).mkdir(parents=True)
    for name, value in {**DEFAULTS, "dev_size": "1048576", "hw_block_size": "512", "emulate_write_cache": "0"}.items():
        (path / "attrib" / name).write_text(value + "\n")
    return path


Refuse = Callable[[str], list[Path]]


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """Makes the kernel refuse to write files of one name; gives the list of all that were written to."""

    def arrange(name: str) -> list[Path]:
        written: list[Path] = []
        real = Path.write_text

        def write_text(path: Path, *arguments: str) -> int:
            written.append(path)
            if path.name == name:
                raise OSError(errno.EINVAL, "Invalid argument")
            return real(path, *arguments)

        monkeypatch.setattr(Path, "write_text", write_text)
        return written

    return arrange


def attributes(path: Path) -> dict[str, str]:
    return {name: (path / "attrib" / name).read_text().strip() for name in ATTRIBUTES}


def test_a_new_device_is_made_safe_for_holding(device):
    assert prepare(DEVICE) == Attributes(1048576, 512, False)
    assert attributes(device) == {"cmd_time_out": "0", "qfull_time_out": "120", "tmr_notification": "1"}


def test_what_is_right_already_is_not_written_again(device, refuse):
    """Writing cmd_time_out is refused while exported, even the value that it has."""
    prepare(DEVICE)
    written = refuse("cmd_time_out")
    prepare(DEVICE)
    assert written == []


def test_a_value_that_cannot_be_set_while_exported_is_said_and_the_others_are_set(device, refuse, caplog):
    refuse("cmd_time_out")
    assert prepare(DEVICE) == Attributes(1048576, 512, False)
    assert attributes(device) == {"cmd_time_out": "30", "qfull_time_out": "120", "tmr_notification": "1"}
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "LUN vm1: cmd_time_out is 30 and must be 0" in record.getMessage()


def test_a_device_that_is_gone_cannot_be_prepared(tmp_path, monkeypatch):
    monkeypatch.setattr(uio, "CONFIGFS", tmp_path)
    with pytest.raises(FileNotFoundError):
        prepare(DEVICE)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("T10 VPD Unit Serial Number: 1234-abcd\n", "1234-abcd"),
        ("T10 VPD Unit Serial Number: a:b\n", "a:b"),
        ("T10 VPD Unit Serial Number: \n", ""),
    ],
)
def test_the_serial_number_is_what_follows_the_label(device, text, expected):
    (device / "wwn/vpd_unit_serial").write_text(text)
    assert configfs.wwn(DEVICE) == expected


def test_blocking_and_unblocking(device):
    configfs.block(DEVICE, True)
    assert (device / "action/block_dev").read_text() == "1"
    configfs.block(DEVICE, False)
    assert (device / "action/block_dev").read_text() == "0"


def test_a_ring_is_reset_with_busy(device):
    """2 would mean a hard error for every command in it."""
    configfs.reset_ring(DEVICE)
    assert (device / "action/reset_ring").read_text() == "1"


# ---- exports


@pytest.fixture
def tree(tmp_path: Path, device: Path) -> Callable[..., None]:
    """Adds a LUN to the target tree."""

    def add(iqn: str, tpg: int, lun: int, to: Path = device, portals: tuple[str, ...] = ("0.0.0.0:3260",)) -> None:
        group = tmp_path / "iscsi" / iqn / f"tpgt_{tpg}"
        directory = group / "lun" / f"lun_{lun}"
        directory.mkdir(parents=True)
        (directory / "0123456789").symlink_to(to)
        (directory / "alua_tg_pt_gp").write_text("")
        for portal in portals:
            (group / "np" / portal).mkdir(parents=True, exist_ok=True)
        (group / "np").mkdir(exist_ok=True)

    return add


def test_a_device_that_nobody_exports(device, tmp_path):
    assert exports(device, tmp_path) == []


def test_every_export_of_a_device_is_found_with_its_portals(device, tree, tmp_path):
    tree("iqn.2003-01.org.example:a", 1, 0, portals=("[::0]:3260", "10.0.0.1:3260"))
    tree("iqn.2003-01.org.example:b", 12, 255, portals=())
    found = sorted(exports(device, tmp_path), key=lambda export: export.iqn)
    assert found == [
        Export("iqn.2003-01.org.example:a", 1, 0, ("10.0.0.1:3260", "[::0]:3260")),
        Export("iqn.2003-01.org.example:b", 12, 255, ()),
    ]


def test_the_export_of_another_device_is_not_ours(device, tree, tmp_path):
    other = device.parent / "vm10"
    other.mkdir()
    tree("iqn.2003-01.org.example:a", 1, 0, to=other)
    assert exports(device, tmp_path) == []


def test_an_export_that_is_going_is_not_an_export(device, tree, tmp_path):
    tree("iqn.2003-01.org.example:a", 1, 0, to=device.parent / "gone")
    assert exports(device, tmp_path) == []


def test_the_path_may_be_another_way_to_the_device(device, tree, tmp_path):
    """configfs links are relative, and /sys may be entered by another path."""
    tree("iqn.2003-01.org.example:a", 1, 3)
    (tmp_path / "way").symlink_to(device.parent)
    assert [export.lun for export in exports(tmp_path / "way" / device.name, tmp_path)] == [3]


INFO = """InitiatorName: iqn.1993-08.org.debian:01:a
InitiatorAlias: host
LIO Session ID: 2   ISID: 0x00 02 3d 00 00 01  TSIH: 2  SessionType: Normal
Session State: TARG_SESS_STATE_LOGGED_IN
---------------------[iSCSI Session Values]-----------------------
  CmdSN/WR  :  CmdSN/WC  :  ExpCmdSN  :  MaxCmdSN  :     ITT    :     TTT
 0x00000200   0x{free:08x}   0x00000021   0x00000200   0x00000020   0x00000000
----------------------[iSCSI Connections]-------------------------
CID: 0  Connection State: TARG_CONN_STATE_LOGGED_IN
   Address 10.0.0.2:41060 TCP  StatSN: 0x1ee2f5ea
"""


def test_who_else_waits_for_the_answers_of_a_lun(device, tree, tmp_path):
    """One initiator with a target of its own: nobody. Others who are logged in, or other LUNs of the target, do."""
    iqn = "iqn.2003-01.org.example:a"
    assert configfs.sharers(device, tmp_path) == ""
    tree(iqn, 1, 0)
    group = tmp_path / "iscsi" / iqn / "tpgt_1"
    (group / "dynamic_sessions").write_text("iqn.any\0\n\0")
    out = group / "acls/iqn.out"
    out.mkdir(parents=True)
    (out / "info").write_text("No active iSCSI Session for Initiator Endpoint: iqn.out\n")
    assert configfs.sharers(device, tmp_path) == ""
    (out / "info").write_text(INFO.format(free=1))
    assert configfs.sharers(device, tmp_path) == "2 initiators are logged in"
    tree(iqn, 1, 1, to=device.parent / "other")
    assert configfs.sharers(device, tmp_path) == f"{iqn} has 2 LUNs"


def test_windows_and_what_is_left_of_them(device, tree, tmp_path, monkeypatch):
    """Of whom an ACL allows, what LIO says; of one that is not logged in, and of any other, only the depth."""
    iqn = "iqn.2003-01.org.example:a"
    tree(iqn, 1, 0)
    group = tmp_path / "iscsi" / iqn / "tpgt_1"
    (group / "attrib").mkdir()
    (group / "attrib/default_cmdsn_depth").write_text("512\n")
    (group / "dynamic_sessions").write_text("iqn.any\0\n\0")
    told = {"iqn.full": INFO.format(free=0), "iqn.in": INFO.format(free=0x1E0), "iqn.out": "No active iSCSI Session"}
    for name, info in told.items():
        (group / "acls" / name).mkdir(parents=True)
        (group / "acls" / name / "cmdsn_depth").write_text("512\n")
        (group / "acls" / name / "info").write_text(info)
    assert configfs.windows(device, tmp_path) == {
        "iqn.any": Window(512),
        "iqn.full": Window(512, 0, 0x21),
        "iqn.in": Window(512, 480, 0x21),
        "iqn.out": Window(512),
    }
    found = configfs.sessions(device, tmp_path)
    assert {acl.name for acl in found} == set(told)
    for depth in (512, 320):
        acl = group / "acls/iqn.full"
        (acl / "cmdsn_depth").write_text(f"{depth}\n")
        written: list[str] = []
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_text", lambda path, text, to=written: to.append(text))
            configfs.end_session(acl, configfs.sessions(device, tmp_path)[acl])
        # Another one than before: only that ends a session. And what somebody set stays.
        assert written == [str(depth - 1 if depth == 512 else depth + 1), str(depth)]
    tree(iqn, 1, 1, to=device.parent / "other")
    assert configfs.sessions(device, tmp_path) == {}, "its sessions are others' too"


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        ((), "var/target"),
        (("etc/target",), "etc/target"),
        (("etc/rtslib-fb-target",), "etc/rtslib-fb-target"),
        (("etc/target", "etc/rtslib-fb-target"), "etc/rtslib-fb-target"),
    ],
)
def test_lio_s_database_is_where_this_system_s_targetcli_wants_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: tuple[str, ...], chosen: str
) -> None:
    """Whatever the rtslib that runs here would take: what is elsewhere is not found again after a reboot."""
    monkeypatch.setattr(configfs, "DATABASES", (tmp_path / "etc/rtslib-fb-target", tmp_path / "etc/target"))
    (tmp_path / "dbroot").write_text(f"{tmp_path}/var/target\n")
    for each in there:
        (tmp_path / each).mkdir(parents=True)
    assert configfs.settle_database(tmp_path) == f"{tmp_path}/{chosen}"
    # Linux copies as many bytes as were written: without the newline the end of a longer name stays.
    assert (tmp_path / "dbroot").read_text() == f"{tmp_path}/{chosen}\n"


def test_lio_s_database_stays_where_it_is_while_there_are_backstores(tmp_path: Path, monkeypatch, refuse) -> None:
    """Linux refuses to move it then: EINVAL."""
    monkeypatch.setattr(configfs, "DATABASES", (tmp_path,))
    (tmp_path / "dbroot").write_text("/var/target\n")
    written = refuse("dbroot")
    assert configfs.settle_database(tmp_path) == "/var/target"
    assert len(written) == 1
    (tmp_path / "dbroot").unlink()
    with pytest.raises(FileNotFoundError):  # LIO is not loaded
        configfs.settle_database(tmp_path)


def test_reservations_have_a_directory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where LIO says its database is; and where that cannot be, LUNs are served all the same."""
    (tmp_path / "dbroot").write_text(f"{tmp_path}/etc/target\n")
    configfs.make_room_for_reservations(tmp_path)
    configfs.make_room_for_reservations(tmp_path)
    assert (tmp_path / "etc/target/pr").is_dir()
    assert not caplog.records
    configfs.make_room_for_reservations(tmp_path / "none")
    assert "reservations may not work" in caplog.text


def test_netlink_is_blocked_while_waiting_announcements_are_ended(tmp_path, monkeypatch, refuse):
    """Unblocked at the end, else no LUN could be made any more."""
    monkeypatch.setattr(configfs, "PARAMETERS", tmp_path)
    written = refuse("nothing is refused")
    configfs.reset_netlink()
    assert [path.name for path in written] == ["block_netlink", "reset_netlink", "block_netlink"]
    assert (tmp_path / "block_netlink").read_text() == "0"
