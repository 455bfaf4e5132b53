"""Filters laid over a backend, each one a backend itself: for tests, and for people who want to see an outage."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tcmu_retry.backends.base import Backend
from tcmu_retry.backends.filters import delay, error
from tcmu_retry.core.words import meant

Settings = Mapping[str, str]

# name -> how its settings become a filter; raises ValueError with one sentence for a person
KNOWN: dict[str, Callable[[Settings], Callable[[Backend], Backend]]] = {"error": error.parse, "delay": delay.parse}


def parse(settings: Mapping[str, Settings]) -> list[Callable[[Backend], Backend]]:
    """The filters of a LUN, innermost first. Raises ValueError with one sentence."""
    for name in settings:
        if name not in KNOWN:
            raise ValueError(f"there is no filter {name}; {meant(name, KNOWN)}")
    return [KNOWN[name](options) for name, options in settings.items()]


def apply(backend: Backend, settings: Mapping[str, Settings]) -> Backend:
    """Lay the configured filters over a backend. Raises ValueError with one sentence."""
    for make in parse(settings):
        backend = make(backend)
    return backend
