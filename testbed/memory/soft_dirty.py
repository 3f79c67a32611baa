"""Dirty tracking by the kernel's soft-dirty bits, for kernels before 6.7.

Clearing the bits of a process write-protects its pages; the first write to a page faults, and the kernel sets
the bit again. Two files do it: /proc/PID/clear_refs clears, /proc/PID/pagemap (bit 55) reads.

Reading and clearing are two steps, and a write between them would be lost. So the guest stands still while it
is collected from: its threads are stopped by ptrace, which sends it no signal, for the milliseconds that both
steps take. That, and not the fault, is what this tracker costs; it is why userfaultfd is preferred where it
is there.

A kernel without CONFIG_MEM_SOFT_DIRTY accepts the clearing and never sets a bit: only a probe that writes a
page and looks can tell. Memory pressure that swaps RAM out loses the bits of what it takes, as they are kept
in the page table; verification would find such a page, and this tracker is not for a machine that swaps.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from testbed.kernel import pagemap, ptrace
from testbed.memory.pages import PAGE_BYTES, PageSet


class SoftDirtyTracker:
    """Tracks the `size` bytes that process `pid` has mapped at `address`.

    Only one tracker of this kind can follow a process: the bits belong to the process, and clearing clears
    them all.
    """

    name = "soft-dirty"
    exact = True

    def __init__(self, pid: int, address: int, size: int) -> None:
        """Raises OSError without the right to trace `pid`."""
        self._pagemap = pagemap.open_pagemap(pid)
        self._pid = pid
        self._address = address
        self._pages = size // PAGE_BYTES
        self._tracking = False

    def start(self) -> None:
        pagemap.clear_refs(self._pid, pagemap.CLEAR_REFS_SOFT_DIRTY)
        self._tracking = True

    def collect(self) -> PageSet:
        if not self._tracking:
            raise RuntimeError("the tracker was not started")
        with stopped(self._pid):
            entries = pagemap.read_entries(self._pagemap, self._address, self._pages)
            pagemap.clear_refs(self._pid, pagemap.CLEAR_REFS_SOFT_DIRTY)
        return PageSet.from_mask((entries & np.uint64(pagemap.PM_SOFT_DIRTY)) != 0)

    def stop(self) -> None:
        self._tracking = False

    def close(self) -> None:
        """Stop, and close the descriptor. Once only."""
        self.stop()
        os.close(self._pagemap)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """No thread of process `pid` runs inside; afterwards all do again, with the signals they were sent
    meanwhile.

    Raises OSError without the right to trace it, or once it is gone; whatever was stopped runs again then.
    """
    held_back: dict[int, int] = {}
    try:
        # A thread that was not yet stopped may have started another: look until there is nothing new.
        while fresh := _threads(pid) - held_back.keys():
            for tid in fresh:
                ptrace.seize(tid)
                ptrace.interrupt(tid)
                held_back[tid] = ptrace.wait(tid)
        yield
    finally:
        for tid in sorted(held_back, key=lambda tid: tid == pid):  # the first thread last: it ends last
            try:
                ptrace.detach(tid, held_back[tid])
            except ProcessLookupError:
                _let_die(tid, pid)


def _let_die(tid: int, pid: int) -> None:
    """Thread `tid` was killed while it was stopped. Its end is told to who traces it first, and until we have
    taken note its process cannot end. Only what is told to a parent, if we are that too, is left for the
    parent to hear.
    """
    own_child = tid == pid and _stat(pid)[1] == str(os.getpid())
    if not own_child:
        with suppress(ChildProcessError):
            os.waitpid(tid, ptrace.WALL)


def _threads(pid: int) -> set[int]:
    """The threads of process `pid`. ProcessLookupError once it has ended, also where its parent does not know
    yet.
    """
    try:
        state = _stat(pid)[0]
        tids = {int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()}
    except FileNotFoundError:
        state = "X"
    if state in "ZX":
        raise ProcessLookupError(errno.ESRCH, f"process {pid} has ended")
    return tids


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on: state, parent, and so forth (proc(5))."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
