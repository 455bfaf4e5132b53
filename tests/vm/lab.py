"""What scenarios are made of: storage that can go away, the daemon, LUNs, and initiators, all in one guest."""

from __future__ import annotations

import base64
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.vm.guest import ROOT, Guest, GuestError, Result

WARM = "/run/tcmu-retry-warm"
SPARE = "/run/tcmu-retry-spare"
MIB = 1 << 20
SECTOR = 512
CORE = "/sys/kernel/config/target/core"
LOOPBACK = "/sys/kernel/config/target/loopback"
OTHER = "iqn.2026-11.org.example:other"
START = 300  # s: Python starts slowly in an emulator, and more so beside another
SOON = 60  # s: for what comes at once or never; emulated, beside another guest
AT_ONCE = 20  # s, of a busy emulator; what waited for the storage would never end


def eventually(look: Callable[[], object], seconds: float, what: str) -> Any:
    """The first true result of `look`, asked again and again; fails the test after so long."""
    until = time.monotonic() + seconds
    while True:
        if found := look():
            return found
        assert time.monotonic() < until, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)


@dataclass
class Storage:
    """A device mapper device over a slice of a scratch disk. Sizes in MiB."""

    guest: Guest
    name: str
    start: int
    size: int
    disk: str = "/dev/vda"

    @property
    def path(self) -> str:
        return f"/dev/mapper/{self.name}"

    @property
    def error(self) -> str:
        """The table with which every I/O ends in EIO."""
        return f"0 {self.size * MIB // SECTOR} error"

    @property
    def linear(self) -> str:
        """The table with which it is in order."""
        return f"0 {self.size * MIB // SECTOR} linear {self.disk} {self.start * MIB // SECTOR}"

    def make(self, size: int | None = None) -> None:
        sectors = (size or self.size) * MIB // SECTOR
        self.guest.run(
            f"dmsetup create {self.name} --uuid lab-{self.name} --table '0 {sectors} linear {self.disk}"
            f" {self.start * MIB // SECTOR}' && dmsetup mknodes {self.name}"
        )

    def fail(self) -> None:
        """Every I/O ends in EIO."""
        self._load(self.error)

    def back(self) -> None:
        self._load(self.linear)

    def fail_sectors(self, first: int, count: int) -> None:
        """Only these sectors are bad."""
        total, base = self.size * MIB // SECTOR, self.start * MIB // SECTOR
        lines = [f"0 {first} linear {self.disk} {base}"] if first else []
        lines.append(f"{first} {count} error")
        lines.append(f"{first + count} {total - first - count} linear {self.disk} {base + first + count}")
        self._load("\n".join(lines))

    def hang(self) -> None:
        """I/O neither fails nor returns."""
        self.guest.run(f"dmsetup suspend --noflush --nolockfs {self.name}")

    def go_on(self) -> None:
        self.guest.run(f"dmsetup resume {self.name}")

    def remove(self) -> None:
        self.guest.run(f"dmsetup remove --retry {self.name}")

    def clear(self) -> None:
        """Leave nothing behind, whatever the test did."""
        self.guest.run(
            f"dmsetup resume {self.name}; dmsetup remove --retry {self.name} || dmsetup remove --force {self.name}",
            check=False,
        )

    def read(self, sector: int, count: int) -> bytes:
        """What the medium has, past the LUN."""
        place = self.start * MIB // SECTOR + sector
        done = self.guest.run(
            f"dd if={self.disk} iflag=direct bs=512 count={count} skip={place} status=none | base64 -w0"
        )
        return base64.b64decode(done.out)

    def _load(self, table: str) -> None:
        quoted = table.replace("\n", "\\n")
        self.guest.run(
            f"dmsetup suspend --noflush --nolockfs {self.name} && printf '{quoted}\\n' | dmsetup load {self.name}"
            f" && dmsetup resume {self.name}"
        )


