"""What Linux makes of the disk: its limits, file systems on it, sizes beyond old borders, and its names."""

from __future__ import annotations

import re

import pytest

from tests.vm.lab import MIB, SOON, Lab, Lun, eventually

TIB = MIB << 20
PORTS = (3270, 3271)


def of_file(lab: Lab, name: str, size: int, *options: str) -> Lun:
    """A LUN over a sparse file in the guest's memory."""
    lab.guest.run(f"truncate -s {size} /run/{name}.img")
    storage = lab.storage(name, 1)  # only for its name; what fails and comes back is not needed here
    lun = lab.export(storage, "buffered=true", *options, path=f"/run/{name}.img")
    lun.login()
    return lun


def queue(lun: Lun, *limits: str) -> dict[str, int]:
    told = lun.lab.guest.run(f"cd /sys/block/{lun.disk.removeprefix('/dev/')}/queue && grep . {' '.join(limits)}").out
    return {name: int(value) for name, value in re.findall(r"^(\w+):(\d+)$", told, re.MULTILINE)}


@pytest.mark.parametrize(
    ("disk", "block", "physical"), [("/dev/vda", 512, 512), ("/dev/vdb", 512, 4096), ("/dev/vda", 4096, 4096)]
)
def test_the_limits_of_its_queue_are_sane(lab: Lab, disk: str, block: int, physical: int) -> None:
    """Discards and zeroes in large pieces, transfers up to 2 MiB, no seeks, block sizes of the LUN and its storage."""
    lun = lab.export(lab.storage("limits", 64, disk), "", "--block-size", str(block))
    lun.login()
    wanted = {
        "logical_block_size": block,
        "physical_block_size": physical,
        "minimum_io_size": 4096,
        "optimal_io_size": 0,
        "rotational": 0,
        "discard_granularity": 4096,
        "discard_max_bytes": 512 * MIB,
        "write_zeroes_max_bytes": 16 * MIB,
        "chunk_sectors": 0,
    }
    assert queue(lun, *wanted) == wanted
    sectors = queue(lun, "max_hw_sectors_kb", "max_sectors_kb")
    assert sectors["max_sectors_kb"] >= 1024
    assert lun.lab.guest.look(f"cat /sys/block/{lun.disk[5:]}/queue/write_cache") == "write through"


def test_a_file_system_on_large_blocks_trims_and_zeroes(lab: Lab) -> None:
    """4Kn, ext4, a file of 8 MiB: deleted and trimmed, the storage has that room again; blkdiscard -z leaves zeros."""
    lun = of_file(lab, "trim", 32 * MIB, "--block-size", "4096")
    run = lab.guest.run

    def used() -> int:
        return int(run("stat -c %b /run/trim.img").out) * 512

    run(f"mkfs.ext4 -q {lun.disk} && mkdir -p /run/trim && mount {lun.disk} /run/trim", timeout=120)
    run("head -c 8M /dev/urandom > /run/trim/file && sync -f /run/trim && sha1sum /run/trim/file > /run/sum")
    run(f"umount /run/trim && mount {lun.disk} /run/trim && sha1sum -c /run/sum", timeout=120)
    full = used()
    trimmed = run("rm /run/trim/file && sync -f /run/trim && fstrim -v /run/trim && umount /run/trim", timeout=120).out
    assert "trimmed" in trimmed
    assert full - used() >= 8 * MIB
    run(f"e2fsck -fn {lun.disk}", timeout=120)
    run(f"blkdiscard -z {lun.disk} && cmp -n $(blockdev --getsize64 {lun.disk}) {lun.disk} /dev/zero", timeout=120)


@pytest.mark.parametrize("block", [512, 4096])
def test_large_disks_are_whole_to_their_last_block(lab: Lab, block: int) -> None:
    """Beyond 2 TiB 32 bits of LBA do not reach for 512-byte blocks, beyond 16 TiB not for 4096-byte ones."""
    size = 20 * TIB
    lun = of_file(lab, "large", size, "--block-size", str(block))
    run = lab.guest.run
    assert int(run(f"blockdev --getsize64 {lun.disk}").out) == size
    for place in (0, 2 * TIB, size - 4096):
        run(f"yes {place} | head -c 4096 > /run/page")
        run(f"dd if=/run/page of={lun.disk} bs=4096 seek={place // 4096} oflag=direct status=none")
        for where in (lun.disk, "/run/large.img"):
            run(f"dd if={where} bs=4096 skip={place // 4096} count=1 status=none | cmp - /run/page")


