"""Pictures for the documentation: `tcmu-retry watch` in an outage, and vm1's outage drawn from its history.

picture.py SCRIPT WATCH HISTORY
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from tcmu_retry.cli.client import ADDRESS, Client, CliError
from tcmu_retry.cli.watch import View, gather

SECONDS = 33.0  # of the script until the picture of `watch`
AFTER = 12.0  # until the outage is over and its history is drawn


async def look(view: View) -> None:
    async with Client() as client:
        listening = asyncio.create_task(client.events(view.hear))
        began = time.monotonic()
        while (now := time.monotonic()) < began + SECONDS:
            view.look(now, await gather(client))
            await asyncio.sleep(1 - (time.monotonic() - now))
        listening.cancel()


async def present() -> None:
    """Wait for the daemon and its LUNs."""
    for _ in range(100):
        try:
            async with Client() as client:
                if await client.names():
                    return
        except CliError:
            pass
        await asyncio.sleep(0.1)
    raise SystemExit("tcmu-retryd --sim does not come up")


def main() -> None:
    script, watch, history = sys.argv[1:]
    bus = subprocess.Popen(
        ["dbus-daemon", "--session", "--nofork", "--print-address"], stdout=subprocess.PIPE, text=True
    )
    assert bus.stdout is not None
    os.environ[ADDRESS] = address = bus.stdout.readline().strip()
    daemon = subprocess.Popen([sys.executable, "-m", "tcmu_retry.retryd", "--sim", script, "--bus", address])
    try:
        view = View()
        asyncio.run(present())
        asyncio.run(look(view))
        time.sleep(AFTER)
        subprocess.run([sys.executable, "-m", "tcmu_retry.cli.main", "history", "vm1", "--plot", history], check=True)
    finally:
        daemon.terminate()
        daemon.wait()
        bus.terminate()
        bus.wait()
    console = Console(record=True, width=132, file=io.StringIO(), force_terminal=True)
    console.print(view.render())
    drawn = console.export_svg(title="tcmu-retry watch")
    # Who looks at the picture fetches nothing: a font that is there will do.
    Path(watch).write_text(re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