@dataclass
class Lun:
    """An exported LUN."""

    lab: Lab
    name: str
    storage: Storage
    iqn: str
    disk: str = ""  # at the initiator, /dev/sdX, once logged in
    loop: str = ""  # its tcm_loop target, in configfs

    def login(self, timeout: int | None = None) -> str:
        """timeout: seconds that sd waits for a command instead of its 30."""
        guest = self.lab.guest

        def attached() -> int:
            return int(guest.run("dmesg | grep -c 'Attached SCSI disk'; true").out)

        before = attached()
        guest.run(
            "iscsiadm -m discovery -t st -p 127.0.0.1 >/dev/null &&"
            f" iscsiadm -m node -T {self.iqn} -p 127.0.0.1 --login"
        )
        find = (
            f"for s in /sys/class/iscsi_session/*; do [ $(cat $s/targetname) = {self.iqn} ] &&"
            " ls $s/device/target*/*/block; done"
        )

        def look() -> str:
            return guest.run(find, check=False).out.strip()

        node = eventually(look, SOON, f"a disk of {self.iqn}")
        self.disk = f"/dev/{node}"
        eventually(lambda: guest.run(f"blockdev --getsz {self.disk}", check=False).code == 0, SOON, self.disk)
        # The kernel reads the partition table before it says this; these reads must not be among what is held.
        eventually(lambda: attached() > before, SOON, f"sd is done with {self.disk}")
        if timeout:
            guest.run(f"echo {timeout} > /sys/block/{node}/device/timeout")
        return self.disk

    def loop_back(self) -> str:
        """The LUN as a local disk, by tcm_loop."""
        guest = self.lab.guest
        group = f"{LOOPBACK}/naa.5001405{self.lab.luns.index(self):09x}/tpgt_1"
        guest.run(
            f"mkdir -p {group} && echo naa.60014059{self.lab.luns.index(self):08x} > {group}/nexus &&"
            f" mkdir {group}/lun/lun_0 && ln -s {CORE}/user_*/{self.name} {group}/lun/lun_0/lun"
        )
        find = f"ls /sys/bus/scsi/devices/$(cat {group}/address):0/block"
        self.disk = "/dev/" + eventually(lambda: guest.look(find), SOON, "a disk of tcm_loop")
        self.loop = group
        return self.disk

    @property
    def generic(self) -> str:
        """Its /dev/sgN: opening that reads no partition table."""
        name = self.disk.removeprefix("/dev/")
        return "/dev/" + self.lab.guest.run(f"ls /sys/block/{name}/device/scsi_generic").out.strip()

    def write(self, sector: int, text: str, log: str, count: int = 1) -> int:
        """Write blocks full of `text` at a sector, in the background; pid. The log ends in `end CODE`."""
        command = (
            f"yes '{text}' | dd of={self.disk} bs=512 seek={sector} count={count} oflag=direct iflag=fullblock"
            " status=none; echo end ${PIPESTATUS[1]} $(date +%s.%N)"
        )
        return self.lab.guest.start(command, log)

    def raw_write(self, sector: int, log: str, timeout: int) -> None:
        """One WRITE (10) past sd, aborted after twice `timeout` s (open-iscsi doubles it). Log: `end CODE T`."""
        cdb = " ".join(f"{byte:02x}" for byte in bytes([0x2A, 0, *sector.to_bytes(4, "big"), 0, 0, 1, 0]))
        self.lab.guest.start(
            f"yes raw | head -c 512 > /run/{log}.data;"
            f" sg_raw -t {timeout} -s 512 -i /run/{log}.data {self.generic} {cdb}; echo end $? $(date +%s.%N)",
            log,
        )

    def read(self, sector: int, log: str, count: int = 1) -> int:
        """Read blocks in the background; as `write`."""
        command = (
            f"dd if={self.disk} bs=512 skip={sector} count={count} iflag=direct status=none of=/dev/null;"
            " echo end $? $(date +%s.%N)"
        )
        return self.lab.guest.start(command, log)

    def status(self) -> dict[str, Any]:
        device: dict[str, Any] = self.lab.json("device", "show", self.name)["device"]
        return device

    def state(self, side: str = "write") -> str:
        return str(self.status()[side]["state"])

    def held(self) -> list[dict[str, Any]]:
        held: list[dict[str, Any]] = self.lab.json("queue", "list", self.name)["held"]
        return held

    def wait_served(self) -> None:
        """By a new daemon: it is on the bus a moment before it has taken up the LUNs that it found."""
        self.lab.wait_daemon()
        eventually(lambda: not self.lab.call("device", "show", self.name).code, SOON, f"{self.name} served again")

    def wait_held(self, count: int = 1, seconds: float = SOON) -> None:
        eventually(lambda: self.status()["held"] >= count, seconds, f"{count} commands held by {self.name}")

    def policy(self, *settings: str) -> None:
        self.lab.cli("policy", "set", self.name, *settings)


