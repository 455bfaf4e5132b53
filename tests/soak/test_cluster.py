"""Two nodes under Debian's Pacemaker and a disk that both have: a LUN moves under a writer, on command and by a death.

The initiator is a third guest, with open-iscsi as Debian has it. The nodes are not fenced (`stonith-enabled=false`):
one that dies here has been switched off before the other hears nothing of it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.shown import commands
from tests.soak.conftest import Record
from tests.vm.guest import Guest, free_port
from tests.vm.lab import START, eventually
from tests.vm.systemd import SystemdGuest
from tests.vm.writing import Writer, uptime, writers

SECTORS = 256 << 11
NODES = {"a": "192.0.2.1", "b": "192.0.2.2"}
STORE = "/dev/mapper/store"  # each node's own way to the disk
COROSYNC = """
totem {
    version: 2
    cluster_name: gateways
    token: 15000
}
nodelist {
    node {
        name: a
        nodeid: 1
        ring0_addr: 192.0.2.1
    }
    node {
        name: b
        nodeid: 2
        ring0_addr: 192.0.2.2
    }
}
quorum {
    provider: corosync_votequorum
    two_node: 1
}
logging {
    to_syslog: yes
}
"""
# Where the guest is emulated a daemon has taken more than a minute to start.
PREPARE = f"""
install_project
install -D "$top/packaging/ocf/lun" "$new/usr/lib/ocf/resource.d/tcmu-retry/lun"
echo NODE > "$new/etc/hostname"
cat > "$new/etc/corosync/corosync.conf" <<'END'
{COROSYNC}
END
cat > "$new/usr/local/sbin/store" <<'END'
#!/bin/bash
# store linear|error: the node's way to the disk, or none
for each in /sys/block/vd*; do
    [ "$(cat "$each/serial")" = shared ] && disk=/dev/$(basename "$each")
done
table="0 {SECTORS} error"
[ "$1" = error ] || table="0 {SECTORS} linear $disk 0"
if [ -e {STORE} ]; then
    dmsetup suspend --noflush --nolockfs store && dmsetup load store --table "$table" && dmsetup resume store
else
    dmsetup create store --addnodeoncreate --table "$table"
fi
END
cat > "$new/usr/local/sbin/network" <<'END'
#!/bin/bash
nic=$(basename /sys/class/net/e*)
ip address add ADDRESS/24 dev "$nic"
ip link set "$nic" up
END
chmod +x "$new"/usr/local/sbin/{{store,network}}
cat > "$units/network.service" <<'END'
[Unit]
Before=corosync.service tcmu-retryd.service
DefaultDependencies=no
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=modprobe -a virtio_net dm-mod
ExecStart=/usr/local/sbin/network
ExecStart=/usr/local/sbin/store linear
END
for each in tcmu-retryd corosync pacemaker; do
    mkdir "$units/$each.service.d"
    printf '[Service]\\nTimeoutStartSec=600\\n' > "$units/$each.service.d/slow.conf"
    ln -s "/usr/lib/systemd/system/$each.service" "$units/lab.target.wants/"
done
ln -s ../network.service "$units/lab.target.wants/"
"""


def lan(port: int, number: int) -> list[str]:
    """A card on the network that these guests share, on this machine's loopback."""
    return [
        f"-netdev socket,id=lan,mcast=239.192.0.2:{port},localaddr=127.0.0.1",
        f"-device virtio-net-pci,netdev=lan,mac=52:54:00:00:02:{number:02x}",
    ]


def shown() -> tuple[list[str], str]:
    """What docs/scale-out.md shows: the commands that make the resources, and the one that does without Pacemaker."""
    made, alone = commands("docs/scale-out.md", "One at a time, by Pacemaker")
    return [line.replace("/dev/drbd0", STORE) for line in made.lines], alone.text.replace("/dev/drbd0", STORE)


