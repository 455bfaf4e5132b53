"""A LUN as the controls see it, for tests to vary."""

from __future__ import annotations

from tcmu_retry.daemon.api import DeviceStatus, DirectionStatus

ONLINE = DirectionStatus(state="online", outage=None, error="", next_probe_in=None, window=1, probes=0, stopped=0.0)
DOWN = DirectionStatus(state="down", outage=12.5, error="EIO", next_probe_in=1.0, window=1, probes=3, stopped=0.0)
WELL = DeviceStatus(
    name="vm1",
    wwn="",
    path="/x",
    size=1 << 20,
    block_size=512,
    uio="uio0",
    read=ONLINE,
    write=ONLINE,
    held=0,
    held_bytes=0,
    oldest_held=0.0,
    in_flight=0,
    hung=0,
    hold_reason="",
    hold_expires_in=None,
    draining=False,
    backend_error="",
    ring_error="",
    policy_generation=1,
)