@dataclass
class Lab:
    """One guest with a system bus, iscsid and tcmu-retryd."""

    guest: Guest
    daemon: int = 0
    spare: int = 0  # pid of `spare.py`
    pump: str = ""  # that a daemon must take
    taken: int = 1  # MiB of the scratch disk
    luns: list[Lun] = field(default_factory=list)
    stores: list[Storage] = field(default_factory=list)
    runs: int = 0

    def up(self) -> None:
        guest = self.guest
        guest.run(
            f"cp {ROOT}/packaging/dbus/*.conf /etc/dbus-1/system.d/; dbus-daemon --system --fork; iscsid;"
            " sed -i -e 's/^node.session.timeo.replacement_timeout.*/node.session.timeo.replacement_timeout = 120/'"
            " /etc/iscsi/iscsid.conf"
        )
        guest.start([sys.executable, f"{ROOT}/tests/vm/warm.py", WARM], "warm.log", **self.environment)
        self.start_daemon()
        guest.run(f"until [ -e {WARM}.ready ]; do sleep 0.2; done", timeout=START)
        self.wait_daemon()

    @property
    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "TCMU_RETRY_PUMP": self.pump}

    def start_daemon(self) -> None:
        self.runs += 1
        log = f"retryd-{self.runs}.log"
        if not self.spare:
            self.daemon = self.guest.start(
                [sys.executable, "-X", "faulthandler", "-m", "tcmu_retry.retryd", "--debug"], log, **self.environment
            )
            return
        path = self.guest.shared / log
        self.guest.run(f"until [ -e {SPARE}.ready ]; do sleep 0.2; done; echo {path} > {SPARE}", timeout=START)
        self.daemon = int(self.guest.run(f"until [ -s {path}.pid ]; do sleep 0.05; done; cat {path}.pid").out)

    def begin_spares(self) -> None:
        """From now on daemons start at once, with the pump that is asked for now; returns before they are ready."""
        if self.spare:
            self.guest.run(f"kill {self.spare}; rm -f {SPARE} {SPARE}.ready")
        self.spare = self.guest.start(
            [sys.executable, f"{ROOT}/tests/vm/spare.py", SPARE], "spare.log", **self.environment
        )

    def wait_daemon(self) -> None:
        eventually(lambda: not self.call("device", "list").code, START, "tcmu-retryd on the bus")

    def stop_daemon(self) -> float:
        """Seconds from SIGTERM to the end of the process."""
        began = time.monotonic()
        gone = f"s=/proc/{self.daemon}/stat; while [ -e $s ] && ! grep -q ' Z ' $s; do sleep 0.05; done"
        self.guest.run(f"kill {self.daemon}; {gone}")
        return time.monotonic() - began

    def kill_daemon(self) -> None:
        """SIGKILL, and another one at once."""
        self.guest.run(f"kill -9 {self.daemon}")
        self.start_daemon()

    def daemon_log(self) -> str:
        return self.log(f"retryd-{self.runs}.log")

    def log(self, name: str) -> str:
        path = self.guest.shared / name
        return path.read_text(errors="replace") if path.exists() else ""

    def ended(self, name: str) -> int | None:
        """The exit status of what `write` or `read` started; None while it runs."""
        for line in self.log(name).splitlines():
            if line.startswith("end "):
                return int(line.split()[1])
        return None

    def wait_end(self, name: str, seconds: float) -> int:
        eventually(lambda: self.ended(name) is not None, seconds, f"the end of {name}")
        code = self.ended(name)
        assert code is not None
        return code

    def interrupt_fio(self) -> None:
        """End each fio that a shell started, as Ctrl-C would end it, but for the signal to its jobs.

        They are processes of their own, and one that the signal meets in io_getevents waits for ever for completions
        that it has already taken (fio before 3.35; without any LUN of ours, 5 of 300 runs).
        """
        self.guest.run('pkill -INT -x fio -P "$(pgrep -d, -x bash)"; true')

    def call(self, *arguments: str, timeout: float = 60) -> Result:
        return self.guest.warm(WARM, list(arguments), timeout)

    def cli(self, *arguments: str, timeout: float = 60) -> str:
        result = self.call(*arguments, timeout=timeout)
        if result.code:
            raise GuestError(str(result))
        return result.out

    def json(self, *arguments: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.cli("--json", *arguments))
        return answer

    def storage(self, name: str, size: int = 64, disk: str = "/dev/vda") -> Storage:
        """Zeroed. /dev/vdb has physical blocks of 4096 bytes."""
        storage = Storage(self.guest, name, self.taken, size, disk)
        self.taken += size
        if self.taken > 1000:
            raise GuestError("the scratch disk is used up; release storage in the tests")
        storage.make()
        self.guest.run(f"blkdiscard -z {storage.path}")
        self.stores.append(storage)
        return storage

    def export(self, storage: Storage, settings: str = "", *options: str, path: str = "") -> Lun:
        config = (path or storage.path) + (f";{settings}" if settings else "")
        made = self.json("export", storage.name, config, "--any-initiator", *options)["export"]
        lun = Lun(self, storage.name, storage, made["iqn"])
        self.luns.append(lun)
        return lun

    def lun(self, name: str, settings: str = "", size: int = 64, timeout: int | None = None) -> Lun:
        """Storage, exported and logged in to."""
        lun = self.export(self.storage(name, size), settings)
        lun.login(timeout)
        return lun

    @contextlib.contextmanager
    def scene(self) -> Iterator[None]:
        """What a test makes goes with it."""
        taken = self.taken
        try:
            yield
        finally:
            for storage in self.stores:
                self.guest.run(f"dmsetup resume {storage.name}", check=False)
                with contextlib.suppress(GuestError):
                    storage.back()
            for lun in self.luns:
                self.call("device", "resume", lun.name)
                self.call("queue", "retry", lun.name)
                self.guest.run(
                    f"umount {lun.disk or '/none'}; iscsiadm -m node -T {lun.iqn} --logout; true", check=False
                )
                if lun.loop:
                    self.guest.run(
                        f"cd {lun.loop} && rm -f lun/lun_0/lun; rmdir lun/lun_0; cd / && rmdir -p {lun.loop}",
                        check=False,
                    )
                self.call("unexport", lun.name)
            for storage in self.stores:
                storage.clear()
            self.luns.clear()
            self.stores.clear()
            self.guest.run("iscsiadm -m node -o delete", check=False)
            self.taken = taken
