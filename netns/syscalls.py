"""The kernel's calls that Python 3.11 does not have: transcription, one checked wrapper each, no policy.

Names and numbers are the kernel's. Each wrapper raises OSError(errno, text, what) and changes nothing when it
fails.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

# <linux/sched.h>
CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# <linux/mount.h>
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

# <linux/prctl.h>
PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_TIMERSLACK = 29

# <linux/capability.h>
CAP_SYS_ADMIN = 21

# <asm-generic/unistd.h>; from 424 on, numbers are the same on every architecture
NR_close_range = 436
NR_pidfd_getfd = 438

LAST_DESCRIPTOR = 0xFFFFFFFF

_libc = ctypes.CDLL(None, use_errno=True)
_libc.unshare.argtypes = [ctypes.c_int]
_libc.setns.argtypes = [ctypes.c_int, ctypes.c_int]
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]
_libc.syscall.restype = ctypes.c_long


def check(result: int, what: str) -> int:
    """`result`, unless it is negative: then OSError with the errno of the call just made, its text, and
    `what`.
    """
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def unshare(flags: int) -> None:
    """Move this thread (NEWUSER: the whole process, which must have one thread) into new namespaces.
    unshare(2).
    """
    check(_libc.unshare(flags), f"unshare({flags:#x})")


def setns(descriptor: int, flags: int) -> None:
    """Move this thread into the namespace that `descriptor` holds, or into those named of a pidfd.
    setns(2).
    """
    check(_libc.setns(descriptor, flags), f"setns({flags:#x})")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """mount(2). `kind` is the file system's name; None where the flags say that none is needed (bind,
    propagation).
    """
    encoded_kind = kind.encode() if kind is not None else None
    result = _libc.mount(os.fsencode(source), os.fsencode(target), encoded_kind, flags, options.encode())
    check(result, target)


def umount2(target: str, flags: int) -> None:
    """umount2(2)."""
    check(_libc.umount2(os.fsencode(target), flags), target)


def prctl(option: int, value: int) -> None:
    """prctl(2) with one number."""
    check(_libc.prctl(option, value, 0, 0, 0), f"prctl({option})")


def set_name(name: str) -> None:
    """Name this thread as ps and /proc/PID/comm show it: at most 15 bytes, the rest is cut off.
    PR_SET_NAME.
    """
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    prctl(PR_SET_NAME, ctypes.addressof(buffer))


def close_range(first: int, last: int) -> None:
    """Close the descriptors first..last, both included. close_range(2), Linux 5.9."""
    result = _libc.syscall(NR_close_range, ctypes.c_uint(first), ctypes.c_uint(last), ctypes.c_uint(0))
    check(result, f"close_range({first}, {last})")


def close_all_but(kept: Iterable[int]) -> None:
    """Close every descriptor of this process except `kept`."""
    first = 0
    for descriptor in sorted(set(kept)):
        if descriptor > first:
            close_range(first, descriptor - 1)
        first = descriptor + 1
    close_range(first, LAST_DESCRIPTOR)


def pidfd_getfd(pidfd: int, descriptor: int) -> int:
    """A duplicate (close-on-exec) of the other process's `descriptor`. pidfd_getfd(2), Linux 5.6.

    Wants what ptrace(2) wants: the same user, or CAP_SYS_PTRACE in the other's user namespace.
    """
    result = _libc.syscall(NR_pidfd_getfd, pidfd, descriptor, ctypes.c_uint(0))
    return check(int(result), f"pidfd_getfd({descriptor})")
