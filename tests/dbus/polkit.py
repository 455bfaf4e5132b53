"""A polkit that grants what it is told to, on the tests' bus."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tcmu_retry.dbus._lib import Message, MessageType
from tests.dbus.offered import offered

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
    with offered(address, NAME, authority.answer):
        yield authority
