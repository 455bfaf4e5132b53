"""Whatever outages there are, what was written is what is read; and one LUN's outage is its own."""

from __future__ import annotations

import json
import time

from tests.vm.lab import SOON, Lab

SECONDS = 45


def test_fio_verifies_every_block_over_three_outages(lab: Lab) -> None:
    """At 8, 20 and 32 s the storage fails for 5 s; fio writes and verifies at random, 16 deep, and finds all right."""
    lun = lab.lun("fio", "retry_interval=500ms;retry_max_interval=2s", timeout=300)
    lab.guest.start(
        f"fio --name=v --filename={lun.disk} --direct=1 --ioengine=libaio --iodepth=16 --rw=randrw --bs=4k"
        f" --size=48m --time_based --runtime={SECONDS} --verify=crc32c --verify_backlog=256 --verify_fatal=1"
        " --serialize_overlap=1 --output-format=json --output=/run/fio.json; code=$?;"
        " cat /run/fio.json; echo; echo end $code",
        "fio.log",
    )
    for _ in range(3):
        time.sleep(7)
        lun.storage.fail()
        lun.wait_held()
        time.sleep(5)
        lun.storage.back()
    assert lab.wait_end("fio.log", 120) == 0
    text = lab.log("fio.log")
    job = json.loads(text[text.index("{") : text.rindex("}") + 1])["jobs"][0]
    assert job["error"] == 0
    assert job["write"]["total_ios"] > 500
    assert lun.status()["held"] == 0


def test_an_outage_of_one_lun_does_not_slow_another(lab: Lab) -> None:
    """The same load on `well` alone, then with 32 commands held for `ill`: at least two thirds as fast."""
    ill, well = lab.lun("ill", timeout=300), lab.lun("well", timeout=300)

    def speed() -> float:
        done = lab.guest.run(
            f"fio --name=s --filename={well.disk} --direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite --bs=4k"
            " --time_based --runtime=8 --output-format=json",
            timeout=60,
        )
        return float(json.loads(done.out[done.out.index("{") :])["jobs"][0]["write"]["iops"])

    alone = speed()
    ill.storage.fail()
    for sector in range(0, 256, 8):
        ill.write(sector, "ill", f"ill{sector}.log")
    ill.wait_held(32)
    beside = speed()
    ill.storage.back()
    lab.cli("queue", "retry", "ill")
    for sector in range(0, 256, 8):
        assert lab.wait_end(f"ill{sector}.log", SOON) == 0
    assert beside > alone * 2 / 3, f"{beside:.0f} IOPS beside an outage, {alone:.0f} alone"
