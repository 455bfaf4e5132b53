"""Two targets show the same disk, each with its own way to the storage: dm-multipath fails over, or waits, as told."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator

import pytest

from tests.soak import newer
from tests.soak.conftest import Record
from tests.vm.lab import Lab, Lun, Storage, eventually
from tests.vm.writing import Writer, uptime, writers

CONFIGURATION = """
defaults {
    find_multipaths no
    polling_interval 1
    max_polling_interval 1
    path_checker tur
    path_grouping_policy failover
    detect_pgpolicy no
    failback manual
    no_path_retry 60
}
blacklist {
    devnode "^(vd|dm-|loop|sr)"
}
"""


# By the path, not the map; each waits for as long as it is held.
READS = "for at in 8 16 24; do dd if={disk} of=/dev/null iflag=direct bs=1M skip=$at count=1 & done; wait"
PROGRAMS = ("multipath-tools", "multipath", "multipathd")


@pytest.fixture(params=["transitioning", "good"])
def health(request: pytest.FixtureRequest) -> str:
    """What TEST UNIT READY says of the LUN that is held."""
    return str(request.param)


@pytest.fixture
def multipath(lab: Lab, health: str) -> Iterator[Lab]:
    """udevd, which multipathd hears of paths from, and multipathd: for `transitioning` one that knows it."""
    newest = health == "transitioning"
    root = newer.install(lab.guest, *PROGRAMS) if newest else ""
    lab.guest.run(
        f"printf '%s' '{CONFIGURATION}' > {root}/etc/multipath.conf; modprobe dm-multipath dm-service-time; true"
    )
    udev = lab.guest.start("exec /lib/systemd/systemd-udevd", "udevd.log")
    lab.guest.run("mkdir -p /run/lock; udevadm trigger --settle --subsystem-match=block", timeout=120)
    daemon = lab.guest.start("exec multipathd -d -v4", f"multipathd-{health}.log")
    yield lab
    lab.guest.run(f"multipath -F; kill {daemon}; sleep 1; kill {udev}; rm -rf /run/udev", check=False)
    if newest:
        newer.remove(lab.guest, *PROGRAMS)


def pair(lab: Lab, name: str, settings: str) -> tuple[Lun, Lun]:
    """Two LUNs of one WWN, each over a dm device of its own to the same place."""
    first = lab.storage(f"{name}-a", 96)
    second = Storage(lab.guest, f"{name}-b", first.start, first.size)
    second.make()
    lab.stores.append(second)
    wwn = str(uuid.uuid4())
    luns = lab.export(first, settings, "--wwn", wwn), lab.export(second, settings, "--wwn", wwn)
    for lun in luns:
        lun.login()
    return luns


def map_of(lab: Lab, lun: Lun) -> str:
    node = lun.disk.removeprefix("/dev/")

    def look() -> str:
        holder = lab.guest.run(f"cat /sys/block/{node}/holders/*/dm/name", check=False).out.strip()
        return holder if lab.guest.run(f"test -b /dev/mapper/{holder or 'none'}", check=False).code == 0 else ""

    return f"/dev/mapper/{eventually(look, 60, f'a multipath map over {lun.disk}')}"


def writes(lab: Lab, lun: Lun) -> int:
    """Requests that its disk has done."""
    return int(lab.guest.run(f"cat /sys/block/{lun.disk.removeprefix('/dev/')}/stat").out.split()[4])


def path_states(lab: Lab) -> dict[str, str]:
    """LUN -> the kernel's state of the path and the checker's."""
    shown = lab.guest.run("multipathd show paths raw format '%d %t %T'").out
    states = {line.split()[0]: line.partition(" ")[2].strip() for line in shown.splitlines() if line.strip()}
    return {lun.name: states.get(lun.disk.removeprefix("/dev/"), "unknown") for lun in lab.luns}


def test_report_as_path_fails_over_and_holding_keeps_the_path(multipath: Lab, health: str, record: Record) -> None:
    """dm-multipath over two targets of one WWID, one cut: `report` as path fails over, holding keeps the path.

    Two maps. 0 s  writers run    the storage behind the path in use of both fails
    over:  retry_timeout=5s: reported as path, the path fails, and in 25 s the writer is on the other one
    stay:  held, with this health; three reads at other places find the same, so that the storage is known to be away:
           for 25 s the path counts as it did    storage back: the writer goes on there

    The checker takes 02/04/0A, `transitioning`, for "pending", which leaves the path as it is, since multipath-tools
    0.9.5; Debian 12's 0.9.4 takes it for down, so that there `good` is what keeps a path. Since 0.9.6 they put all
    paths of a LUN of LIO into one group, for its ALUA, unless `detect_pgpolicy` is off.
    """
    lab = multipath
    version = re.findall(r"v(\d+\.\d+\.\d+)", lab.guest.run("multipath -h 2>&1; true").out)[0]
    pairs = [pair(lab, "over", "retry_timeout=5s"), pair(lab, "stay", f"health={health}")]
    made = [Writer(lab.guest, luns[0].name[:4], map_of(lab, luns[0])) for luns in pairs]
    eventually(lambda: set(path_states(lab).values()) == {"active ready"}, 60, "four paths")
    with writers(*made):
        for writer in made:
            writer.begin("mkfs.ext4 -q", 300)
        for writer in made:
            eventually(writer.started, 60, f"the {writer.name} writer")
        (over, other), (stay, _) = (sorted(luns, key=lambda lun: -writes(lab, lun)) for luns in pairs)
        for lun in (over, stay):
            lun.storage.fail()
        cut = uptime(lab.guest)
        lab.guest.start(READS.format(disk=stay.disk), "reads.log")
        made[0].wait_wrote_after(cut + 5, 25)
        time.sleep(max(0.0, cut + 25 - uptime(lab.guest)))
        states = path_states(lab)
        said = lab.log(f"multipathd-{health}.log")
        assert f"{over.disk.removeprefix('/dev/')}: mark as failed" in said
        assert states[other.name].startswith("active"), states
        assert not over.status()["held"]
        assert states[stay.name] == "active ready", states
        heard = f"{stay.disk.removeprefix('/dev/')}: tur checker reports path is transitioning" in said
        assert heard == (health == "transitioning")
        assert stay.status()["held"]
        assert not made[1].wrote_after(cut + 3)
        for lun in (over, stay):
            lun.storage.back()
        back = uptime(lab.guest)
        made[1].wait_wrote_after(back + 1, 40)
        eventually(lambda: set(path_states(lab).values()) == {"active ready"}, 30, "all paths are used again")
        for writer in made:
            assert writer.errors == []
            assert writer.missing() == []
            record(**{writer.name: f"longest pause {writer.longest:.1f} s, 0 errors"})
        record(states_in_the_outage=states, health=health, multipath_tools=version)
