"""The storage is remote itself: an IP-SAN disk whose link is cut, and a file on NFS whose server is.

Its I/O hangs first, and fails only when its own initiator has had enough; a LUN over it must neither fail nor, later,
be overwritten by what hung.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pytest

from tests.soak.conftest import Record
from tests.vm.lab import Lab, Lun, Storage, eventually
from tests.vm.test_task_management import answer_seconds
from tests.vm.writing import Writer, uptime, writers

SAN = "iqn.2026-11.org.example:san"
MAKE_SAN = f"""
from rtslib import BlockStorageObject, FabricModule, LUN, NetworkPortal, TPG, Target
store = BlockStorageObject("san", dev="/dev/vdb")
group = TPG(Target(FabricModule("iscsi"), "{SAN}", mode="create"), 1, mode="create")
for name in "generate_node_acls", "cache_dynamic_acls":
    group.set_attribute(name, "1")
for name in "authentication", "demo_mode_write_protect":
    group.set_attribute(name, "0")
LUN(group, 0, storage_object=store)
NetworkPortal(group, "127.0.0.1", 3261, mode="any")
group.enable = True
"""
REMOVE_SAN = f"""
from rtslib import BlockStorageObject, FabricModule, Target
Target(FabricModule("iscsi"), "{SAN}", mode="lookup").delete()
BlockStorageObject("san").delete()
"""


class Link:
    """A TCP port of loopback that packets can stop to reach."""

    def __init__(self, lab: Lab, port: int) -> None:
        self.lab, self.port = lab, port

    def cut(self) -> float:
        """When, by the guest's clock."""
        self.lab.guest.run(
            "nft add table inet cut && nft add chain inet cut in '{ type filter hook input priority 0; }' &&"
            f" for way in dport sport; do nft add rule inet cut in tcp $way {self.port} drop; done"
        )
        return uptime(self.lab.guest)

    def back(self) -> float:
        self.lab.guest.run("nft delete table inet cut", check=False)
        return uptime(self.lab.guest)


@pytest.fixture
def san(lab: Lab) -> Iterator[str]:
    """An open-iscsi disk with the initiator's defaults, from a target of the kernel's own."""
    guest = lab.guest
    guest.run([sys.executable, "-c", MAKE_SAN])
    guest.run(f"iscsiadm -m discovery -t st -p 127.0.0.1:3261 && iscsiadm -m node -T {SAN} --login")
    find = (
        f"for s in /sys/class/iscsi_session/*; do [ $(cat $s/targetname) = {SAN} ] && ls $s/device/t*/*/block; done; :"
    )
    node = eventually(lambda: guest.look(find), 20, "the SAN's disk")
    yield f"/dev/{node}"
    Link(lab, 3261).back()
    for lun in lab.luns:
        guest.run(f"umount {lun.disk}; iscsiadm -m node -T {lun.iqn} --logout", check=False)
        lab.call("unexport", lun.name)
    guest.run(f"iscsiadm -m node -T {SAN} --logout", check=False)
    guest.run([sys.executable, "-c", REMOVE_SAN], check=False)


@pytest.fixture
def nfs(lab: Lab) -> Iterator[str]:
    """A directory of an NFS 4 server, mounted hard."""
    guest = lab.guest
    guest.run(
        "modprobe -a nfsd nfs nfsv4 && mkfs.ext4 -q -F /dev/vdb && mkdir -p /run/served /run/nfs /run/nfs-state &&"
        " mount --bind /run/nfs-state /var/lib/nfs && mkdir -p /var/lib/nfs/v4recovery && mount /dev/vdb /run/served &&"
        " touch /var/lib/nfs/etab /var/lib/nfs/rmtab && mount -t nfsd nfsd /proc/fs/nfsd &&"
        " exportfs -o rw,no_root_squash,fsid=0,insecure 127.0.0.1:/run/served"
    )
    guest.start("exec rpc.mountd -F -N 2 -N 3 -V 4", "mountd.log")
    guest.run("rpc.nfsd -N 2 -N 3 -V 4 -U -G 10 -L 5 2 || rpc.nfsd -N 3 -V 4 2")
    guest.run("mount -t nfs4 -o hard,proto=tcp,timeo=100 127.0.0.1:/ /run/nfs", timeout=120)
    yield "/run/nfs"
    Link(lab, 2049).back()
    for lun in lab.luns:
        guest.run(f"umount {lun.disk}; iscsiadm -m node -T {lun.iqn} --logout", check=False)
        lab.call("unexport", lun.name)
    guest.run("umount -f /run/nfs; rpc.nfsd 0; pkill rpc.mountd; exportfs -ua; umount /run/served", check=False)


