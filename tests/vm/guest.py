"""A guest: a stock Debian kernel in QEMU over this machine's own files, and a way to run commands in it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build/vm"
DISK_BYTES = 1 << 30


class GuestError(Exception):
    """The guest does not do what it should; the message says where to look."""


@dataclass(frozen=True)
class Result:
    """A command that ended."""

    command: object
    code: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"`{self.command}` -> {self.code}\n--- out\n{self.out}\n--- err\n{self.err}"


def kernel() -> Path:
    """The unpacked stock kernel. Raises GuestError where it has not been made."""
    found = sorted((BUILD / "kernel/boot").glob("vmlinuz-*"))
    if not found:
        raise GuestError(f"no kernel under {BUILD / 'kernel'}; `make vm-kernel` fetches Debian's")
    return found[-1]


class Guest:
    """A booted guest. `shared` is one directory of the host, writable under the same path in the guest."""

    boot_seconds = 300.0

    def __init__(
        self, name: str = "guest", memory: str = "3G", disks: int = 2, shared: Path | None = None,
        forward: int = 0, options: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """disks: scratch disks, /dev/vda … forward: a port of the guest that `forwarded` of loopback leads to."""
        self.shared = shared or BUILD / "run" / f"{name}-{os.getpid()}"
        if shared is None:
            shutil.rmtree(self.shared, ignore_errors=True)
            self.shared.mkdir(parents=True)
        self._number = 0
        self._waiting: dict[int, queue.SimpleQueue[dict[str, object]]] = {}
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._agent = Path(f"/tmp/tcmu-retry-vm-{os.getpid()}-{name}.sock")
        self.forwarded = 0
        self._memory = memory
        self._options = [
            *options,
            "-device virtio-serial-pci",
            f"-chardev socket,id=agent,path={self._agent}",
            "-device virtserialport,chardev=agent,name=agent",
        ]
        for index in range(disks):
            physical = 4096 if index == 1 else 512
            self.add_disk(f"scratch{index}", self.shared / f"disk{index}.raw", DISK_BYTES, physical)
        if forward:
            self.forwarded = free_port()
            self._options.append(f"-netdev user,id=net0,hostfwd=tcp:127.0.0.1:{self.forwarded}-:{forward}")
            self._options.append("-device virtio-net-pci,netdev=net0")
        self.boot()

    def add_disk(self, serial: str, path: Path, size: int, physical: int = 512) -> None:
        """Before it boots: a sparse disk with 512-byte blocks. physical: bytes of a physical block."""
        with path.open("wb") as file:
            file.truncate(size)
        self._options.append(f"-drive file={path},if=none,id={serial},format=raw,cache=unsafe")
        self._options.append(f"-device virtio-blk-pci,drive={serial},serial={serial},physical_block_size={physical}")

    def command(self) -> list[str]:
        """What boots it."""
        return [
            *boot_command(self._memory), "--rwdir", str(self.shared),
            *(f"--qemu-opts={option}" for option in self._options),
            "--exec", f"{ROOT}/tests/vm/boot.sh {self.shared} {sys.executable}",
        ]  # fmt: skip

    def boot(self) -> None:
        """Start it and wait for its agent. Raises GuestError."""
        self._up: queue.SimpleQueue[dict[str, object]] = queue.SimpleQueue()
        self._waiting = {0: self._up}
        listener = socket.socket(socket.AF_UNIX)
        self._agent.unlink(missing_ok=True)
        listener.bind(str(self._agent))
        listener.listen(1)
        self._console = (self.shared / "console.log").open("ab")
        self._process = subprocess.Popen(
            self.command(), env=environment(), stdin=subprocess.DEVNULL, stdout=self._console, stderr=self._console,
            start_new_session=True,
        )  # fmt: skip
        try:
            self._socket = self._accept(listener)
            threading.Thread(target=self._read, args=(self._socket,), daemon=True).start()
            self._wait_up()
        except TimeoutError:
            self.close()
            last = (self.shared / "console.log").read_text(errors="replace")[-2000:]
            raise GuestError(f"the guest did not come up; {self.shared}/console.log ends: {last}") from None
        finally:
            listener.close()
            self._agent.unlink()

    def _accept(self, listener: socket.socket) -> socket.socket:
        listener.settimeout(1)
        until = time.monotonic() + self.boot_seconds
        while time.monotonic() < until and self.alive:
            with contextlib.suppress(TimeoutError):
                return listener.accept()[0]
        raise TimeoutError

    def _wait_up(self) -> None:
        until = time.monotonic() + self.boot_seconds
        while time.monotonic() < until and self.alive:
            with contextlib.suppress(queue.Empty):
                self._up.get(timeout=1)
                return
        raise TimeoutError

    def run(self, command: str | list[str], timeout: float = 60, check: bool = True, **env: str) -> Result:
        """Run a command (a string by bash) to its end. check: raise GuestError on a code other than 0."""
        reply = self._ask({"run": command, "timeout": timeout, "env": env}, timeout + 30)
        result = Result(command, int(str(reply["code"])), str(reply["out"]), str(reply["err"]))
        if check and result.code:
            raise GuestError(str(result))
        return result

    def look(self, command: str) -> str:
        """What a command prints, stripped; "" if it fails."""
        result = self.run(command, check=False)
        return "" if result.code else result.out.strip()

    def warm(self, socket_path: str, arguments: list[str], timeout: float = 60) -> Result:
        """One call of the command line by `warm.py`."""
        reply = self._ask({"warm": socket_path, "arguments": arguments, "timeout": timeout}, timeout + 30)
        return Result(["tcmu-retry", *arguments], int(str(reply["code"])), str(reply["out"]), str(reply["err"]))

    def start(self, command: str | list[str], log: str, **env: str) -> int:
        """Run a command in the background, its output into a file of the shared directory; its pid."""
        return int(str(self._ask({"run": command, "log": str(self.shared / log), "env": env}, 30)["out"]))

    def close(self) -> None:
        """Switch the guest off."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._ended()
        for disk in self.shared.glob("disk*.raw"):
            disk.unlink()

    def _ended(self) -> None:
        """Let go what belongs to one boot."""
        self._process.wait()
        self._console.close()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def _ask(self, request: dict[str, object], timeout: float) -> dict[str, object]:
        with self._lock:
            self._number += 1
            number = self._number
            answer: queue.SimpleQueue[dict[str, object]] = queue.SimpleQueue()
            self._waiting[number] = answer
            assert self._socket is not None
            self._socket.sendall(json.dumps({"id": number, **request}).encode() + b"\n")
        try:
            return answer.get(timeout=timeout)
        except queue.Empty:
            raise GuestError(f"the guest does not answer; see {self.shared}/console.log") from None

    def _read(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection.makefile("rb") as lines:
            for line in lines:
                reply = json.loads(line)
                self._waiting.pop(reply["id"]).put(reply)


def free_port() -> int:
    """A TCP port of loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def kvm_works() -> bool:
    """/dev/kvm may open and yet never run a guest (nested without vmx or svm): only a processor that says so counts."""
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    return os.access("/dev/kvm", os.R_OK | os.W_OK) and bool({"vmx", "svm"} & set(flags.split()))


def processor() -> list[str]:
    """For QEMU. With ERMS the kernel copies and clears by `rep movsb`, which an emulator runs a byte at a time."""
    return ["-cpu", "max"] if kvm_works() else ["-cpu", "max,erms=off"]


def boot_command(memory: str) -> list[str]:
    """The command that boots a guest over this machine's own files; options follow."""
    # The TSC of an emulator is steady, which the kernel cannot know: it would read the HPET, under QEMU's one lock.
    emulated = ["--disable-kvm", "--append", "tsc=reliable"]
    return [
        str(Path(sys.executable).parent / "vng"), "-r", str(kernel()),
        *([] if kvm_works() else emulated), f"--qemu-opts={' '.join(processor())}",
        "--user", "root", "--memory", memory, "--cpus", "2", "--force-9p", "--cwd", "/",
    ]  # fmt: skip


def environment() -> dict[str, str]:
    """vng calls its parts by name."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def main() -> None:
    """A shell in a guest, on this terminal."""
    print(f"Booting. Then: `{ROOT}/tests/vm/boot.sh` mounts and loads what the project needs. ^D ends it.", flush=True)  # noqa: T201
    raise SystemExit(subprocess.call(boot_command("3G"), env=environment()))


if __name__ == "__main__":
    main()
