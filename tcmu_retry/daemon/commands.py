"""A LUN's commands: between its pump, its disk and its engine, from arrival to answer.

Theory of operation
-------------------
All of it runs in the main loop and never blocks. The pump (a thread) reports events; each is turned into one call of
the engine, or answered by the disk; each call of the engine returns actions; `act` carries them out and sets the one
timer to the engine's next deadline.

Whose word counts: the pump knows which commands are open and running, the engine knows what each waits for, the disk
knows what a CDB means. Kept here is only the map from token to command, for the commands the engine has.

The gate closes in the pump and opens here (`Gate`). Every event that closed it is followed by `engine.gate_closed`
before anything else, so the engine knows what ran unasked. A person's hold or drain closes it too: the pump confirms
by `Closed`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from tcmu_retry.core import events
from tcmu_retry.core.actions import Action, Complete, Dispatch, Emit, Gate, Probe, Reopen, Token, Verdict
from tcmu_retry.core.engine import Engine
from tcmu_retry.daemon.lun import Lun
from tcmu_retry.pump.base import (
    Adopted,
    Arrived,
    Broken,
    Closed,
    Command,
    Event,
    Finished,
    Probed,
    Pump,
    Shape,
    TaskManagement,
)
from tcmu_retry.scsi.disk import Disk
from tcmu_retry.scsi.request import BUSY, Direction, Op, Reply, Request, Status
from tcmu_retry.scsi.sense import COPY_ABORTED, TARGET_FAILURE, Sense

log = logging.getLogger(__name__)

INQUIRY = 0x12
TURN = 64  # events; some milliseconds


class Commands:
    """From `start` to `stop`."""

    def __init__(
        self,
        lun: Callable[[], Lun],
        pump: Pump,
        disk: Disk,
        engine: Engine,
        emit: Callable[[str, Direction | None, Mapping[str, object]], None],
        reopen: Callable[[], None],
        acted: Callable[[], None],
        broke: Callable[[str], None],
    ) -> None:
        """emit: tells of an event. reopen: begins to open the storage anew. acted: called after each change.

        broke: told why, once, when the pump cannot go on; then comes `stop`, and another one of these.
        """
        self._loop = asyncio.get_running_loop()
        self._lun = lun
        self._pump = pump
        self._disk = disk
        self._engine = engine
        self._emit = emit
        self._reopen = reopen
        self._acted = acted
        self._broke = broke
        self._over = False  # the pump does not carry out anything any more
        self._commands: dict[Token, Command] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._closings = 0  # of the gate, that the pump has not confirmed yet
        self._aborted = False
        self._release_for: str | None = None  # a portal, or "" for a person: release as soon as the gate is closed

    def take_aborted(self) -> bool:
        """Whether task management came since this was last asked."""
        aborted, self._aborted = self._aborted, False
        return aborted

    def start(self) -> None:
        self._loop.add_reader(self._pump.fileno(), self._take_events)
        self._pump.start()

    def stop(self) -> None:
        """Commands not fetched yet stay in the ring."""
        self._take(None)
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._pump.fileno())
        self._pump.stop()

    # ---- the gate

    def shut_gate(self) -> None:
        self._closings += 1
        self._pump.gate(False)

    def close_gate(self) -> None:
        """The pump confirms by Closed; until then the engine learns of nothing that runs unasked."""
        self.shut_gate()
        self.act(self._engine.gate_closed((), time.monotonic()))

    async def quiet(self, seconds: float) -> bool:
        """Wait until no I/O is out; False if that took longer."""
        return await self._not(
            lambda: bool(self._closings or self._pump.statistics().in_flight or self._engine.in_flight), seconds
        )

    async def caught_up(self, seconds: float) -> bool:
        """Wait until the pump has done what was asked of it so far; False if that took longer."""
        self.shut_gate()
        return await self._not(lambda: bool(self._closings), seconds)

    async def _not(self, so: Callable[[], bool], seconds: float) -> bool:
        until = self._loop.time() + seconds
        while not self._over and so():
            if self._loop.time() >= until:
                return False
            await asyncio.sleep(0.02)
        return True

    def release(self, portal: str) -> None:
        """Answer BUSY to all, also to what runs on the pump's own account: that is known once the gate is closed.

        portal: where a login waits; "" for a person.
        """
        self._release_for = portal
        self.close_gate()

    def _release_waiting(self, now: float) -> list[Action]:
        if self._release_for is None:
            return []
        portal, self._release_for = self._release_for, None
        if portal:
            opened = self._engine.held_count + self._engine.in_flight
            self._emit(events.LOGIN_WAITS, None, {"portal": portal, "released": opened})
        return self._engine.release(now)

    def _closed(self, running: Sequence[Command], now: float) -> list[Action]:
        for command in running:
            self._commands[command.serial] = command
        known = [(command.serial, _request(command), command.arrived) for command in running]
        return self._engine.gate_closed(known, now)

    # ---- the pump's events

    def _take_events(self) -> None:
        """So many, and then it is somebody else's turn: a LUN whose gate is closed may have events all the time."""
        if not self._over and self._take(TURN) == TURN:
            self._loop.call_soon(self._take_events)

    def _take(self, most: int | None) -> int:
        taken = 0
        for event in itertools.islice(self._pump.events(), most):
            self.act(self._event(event, time.monotonic()))
            taken += 1
        return taken

    def _event(self, event: Event, now: float) -> list[Action]:
        match event:
            case Arrived(command, running):
                return self._closed(running, now) + self._arrived(command, now)
            case Adopted(commands, aborted, running):
                return self._closed(running, now) + self._adopt(commands, aborted, now)
            case Finished(command, 0 | errno.ECANCELED as error, _, running):
                self._commands.pop(command.serial, None)
                self._told_end(command, error == 0)
                return self._closed(running, now) + self._engine.finished(command.serial, _request(command), error, now)
            case Finished(command, error, _, running):
                actions = self._closed(running, now)
                if not command.answered:
                    self._commands[command.serial] = command
                ended = self._engine.finished(command.serial, _request(command), error, now, command.arrived)
                return actions + ended
            case TaskManagement(kind, commands, running):
                log.debug("LUN %s: task management %d names %d commands", self._lun().name, kind, len(commands))
                named = [command.serial for command in commands if not command.answered]
                self._aborted = True
                return self._closed(running, now) + self._engine.aborted(named, now, kind)
            case Probed(direction, error):
                return self._engine.probed(direction, error, now)
            case Closed(running, asked):
                self._closings -= asked
                # Release before the turn that may open the gate: what is answered while it runs needs its fence.
                return self._closed(running, now) + self._release_waiting(now) + self._engine.tick(now)
            case Broken(message):
                self._over = True
                self._broke(message)
                return []

    def _adopt(self, commands: Sequence[Command], aborted: int, now: float) -> list[Action]:
        oldest = now - min((command.arrived for command in commands), default=now)
        failed = sum(command.attempts > 0 for command in commands)
        fields = {"count": len(commands), "failed": failed, "aborted": aborted, "seconds": round(oldest, 1)}
        self._emit(events.ADOPTED, None, fields)
        return [action for command in commands for action in self._arrived(command, now, anew=True)]

    def _arrived(self, command: Command, now: float, anew: bool = False) -> list[Action]:
        """anew: an earlier process may have run it, and how far is not known."""
        if command.cdb[0] == INQUIRY:
            with contextlib.suppress(OSError):  # what was read last is better than no answer
                self._disk.identity = replace(self._disk.identity, serial=self._lun().wwn())
        try:
            outcome = self._disk.handle(command.cdb, command.data_length, lambda: self._pump.data_out(command))
        except Exception:
            log.exception("LUN %s: CDB %s failed in our own code", self._lun().name, command.cdb.hex(" "))
            outcome = self._disk.sense_reply(TARGET_FAILURE)
        if isinstance(outcome, Reply):
            self._answer(command, outcome)
            self.reshape()
            return []
        self.reshape()
        command.request = outcome
        self._commands[command.serial] = command
        if anew and not outcome.repeatable:
            self._told_end(command, False)
            self._answer(command, self._disk.sense_reply(COPY_ABORTED))
            del self._commands[command.serial]
            return []
        if command.attempts:
            failure = command.attempts, command.error, command.failed_at
            return self._engine.adopted(command.serial, outcome, command.arrived, failure, now)
        return self._engine.arrived(command.serial, outcome, now, command.arrived)

    def _told_end(self, command: Command, good: bool) -> None:
        if command.request is not None and command.request.op is Op.COPY:
            self._disk.copied(command.request, good)

    def _answer(self, command: Command, reply: Reply) -> None:
        command.answered = True
        self._pump.complete(command, reply)

    def reshape(self) -> None:
        """Let the pump know what it may do without asking: the disk's state or the LUN's size may be another."""
        lun = self._lun()
        plain = self._disk.plain
        self._pump.shape(Shape(lun.block_size, lun.size // lun.block_size, not self._disk.read_only) if plain else None)

    # ---- the engine's actions

    def act(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Dispatch(token):
                    self._pump.dispatch(self._commands[token])
                case Complete(token, answer):
                    command = self._commands.pop(token)
                    self._told_end(command, False)
                    self._answer(command, self._render(command, answer))
                case Probe(direction):
                    self._pump.probe(direction)
                case Reopen():
                    self._reopen()
                case Gate():
                    self._pump.gate(True)
                case Emit(code, direction, fields):
                    self._emit(code, direction, fields)
        self._arm()
        self._acted()

    def _render(self, command: Command, answer: Sense | Verdict) -> Reply:
        match answer:
            case Sense():
                return self._disk.sense_reply(answer)
            case Verdict.BUSY:
                return BUSY
            case Verdict.RESERVATION_CONFLICT:
                return Reply(Status.RESERVATION_CONFLICT)
            case Verdict.ABORTED:
                return Reply(Status.TASK_ABORTED)
            case Verdict.IGNORED:
                zeros = _request(command).op is Op.READ
                return Reply(Status.GOOD, data=bytes(command.data_length) if zeros else None)

    def _arm(self) -> None:
        due = self._engine.deadline()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if due is None or self._over else self._loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self.act(self._engine.tick(time.monotonic()))


def _request(command: Command) -> Request:
    """What a command asks; it has been read as soon as it is anything but fresh from the ring."""
    assert command.request is not None
    return command.request
