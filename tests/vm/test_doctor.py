"""doctor reads the real chain: kernel attributes and command windows from configfs, the policy, the initiator."""

from __future__ import annotations

from tests.vm.guest import ROOT
from tests.vm.lab import Lab


def test_an_export_of_ours_is_well_and_the_initiator_is_what_ends_a_hold(lab: Lab) -> None:
    lun = lab.lun("doctor")
    chain = lab.json("doctor", lun.name)["chains"][0]["links"]
    found = {(link["where"], link["setting"]): link for link in chain}
    assert found["kernel", "cmd_time_out"]["value"] == "0"
    assert found["kernel", "tmr_notification"]["value"] == "1"
    [window] = [link for link in chain if link["where"] == "session"]
    assert window["value"] == "512"
    assert all(not link["wrong"] for link in chain)
    assert "An outage is held for 8m; then initiator ends it" in lab.cli("doctor", lun.name)


def test_a_narrow_window_is_named(lab: Lab) -> None:
    lun = lab.lun("narrow")
    group = f"/sys/kernel/config/target/iscsi/{lun.iqn}/tpgt_1"
    lab.guest.run(f"echo 16 > {group}/attrib/default_cmdsn_depth")
    result = lab.call("doctor", lun.name)
    assert result.code == 1
    assert "window below 320" in result.err


def test_the_udev_rule_makes_linux_wait(lab: Lab) -> None:
    """`linux-tuned` is what packaging/udev does to our LUNs, found by INQUIRY; other disks keep their 30 s."""
    lun = lab.lun("tuned")
    guest = lab.guest
    device = f"/sys/block/{lun.disk.removeprefix('/dev/')}/device"
    assert guest.run(f"cat {device}/timeout").out.strip() == "30"
    rule = "60-tcmu-retry-initiator.rules"
    guest.run(f"mkdir -p /run/udev/rules.d && cp {ROOT}/packaging/udev/{rule} /run/udev/rules.d/")
    for path in (device, f"{device}/scsi_disk/*"):
        guest.run(f"udevadm test --action=add $(realpath {path})")
    assert guest.run(f"cat {device}/timeout {device}/scsi_disk/*/max_retries").out.split() == ["86400", "-1"]
    guest.run(f"rm /run/udev/rules.d/{rule}")
