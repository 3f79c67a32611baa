"""Boot an image under QEMU's software emulation, follow its console, and see to it that it ends."""

from __future__ import annotations

import re
import selectors
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.vm.host import tool
from tests.vm.image import Root

# QEMU's plainest model, with what wheels of numpy demand (x86-64-v2).
EMULATION = ("-accel", "tcg", "-cpu", "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt")
# clearcpuid: QEMU 7.2 emulates cmpxchg16b from stale flags and leaves garbage in all of EFLAGS. The allocator
# of Linux 6.12 uses it; the next exception then saves and restores a direction or trap flag that nobody set,
# memory is corrupted, and every second boot dies at a random place. So the kernel is told not to use it.
KERNEL_COMMAND_LINE = (
    "root=/dev/vda rw console=ttyS0 init=/sbin/testbed-init quiet panic=-1 mitigations=off clearcpuid=cx16"
)
CONTROL_SEQUENCES = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|c)|\r")


@dataclass(frozen=True)
class Machine:
    """What the machine is made of. `disks` become /dev/vdb, /dev/vdc, ...; only the last may be written."""

    root: Root
    disks: Sequence[Path]
    cpus: int
    memory_mib: int


def boot(machine: Machine, console: Path, timeout_s: float, on_line: Callable[[str], None]) -> bool:
    """Run `machine` until it switches itself off; True if it did so within `timeout_s`.

    Every line of its console goes to `on_line` and to the file `console`. Whatever happens, QEMU has ended
    afterwards, and the root image is as it was: what the machine writes there is thrown away.
    """
    deadline = time.monotonic() + timeout_s
    with console.open("w") as log, _started(command(machine)) as qemu:
        assert qemu.stdout is not None
        try:
            for line in _lines(qemu.stdout, deadline):
                log.write(line + "\n")
                on_line(line)
            return True
        except TimeoutError:
            return False
        finally:
            qemu.kill()


def command(machine: Machine) -> list[str]:
    """The QEMU command line: a serial console, disks, a source of random numbers, and nothing else."""
    *read_only, results = machine.disks
    return [
        tool("qemu-system-x86_64"), *EMULATION,
        "-smp", str(machine.cpus), "-m", str(machine.memory_mib),
        "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot",
        "-device", "virtio-rng-pci",
        "-kernel", str(machine.root.kernel), "-initrd", str(machine.root.initrd),
        "-append", KERNEL_COMMAND_LINE,
        *_drive(machine.root.disk, "snapshot=on"),
        *(word for disk in read_only for word in _drive(disk, "readonly=on")),
        *_drive(results, "readonly=off"),
    ]  # fmt: skip


def _started(qemu: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        qemu, bufsize=0, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def _drive(path: Path, mode: str) -> list[str]:
    escaped = str(path).replace(",", ",,")
    return ["-drive", f"file={escaped},format=raw,if=virtio,{mode}"]


def _lines(serial: IO[bytes], deadline: float) -> Iterator[str]:
    """The console's lines as they come, without control sequences, to QEMU's end. Raises TimeoutError."""
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(serial, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0 and selector.select(left):
            chunk = serial.read(1 << 16)
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines if chunk else [rest]:
                yield CONTROL_SEQUENCES.sub("", line.decode(errors="replace"))
            if not chunk:
                return
        raise TimeoutError
