"""What the daemon offers to its controls: the D-Bus service shows exactly this, and nothing reaches behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tcmu_retry.core.chain import Link
from tcmu_retry.core.policy import Policy
from tcmu_retry.scsi.request import Direction


class ApiError(Exception):
    """A request that cannot be carried out: one sentence for a person, nothing was changed.

    kind: NotFound, InvalidPolicy, InvalidArgument, Busy, BackendUnavailable, Failed: the end of a D-Bus error name.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class HeldCommand:
    """One command that waits. Times in seconds."""

    serial: int
    operation: str  # Op value
    direction: Direction
    lba: int
    blocks: int
    age: float  # since it arrived
    held: float  # since its first failure, or since it was parked
    attempts: int
    error: str  # errno name of its last failure, "" if it was never tried
    error_class: str
    waits_for: str  # retry | probe | overlap | resume | drain | io | abort (answered at next_in)
    next_in: float | None  # None: an event or a person ends the wait
    deadline_in: float | None  # None: no time-out


@dataclass(frozen=True, slots=True)
class DirectionStatus:
    """One half of a LUN. Times in seconds."""

    state: str  # online | retrying | down | failed | stopped
    outage: float | None  # since the first failure, None while online
    error: str  # errno name of the last failure of this outage
    next_probe_in: float | None
    window: int  # held commands that may be out at once
    probes: int  # in this outage
    stopped: float  # seconds of this outage in which nothing was tried because of stop, readonly, offline or a hold


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """A LUN at this moment. Sizes in bytes, times in seconds."""

    name: str
    wwn: str
    path: str
    size: int
    block_size: int
    uio: str
    read: DirectionStatus
    write: DirectionStatus
    held: int
    held_bytes: int
    oldest_held: float
    in_flight: int
    hung: int  # I/O out for longer than io_warn_after
    hold_reason: str  # "" while no person holds the LUN
    hold_expires_in: float | None  # None: no hold, or one without an end
    draining: bool
    backend_error: str  # "" while the backend is open
    ring_error: str  # why nothing is served, "" while its ring is in order
    policy_generation: int


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """How a policy is changed. persist: also over restarts. reset: from the configured policy, not the present one."""

    dry_run: bool = False
    persist: bool = False
    reset: bool = False
    if_generation: int | None = None


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """A LUN to be made. size, block_size 0: the storage's own. initiators: IQNs; `any_initiator`: all may log in.

    wwn: "" for a new one. Hosts that show the same storage give it the same WWN, so that multipath sees one disk.
    target: its IQN; "" for one by this host's name. A LUN that moves between hosts keeps it.
    """

    name: str
    config: str  # absolute path with ;key=value settings, or a name in devices.d
    size: int = 0
    block_size: int = 0
    portals: Sequence[str] = ("0.0.0.0:3260",)
    initiators: Sequence[str] = ()
    any_initiator: bool = False
    wwn: str = ""
    target: str = ""


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What was made, and the kernel settings that make holding safe: (where, setting, value)."""

    iqn: str
    portals: Sequence[str]
    lun: int
    wwn: str
    settings: Sequence[tuple[str, str, str]]


@dataclass(frozen=True, slots=True)
class Notice:
    """An event with a stable code, for signals, the journal and the history. `time`: seconds since the epoch."""

    code: str
    device: str
    message: str
    time: float
    fields: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sample:
    """A LUN's curve at one moment. Rates are bytes a second since the sample before; `errors`, `probes`: since then.

    stretch: when the stretch of samples began that this one belongs to (an outage, with what led to it); seconds since
    the epoch, as `time`.
    """

    time: float
    stretch: float
    held: int
    oldest_held: float
    read_rate: float
    write_rate: float
    errors: int
    probes: int
    read_state: str
    write_state: str


class DeviceApi(Protocol):
    """A LUN. Commands are named by serial; an empty sequence means all that are held."""

    @property
    def name(self) -> str: ...

    @property
    def policy(self) -> Policy: ...

    def status(self) -> DeviceStatus: ...

    def held(self, offset: int = 0, limit: int = 0) -> list[HeldCommand]:
        """Oldest first; limit 0: all."""

    def statistics(self) -> dict[str, int]: ...

    @property
    def policy_changed(self) -> Mapping[str, str]:
        """The settings that people changed since the LUN was configured."""

    async def set_policy(self, changes: Mapping[str, object], options: PolicyOptions) -> Policy:
        """Atomic; the effective policy. Raises ApiError InvalidPolicy, or Busy where the generation differs."""

    def kick(self, serials: Sequence[int] = ()) -> int:
        """Try now; how many commands that touched."""

    def fail(self, serials: Sequence[int] = ()) -> int:
        """Answer with the sense of `report` now; how many."""

    def release(self) -> int:
        """Answer BUSY to all that is held; how many."""

    def hold(self, reason: str, expires_in: float | None = None) -> None:
        """Try nothing until `resume`, or until the expiry."""

    def resume(self) -> None: ...

    async def diagnose(self) -> list[Link]:
        """The chain of time-outs from storage to initiator."""

    async def drain(self) -> None:
        """No new attempts; returns when nothing is in flight. Raises ApiError Busy after 5 s."""

    def undrain(self) -> None: ...


def _ignore(_: object) -> None:
    """For who does not want to be told."""


@dataclass(frozen=True, slots=True)
class Watcher:
    """Whom the main loop tells of LUNs and events."""

    changed: Callable[[DeviceApi], None] = _ignore  # its state or policy, at most 10 times a second
    added: Callable[[DeviceApi], None] = _ignore
    removed: Callable[[str], None] = _ignore  # by name
    notice: Callable[[Notice], None] = _ignore


class ServiceApi(Protocol):
    """All LUNs of this daemon."""

    @property
    def version(self) -> str: ...

    def devices(self) -> Sequence[DeviceApi]: ...

    def device(self, name: str) -> DeviceApi:
        """Raises ApiError NotFound, naming the nearest name."""

    async def export(self, request: ExportRequest) -> ExportResult: ...

    async def unexport(self, name: str) -> None: ...

    def check_config(self, config: str) -> str:
        """What is wrong with a configuration string, in a sentence; "" where it is good."""

    def give_way(self, seconds: float) -> None:
        """For so long hold nothing: what is held is answered BUSY again and again. Returns at once."""

    async def history(self, device: str, since: float, limit: int) -> list[Notice]:
        """The last events, oldest first; device "": of all, also of LUNs that are gone; since: from the epoch."""

    async def samples(self, device: str, since: float, limit: int) -> list[Sample]:
        """The last samples of a LUN, oldest first; since 0: those of its last stretch."""

    async def check_new(self, config: str, size: int = 0) -> str:
        """Why no LUN can be made of a configuration string now, in a sentence; "" where one can. Opens the storage.

        size: bytes that it must have at least.
        """

    async def change_medium(self, name: str, size: int, config: str) -> None:
        """Serve a LUN from other storage that has its data, and with another size. Raises ApiError."""

    def watch(self, watcher: Watcher) -> None: ...
