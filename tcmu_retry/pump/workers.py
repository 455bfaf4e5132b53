"""A small pool of threads for blocking I/O whose waiting jobs can be withdrawn.

A thread stuck in the kernel (state D) cannot be ended; the threads are daemonic so that the process can leave them.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue


class Workers:
    """Runs jobs in the order given, `count` at once. A job is known by a key that is not used twice.

    Raises RuntimeError where the host has no thread for it.
    """

    def __init__(self, name: str, count: int) -> None:
        self._name = name
        self._count = count
        self._waiting: dict[int, Callable[[], None]] = {}
        self._queue: SimpleQueue[int | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._grow()  # one there must be, or a job might never run

    def submit(self, key: int, job: Callable[[], None]) -> None:
        """Run job() in a thread; it must not raise."""
        self._waiting[key] = job
        self._queue.put(key)
        if len(self._threads) < self._count:
            with contextlib.suppress(RuntimeError):  # the host has no more threads: those we have take the job
                self._grow()

    def withdraw(self, key: int) -> bool:
        """True: the job had not started and never will. The dict's pop is the one point where this is decided."""
        return self._waiting.pop(key, None) is not None

    def close(self) -> None:
        """Jobs that wait are dropped; threads end when their job does."""
        self._waiting.clear()
        for _ in self._threads:
            self._queue.put(None)

    def _grow(self) -> None:
        thread = threading.Thread(target=self._run, name=f"{self._name}-io{len(self._threads)}", daemon=True)
        thread.start()
        self._threads.append(thread)

    def _run(self) -> None:
        while (key := self._queue.get()) is not None:
            job = self._waiting.pop(key, None)
            if job is not None:
                job()
            del job  # a job holds views of the ring's memory, and an idle thread must not
