"""What the kernel says of a LUN."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tcmu_retry.tcmu.configfs import Window


@dataclass(frozen=True, slots=True)
class Lun:
    """Sizes in bytes."""

    name: str  # the backstore's name
    wwn: Callable[[], str]  # rtslib sets it after the device was announced, so it is read when somebody asks
    config: str  # the configuration string
    size: int
    block_size: int
    uio: str  # "uio0"
    attributes: Callable[[], Mapping[str, str]]  # the kernel's, by name
    windows: Callable[[], Mapping[str, Window]]  # by initiator
    write_cache: bool = False  # what the kernel takes it for
    sharers: Callable[[], str] = str  # who else waits while this LUN's initiator does, "" for nobody
