"""The LUNs that the suite runs against: ours, and its peers' in the same guest. Each has two portals."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.vm.guest import ROOT, Guest
from tests.vm.lab import Lab, eventually

PORTALS = ("127.0.0.1:3260", "127.0.0.1:3261")
SIZE = 256  # MiB
FILE = "/run/conformance.img"  # of the peers, in the guest's memory
TARGET = "/sys/kernel/config/target"
RUNNER_PACKAGES = ("tcmu-runner", "libtcmu2", "libnl-3-200", "libnl-genl-3-200")
RUNNER_UNPACKED = "usr/lib/x86_64-linux-gnu"  # of them, the libraries


def urls(iqn: str) -> list[str]:
    return [f"iscsi://{portal}/{iqn}/0" for portal in PORTALS]


def ours(lab: Lab, name: str, settings: str = "", disk: str = "/dev/vdb") -> list[str]:
    """On a dm device of its own; /dev/vdb's physical blocks have 4096 bytes. The URLs of its two paths."""
    # Registrations with APTPL go to a file of LIO's, whose directory distributions make.
    lab.guest.run("mkdir -p $(cat /sys/kernel/config/target/dbroot)/pr")
    portals = [word for portal in PORTALS for word in ("--portal", portal)]
    return urls(lab.export(lab.storage(name, SIZE, disk), settings, *portals).iqn)


def without_immediate_data(guest: Guest, urls: list[str]) -> None:
    """From the next login on all Data-Out of the LUN with these URLs is asked for by R2T."""
    for iqn in {url.split("/")[-2] for url in urls}:
        guest.run(f"echo No > {TARGET}/iscsi/{iqn}/tpgt_1/param/ImmediateData")


def fileio(guest: Guest, size: int = SIZE) -> list[str]:
    """LIO's own backstore, with UNMAP on. size: MiB."""
    store = f"{TARGET}/core/fileio_9/peer"
    guest.run(
        f"mkdir -p $(cat {TARGET}/dbroot)/pr; modprobe target_core_file; truncate -s {size}M {FILE} && mkdir -p {store}"
        f" && echo fd_dev_name={FILE},fd_dev_size={size << 20} > {store}/control"
        f" && echo 11111111-2222-3333-4444-555555555555 > {store}/wwn/vpd_unit_serial && echo 1 > {store}/enable"
        f" && echo 1 > {store}/attrib/emulate_tpu && echo 1 > {store}/attrib/emulate_tpws"
    )
    return urls(_target(guest, store, "fileio"))


def runner(guest: Guest) -> list[str]:
    """tcmu-runner's raw file (its qcow handler). No other handler of TCMU may run in this guest."""
    directory = unpacked_runner()
    library, handlers = directory / RUNNER_UNPACKED, guest.shared / "handlers"
    handlers.mkdir()
    shutil.copy(library / "tcmu-runner/handler_qcow.so", handlers)
    guest.run(f"cp {directory}/etc/dbus-1/system.d/tcmu-runner.conf /etc/dbus-1/system.d/; mkdir -p /etc/tcmu")
    guest.run(f"cp {directory}/etc/tcmu/tcmu.conf /etc/tcmu/; dbus-send --system --type=method_call"
              " --dest=org.freedesktop.DBus / org.freedesktop.DBus.ReloadConfig")  # fmt: skip
    guest.start(
        f"LD_LIBRARY_PATH={library} {directory}/usr/bin/tcmu-runner --handler-path {handlers} -d", "tcmu-runner.log"
    )
    eventually(lambda: "org.kernel.TCMUService1" in guest.run(
        "dbus-send --system --print-reply --dest=org.freedesktop.DBus / org.freedesktop.DBus.ListNames").out,
        30, "tcmu-runner on the bus")  # fmt: skip
    store = f"{TARGET}/core/user_8/runner"
    guest.run(
        f"truncate -s {SIZE}M {FILE}.runner && mkdir -p {store}"
        f" && echo dev_config=qcow/{FILE}.runner,dev_size={SIZE << 20},cmd_time_out=0 > {store}/control"
        f" && echo 1 > {store}/enable && echo 11111111-2222-3333-4444-666666666666 > {store}/wwn/vpd_unit_serial"
    )
    return urls(_target(guest, store, "runner"))


def _target(guest: Guest, store: str, name: str) -> str:
    iqn = f"iqn.2026-11.org.example:{name}"
    group = f"{TARGET}/iscsi/{iqn}/tpgt_1"
    attributes = "authentication=0 generate_node_acls=1 cache_dynamic_acls=1 demo_mode_write_protect=0"
    guest.run(
        f"mkdir -p {group}/lun/lun_0 && ln -s {store} {group}/lun/lun_0/link"
        f" && for a in {attributes}; do echo ${{a#*=}} > {group}/attrib/${{a%=*}}; done"
        + "".join(f" && mkdir {group}/np/{portal}" for portal in PORTALS)
        + f" && echo 1 > {group}/enable"
    )
    return iqn


def unpacked_runner() -> Path:
    """Debian's tcmu-runner without installing it, for on this machine it would take the kernel's announcements."""
    directory = ROOT / "build/tcmu-runner"
    if not (directory / "made").exists():
        directory.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", *RUNNER_PACKAGES], cwd=directory, check=True, stdout=sys.stderr)
        for package in directory.glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, directory], check=True)
        for library in (directory / RUNNER_UNPACKED.removeprefix("usr/")).glob("*.so.*"):
            library.rename(directory / RUNNER_UNPACKED / library.name)
        (directory / "made").touch()
    return directory
