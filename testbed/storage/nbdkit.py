"""nbdkit in the target's place: a server that others have made, with the same file and no rights to it.

There are no registrations, reservations or leases then, and nobody is fenced off. What is measured with it
is a storage network and a disk, not this testbed's target.
"""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from netns.namespace import Namespace

READY_DEADLINE_S = 10.0
END_DEADLINE_S = 10.0


class NbdkitError(Exception):
    """There is no nbdkit, or it does not come to listen; one line says why."""


@contextmanager
def serving(disk: Path, address: str, port: int, namespace: Namespace) -> Iterator[subprocess.Popen[bytes]]:
    """For the length of the block nbdkit listens on `address` and `port` in `namespace`. Raises NbdkitError.

    Whatever export a client names, it gets the file `disk`: so names that carry a key and a lease work as
    well. It ends with the block, or with the thread that has started it.
    """
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "pid"
        os.mkfifo(told)
        reader = os.open(told, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            with _started(disk, address, port, namespace, told) as process:
                try:
                    _wait(process, reader)
                    yield process
                finally:
                    process.terminate()
                    process.communicate(timeout=END_DEADLINE_S)
        finally:
            os.close(reader)


def _started(
    disk: Path, address: str, port: int, namespace: Namespace, told: Path
) -> subprocess.Popen[bytes]:
    listens = ["--ipaddr", address, "--port", str(port)]
    command = ["nbdkit", "--foreground", "--exit-with-parent", "--pidfile", str(told), *listens]
    try:
        with namespace.entered():
            return subprocess.Popen(
                [*command, "file", str(disk)], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
    except FileNotFoundError as error:
        raise NbdkitError("there is no program nbdkit; on Debian: apt install nbdkit") from error


def _wait(process: subprocess.Popen[bytes], reader: int) -> None:
    """Return once nbdkit listens: it writes its number down then."""
    pidfd = os.pidfd_open(process.pid)
    try:
        found = select.select([reader, pidfd], [], [], READY_DEADLINE_S)[0]
    finally:
        os.close(pidfd)
    if reader in found and os.read(reader, 64):
        return
    assert process.stderr is not None
    words = process.stderr.read().decode(errors="replace") if pidfd in found else "it is silent"
    raise NbdkitError(f"nbdkit does not listen: {'; '.join(words.splitlines())}")
