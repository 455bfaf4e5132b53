"""A connection to the tests' bus that is called without await, by tests that are no coroutines."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

from tcmu_retry.dbus._lib import Message, MessageBus, MessageType, close

NAME = "org.tcmu.Retry1"
MANAGER = "/org/tcmu/Retry1/manager"
DEVICES = "/org/tcmu/Retry1/device/"


class CallFailed(Exception):
    """An error reply: its name and its sentence."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name
        self.text = text


class Caller:
    def __init__(self, address: str) -> None:
        self._address = address
        self._runner = asyncio.Runner()
        self.bus: MessageBus

    def __enter__(self) -> Caller:
        self.bus = self._runner.run(self._connect())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.run(close(self.bus))
        self._runner.close()

    async def _connect(self) -> MessageBus:
        return await MessageBus(bus_address=self._address).connect()

    def call(self, path: str, interface: str, member: str, signature: str = "", *body: object) -> Any:
        """The first value of the answer. Raises CallFailed, and TimeoutError after 20 s."""
        message = Message(
            destination=NAME, path=path, interface=interface, member=member, signature=signature, body=list(body)
        )
        return self.send(message)

    def send(self, message: Message) -> Any:
        reply = self._runner.run(self._answer(message))
        if reply.message_type is MessageType.ERROR:
            raise CallFailed(reply.error_name or "", str(reply.body[0]))
        return reply.body[0] if reply.body else None

    async def _answer(self, message: Message) -> Message:
        reply = await asyncio.wait_for(self.bus.call(message), 20)
        assert reply is not None
        return reply
