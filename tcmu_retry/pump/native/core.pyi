from collections.abc import Iterable, Sequence
from typing import Final

from tcmu_retry.backends.shelf import Loan
from tcmu_retry.tcmu.journal import Journal
from tcmu_retry.tcmu.ring import CommandEntry, TaskManagementEntry

ROUSED: Final[int]  # `rouse` was called
BATCH: Final[int]  # the ring has entries, and all of them are for Python
ENTRY: Final[int]  # the ring's next entry is for Python
ENDED: Final[int]  # I/O that failed or was handed over: `ended`
BELL: Final[int]  # completions were written, and the doorbell is Python's
DOUBT: Final[int]  # the log was flushed for its own sake, and that failed: `doubt`
REMOVED: Final[int]  # the device is gone
READ: Final[int]
WRITE: Final[int]
FLUSH: Final[int]

PlainRequest = tuple[int, int, int, bool]  # READ, WRITE or FLUSH; offset and length in bytes; FUA

class Core:
    """A `tcmu.ring.Ring`; after `prepare` and, in the thread that runs it, `enable` also the success path over it."""

    def __init__(self, memory: memoryview, journal: Journal | None = None) -> None: ...
    @property
    def unfetched(self) -> bool: ...
    def fetch(self, most: int = -1) -> Sequence[CommandEntry | TaskManagementEntry]: ...
    def complete(
        self, number: int, status: int, sense: bytes = b"", read_len: int | None = None, keep_buffer: bool = False
    ) -> None: ...
    def settle(self) -> None: ...
    def close(self) -> None: ...
    def prepare(self, uio: int, bell: int, wake: int, excluding: Iterable[int]) -> None:
        """bell: -1 where the doorbell is Python's. excluding: opcodes that send their batch to Python.

        Raises OSError where io_uring cannot be had.
        """

    def enable(self) -> None: ...
    def serve(self, storage: int, block_size: int, blocks: int, maximum: int, writable: bool) -> None:
        """Run plain commands against this file descriptor, each write durable if no log was lent; -1: run none."""

    def lend(self, loan: Loan, limit: int) -> None:
        """Keep the replay log of write-back; no I/O may be out.

        limit: bytes of memory; a write that would go beyond is for Python.
        """

    def take_back(self) -> None: ...
    @property
    def flushing(self) -> bool:
        """The log, for its own sake; not to be lent again before that has ended."""

    @property
    def doubt(self) -> int:
        """Why that failed, an errno."""

    hold: bool  # `run` fetches nothing and comes back soon, with ROUSED at the latest

    def run(self) -> int:
        """Until there is something for Python; why. Without Python's lock. Raises OSError, RingError."""

    def rouse(self) -> None:
        """From any thread: `run` comes back, with ROUSED."""

    def linger(self) -> None:
        """Without Python's lock, until no I/O is out; answers nothing. Also what close needs in this thread before."""

    @property
    def ended(self) -> tuple[int, int]:
        """Slot and result (bytes, or -errno); the slot is taken until `forget`."""

    def forget(self, number: int) -> None: ...
    def hand_over(
        self,
    ) -> list[tuple[int, int, int, bytes, tuple[tuple[int, int], ...], float, PlainRequest, int, bool]]:
        """What runs here is completed by Python from now on, in order.

        Each as (serial, slot, id, CDB, iovs, began, request, number of the log's last record when it was started,
        whether it was not started: it waited for a write that it overlaps, and has no slot any more).

        They count as in flight until `handed_over`.
        """

    def handed_over(self) -> None: ...
    def snapshot(self) -> list[tuple[int, int, bytes, float, PlainRequest]]:
        """From any thread, what runs and was not handed over: (serial, id, CDB, began, request)."""

    serial: int
    @property
    def in_flight(self) -> int: ...
    @property
    def out(self) -> int: ...
    def counters(self) -> dict[str, int]: ...

def plain(
    cdb: bytes, data_length: int, block_size: int, blocks: int, maximum: int, writable: bool
) -> PlainRequest | None: ...
