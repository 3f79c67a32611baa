"""ptrace: stop a process for a moment, without a signal that it or its parent would see.

Transcription only. Names are those of ``linux/ptrace.h`` and ``linux/wait.h``; see ptrace(2). What one thread
has seized only the same thread may detach.
"""

from __future__ import annotations

import ctypes
import errno
import os

from testbed.kernel.checked import check

# linux/ptrace.h
PTRACE_DETACH = 17
PTRACE_SEIZE = 0x4206
PTRACE_INTERRUPT = 0x4207
PTRACE_EVENT_STOP = 128

# linux/wait.h
WALL = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]


def seize(tid: int) -> None:
    """Trace thread `tid`, which goes on running. OSError: EPERM without the right, ESRCH if there is none."""
    check(_libc.ptrace(PTRACE_SEIZE, tid, None, None), "PTRACE_SEIZE")


def interrupt(tid: int) -> None:
    """Ask the seized thread `tid` to stop: a blocking call that can fail with EINTR does. Await it by
    :func:`wait`.
    """
    check(_libc.ptrace(PTRACE_INTERRUPT, tid, None, None), "PTRACE_INTERRUPT")


def wait(tid: int) -> int:
    """Wait for the seized thread `tid` to stop; returns the signal that it was about to receive, 0 for none.

    Raises ProcessLookupError where it ended instead.
    """
    _, status = os.waitpid(tid, WALL)
    if not os.WIFSTOPPED(status):
        raise ProcessLookupError(errno.ESRCH, f"thread {tid} has ended")
    return 0 if status >> 16 == PTRACE_EVENT_STOP else os.WSTOPSIG(status)


def detach(tid: int, signal: int) -> None:
    """Let the stopped thread `tid` go on, and hand it the `signal` that the stop held back (0: none)."""
    check(_libc.ptrace(PTRACE_DETACH, tid, None, signal), "PTRACE_DETACH")
