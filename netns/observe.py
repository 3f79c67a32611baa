"""What one can see in a network: neighbour tables, forwarding tables, counters, as data.

Raw netlink rather than pyroute2: a watcher's timestamp should be the kernel's news and not the parser's
leisure, and nothing here needs the quarter of a second that its import takes.
"""

from __future__ import annotations

import ipaddress
import os
import select
import socket
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

from netns.namespace import Namespace

# <linux/netlink.h>, <linux/rtnetlink.h>
_NETLINK_ROUTE = 0
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_DUMP = 1, 0x300
_RTM_NEWLINK, _RTM_GETLINK = 16, 18
_RTM_NEWNEIGH, _RTM_DELNEIGH, _RTM_GETNEIGH = 28, 29, 30
_RTNLGRP_NEIGH = 3
_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP = 270, 1
_AF_BRIDGE = 7

# <linux/neighbour.h>
_NDA_DST, _NDA_LLADDR, _NDA_MASTER = 1, 2, 9
_NTF_SELF = 2
_NUD_PERMANENT, _NUD_NOARP = 0x80, 0x40
_NUD_NAMES = {
    0x00: "none",
    0x01: "incomplete",
    0x02: "reachable",
    0x04: "stale",
    0x08: "delay",
    0x10: "probe",
    0x20: "failed",
    0x40: "noarp",
    0x80: "permanent",
}

# <linux/if_link.h>
_IFLA_IFNAME, _IFLA_OPERSTATE, _IFLA_STATS64 = 3, 16, 23
_IF_OPER_UP = 6  # <linux/if.h>

_NLMSG = struct.Struct("=IHHII")  # struct nlmsghdr
_NDMSG = struct.Struct("=BxxxiHBB")  # struct ndmsg: family, ifindex, state, flags, type
_IFINFO = struct.Struct("=BxHiII")  # struct ifinfomsg
_ATTRIBUTE = struct.Struct("=HH")  # struct rtattr
_STATS = struct.Struct("=8Q")  # struct rtnl_link_stats64, its beginning
_MOST_BYTES = 1 << 18
_NEWS_BUFFER_BYTES = 1 << 20


class ObserveError(Exception):
    """The kernel refused to tell, or news were lost because nobody read them in time."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Who a namespace believes has which address. `mac` None: not resolved. `state` in the kernel's words
    (NUD_…).
    """

    address: str
    mac: str | None
    ifname: str
    state: str


@dataclass(frozen=True, slots=True)
class ForwardingEntry:
    """Behind which port a bridge believes a MAC is. `kind`: learned, static (set by someone), local (the
    port's own).
    """

    mac: str
    port: str
    kind: str


@dataclass(frozen=True, slots=True)
class ForwardingChange:
    """An entry that was added or moved to another port (`gone` False), or went away, and when that was
    read.
    """

    at_ns: int
    entry: ForwardingEntry
    gone: bool


@dataclass(frozen=True, slots=True)
class NeighbourChange:
    """An entry that was made or changed (`gone` False), or went away, and when that was read."""

    at_ns: int
    entry: Neighbour
    gone: bool


@dataclass(frozen=True, slots=True)
class Counters:
    """What an interface has counted since it was made."""

    received_frames: int
    sent_frames: int
    received_bytes: int
    sent_bytes: int
    receive_errors: int
    send_errors: int
    receive_drops: int
    send_drops: int


