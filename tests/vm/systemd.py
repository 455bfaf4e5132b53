"""A guest with systemd as PID 1, that can be rebooted: what it wrote is there again, and its clocks and kernel are new.

Root is this machine's own files under what the guest writes, on a disk of its own (see systemd.sh). The project's units
are installed, if asked for, and not enabled; none of those enabled on this machine runs.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from virtme import mkinitramfs

from tests.vm.guest import BUILD, ROOT, Guest, GuestError, kernel, kvm_works, processor

ROOT_BYTES = 2 << 30
NEEDED = ("virtio_pci", "9pnet_virtio", "9p")  # before there is a root to load others from


@cache
def initrd() -> Path:
    """What mounts this machine's files and starts what `init=` says."""
    version = kernel().name.removeprefix("vmlinuz-")
    shown = subprocess.run(
        ["modprobe", "-d", str(BUILD / "kernel"), "-S", version, "--show-depends", "-a", *NEEDED],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    config = mkinitramfs.Config()
    config.modfiles = [*dict.fromkeys(line.split()[1] for line in shown.splitlines() if line.startswith("insmod"))]
    config.busybox = mkinitramfs.find_busybox("/", True)
    path = BUILD / "systemd.initrd"
    with path.open("wb") as file:
        mkinitramfs.mkinitramfs(file, config)
    return path


class SystemdGuest(Guest):
    """As `Guest`, and `shut_down`.

    prepare: shell commands before systemd's first start, the root to be at $new; `install_project` is one. What can be
    done there saves a `daemon-reload`, which takes the better part of a minute where the guest is emulated.
    """

    boot_seconds = 600.0

    def __init__(
        self, name: str = "systemd", memory: str = "2G", disks: int = 1, forward: int = 0, prepare: str = "",
        options: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self._initrd = initrd()
        self._prepare = prepare
        self._booted = False
        super().__init__(name, memory, disks, forward=forward, options=options)

    def command(self) -> list[str]:
        if not self._booted:
            self._booted = True
            disk = self.shared / "disk-root.raw"
            self.add_disk("root", disk, ROOT_BYTES)
            (self.shared / "prepare.sh").write_text(self._prepare)
            # Compiled once here, not at each start of the daemon by an emulated processor.
            subprocess.run([sys.executable, "-m", "compileall", "-q", str(ROOT / "tcmu_retry")], check=True)
            subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", str(disk)], check=True)
        line = (
            f"console=ttyS0 quiet loglevel=3 panic=-1 init={ROOT}/tests/vm/systemd.sh -- {self.shared} {sys.executable}"
        )
        return [
            "qemu-system-x86_64", "-machine", "q35", *(["-accel", "kvm"] if kvm_works() else []), *processor(),
            "-m", self._memory, "-smp", "2", "-display", "none", "-vga", "none", "-net", "none", "-no-reboot",
            "-serial", "stdio", "-monitor", "none",
            "-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
            "-device", "virtio-9p-pci,fsdev=root,mount_tag=/dev/root",
            # The same, to be mounted with a cache: else each path looked up is several questions to QEMU.
            "-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap",
            "-device", "virtio-9p-pci,fsdev=host,mount_tag=host",
            "-fsdev", f"local,id=shared,path={self.shared},security_model=none,multidevs=remap",
            "-device", "virtio-9p-pci,fsdev=shared,mount_tag=shared",
            "-kernel", str(kernel()), "-initrd", str(self._initrd), "-append", line,
            *(word for option in self._options for word in shlex.split(option)),
        ]  # fmt: skip

    def shut_down(self, seconds: float = 120) -> float:
        """`systemctl reboot`; how long until the machine would start again, which `boot` then does."""
        began = time.monotonic()
        self.start("systemctl reboot", "reboot.log")  # whose answer does not always come out of a guest that ends
        while self.alive:
            if time.monotonic() - began > seconds:
                raise GuestError(f"the guest does not shut down within {seconds:g} s; see {self.shared}/console.log")
            time.sleep(0.1)
        took = time.monotonic() - began
        self._ended()
        return took
