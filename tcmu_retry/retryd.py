"""tcmu-retryd: serves the LUNs of user:retry until it is told to stop."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import tempfile
from pathlib import Path

from tcmu_retry import __version__
from tcmu_retry.daemon import journal, rival
from tcmu_retry.daemon.api import ApiError
from tcmu_retry.daemon.config import VENDOR, ConfigError, Source
from tcmu_retry.daemon.script import Script, ScriptError, parse
from tcmu_retry.daemon.service import Service
from tcmu_retry.daemon.simulation import Simulation
from tcmu_retry.dbus.bridge import Bridge
from tcmu_retry.dbus.presence import BusError
from tcmu_retry.dbus.service import serve

log = logging.getLogger("tcmu_retry")

OK, FAILURE, USAGE = 0, 1, 2
EXITS = {
    OK: "stopped as told",
    FAILURE: "something the daemon needs is missing",
    USAGE: "bad arguments, configuration or script",
}


def parser() -> argparse.ArgumentParser:
    """The command line's grammar; the manual page is made from it."""
    parser = argparse.ArgumentParser(prog="tcmu-retryd", description="Serve the LUNs of TCMU's user:retry backstore.")
    parser.add_argument("--config", type=Path, default=Path("/etc/tcmu-retry"), help="directory of the configuration")
    parser.add_argument("--state", type=Path, default=Path("/var/lib/tcmu-retry"), help="directory of what is kept")
    parser.add_argument("--bus", metavar="ADDRESS", help="D-Bus address; the system bus if not given")
    parser.add_argument(
        "--sim",
        metavar="SCRIPT",
        nargs="?",
        const="",
        help="simulate the kernel, and what a script says; on the session bus, needs no root and keeps nothing",
    )
    parser.add_argument("--debug", action="store_true", help="log every step")
    parser.add_argument("--version", action="version", version=__version__)
    return parser


def main() -> int:
    """The exit status, one of `EXITS`."""
    arguments = parser().parse_args()
    journal.configure(arguments.debug)
    source = Source(arguments.config, VENDOR)
    try:
        source.verify()
        if arguments.sim is None:
            service = Service(source, arguments.state)
            status = asyncio.run(_serve(service, arguments.bus))
        else:
            status = _simulate(source, arguments.sim, arguments.bus)
    except (ConfigError, ScriptError) as error:
        log.error("%s", error)
        return USAGE
    # A thread that waits for storage in the kernel cannot be joined; the interpreter must not try.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)


def _simulate(source: Source, path: str, bus: str | None) -> int:
    """Raises ScriptError."""
    try:
        script = parse(Path(path).read_text(encoding="utf-8")) if path else Script((), ())
    except OSError as error:
        raise ScriptError(f"{path} cannot be read: {error.strerror}") from None
    except ScriptError as error:
        raise ScriptError(f"{path}: {error}") from None
    bus = bus or os.environ.get("DBUS_SESSION_BUS_ADDRESS")
    if not bus:
        raise ScriptError("there is no session bus; start this in `dbus-run-session bash`, or give --bus ADDRESS")
    with tempfile.TemporaryDirectory(prefix="tcmu-retry-sim-") as directory:
        service = Simulation(source, Path(directory))
        return asyncio.run(_serve_simulated(service, script, bus))


async def _serve_simulated(service: Simulation, script: Script, bus: str) -> int:
    stop = signals(service)
    try:
        running = await serve(service, address=bus)
    except BusError as error:
        log.error("%s", error)
        return FAILURE
    try:
        await service.play(script)
    except ApiError as error:
        raise ScriptError(str(error)) from None
    log.info("simulating; for the command line: export TCMU_RETRY_BUS_ADDRESS=%s", bus)
    await stop.wait()
    await service.stop()
    await running.close()
    return OK


def signals(service: Service) -> asyncio.Event:
    """Set when it is time to stop; SIGHUP reads the configuration again."""
    stop = asyncio.Event()
    reloads: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()

    def reload() -> None:
        task = loop.create_task(_reload(service))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload)
    return stop


async def _reload(service: Service) -> None:
    try:
        lines = await service.reload()
    except ConfigError as error:
        log.error("the configuration is left as it was: %s", error)
        return
    for line in lines:
        log.info("%s", line)
    log.info("the configuration was read again: %d changes", len(lines))


async def _serve(service: Service, bus: str | None) -> int:
    stop = signals(service)
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
