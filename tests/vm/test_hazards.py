"""Two initiators and persistent reservations: who was preempted writes nothing any more, whatever was held of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.vm.lab import AT_ONCE, OTHER, SOON, Lab, Lun, eventually

WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 5


@dataclass
class Initiator:
    """One session's view of a LUN: its /dev/sgN and its registration key."""

    lun: Lun
    generic: str
    key: int

    def reserve(self) -> None:
        self._out("--register-ignore", f"--param-sark={self.key:#x}")
        self._out("--reserve", f"--param-rk={self.key:#x}", f"--prout-type={WRITE_EXCLUSIVE_REGISTRANTS_ONLY}")

    def preempt_and_abort(self, other: Initiator) -> float:
        """Register and take over; seconds that PREEMPT AND ABORT took."""
        self._out("--register-ignore", f"--param-sark={self.key:#x}")
        began = time.monotonic()
        self._out(
            "--preempt-abort",
            f"--param-rk={self.key:#x}",
            f"--param-sark={other.key:#x}",
            f"--prout-type={WRITE_EXCLUSIVE_REGISTRANTS_ONLY}",
        )
        return time.monotonic() - began

    def holder(self) -> str:
        return self.lun.lab.guest.run(f"sg_persist -n --in --read-reservation {self.generic}").out

    def write(self, sector: int, log: str, text: str) -> None:
        """One WRITE (10) past sd and its retries, in the background. Log: `end CODE`, sg_raw's: 24 is a conflict."""
        place = sector.to_bytes(4, "big").hex(" ")
        self.lun.lab.guest.start(
            f"sg_turs {self.generic} >/dev/null 2>&1;"  # takes the unit attention of a preemption
            f" yes {text} | head -c 512 > /run/{log}.data;"
            f" sg_raw -t 200 -s 512 -i /run/{log}.data {self.generic} 2a 00 {place} 00 00 01 00; echo end $?",
            log,
        )

    def _out(self, *words: str) -> None:
        self.lun.lab.guest.run(f"sg_turs {self.generic}", check=False)
        self.lun.lab.guest.run(f"sg_persist -n --out {' '.join(words)} {self.generic}")


@pytest.fixture
def pair(lab: Lab) -> Iterator[tuple[Initiator, Initiator]]:
    """Two sessions with names of their own to one LUN."""
    guest = lab.guest
    lun = lab.lun("preempt", timeout=300)
    first = Initiator(lun, lun.generic, 0xA)
    guest.run(
        "iscsiadm -m iface -I other -o new >/dev/null && iscsiadm -m iface -I other -o update -n iface.initiatorname"
        f" -v {OTHER} >/dev/null && iscsiadm -m discovery -t st -p 127.0.0.1 -I other >/dev/null"
        f" && iscsiadm -m node -T {lun.iqn} -p 127.0.0.1 -I other --login"
    )
    find = (
        f"for s in /sys/class/iscsi_session/*; do [ $(cat $s/initiatorname) = {OTHER} ] &&"
        " ls $s/device/target*/*/scsi_generic; done"
    )

    def look() -> str:
        return guest.run(find, check=False).out.strip()

    generic = eventually(look, SOON, "the second session's disk")
    yield first, Initiator(lun, f"/dev/{generic}", 0xB)
    guest.run(f"sg_turs /dev/{generic}; sg_persist -n --out --clear --param-rk=0xb /dev/{generic}", check=False)
    guest.run(
        f"iscsiadm -m node -T {lun.iqn} -I other --logout; iscsiadm -m node -I other -o delete;"
        " iscsiadm -m iface -I other -o delete",
        check=False,
    )


def test_nothing_of_a_preempted_initiator_is_written(lab: Lab, pair: tuple[Initiator, Initiator]) -> None:
    """A has the reservation    storage fails: A's three writes are held    B: PREEMPT AND ABORT, answered at once
    storage back: B writes, none of A's three is there, and A meets a conflict

    Then the other way round, with I/O that neither fails nor returns: B's write hangs in the storage    A preempts,
    answered at once    A writes the same block: it waits    the I/O returns: A's data stands
    """
    one, two = pair
    lun = one.lun
    one.reserve()
    lun.storage.fail()
    for sector in (40, 41, 42):
        one.write(sector, f"one{sector}.log", "one")
    lun.wait_held(3)
    assert two.preempt_and_abort(one) < AT_ONCE
    assert lun.held() == []
    assert "task management 128 names 3 commands" in lab.daemon_log()
    assert "Key=0xb" in two.holder()
    for sector in (40, 41, 42):
        assert lab.wait_end(f"one{sector}.log", SOON) != 0
    lun.storage.back()
    two.write(50, "two50.log", "two")
    assert lab.wait_end("two50.log", SOON) == 0
    one.write(43, "one43.log", "one")
    assert lab.wait_end("one43.log", SOON) == 24
    assert lun.storage.read(40, 4) == bytes(4 * 512)
    assert lun.storage.read(50, 1).startswith(b"two")

    lun.storage.hang()
    two.write(60, "two60.log", "two")
    eventually(lambda: lun.status()["in_flight"], SOON, "the write that hangs")
    assert one.preempt_and_abort(two) < AT_ONCE
    one.write(60, "one60.log", "one")
    lun.wait_held()
    assert lab.ended("one60.log") is None
    lun.storage.go_on()
    assert lab.wait_end("one60.log", SOON) == 0
    assert lun.storage.read(60, 1).startswith(b"one")
    eventually(lambda: lun.state() == "online", SOON, "online")
