"""A recording of the real kernel's ring (`tests/vm/record.py`), played again to the simulated kernel.

The same commands, completions and aborts in the same order; every entry that the simulated kernel writes must have the
ids, flags, counts, places and lengths of the recorded one.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from tcmu_retry.scsi.request import Status
from tcmu_retry.tcmu.ring import CommandEntry, Ring
from tcmu_retry.tcmu.simulated import SimulatedCommand, SimulatedKernel

DATA_OUT = frozenset((0x0A, 0x15, 0x2A, 0x41, 0x42, 0x55, 0x8A, 0x93))


def replay(recording: Mapping[str, Any]) -> int:
    """How many entries were compared. Raises AssertionError at the first that differs."""
    kernel = SimulatedKernel(ring=recording["ring"], data=8 << 20, block=recording["block"])
    channel = kernel.open()
    ring = Ring(channel.memory)
    commands: dict[int, SimulatedCommand] = {}
    place = compared = 0
    base: int | None = None  # where the real data area begins; ours begins elsewhere
    try:
        for event in recording["events"]:
            kind = event["kind"]
            if kind == "completion":
                ring.complete(event["id"], event["status"], b"\x70".ljust(18, b"\0"), None, event["keep"])
                ring.settle()
                channel.doorbell()
                assert commands[event["id"]].status in (event["status"], Status.GOOD), event
                continue
            if kind == "freed":
                channel.free_kept_buffer(event["id"])
                continue
            if kind == "command":
                length = sum(size for _, size in event["iovs"])
                cdb = bytes.fromhex(event["cdb"])
                out = cdb[0] in DATA_OUT
                command = kernel.submit(cdb, bytes(length) if out else b"", 0 if out else length)
                commands[event["id"]] = command
                assert command.id == event["id"], event
            elif kind == "task management":
                kernel.abort([commands[number] for number in event["ids"]], event["tmr"])
            shown, offsets = _entry(channel.memory, place)
            assert shown == _plain(event), event
            if offsets:
                real = [offset for offset, _ in event["iovs"]]
                base = real[0] - offsets[0] if base is None else base
                assert [offset - base for offset in real] == offsets, event
            place = (place + event["length"]) % recording["ring"]
            compared += 1
            assert all(isinstance(entry, CommandEntry) == (kind == "command") for entry in ring.fetch())
    finally:
        ring.close()
        channel.close()
    assert not kernel.broken
    return compared


def _plain(event: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same."""
    plain = {key: event[key] for key in ("length", "flags") if key in event}
    if event["kind"] == "command":
        sizes = [size for _, size in event["iovs"]]
        return {**plain, "id": event["id"], "counts": event["counts"], "cdb_at": event["cdb_at"], "sizes": sizes}
    return {**plain, "tmr": event["tmr"], "ids": event["ids"]}


def _entry(memory: memoryview, place: int) -> tuple[dict[str, Any], list[int]]:
    """The entry at a place of the simulated ring, and where its buffers are."""
    at = struct.unpack_from("<I", memory, 4)[0] + place
    len_op, number, kernel_flags, user_flags = struct.unpack_from("<IHBB", memory, at)
    shown: dict[str, Any] = {"length": len_op & ~7, "flags": [kernel_flags, user_flags]}
    if len_op & 7 == 2:
        tmr, count = struct.unpack_from("<BxxxI", memory, at + 8)
        return {**shown, "tmr": tmr, "ids": list(struct.unpack_from(f"<{count}H", memory, at + 32))}, []
    iovs, bidi, dif, cdb_at = struct.unpack_from("<IIIxxxxQ", memory, at + 8)
    flat = struct.unpack_from(f"<{2 * iovs}Q", memory, at + 48)
    shown |= {"id": number, "counts": [iovs, bidi, dif], "cdb_at": cdb_at - at, "sizes": list(flat[1::2])}
    return shown, list(flat[::2])