class Cluster:
    """The nodes that are alive."""

    def __init__(self, disk: Path, port: int) -> None:
        self.nodes: dict[str, SystemdGuest] = {}
        for number, (name, address) in enumerate(NODES.items(), 1):
            # Both QEMUs have it in this machine's page cache: what one has written the other reads.
            shared = (
                f"-drive file={disk},if=none,id=shared,format=raw,cache=unsafe,file.locking=off",
                "-device virtio-blk-pci,drive=shared,serial=shared,share-rw=on",
            )
            self.nodes[name] = SystemdGuest(
                f"node-{name}", "1G", disks=0, options=[*lan(port, number), *shared],
                prepare=PREPARE.replace("NODE", name).replace("ADDRESS", address),
            )  # fmt: skip

    def run(self, command: str, timeout: float = 300) -> str:
        """By a node that is alive, and by which does not matter."""
        return next(iter(self.nodes.values())).run(command, timeout).out

    def place(self) -> str:
        """Where the LUN and its address are; "" while they are on the way."""
        time.sleep(1)  # each look costs an emulated processor as much
        found = self.run("crm_mon --one-shot --inactive --output-as=xml 2>/dev/null; true")
        places = re.findall(r'<resource id="vm1[^>]*role="Started"[^>]*>\s*<node name="(\w)"', found)
        return places[0] if len(places) == 2 and len(set(places)) == 1 else ""

    def kill(self, name: str) -> None:
        self.nodes.pop(name).close()

    def close(self) -> None:
        for name in list(self.nodes):
            self.kill(name)


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[Cluster]:
    disk = tmp_path_factory.mktemp("cluster") / "shared.raw"
    with disk.open("wb") as file:
        file.truncate(SECTORS * 512)
    cluster = Cluster(disk, port)
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def guest(port: int) -> Iterator[Guest]:
    """The initiator."""
    guest = Guest("initiator", memory="1G", disks=0, options=lan(port, 9))
    try:
        guest.run(
            "nic=$(basename /sys/class/net/e*); ip address flush dev $nic; ip address add 192.0.2.9/24 dev $nic;"
            ""
            " echo InitiatorName=iqn.1993-08.org.debian:01:a > /etc/iscsi/initiatorname.iscsi; iscsid"
        )
        yield guest
    finally:
        guest.close()


def test_a_lun_moves_between_two_nodes_and_its_initiator_sees_a_pause(
    cluster: Cluster, guest: Guest, record: Record
) -> None:
    """Pacemaker moves a LUN under an ext4 writer: on command, away from lost storage, and as its node dies; 0 errors.

    0  the writer writes to a    standby of a: b has the LUN    a is there again: the LUN stays
    1  b's way to the disk fails, its commands are held    standby of b: answered BUSY, and a has the LUN
    2  b is there again    a is switched off: b has the LUN    nothing that fsync returned for is missing
    """
    online = 'crm_mon --one-shot --output-as=xml 2>/dev/null | grep -c \'online="true".*type="member"\'; true'
    eventually(lambda: cluster.run(online).strip() == "2", START, "two nodes online")
    for node in cluster.nodes.values():
        eventually(lambda node=node: node.look("systemctl is-active tcmu-retryd") == "active", START, "tcmu-retryd")
    pasted, alone = shown()
    cluster.run(f"{alone.strip()} && tcmu-retry unexport vm1")
    cluster.run("pcs property set stonith-enabled=false")
    for command in pasted:
        cluster.run(command)
    cluster.run(
        "pcs resource update vm1 op start timeout=300s op stop timeout=300s op monitor interval=10s timeout=120s"
    )
    first = eventually(cluster.place, START, "the LUN on a node")
    second = next(name for name in NODES if name != first)

    guest.run("iscsiadm -m discovery -t st -p 192.0.2.10 && iscsiadm -m node -p 192.0.2.10 --login", timeout=120)
    name = eventually(lambda: guest.look("ls /sys/class/iscsi_session/*/device/target*/*/block"), 60, "the disk")
    writer = Writer(guest, "moved", f"/dev/{name}")
    pauses: dict[str, str] = {}

    def moves(what: str, place: str, seconds: float = 180) -> None:
        """The LUN comes to a node, and the writer writes again."""
        began = uptime(guest)
        eventually(lambda: cluster.place() == place, seconds, f"the LUN is on {place} after {what}")
        writer.wait_wrote_after(uptime(guest) + 1, seconds)
        took = max(float(str(each["took"])) for each in writer.records if float(str(each["t"])) > began)
        pauses[what] = f"pause {took:.1f} s"
        assert writer.errors == []

    with writers(writer):
        writer.begin("mkfs.ext4 -q", 3600)
        eventually(writer.started, 60, "the writer")

        cluster.run(f"pcs node standby {first}")
        moves("standby", second)
        cluster.run(f"pcs node unstandby {first}")
        time.sleep(30)
        assert cluster.place() == second

        cluster.nodes[second].run("store error")
        held = "tcmu-retry --json queue list vm1 | grep -c '\"serial\"'; true"
        eventually(lambda: int(cluster.nodes[second].run(held, timeout=120).out), 60, "held commands")
        time.sleep(15)  # the monitor has looked
        assert cluster.place() == second
        cluster.run(f"pcs node standby {second}")
        moves("storage away on one node", first)
        cluster.nodes[second].run("store linear")
        cluster.run(f"pcs node unstandby {second}; pcs resource cleanup")
        eventually(lambda: cluster.run(online).strip() == "2", 60, "both nodes")

        cluster.kill(first)
        moves("death", second)
        assert writer.writable
        assert writer.missing() == []
    record(
        **{what.replace(" ", "_"): f"{said}, 0 errors" for what, said in pauses.items()}, records=len(writer.records)
    )