def ride(lab: Lab, lun: Lun, link: Link, outage: float, record: Record) -> None:
    """0 s  cut; a raw write `old` hangs    its initiator aborts it, and writes `new` there    back: `new` is there."""
    writer = Writer(lab.guest, lun.name, lun.disk)
    spot = (lun.storage.size - 1) * 2048 + 40  # past the file system
    with writers(writer):
        writer.begin("mkfs.ext4 -q -E nodiscard", outage + 300, size=f"{lun.storage.size - 2}M")
        eventually(writer.started, 60, "the writer")
        cut = link.cut()
        lun.raw_write(spot, f"{lun.name}-old.log", 3)
        eventually(lambda: shown_as_hung(lun), 30, "the hung I/O is listed")
        lab.wait_end(f"{lun.name}-old.log", 30)
        answered = answer_seconds(lab)
        lun.write(spot, "new", f"{lun.name}-new.log")
        while uptime(lab.guest) < cut + outage:
            time.sleep(2)
            assert writer.errors == []
        assert lab.ended(f"{lun.name}-new.log") is None
        back = link.back()
        writer.wait_wrote_after(back + 1, 150)
        lab.wait_end(f"{lun.name}-new.log", 150)
        resumed = min(float(str(entry["t"])) for entry in writer.records if float(str(entry["t"])) > back) - back
        assert lab.ended(f"{lun.name}-new.log") == 0
        assert writer.errors == []
        assert writer.writable
        assert writer.missing() == []
        medium = lab.guest.run(f"dd if={lun.disk} bs=512 skip={spot} count=1 iflag=direct status=none").out
        assert medium.startswith("new"), medium[:20]
        stale = lab.guest.run("dmesg | grep -c 'ring is broken'; true").out.strip()
        assert stale == "0"
        record(
            outage=f"{outage:g} s",
            longest_pause=f"{writer.longest:.1f} s",
            errors=0,
            abort_answered=f"{answered * 1000:.0f} ms",
            resumed_after=f"{resumed:.1f} s",
        )


def shown_as_hung(lun: Lun) -> bool:
    return any(command["waits_for"] == "io" for command in lun.held())


def over(lab: Lab, name: str, path: str, size: int) -> Lun:
    lun = lab.export(Storage(lab.guest, name, 0, size), path=path)
    lun.login()
    return lun


@pytest.mark.parametrize("outage", [40, 180])
def test_an_ip_san_whose_link_is_cut(lab: Lab, san: str, record: Record, outage: int) -> None:
    """The disk behind the LUN is an iSCSI disk; its link is cut: hung I/O is listed, aborts are answered, 0 errors."""
    ride(lab, over(lab, f"san{outage}", san, 1024), Link(lab, 3261), outage, record)


def test_nfs_whose_server_is_cut_off(lab: Lab, nfs: str, record: Record) -> None:
    """The LUN is a file on NFS (hard mount); its server is cut off for 60 s: listed, aborts answered, 0 errors."""
    lab.guest.run(f"truncate -s 256M {nfs}/lun.img")
    ride(lab, over(lab, "nfs", f"{nfs}/lun.img", 256), Link(lab, 2049), 60, record)