def neighbours(namespace: Namespace) -> list[Neighbour]:
    """The IPv4 and IPv6 neighbour tables of a namespace, without the kernel's own entries (multicast,
    loopback).
    """
    found = []
    with _Route(namespace) as route:
        names = route.names()
        for kind, body in route.dump(_RTM_GETNEIGH, _NDMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
            entry = _neighbour(body, names) if kind == _RTM_NEWNEIGH else None
            if entry is not None:
                found.append(entry)
    return found


def forwarding(namespace: Namespace, bridge: str) -> list[ForwardingEntry]:
    """The forwarding table of a bridge. ObserveError if there is no such interface."""
    with _Route(namespace) as route:
        names = route.names()
        master = _index_of(bridge, names, namespace)
        request = _NDMSG.pack(_AF_BRIDGE, 0, 0, 0, 0)
        messages = route.dump(_RTM_GETNEIGH, request)
        return [entry for _, body in messages if (entry := _entry(body, master, names)) is not None]


def counters(namespace: Namespace) -> dict[str, Counters]:
    """Each interface's counters, by name."""
    with _Route(namespace) as route:
        links = [dict(_attributes(body, _IFINFO.size)) for body in route.links()]
    return {_text(link[_IFLA_IFNAME]): Counters(*_STATS.unpack_from(link[_IFLA_STATS64])) for link in links}


def carries(namespace: Namespace, ifname: str) -> bool:
    """Whether an interface is up and its wire too, so that a bridge forwards from it. ObserveError if there
    is none.
    """
    with _Route(namespace) as route:
        for link in (dict(_attributes(body, _IFINFO.size)) for body in route.links()):
            if _text(link[_IFLA_IFNAME]) == ifname:
                return link[_IFLA_OPERSTATE][0] == _IF_OPER_UP
    raise ObserveError(f"{namespace.name}: there is no interface {ifname}")


Change = TypeVar("Change")


class Watch(ABC, Generic[Change]):
    """What changes in a table of neighbour entries, from the moment of construction on. A context manager.

    `fileno()` becomes readable when there is news: for a selector of one's own.
    """

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._failure: ObserveError | None = None
        self._route = _Route(namespace)
        try:
            self._names = self._route.names()
            self._prepare()
            self._route.subscribe(_RTNLGRP_NEIGH)
        except BaseException:
            self._route.close()
            raise

    def _prepare(self) -> None:
        """Look up what :meth:`_change` needs, before the news begin."""

    @abstractmethod
    def _change(self, at_ns: int, kind: int, body: bytes) -> Change | None:
        """What a neighbour message says of this table; None if it is of another."""

    def fileno(self) -> int:
        return self._route.fileno()

    def read(self, timeout_s: float = 0.0) -> list[Change]:
        """The news so far; waits up to `timeout_s` seconds for the first.

        ObserveError if news were lost between what was read before and what is read next. Read on at once
        then, until there is nothing: before that the kernel goes on losing them.
        """
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        changes: list[Change] = []
        while select.select([self._route], [], [], 0.0 if changes else timeout_s)[0]:
            at_ns = time.monotonic_ns()
            try:
                messages = self._route.receive()
            except ObserveError as error:
                if not changes:
                    raise
                self._failure = error
                return changes
            for kind, body in messages:
                if kind in (_RTM_NEWNEIGH, _RTM_DELNEIGH):
                    change = self._change(at_ns, kind, body)
                    if change is not None:
                        changes.append(change)
            if not changes:
                return changes  # other news, of another table: the caller's timeout is not waited out twice
        return changes

    def close(self) -> None:
        self._route.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ForwardingWatch(Watch[ForwardingChange]):
    """The forwarding table of a bridge. The kernel reports an entry when it is made and when it moves to
    another port, not each time it is used.
    """

    def __init__(self, namespace: Namespace, bridge: str) -> None:
        self._bridge = bridge
        super().__init__(namespace)

    def _prepare(self) -> None:
        self._master = _index_of(self._bridge, self._names, self._namespace)

    def _change(self, at_ns: int, kind: int, body: bytes) -> ForwardingChange | None:
        entry = _entry(body, self._master, self._names)
        if entry is not None and entry.port.startswith("#"):
            self._names = self._route.fresh_names()  # a port that was made after the last look
            entry = _entry(body, self._master, self._names)
        return None if entry is None else ForwardingChange(at_ns, entry, kind == _RTM_DELNEIGH)


class NeighbourWatch(Watch[NeighbourChange]):
    """The IPv4 and IPv6 neighbour tables of a namespace. The kernel reports an entry when it is made, when
    its MAC address changes, and most changes of its state (not reachable to delay, which is its own plan to
    ask again).
    """

    def _change(self, at_ns: int, kind: int, body: bytes) -> NeighbourChange | None:
        entry = _neighbour(body, self._names)
        if entry is not None and entry.ifname.startswith("#"):
            self._names = self._route.fresh_names()
            entry = _neighbour(body, self._names)
        return None if entry is None else NeighbourChange(at_ns, entry, kind == _RTM_DELNEIGH)


class _Route:
    """A NETLINK_ROUTE socket in a namespace (rtnetlink(7))."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._socket = namespace.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE)

    def fileno(self) -> int:
        return self._socket.fileno()

    def subscribe(self, group: int) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _NEWS_BUFFER_BYTES)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)

    def dump(self, kind: int, body: bytes) -> Iterator[tuple[int, bytes]]:
        """Ask for a whole table; its messages."""
        header = _NLMSG.pack(_NLMSG.size + len(body), kind, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0)
        self._socket.send(header + body)
        while True:
            for message_kind, message in self.receive():
                if message_kind == _NLMSG_DONE:
                    return
                yield message_kind, message

    def receive(self) -> list[tuple[int, bytes]]:
        """The messages of one datagram, kind and body each."""
        try:
            data = self._socket.recv(_MOST_BYTES)
        except OSError as error:
            raise ObserveError(f"{self._namespace.name}: netlink: {error}") from error
        messages, offset = [], 0
        while offset + _NLMSG.size <= len(data):
            length, kind, _, _, _ = _NLMSG.unpack_from(data, offset)
            body = data[offset + _NLMSG.size : offset + length]
            if kind == _NLMSG_ERROR:
                number = -struct.unpack_from("=i", body)[0]
                raise ObserveError(f"{self._namespace.name}: netlink: {os.strerror(number)}")
            messages.append((kind, body))
            offset += (length + 3) & ~3
        return messages

    def links(self) -> list[bytes]:
        messages = self.dump(_RTM_GETLINK, _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
        return [body for kind, body in messages if kind == _RTM_NEWLINK]

    def names(self) -> dict[int, str]:
        """Each interface's name, by its number."""
        return {
            _IFINFO.unpack_from(body)[2]: _text(dict(_attributes(body, _IFINFO.size))[_IFLA_IFNAME])
            for body in self.links()
        }

    def fresh_names(self) -> dict[int, str]:
        """The names, asked on another socket: on this one the answer would stand among the news."""
        with _Route(self._namespace) as other:
            return other.names()

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _entry(body: bytes, master: int, names: dict[int, str]) -> ForwardingEntry | None:
    """The forwarding entry in a neighbour message; None if it is not one of the bridge `master`."""
    family, index, state, flags, _ = _NDMSG.unpack_from(body)
    attributes = dict(_attributes(body, _NDMSG.size))
    of_bridge = attributes.get(_NDA_MASTER)
    if family != _AF_BRIDGE or flags & _NTF_SELF or of_bridge is None or _number(of_bridge) != master:
        return None
    kind = "local" if state & _NUD_PERMANENT else "static" if state & _NUD_NOARP else "learned"
    return ForwardingEntry(attributes[_NDA_LLADDR].hex(":"), names.get(index, f"#{index}"), kind)


def _neighbour(body: bytes, names: dict[int, str]) -> Neighbour | None:
    """The neighbour in a neighbour message; None if it is none of IP, or one of the kernel's own."""
    family, index, state, _, _ = _NDMSG.unpack_from(body)
    if family not in (socket.AF_INET, socket.AF_INET6) or state == _NUD_NOARP:
        return None
    attributes = dict(_attributes(body, _NDMSG.size))
    address = str(ipaddress.ip_address(attributes[_NDA_DST]))
    mac = attributes[_NDA_LLADDR].hex(":") if _NDA_LLADDR in attributes else None
    return Neighbour(address, mac, names.get(index, f"#{index}"), _NUD_NAMES.get(state, hex(state)))


def _index_of(ifname: str, names: dict[int, str], namespace: Namespace) -> int:
    for index, name in names.items():
        if name == ifname:
            return index
    raise ObserveError(f"{namespace.name}: there is no interface {ifname}")


def _attributes(body: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    while offset + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, body[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3


def _number(value: bytes) -> int:
    number: int = struct.unpack("=I", value)[0]
    return number


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode()