def test_a_file_system_grows_online(lab: Lab) -> None:
    """32 MiB with ext4 mounted    resized to 64 MiB    rescan: Linux and resize2fs see it"""
    storage = lab.storage("grow", 64)
    lun = lab.export(storage, "", "--size", "32M")
    lun.login()
    run = lab.guest.run
    run(f"mkfs.ext4 -q {lun.disk} && mkdir -p /run/grow && mount {lun.disk} /run/grow", timeout=120)
    try:
        run(f"echo {64 * MIB} > /sys/kernel/config/target/core/user_*/grow/attrib/dev_size")
        run(f"echo 1 > /sys/block/{lun.disk[5:]}/device/rescan && resize2fs {lun.disk}", timeout=120)
        assert int(run(f"blockdev --getsize64 {lun.disk}").out) == 64 * MIB
        assert int(run("df --output=size -B1 /run/grow | tail -1").out) > 48 * MIB
    finally:
        run("umount /run/grow", timeout=120)


def names(lab: Lab, disk: str) -> dict[str, str]:
    """What udev makes its by-id links of, what lsscsi and lsblk show, and VPD 83h."""
    node = disk.removeprefix("/dev/")
    generic = lab.guest.look(f"ls /sys/block/{node}/device/scsi_generic")
    return {
        "scsi_id": lab.guest.run(f"/lib/udev/scsi_id --export --whitelisted -d {disk}").out,
        "wwid": lab.guest.look(f"tr -d '\\0' < /sys/block/{node}/device/wwid"),  # a name string with its padding
        "lsblk": lab.guest.look(f"lsblk -dno VENDOR,MODEL,REV,SIZE,LOG-SEC,PHY-SEC,ROTA {disk}"),
        "lsscsi": lab.guest.look(f"lsscsi --scsi_id | grep -w {disk} | cut -c11- | sed 's,/dev/[a-z]*,,'"),
        "vpd 83h": lab.guest.look(f"sg_inq --hex --page=0x83 /dev/{generic}"),
    }


def test_names_are_unique_the_same_on_both_portals_and_after_a_restart(lab: Lab) -> None:
    """Two LUNs, one by two portals    both disks have its names    the daemon restarts, a new login: the same"""
    portals = [word for port in PORTS for word in ("--portal", f"127.0.0.1:{port}")]
    twice = lab.export(lab.storage("twice", 8), "", *portals)
    other = lab.export(lab.storage("other", 8), "", "--portal", "127.0.0.1:3272")
    run = lab.guest.run
    find = (
        "for s in /sys/class/iscsi_session/*; do [ $(cat $s/targetname) = {} ] && ls $s/device/target*/*/block; done;"
        " true"
    )

    def disks(lun: Lun, port: int, count: int) -> list[str]:
        run(f"iscsiadm -m discovery -t st -p 127.0.0.1:{port} && iscsiadm -m node -T {lun.iqn} --login")
        look = find.format(lun.iqn)
        found = eventually(lambda: len(f := run(look).out.split()) == count and f, SOON, f"{count} disks of {lun.iqn}")
        for name in found:
            eventually(lambda name=name: not run(f"blockdev --getsz /dev/{name}", check=False).code, SOON, name)
        return [f"/dev/{name}" for name in found]

    first, second = (names(lab, disk) for disk in disks(twice, PORTS[0], 2))
    [different] = (names(lab, disk) for disk in disks(other, 3272, 1))
    assert first == second
    assert re.fullmatch(r"naa\.6001405[0-9a-f]{25}", first["wwid"])
    assert f"ID_SERIAL=3{first['wwid'].removeprefix('naa.')}" in first["scsi_id"]
    assert all(first.values())
    assert not {first[kind] for kind in ("scsi_id", "wwid", "vpd 83h")} & set(different.values())
    run(f"iscsiadm -m node -T {twice.iqn} --logout")
    lab.stop_daemon()
    lab.start_daemon()
    twice.wait_served()
    again, also = (names(lab, disk) for disk in disks(twice, PORTS[0], 2))
    assert again == also == first
