"""Two nodes under Debian's Pacemaker and a disk that both have: a LUN moves under a writer, on command and by a death.

The initiator is a third guest, with open-iscsi as Debian has it. The nodes are not fenced (`stonith-enabled=false`):
one that dies here has been switched off before the other hears nothing of it.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.shown import commands
from tests.soak.conftest import Record
from tests.vm.guest import Guest, free_port
from tests.vm.lab import START, eventually
from tests.vm.systemd import SystemdGuest, initrd
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
# The agents' own times are for processors that are not emulated.
OPERATIONS = "op start timeout=300s stop timeout=300s monitor interval=20s timeout=180s"
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


class Lan:
    """A network of guests, on this machine's loopback: what one card sends every other one gets."""

    def __init__(self) -> None:
        self._cards: list[int] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._carry)
        self._thread.start()

    def card(self) -> list[str]:
        port = free_port()
        self._cards.append(port)
        here = self._socket.getsockname()[1]
        return [
            f"-netdev socket,id=lan,udp=127.0.0.1:{here},localaddr=127.0.0.1:{port}",
            f"-device virtio-net-pci,netdev=lan,mac=52:54:00:00:02:{len(self._cards):02x}",
        ]

    def _carry(self) -> None:
        while True:
            frame, (_, sender) = self._socket.recvfrom(1 << 16)
            if not frame:
                return
            for port in self._cards:
                if port != sender:
                    self._socket.sendto(frame, ("127.0.0.1", port))

    def close(self) -> None:
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()


def shown() -> tuple[list[str], str]:
    """What docs/scale-out.md shows: the commands that make the resources, and the one that does without Pacemaker."""
    made, alone = commands("docs/scale-out.md", "One at a time, by Pacemaker")
    lines = [line.replace("/dev/drbd0", STORE) for line in made.lines]
    patient = [f"{line} {OPERATIONS}" if "resource create" in line else line for line in lines]
    return patient, alone.text.replace("/dev/drbd0", STORE)


class Cluster:
    """The nodes that are alive, and the initiator."""

    def __init__(self) -> None:
        self.nodes: dict[str, SystemdGuest] = {}
        self.initiator: Guest | None = None

    def boot(self, disk: Path, lan: Lan) -> None:
        """All at once: what a machine does at boot it does on one processor."""
        initrd()
        # Both QEMUs have the disk in this machine's page cache: what one has written the other reads.
        shared = (
            f"-drive file={disk},if=none,id=shared,format=raw,cache=unsafe,file.locking=off",
            "-device virtio-blk-pci,drive=shared,serial=shared,share-rw=on",
        )
        cards = {name: lan.card() for name in (*NODES, "initiator")}

        def initiator() -> None:
            self.initiator = Guest("initiator", memory="1G", disks=0, options=cards["initiator"])

        def node(name: str) -> None:
            self.nodes[name] = SystemdGuest(
                f"node-{name}", "1G", disks=0, options=[*cards[name], *shared],
                prepare=PREPARE.replace("NODE", name).replace("ADDRESS", NODES[name]),
            )  # fmt: skip

        with ThreadPoolExecutor() as pool:
            booting = [pool.submit(initiator), *(pool.submit(node, name) for name in NODES)]
        for each in booting:
            each.result()

    def run(self, command: str, timeout: float = 300) -> str:
        """By a node that is alive, and by which does not matter."""
        return next(iter(self.nodes.values())).run(command, timeout).out

    def place(self) -> str:
        """Where the LUN and its address are; "" while they are on the way."""
        time.sleep(1)  # each look costs an emulated processor as much
        found = self.run("crm_mon --one-shot --inactive --output-as=xml 2>/dev/null; true")
        places = re.findall(r'<resource id="vm1[^>]*role="Started"[^>]*>\s*<node name="(\w)"', found)
        return places[0] if len(places) == 2 and len(set(places)) == 1 else ""

    def standby(self, name: str, on: bool) -> None:
        """As `pcs node standby` or `unstandby` does, without a start of Python."""
        self.run(f"crm_standby --node {name} {'--update on' if on else '--delete'}")

    def kill(self, name: str) -> None:
        self.nodes.pop(name).close()

    def close(self) -> None:
        for name in list(self.nodes):
            self.kill(name)
        if self.initiator:
            self.initiator.close()


def held(node: SystemdGuest) -> int:
    """How many commands of the LUN are held; without a start of Python, which could take longer than they are held."""
    said = node.run("busctl call org.tcmu.Retry1 /org/tcmu/Retry1/device/vm1 org.tcmu.Retry1.Device GetStatus").out
    return int(re.findall(r'"held" t (\d+)', said)[0])


@pytest.fixture(scope="module")
def lan() -> Iterator[Lan]:
    lan = Lan()
    yield lan
    lan.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, lan: Lan) -> Iterator[Cluster]:
    disk = tmp_path_factory.mktemp("cluster") / "shared.raw"
    with disk.open("wb") as file:
        file.truncate(SECTORS * 512)
    cluster = Cluster()
    try:
        cluster.boot(disk, lan)
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def guest(cluster: Cluster) -> Guest:
    """The initiator."""
    guest = cluster.initiator
    assert guest
    guest.run(
        "nic=$(basename /sys/class/net/e*); ip address flush dev $nic; ip address add 192.0.2.9/24 dev $nic;"
        " echo InitiatorName=iqn.1993-08.org.debian:01:a > /etc/iscsi/initiatorname.iscsi; iscsid"
    )
    return guest


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
    first = eventually(cluster.place, START, "the LUN on a node")
    second = next(name for name in NODES if name != first)

    guest.run("iscsiadm -m discovery -t st -p 192.0.2.10 && iscsiadm -m node -p 192.0.2.10 --login", timeout=120)
    name = eventually(lambda: guest.look("ls /sys/class/iscsi_session/*/device/target*/*/block"), 60, "the disk")
    writer = Writer(guest, "moved", f"/dev/{name}")
    pauses: dict[str, str] = {}

    def moves(what: str, place: str, seconds: float = 240) -> None:
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

        cluster.standby(first, True)
        moves("standby", second)
        cluster.standby(first, False)
        time.sleep(30)
        assert cluster.place() == second

        cluster.nodes[second].run("store error")
        eventually(lambda: held(cluster.nodes[second]), 60, "held commands")
        time.sleep(25)  # the monitor has looked
        assert cluster.place() == second
        cluster.standby(second, True)
        moves("storage away on one node", first)
        cluster.nodes[second].run("store linear")
        cluster.standby(second, False)
        cluster.run("crm_resource --cleanup")
        eventually(lambda: cluster.run(online).strip() == "2", 60, "both nodes")

        cluster.kill(first)
        moves("death", second)
        assert writer.writable
        assert writer.missing() == []
    record(
        **{what.replace(" ", "_"): f"{said}, 0 errors" for what, said in pauses.items()}, records=len(writer.records)
    )
