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
from tcmu_retry.daemon.metrics import Metrics
from tcmu_retry.daemon.script import Script, ScriptError, parse
from tcmu_retry.daemon.service import Service
from tcmu_retry.daemon.simulation import Simulation
from tcmu_retry.daemon.systemd import Heart, Notifier
from tcmu_retry.daemon.unfreeze import unfreeze
from tcmu_retry.dbus.bridge import Bridge
from tcmu_retry.dbus.presence import BusError
from tcmu_retry.dbus.service import serve
from tcmu_retry.dbus.systemd import is_restart

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
    parser.add_argument(
        "--metrics-listen", metavar="ADDRESS:PORT", help="metrics for Prometheus over HTTP, no if absent"
    )
    parser.add_argument("--metrics-textfile", metavar="FILE", type=Path, help="the same in a file for node_exporter")
    parser.add_argument("--unfreeze", action="store_true", help="let LUNs that nobody serves answer BUSY, and end")
    parser.add_argument("--debug", action="store_true", help="log every step")
    parser.add_argument("--version", action="version", version=__version__)
    return parser


def main() -> int:
    """The exit status, one of `EXITS`."""
    arguments = parser().parse_args()
    journal.configure(arguments.debug)
    if arguments.unfreeze:
        return unfreeze()
    source = Source(arguments.config, VENDOR)
    try:
        source.verify()
        if arguments.sim is None:
            status = asyncio.run(_serve(source, arguments))
        else:
            status = _simulate(source, arguments.sim, arguments.bus)
    except (ConfigError, ScriptError) as error:
        log.error("%s", error)
        return USAGE
    except BusError as error:
        log.error("%s", error)
        status = FAILURE
    # A thread that waits for storage in the kernel cannot be joined; the interpreter must not try.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)


def _simulate(source: Source, path: str, bus: str | None) -> int:
    """Raises BusError, ScriptError."""
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
    """Raises BusError, ScriptError."""
    stop = signals(service)
    running = await serve(service, address=bus)
    try:
        await service.play(script)
    except ApiError as error:
        raise ScriptError(str(error)) from None
    log.info("simulating; for the command line: export TCMU_RETRY_BUS_ADDRESS=%s", bus)
    await stop.wait()
    await service.stop()
    await running.close()
    return OK


class Ending(asyncio.Event):
    """Set when it is time to stop. hand_over: the next daemon comes at once."""

    hand_over = False


def signals(service: Service) -> Ending:
    """What SIGTERM and SIGUSR2 set; SIGHUP reads the configuration again."""
    stop = Ending()
    reloads: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()

    def reload() -> None:
        task = loop.create_task(_reload(service))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    def hand_over() -> None:
        stop.hand_over = True
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGUSR2, hand_over)
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


async def _serve(source: Source, arguments: argparse.Namespace) -> int:
    """Raises BusError."""
    bus: str | None = arguments.bus
    service = Service(source, arguments.state)
    stop = signals(service)
    metrics = Metrics(service)
    if problem := rival.find():
        log.error("%s", problem)
    running = await serve(service, address=bus)
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
    beating = asyncio.create_task(heart.run())
    notifier.tell(READY="1")
    await stop.wait()
    hand_over = stop.hand_over or await is_restart(bus)
    what = "handing over to the next daemon" if hand_over else "stopping: held commands are answered BUSY"
    notifier.tell(STOPPING="1", STATUS=what)
    log.info("%s", what)
    await service.stop(hand_over)
    beating.cancel()
    await metrics.close(arguments.metrics_textfile)
    await bridge.close()
    await running.close()
    return OK


if __name__ == "__main__":
    sys.exit(main())
