"""Stopping a process by ptrace, as the soft-dirty tracker does while it reads and clears.

It runs on every kernel, so the part of that tracker which must not lose anything is tested also where
soft-dirty is not.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from testbed.kernel import ptrace
from testbed.memory.pages import PAGE_BYTES
from testbed.memory.region import Region
from testbed.memory.soft_dirty import stopped
from tests.kernel.guest_process import guest_process

DEADLINE_S = 20.0


@contextmanager
def counting_process(region: Region, threads: int) -> Iterator[int]:
    """A process with `threads` threads, each of which counts up the first word of its page for ever."""
    words = region.array.view(np.uint64)

    def count(page: int) -> None:
        while True:
            words[page, 0] += 1

    pid = os.fork()
    if pid == 0:
        for page in range(1, threads):
            threading.Thread(target=count, args=(page,), daemon=True).start()
        count(0)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def wait_for_progress(region: Region, threads: int) -> None:
    """Until each thread has counted on from where it is now."""
    words = region.array.view(np.uint64)[:threads, 0]
    before = words.copy()
    deadline = time.monotonic() + DEADLINE_S
    while (words == before).any():
        assert time.monotonic() < deadline, "a thread does not run"
        os.sched_yield()


@pytest.mark.parametrize("threads", [1, 4])
def test_no_thread_runs_inside_and_all_do_after(threads: int) -> None:
    with Region.create(8 * PAGE_BYTES) as region, counting_process(region, threads) as pid:
        words = region.array.view(np.uint64)[:threads, 0]
        for _ in range(20):
            wait_for_progress(region, threads)
            with stopped(pid):
                first = words.copy()
                states = [_state(task) for task in Path(f"/proc/{pid}/task").iterdir()]
                assert states == ["t"] * threads
                assert (words == first).all()
        wait_for_progress(region, threads)


def _state(task: Path) -> str:
    return (task / "stat").read_text().rsplit(")", 1)[1].split()[0]


def test_a_guest_that_waits_is_not_woken_with_an_error() -> None:
    with Region.create(8 * PAGE_BYTES) as region, guest_process(region) as guest:
        for _ in range(20):
            with stopped(guest.pid):
                pass
            guest.write([1])


def test_epoll_of_a_stopped_guest_goes_on() -> None:
    """What the guest machine sits in most of the time. Its call ends with EINTR, and Python takes it up
    again.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            poll = select.epoll()
            poll.register(theirs, select.EPOLLIN)
            while poll.poll():
                theirs.send(theirs.recv(10))
        finally:
            os._exit(9)
    try:
        ours.settimeout(DEADLINE_S)
        for _ in range(20):
            with stopped(pid):
                ours.send(b"while stopped")
            assert ours.recv(20)
            while select.select([ours], [], [], 0)[0]:
                ours.recv(20)
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        ours.close()
        theirs.close()


def test_a_signal_sent_meanwhile_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        # Python's C handler writes the byte at once: no waiting for the interpreter to come by.
        signal.signal(signal.SIGUSR1, lambda *_: None)
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing)
        os.write(writing, b"0")
        while True:
            signal.pause()

    def arrives() -> bool:
        return bool(select.select([reading], [], [], DEADLINE_S)[0]) and os.read(reading, 1) == told

    told = bytes([signal.SIGUSR1])
    try:
        assert os.read(reading, 1) == b"0"
        for _ in range(20):
            with stopped(pid):
                os.kill(pid, signal.SIGUSR1)
                assert not select.select([reading], [], [], 0)[0]
            assert arrives()
        monkeypatch.setattr(ptrace, "interrupt", interrupt_on_a_signal)
        for _ in range(20):
            with stopped(pid):
                assert not select.select([reading], [], [], 0)[0]
            assert arrives()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reading)
        os.close(writing)


def interrupt_on_a_signal(tid: int, real: Callable[[int], None] = ptrace.interrupt) -> None:
    """Interrupt a thread that has stopped already because it was about to receive a signal."""
    os.kill(tid, signal.SIGUSR1)
    deadline = time.monotonic() + DEADLINE_S
    while _state(Path(f"/proc/{tid}")) != "t":
        assert time.monotonic() < deadline, "the signal did not stop it"
        os.sched_yield()
    real(tid)


def test_after_an_exception_it_runs_too() -> None:
    with Region.create(8 * PAGE_BYTES) as region, counting_process(region, 2) as pid:
        with pytest.raises(KeyError), stopped(pid):
            raise KeyError
        wait_for_progress(region, 2)


@pytest.mark.parametrize("threads", [1, 4])
def test_killed_meanwhile(threads: int) -> None:
    """It ends, and its parent hears of it."""
    for _ in range(10):
        with Region.create(8 * PAGE_BYTES) as region, counting_process(region, threads) as pid:
            wait_for_progress(region, threads)
            with stopped(pid):
                os.kill(pid, signal.SIGKILL)
            ended_in_time(pid)


def test_killed_meanwhile_as_the_child_of_another() -> None:
    """As a guest is: the agent that stops it did not start it. Its end must not stay with the agent."""
    with Region.create(8 * PAGE_BYTES) as region:
        reading, writing = os.pipe()
        parent = os.fork()
        if parent == 0:
            with counting_process(region, 3) as pid:
                os.write(writing, pid.to_bytes(4, "little"))
                _, status = os.waitpid(pid, 0)
                os._exit(os.WTERMSIG(status))
        pid = int.from_bytes(os.read(reading, 4), "little")
        wait_for_progress(region, 3)
        with stopped(pid):
            os.kill(pid, signal.SIGKILL)
        try:
            ended_in_time(parent)
        finally:
            os.kill(parent, signal.SIGKILL)
            _, status = os.waitpid(parent, 0)
        assert os.waitstatus_to_exitcode(status) == signal.SIGKILL
        os.close(reading)
        os.close(writing)


def ended_in_time(pid: int) -> None:
    """The end of child `pid`, which stays to be waited for."""
    pidfd = os.pidfd_open(pid)
    try:
        assert select.select([pidfd], [], [], DEADLINE_S)[0], "it has not ended"
    finally:
        os.close(pidfd)


def test_a_process_that_is_not_there() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(ProcessLookupError), stopped(pid):  # it has ended, and its parent has not asked yet
        pass
    os.waitpid(pid, 0)
    with pytest.raises(ProcessLookupError), stopped(pid):
        pass
