"""Words in memory that somebody else reads at the same time: they are what they were or what they become, and
nothing in between.
"""

from __future__ import annotations

import mmap
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from netns import packet, syscalls
from testbed.host.keeper import Journal, Stage

WATCHED_S = 0.5
MANY = 1000


@contextmanager
def writing(write: Callable[[], None]) -> Iterator[None]:
    """Another process does it again and again."""
    write()
    pid = os.fork()
    if pid == 0:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        while True:
            write()
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def values(read: Callable[[], object]) -> set[object]:
    """All that is seen in the time."""
    seen: set[object] = set()
    end_s = time.monotonic() + WATCHED_S
    while True:
        seen.update(read() for _ in range(MANY))
        if time.monotonic() > end_s:
            return seen


def test_a_slots_status_is_written_by_one_store() -> None:
    """With two of them a slot that the kernel filled in between would be given back with its frame in it."""
    ring = mmap.mmap(-1, mmap.PAGESIZE)
    words = packet.status_words(ring)

    def write() -> None:
        words[7] = packet.TP_STATUS_USER

    with writing(write):
        assert values(lambda: ring[7 * words.itemsize]) == {packet.TP_STATUS_USER}


def test_a_journal_says_at_every_instant_where_the_guest_stands() -> None:
    fd = Journal.new()
    journal = Journal(fd)
    with writing(lambda: journal.write(Stage.EXPOSED, 9)):
        assert values(lambda: (journal.stage, journal.epoch)) == {(Stage.EXPOSED, 9)}
    os.close(fd)
