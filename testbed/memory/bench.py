"""``python -m testbed.memory.bench [MIB]``: how quick memory's parts are here, on MIB (or 256) MiB of RAM.

Medians of some repetitions, in milliseconds and, where it means something, in gigabytes of RAM per second.
"""

from __future__ import annotations

import os
import signal
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager

import numpy as np

from testbed.memory.digests import PageDigests
from testbed.memory.pages import PageSet
from testbed.memory.region import Region
from testbed.memory.tracking import Capability, Subject, choose, open_for_tracking, probe

REPETITIONS = 7


def main(mib: int) -> None:
    with Region.create(mib << 20) as region:
        region.array[:] = np.random.default_rng(1).integers(0, 256, region.array.shape, np.uint8)
        _copying(region)
        for capability in probe():
            if capability.available:
                _tracking(region, capability.name)
            else:
                print(f"{capability.name}: {capability.reason}")


def _copying(region: Region) -> None:
    every, half = PageSet.all(region.pages), PageSet.from_indices(np.arange(0, region.pages, 2))
    digests, others = PageDigests(region.pages), PageDigests(region.pages)
    _row("digest of every page", lambda: digests.update(region, every), region.size)
    _row("digest of every other page", lambda: digests.update(region, half), region.size // 2)
    _row("root of all digests", digests.root)
    _row("compare all digests", lambda: digests.differing(others))
    _row("find zero pages, none is", lambda: region.zero(every), region.size)
    _row("find touched pages", region.touched)
    _row("every page less every other", lambda: every - half)
    with Region.create(region.size) as empty:
        _row("populate", empty.populate, region.size, repetitions=1)
        _row("find zero pages, all are", lambda: empty.zero(every), region.size)


def _tracking(region: Region, name: str) -> None:
    rng = np.random.default_rng(2)
    with ExitStack() as stack:
        subject, order = stack.enter_context(_guest(region))
        tracker = stack.enter_context(closing(choose(name, subject, [Capability(name, True)]).tracker))
        _row(f"{name}: start", tracker.start)
        _row(f"{name}: collect, nothing written", tracker.collect)
        for share in (64, 16, 1):
            took = []
            for _ in range(REPETITIONS):
                order(int(rng.integers(0, share)), share)
                began = time.perf_counter()
                tracker.collect()
                took.append(time.perf_counter() - began)
            _print(f"{name}: collect, 1 page of {share} written", statistics.median(took))


@contextmanager
def _guest(region: Region) -> Iterator[tuple[Subject, Callable[[int, int], None]]]:
    """A process that has mapped the RAM, and how to have it write every n-th page of it from page k on."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        pid = os.fork()
        if pid == 0:
            try:
                ours.close()
                mapped = Region.from_fd(region.fd)
                try:
                    fds = [open_for_tracking(mapped.address, mapped.size)]
                except OSError:
                    fds = []
                socket.send_fds(theirs, [str(mapped.address).encode()], fds)
                while told := theirs.recv(100):
                    first, step = map(int, told.split())
                    mapped.array[first::step, 0] += 1
                    theirs.send(b"!")
            finally:
                os._exit(0)
        try:
            address, fds, _, _ = socket.recv_fds(ours, 100, 1)

            def order(first: int, step: int) -> None:
                ours.send(f"{first} {step}".encode())
                ours.recv(1)

            order(0, 1)
            yield Subject(region, pid, int(address), fds[0] if fds else None), order
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _row(what: str, act: Callable[[], object], size: int = 0, repetitions: int = REPETITIONS) -> None:
    took = []
    for _ in range(repetitions):
        began = time.perf_counter()
        act()
        took.append(time.perf_counter() - began)
    _print(what, statistics.median(took), size)


def _print(what: str, seconds: float, size: int = 0) -> None:
    rate = f"{size / seconds / 1e9:8.1f} GB/s" if size else ""
    print(f"{what:45}{seconds * 1e3:9.2f} ms{rate}")


if __name__ == "__main__":
    if len(sys.argv) > 2 or not all(argument.isdigit() and int(argument) for argument in sys.argv[1:]):
        sys.exit("usage: python -m testbed.memory.bench [MIB]   (MIB: a positive number)")
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 256)
