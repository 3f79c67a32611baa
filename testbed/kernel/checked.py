"""Raw calls whose failure says which call it was.

Transcription only: what the modules beside this one share to reach the kernel where Python's own modules do
not.
"""

from __future__ import annotations

import ctypes
import fcntl
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def check(result: int, call: str, path: str | None = None) -> int:
    """`result` of a C call, or, where it is -1, OSError with errno, the text for it and the call (and
    `path`).
    """
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}", path)
    return result


def syscall(call: str, number: int, *arguments: int) -> int:
    """System call `number`; `call` is its name for the error."""
    return check(_libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)), call)


def ioctl(fd: int, request: int, argument: bytearray, call: str) -> int:
    """ioctl(2) with a structure which the kernel may change in place; returns what the kernel returns.

    Raises OSError that names `call`.
    """
    try:
        return int(fcntl.ioctl(fd, request, argument, True))
    except OSError as error:
        raise OSError(error.errno, f"{call}: {error.strerror}") from None
