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
    """job: the type of the unit's job, "" for none. restart: called when somebody asks for one, which lasts as long.

    After it the unit is `active`, or has failed with `result`. start_seconds: its TimeoutStartSec.
    """

    def __init__(self, job: str, restart: Callable[[], object], result: str, start_seconds: float) -> None:
        self.job = job
        self.restart = restart
        self.result = result
        self.start_seconds = start_seconds
        self.active = "active"
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
            case "Get", path, [_, "ActiveState"] if path == UNIT:
                return Message.new_method_return(message, "v", [Variant("s", self.active)])
            case "Get", path, [_, "Result"] if path == UNIT:
                return Message.new_method_return(message, "v", [Variant("s", self.result)])
            case "Get", path, [_, "TimeoutStartUSec"] if path == UNIT:
                return Message.new_method_return(message, "v", [Variant("t", round(self.start_seconds * 1e6))])
            case "RestartUnit", _, ["tcmu-retryd.service", "replace"]:
                self.job, self.active = "restart", "deactivating"
                self.restarting.append(threading.Thread(target=self._restart))
                self.restarting[-1].start()
                return Message.new_method_return(message, "o", [JOB])
        return False

    def _restart(self) -> None:
        self.restart()
        self.active = "active" if self.result == "success" else "failed"
        self.job = ""


@contextmanager
def systemd(
    address: str,
    job: str = "",
    restart: Callable[[], object] = lambda: None,
    result: str = "success",
    start_seconds: float = 60.0,
) -> Iterator[Systemd]:
    manager = Systemd(job, restart, result, start_seconds)
    with offered(address, NAME, manager.answer):
        try:
            yield manager
        finally:
            for each in manager.restarting:
                each.join()
