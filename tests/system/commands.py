"""The command as people start it: `python -m testbed` in a process of its own, in a folder of the test's."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from netns import syscalls

COMMAND = (sys.executable, "-m", "testbed")
DEADLINE_S = 110.0
SMALL = (
    *("--ram", "32MiB", "--working-set", "4MiB", "--baseline", "200ms", "--clients", "2"),
    *("--connections", "4", "--churn", "20", "--stream-rate", "50"),
)
"""Options for a run that is soon over."""
_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>


@dataclass(frozen=True)
class Ended:
    """What is left of a command: its exit status (-n: signal n) and what it wrote."""

    status: int
    out: str
    err: str


@contextmanager
def adopting() -> Iterator[None]:
    """For the length of the block, whatever loses its parent below this process becomes its child."""
    syscalls.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        syscalls.prctl(_PR_SET_CHILD_SUBREAPER, 0)


def run(folder: Path, *words: str) -> Ended:
    """`testbed WORDS` in `folder`, to its end."""
    done = subprocess.run(
        [*COMMAND, *words], cwd=folder, capture_output=True, text=True, timeout=DEADLINE_S,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return Ended(done.returncode, done.stdout, done.stderr)


class Running:
    """`testbed WORDS` in `folder`, as the first of a process group; end it, or wait for its end."""

    def __init__(self, folder: Path, *words: str) -> None:
        self._process = subprocess.Popen(
            [*COMMAND, *words], cwd=folder, start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.written = b""

    def wait_for(self, text: str) -> None:
        """Until `text` has been written to standard output; AssertionError if that ends without it."""
        assert self._process.stdout is not None
        out = self._process.stdout.fileno()
        deadline_s = time.monotonic() + DEADLINE_S
        while text.encode() not in self.written:
            left_s = deadline_s - time.monotonic()
            assert select.select([out], [], [], max(left_s, 0))[0], f"no {text!r} in {self.written!r}"
            more = os.read(out, 1 << 16)
            assert more, f"ended without {text!r}: {self.written!r}"
            self.written += more

    def send(self, number: signal.Signals, *, group: bool = False) -> None:
        (os.killpg if group else os.kill)(self._process.pid, number)

    def seen(self) -> psutil.Process:
        """The command's own process, whose children are those that it has forked."""
        return psutil.Process(self._process.pid)

    def stop_reading(self) -> None:
        """As a reader that has seen enough, head(1) for one."""
        assert self._process.stdout is not None
        self._process.stdout.close()

    def end(self) -> Ended:
        out, err = self._process.communicate(timeout=DEADLINE_S)
        return Ended(self._process.returncode, (self.written + out).decode(), err.decode())


def left_behind() -> list[str]:
    """Processes below this one that have not ended, though they are given some seconds. While `adopting`,
    that is all that ever came of a command."""
    left = []
    for child in psutil.Process().children(recursive=True):
        try:
            pidfd = os.pidfd_open(child.pid)
        except ProcessLookupError:
            continue
        try:
            if not select.select([pidfd], [], [], 10)[0]:
                left.append(f"{child.pid} {child.name()}")
        finally:
            os.close(pidfd)
    if not left:
        _reap()
    return left


def _reap() -> None:
    """Take note of the ends of those that were adopted."""
    while psutil.Process().children():
        os.waitpid(-1, 0)


def named_namespaces() -> list[str]:
    """The namespaces that are mounted somewhere in this process's tree: what `ip netns` makes."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines if " - nsfs " in line]
