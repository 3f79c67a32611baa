"""userfaultfd: a descriptor through which page faults of a range of memory are seen and steered.

Transcription only. Names are those of ``linux/userfaultfd.h``; see userfaultfd(2) and ioctl_userfaultfd(2).
The descriptor belongs to the memory of the process that opened it, whoever holds it: another process can
change the write protection of that memory through it.
"""

from __future__ import annotations

import platform
import struct

from testbed.kernel import checked

# asm/unistd_64.h of x86-64; asm-generic/unistd.h of all younger architectures
NR_USERFAULTFD = 323 if platform.machine() == "x86_64" else 282

# linux/userfaultfd.h
UFFD_API = 0xAA
UFFD_USER_MODE_ONLY = 1

UFFD_FEATURE_WP_HUGETLBFS_SHMEM = 1 << 12
UFFD_FEATURE_WP_UNPOPULATED = 1 << 13
UFFD_FEATURE_WP_ASYNC = 1 << 15

UFFDIO_REGISTER_MODE_MISSING = 1 << 0
UFFDIO_REGISTER_MODE_WP = 1 << 1
UFFDIO_WRITEPROTECT_MODE_WP = 1 << 0

UFFDIO_API = 0xC018AA3F
UFFDIO_REGISTER = 0xC020AA00
UFFDIO_UNREGISTER = 0x8010AA01
UFFDIO_WRITEPROTECT = 0xC018AA06

# struct uffdio_api: api, features, ioctls
UFFDIO_API_STRUCT = struct.Struct("=QQQ")
# struct uffdio_register: start, len, mode, ioctls
UFFDIO_REGISTER_STRUCT = struct.Struct("=QQQQ")
# struct uffdio_range: start, len
UFFDIO_RANGE_STRUCT = struct.Struct("=QQ")
# struct uffdio_writeprotect: start, len, mode
UFFDIO_WRITEPROTECT_STRUCT = struct.Struct("=QQQ")


def userfaultfd(flags: int) -> int:
    """A new userfaultfd for the memory of this process.

    `flags`: O_CLOEXEC, O_NONBLOCK, UFFD_USER_MODE_ONLY (Linux 5.11). Raises OSError: EPERM without
    CAP_SYS_PTRACE in the first user namespace, unless UFFD_USER_MODE_ONLY is given or
    vm.unprivileged_userfaultfd is 1; ENOSYS where the kernel was built without it.
    """
    return checked.syscall("userfaultfd", NR_USERFAULTFD, flags)


def api(fd: int, features: int) -> int:
    """The handshake, once a descriptor: ask for `features`; returns all features that the kernel has.

    Raises OSError EINVAL where it does not have one that was asked for.
    """
    argument = bytearray(UFFDIO_API_STRUCT.pack(UFFD_API, features, 0))
    checked.ioctl(fd, UFFDIO_API, argument, "UFFDIO_API")
    return int(UFFDIO_API_STRUCT.unpack(argument)[1])


def register(fd: int, start: int, length: int, mode: int) -> None:
    """Have faults in `length` bytes from the address `start` on handled by `fd`; both are whole pages."""
    argument = bytearray(UFFDIO_REGISTER_STRUCT.pack(start, length, mode, 0))
    checked.ioctl(fd, UFFDIO_REGISTER, argument, "UFFDIO_REGISTER")


def unregister(fd: int, start: int, length: int) -> None:
    """The opposite of :func:`register`; write protection in the range ends."""
    argument = bytearray(UFFDIO_RANGE_STRUCT.pack(start, length))
    checked.ioctl(fd, UFFDIO_UNREGISTER, argument, "UFFDIO_UNREGISTER")


def writeprotect(fd: int, start: int, length: int, mode: int) -> None:
    """Write-protect the range (UFFDIO_WRITEPROTECT_MODE_WP) or let it be written again (0).

    The range must be registered with UFFDIO_REGISTER_MODE_WP (else ENOENT). ESRCH once the process is gone.
    """
    argument = bytearray(UFFDIO_WRITEPROTECT_STRUCT.pack(start, length, mode))
    checked.ioctl(fd, UFFDIO_WRITEPROTECT, argument, "UFFDIO_WRITEPROTECT")


