"""A named network namespace: `ip netns exec NAME` finds it, and so does every process of the universe."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from netns import syscalls
from netns.paths import NAMED_NAMESPACES, demand_universe

_OURS = "/proc/thread-self/ns/net"

# <linux/sockios.h>, <linux/if.h>, struct ifreq
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_IFREQ = struct.Struct("16sh22x")


class Namespace:
    """An open descriptor of a network namespace that has a name under /run/netns.

    The name is what keeps the namespace: `close()` gives up the descriptor only, `delete()` the name. Once
    the name is gone the kernel ends the namespace as soon as nothing lives in it. As a context manager it
    closes itself.
    """

    def __init__(self, name: str, descriptor: int) -> None:
        self.name = name
        self._descriptor = descriptor

    @classmethod
    def create(cls, name: str) -> Namespace:
        """A new namespace with its loopback up.

        ValueError for a name that is no file name; NotInUniverse; FileExistsError if the name is taken. After
        a failure nothing has been made and the thread is where it was.
        """
        path = _path(name)
        demand_universe(f"network namespace {name!r}")
        NAMED_NAMESPACES.mkdir(exist_ok=True)
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
        try:
            with _returning():
                syscalls.unshare(syscalls.CLONE_NEWNET)
                set_loopback_up()
                syscalls.mount(_OURS, str(path), None, syscalls.MS_BIND)
        except BaseException:
            with suppress(OSError):  # not mounted yet; a Ctrl-C may come when it is
                syscalls.umount2(str(path), syscalls.MNT_DETACH)
            path.unlink()
            raise
        return cls.open(name)

    @classmethod
    def open(cls, name: str) -> Namespace:
        """The namespace of that name. FileNotFoundError if there is none."""
        return cls(name, os.open(_path(name), os.O_RDONLY | os.O_CLOEXEC))

    @property
    def fd(self) -> int:
        """A descriptor of the namespace. ValueError after close()."""
        if self._descriptor < 0:
            raise ValueError(f"network namespace {self.name!r} is closed")
        return self._descriptor

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread is in the namespace for the length of the block, and back where it was afterwards."""
        with _returning():
            syscalls.setns(self.fd, syscalls.CLONE_NEWNET)
            yield

    def socket(self, family: int, kind: int, proto: int = 0) -> socket.socket:
        """A socket that lives in the namespace, wherever the thread that uses it is."""
        with self.entered():
            return socket.socket(family, kind, proto)

    def close(self) -> None:
        """Give up the descriptor. The namespace lives on under its name. Closing twice is allowed."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def delete(self) -> None:
        """Close, and take the name away. Also one that never got its namespace, or has lost it: whoever made
        or deleted it was ended in between."""
        self.close()
        path = _path(self.name)
        try:
            syscalls.umount2(str(path), syscalls.MNT_DETACH)
        except OSError as error:
            if error.errno != errno.EINVAL:  # umount(2): nothing is mounted there
                raise
        path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Namespace({self.name!r})"


def names() -> list[str]:
    """The named namespaces of this universe, sorted."""
    demand_universe("list of network namespaces")
    return sorted(path.name for path in NAMED_NAMESPACES.iterdir()) if NAMED_NAMESPACES.is_dir() else []


def set_loopback_up() -> None:
    """Bring up `lo` of the network namespace in which this thread is (netdevice(7); no netlink needed for
    that).
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0))
        flags: int = _IFREQ.unpack(answer)[1]
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, _IFREQ.pack(b"lo", flags | _IFF_UP))


def _path(name: str) -> Path:
    if not name or name in (".", "..") or "/" in name or "\0" in name or len(os.fsencode(name)) > 255:
        raise ValueError(f"not a name for a network namespace: {name!r}")
    return NAMED_NAMESPACES / name


@contextmanager
def _returning() -> Iterator[None]:
    """Whatever the block does to this thread's network namespace is undone at its end."""
    before = os.open(_OURS, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            yield
        finally:
            syscalls.setns(before, syscalls.CLONE_NEWNET)
    finally:
        os.close(before)
