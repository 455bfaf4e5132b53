"""tcmu-retryd: serves the LUNs of user:retry until it is told to stop."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

from tcmu_retry import __version__
from tcmu_retry.daemon import journal, rival
from tcmu_retry.daemon.config import ConfigError, Source
from tcmu_retry.daemon.service import Service
from tcmu_retry.dbus.bridge import Bridge
from tcmu_retry.dbus.presence import BusError
from tcmu_retry.dbus.service import serve

log = logging.getLogger("tcmu_retry")

OK, FAILURE, USAGE = 0, 1, 2


def main() -> int:
    """Exit status: 0 stopped as told, 1 something the daemon needs is missing, 2 bad arguments or configuration."""
    parser = argparse.ArgumentParser(prog="tcmu-retryd", description="Serve the LUNs of TCMU's user:retry backstore.")
    parser.add_argument("--config", type=Path, default=Path("/etc/tcmu-retry"), help="directory of the configuration")
    parser.add_argument("--state", type=Path, default=Path("/var/lib/tcmu-retry"), help="directory of what is kept")
    parser.add_argument("--bus", metavar="ADDRESS", help="D-Bus address; the system bus if not given")
    parser.add_argument("--debug", action="store_true", help="log every step")
    parser.add_argument("--version", action="version", version=__version__)
    arguments = parser.parse_args()
    journal.configure(arguments.debug)
    try:
        source = Source(arguments.config)
    except ConfigError as error:
        log.error("%s", error)
        return USAGE
    status = asyncio.run(_serve(source, arguments.state, arguments.bus))
    # A thread that waits for storage in the kernel cannot be joined; the interpreter must not try.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)


async def _serve(source: Source, state: Path, bus: str | None) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    service = Service(source, state)
    if problem := rival.find():
        log.error("%s", problem)
    try:
        running = await serve(service, address=bus)
    except BusError as error:
        log.error("%s", error)
        return FAILURE
    try:
        await service.start()
    except OSError as error:
        log.error("the kernel offers no TCMU (%s); `modprobe target_core_user` as root, then start again", error)
        await running.close()
        return FAILURE
    bridge = Bridge(service, bus)
    await bridge.start()
    log.info("tcmu-retryd %s serves user:retry", __version__)
    await stop.wait()
    log.info("stopping: held commands are answered BUSY")
    await service.stop()
    await bridge.close()
    await running.close()
    return OK


if __name__ == "__main__":
    sys.exit(main())
