"""Somebody else's service, on the tests' bus."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from tcmu_retry.dbus._lib import Message, MessageBus, close


@contextmanager
def offered(address: str, name: str, answer: Callable[[Message], Message | bool]) -> Iterator[None]:
    """`answer` is asked about each message, in a thread of the service's own."""
    ready = threading.Event()
    stop: list[Callable[[], object]] = []

    async def serve() -> None:
        bus = await MessageBus(bus_address=address).connect()
        bus.add_message_handler(answer)
        await bus.request_name(name)
        over = asyncio.Event()
        stop.append(partial(asyncio.get_running_loop().call_soon_threadsafe, over.set))
        ready.set()
        await over.wait()
        await close(bus)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    try:
        yield
    finally:
        stop[0]()
        thread.join()
