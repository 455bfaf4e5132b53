"""A polkit that grants what it is told to, on the tests' bus."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from tcmu_retry.dbus._lib import Message, MessageBus, MessageType
from tests.dbus.caller import close

NAME = "org.freedesktop.PolicyKit1"


class Polkit:
    """granted: actions. asked: (kind of subject, its name, action, flags) of each question."""

    def __init__(self, granted: set[str]) -> None:
        self.granted = granted
        self.asked: list[tuple[str, str, str, int]] = []

    def answer(self, message: Message) -> Message | bool:
        if message.message_type is not MessageType.METHOD_CALL or message.member != "CheckAuthorization":
            return False
        (kind, details), action, _, flags, _ = message.body
        self.asked.append((kind, details["name"].value, action, flags))
        return Message.new_method_return(message, "(bba{ss})", [[action in self.granted, not flags, {}]])


@contextmanager
def polkit(address: str, *granted: str) -> Iterator[Polkit]:
    authority = Polkit(set(granted))
    ready = threading.Event()
    stop: list[Callable[[], object]] = []

    async def serve() -> None:
        bus = await MessageBus(bus_address=address).connect()
        bus.add_message_handler(authority.answer)
        await bus.request_name(NAME)
        over = asyncio.Event()
        stop.append(partial(asyncio.get_running_loop().call_soon_threadsafe, over.set))
        ready.set()
        await over.wait()
        await close(bus)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    try:
        yield authority
    finally:
        stop[0]()
        thread.join()
