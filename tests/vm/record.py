"""Runs inside the guest: what the real kernel writes into a ring, command by command, as JSON for `recorded.json`.

usage: record.py OUT

Two LUNs' worth of traffic over tcm_loop: what sd asks of a new disk, then a script with commands completed out of
order, an abort, and a buffer that is kept. Entries are taken as they lie in the ring, not by our own reader.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tcmu_retry.scsi.disk import Disk, DiskIdentity
from tcmu_retry.scsi.request import GOOD, Op, Reply, Request
from tcmu_retry.tcmu.ring import CommandEntry, Ring
from tcmu_retry.tcmu.uio import UioChannel, scan

TARGET = Path("/sys/kernel/config/target")
STORE = TARGET / "core/user_99/recorder"
FABRIC = TARGET / "loopback/naa.5001405000000099"
HELD_FROM = 1000  # writes from this LBA on are answered when the script says so
SIZE = 16 << 20
OUT = frozenset((0x2A, 0x8A))


class Recorder:
    """Answers commands like a disk of zeros, and notes what it saw and did."""

    def __init__(self, channel: UioChannel) -> None:
        self.channel = channel
        self.ring = Ring(channel.memory)
        self.memory = channel.memory
        self.offset, self.size = struct.unpack_from("<II", self.memory, 4)
        self.place = struct.unpack_from("<I", self.memory, 64)[0]
        self.disk = Disk(DiskIdentity("recorder", "recorder"), 512, SIZE, can_discard=True)
        self.events: list[dict[str, Any]] = []
        self.held: dict[int, int] = {}  # LBA -> id
        self.lock = threading.Lock()
        self.stopping = False

    def run(self) -> None:
        while not self.stopping:
            with self.lock:
                self.channel.acknowledge()
                while self.ring.unfetched:
                    self.take()
            time.sleep(0.002)

    def take(self) -> None:
        """One batch: note every entry as it lies there, then answer."""
        head = struct.unpack_from("<I", self.memory, 12)[0]
        while self.place != head:
            self.note()
        for entry in self.ring.fetch():
            if isinstance(entry, CommandEntry):
                self.answer(entry)

    def note(self) -> None:
        at = self.offset + self.place
        len_op, number, kflags, uflags = struct.unpack_from("<IHBB", self.memory, at)
        kind, length = len_op & 7, len_op & ~7
        event: dict[str, Any] = {"length": length, "id": number, "flags": [kflags, uflags]}
        if kind == 1:
            count, bidi, dif, cdb_at = struct.unpack_from("<IIIxxxxQ", self.memory, at + 8)
            iovs = [list(struct.unpack_from("<QQ", self.memory, at + 48 + 16 * index)) for index in range(count)]
            cdb = bytes(self.memory[cdb_at : at + length])
            event |= {
                "kind": "command",
                "counts": [count, bidi, dif],
                "cdb_at": cdb_at - at,
                "cdb": cdb.hex(),
                "iovs": iovs,
            }
        elif kind == 2:
            tmr, count = struct.unpack_from("<BxxxI", self.memory, at + 8)
            ids = list(struct.unpack_from(f"<{count}H", self.memory, at + 32))
            event |= {"kind": "task management", "tmr": tmr, "ids": ids}
        else:
            event |= {"kind": "padding"}
        self.events.append(event)
        self.place = (self.place + length) % self.size

    def answer(self, entry: CommandEntry) -> None:
        length = sum(size for _, size in entry.iovs)
        outcome = self.disk.handle(entry.cdb, length, lambda: b"")
        if isinstance(outcome, Request):
            if outcome.op is Op.WRITE and outcome.extents[0].offset // 512 >= HELD_FROM:
                self.held[outcome.extents[0].offset // 512] = entry.id
                return
            if outcome.op is Op.READ:
                for offset, size in entry.iovs:
                    self.memory[offset : offset + size] = bytes(size)
            outcome = GOOD
        elif outcome.data is not None:
            rest = outcome.data
            for offset, size in entry.iovs:
                self.memory[offset : offset + size], rest = rest[:size].ljust(size, b"\0"), rest[size:]
        self.complete(entry.id, outcome, False)

    def complete(self, number: int, reply: Reply, keep: bool) -> None:
        self.ring.complete(number, reply.status, reply.sense, None, keep)
        self.ring.settle()
        self.channel.doorbell()
        self.events.append({"kind": "completion", "id": number, "keep": keep, "status": int(reply.status)})

    # ---- the script

    def wait(self, *blocks: int) -> None:
        until = time.monotonic() + 60
        while not set(blocks) <= set(self.held):
            if time.monotonic() > until:
                raise SystemExit(f"the commands at {blocks} did not come")
            time.sleep(0.01)

    def release(self, lba: int, keep: bool = False) -> int:
        with self.lock:
            number = self.held.pop(lba)
            self.complete(number, GOOD, keep)
        return number


def write(path: Path, value: str) -> None:
    path.write_text(value)


def raw(node: str, op: int, lba: int, blocks: int, timeout: int = 60) -> subprocess.Popen[bytes]:
    cdb = bytes([op, 0, *lba.to_bytes(4, "big"), 0, *blocks.to_bytes(2, "big"), 0])
    data = ["-s", str(blocks * 512), "-i", "/dev/zero"] if op in OUT else ["-r", str(blocks * 512)]
    return subprocess.Popen(
        ["sg_raw", "-t", str(timeout), *data, node, *(f"{byte:02x}" for byte in cdb)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def play(recorder: Recorder, node: str) -> None:
    for op, lba, blocks in ((0x28, 0, 8), (0x2A, 8, 3), (0x28, 0, 700), (0x2A, 0, 1024)):
        raw(node, op, lba, blocks).wait()
    waiting = [raw(node, 0x2A, HELD_FROM + 100 * index, 8 * index + 1) for index in range(3)]
    recorder.wait(1000, 1100, 1200)
    for lba in (1200, 1000, 1100):
        recorder.release(lba)
    for process in waiting:
        process.wait()
    for keep in (False, True):  # aborted after 2 s; its completion ends the abort
        process = raw(node, 0x2A, 2000, 9, timeout=2)
        recorder.wait(2000)
        until = time.monotonic() + 30
        tmrs = sum(event["kind"] == "task management" for event in recorder.events)
        while sum(event["kind"] == "task management" for event in recorder.events) == tmrs:
            if time.monotonic() > until:
                raise SystemExit("no abort came")
            time.sleep(0.01)
        number = recorder.release(2000, keep)
        process.wait()
        raw(node, 0x2A, 8, 17).wait()
        if keep:
            write(STORE / "action/free_kept_buf", f"{number}\n")
            recorder.events.append({"kind": "freed", "id": number})
            raw(node, 0x2A, 8, 17).wait()


def main() -> None:
    STORE.mkdir(parents=True)
    # Its announcement is not for the daemon to answer: nl_reply_supported=-1.
    for control in ("dev_config=record/er", f"dev_size={SIZE}", "nl_reply_supported=-1", "max_data_area_mb=8"):
        write(STORE / "control", control)
    write(STORE / "enable", "1")
    write(STORE / "attrib/cmd_time_out", "0")
    write(STORE / "attrib/tmr_notification", "1")
    [device] = scan("record")
    recorder = Recorder(UioChannel(device))
    thread = threading.Thread(target=recorder.run)
    thread.start()
    group = FABRIC / "tpgt_1"
    lun = group / "lun/lun_0"
    try:
        group.mkdir(parents=True)
        write(group / "nexus", "naa.5001405000000098")
        lun.mkdir(parents=True)
        (lun / "link").symlink_to(STORE)
        host = next(iter(sorted(Path("/sys/bus/scsi/devices").glob("[0-9]*:0:1:0"))))
        time.sleep(3)  # sd reads the partition table
        play(recorder, f"/dev/{next((host / 'scsi_generic').iterdir()).name}")
    finally:
        if (lun / "link").is_symlink():
            (lun / "link").unlink()
        recorder.stopping = True
        thread.join()
        for directory in (lun, group, FABRIC):
            if directory.exists():
                directory.rmdir()
        data = int((STORE / "attrib/data_pages_per_blk").read_text()) * 4096
        recording = {"ring": recorder.size, "offset": recorder.offset, "block": data, "events": recorder.events}
    Path(sys.argv[1]).write_text(json.dumps(recording))
    recorder.ring.close()
    del recorder.memory
    recorder.channel.close()
    STORE.rmdir()


if __name__ == "__main__":
    main()
