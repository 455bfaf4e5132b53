"""Runs inside the guest: asks the daemon over D-Bus for so long, and writes how long each answer took.

usage: asking.py SECONDS LUN...
Prints `ready`, and then a JSON list of milliseconds: GetStatus of each LUN in turn, every 50 ms, over one connection.
"""

from __future__ import annotations

import json
import sys
import time

from tcmu_retry.dbus.names import DEVICE, device_path
from tests.dbus.caller import Caller

SYSTEM = "unix:path=/run/dbus/system_bus_socket"


def main() -> None:
    took = []
    with Caller(SYSTEM) as caller:
        caller.call(device_path(sys.argv[2]), DEVICE, "GetStatus")
        print("ready", flush=True)  # noqa: T201
        until = time.monotonic() + float(sys.argv[1])
        while time.monotonic() < until:
            for name in sys.argv[2:]:
                began = time.monotonic()
                caller.call(device_path(name), DEVICE, "GetStatus")
                took.append(round((time.monotonic() - began) * 1000, 2))
                time.sleep(0.05)
    print(json.dumps(took))  # noqa: T201


if __name__ == "__main__":
    main()
