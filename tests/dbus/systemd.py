"""A systemd that has one unit, on the tests' bus."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tcmu_retry.dbus._lib import Message, MessageType, Variant
from tests.dbus.offered import offered

NAME = "org.freedesktop.systemd1"
UNIT, JOB = "/org/freedesktop/systemd1/unit/tcmu", "/org/freedesktop/systemd1/job/7"


class Systemd:
    """job: the type of the unit's job, "" for none. restart: called when somebody asks for one."""

    def __init__(self, job: str, restart: Callable[[], object]) -> None:
        self.job = job
        self.restart = restart
        self.asked: list[str] = []
        self.restarting: list[threading.Thread] = []

    def answer(self, message: Message) -> Message | bool:
        if message.message_type is not MessageType.METHOD_CALL:
            return False
        self.asked.append(message.member or "")
        match message.member, message.path, message.body:
            case "GetUnitByPID", _, [_]:
                return Message.new_method_return(message, "o", [UNIT])
            case "Get", path, [_, "Id"] if path == UNIT:
                return Message.new_method_return(message, "v", [Variant("s", "tcmu-retryd.service")])
            case "Get", path, [_, "Job"] if path == UNIT:
                return Message.new_method_return(message, "v", [Variant("(uo)", [7, JOB] if self.job else [0, "/"])])
            case "Get", path, [_, "JobType"] if path == JOB:
                return Message.new_method_return(message, "v", [Variant("s", self.job)])
            case "RestartUnit", _, ["tcmu-retryd.service", "replace"]:
                self.restarting.append(threading.Thread(target=self.restart))
                self.restarting[-1].start()
                return Message.new_method_return(message, "o", [JOB])
        return False


@contextmanager
def systemd(address: str, job: str = "", restart: Callable[[], object] = lambda: None) -> Iterator[Systemd]:
    manager = Systemd(job, restart)
    with offered(address, NAME, manager.answer):
        try:
            yield manager
        finally:
            for each in manager.restarting:
                each.join()
