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
from tcmu_retry.daemon.metrics import Metrics
from tcmu_retry.daemon.service import Service
from tcmu_retry.daemon.systemd import Heart, Notifier
from tcmu_retry.daemon.unfreeze import unfreeze
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
    parser.add_argument(
        "--metrics-listen", metavar="ADDRESS:PORT", help="metrics for Prometheus over HTTP, no if absent"
    )
    parser.add_argument("--metrics-textfile", metavar="FILE", type=Path, help="the same in a file for node_exporter")
    parser.add_argument("--unfreeze", action="store_true", help="let LUNs that nobody serves answer BUSY, and end")
    parser.add_argument("--debug", action="store_true", help="log every step")
    parser.add_argument("--version", action="version", version=__version__)
    arguments = parser.parse_args()
    journal.configure(arguments.debug)
    if arguments.unfreeze:
        return unfreeze()
    try:
        source = Source(arguments.config)
    except ConfigError as error:
        log.error("%s", error)
        return USAGE
    status = asyncio.run(_serve(source, arguments))
    # A thread that waits for storage in the kernel cannot be joined; the interpreter must not try.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)


async def _serve(source: Source, arguments: argparse.Namespace) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    bus: str | None = arguments.bus
    service = Service(source, arguments.state)
    metrics = Metrics(service)
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
    if arguments.metrics_listen:
        try:
            metrics.listen(arguments.metrics_listen)
        except (OSError, ValueError) as error:  # no reason not to serve LUNs
            log.error("there are no metrics over HTTP: %s", error)
    if arguments.metrics_textfile:
        metrics.keep_textfile(arguments.metrics_textfile)
    log.info("tcmu-retryd %s serves user:retry", __version__)
    notifier = Notifier()
    heart = Heart(notifier, service.pulses, lambda: [device.status() for device in service.devices()])
    beating = loop.create_task(heart.run())
    notifier.tell(READY="1")
    await stop.wait()
    notifier.tell(STOPPING="1", STATUS="stopping: held commands are answered BUSY")
    log.info("stopping: held commands are answered BUSY")
    await service.stop()
    beating.cancel()
    await metrics.close(arguments.metrics_textfile)
    await bridge.close()
    await running.close()
    return OK


if __name__ == "__main__":
    sys.exit(main())
