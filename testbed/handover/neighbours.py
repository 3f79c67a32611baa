"""The guest's neighbour table, carried along: whom it need not ask for at its new host."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address

from netns.namespace import Namespace
from testbed.kernel import netlink
from testbed.kernel.netlink import RouteSocket

KIND = "neighbours"
VERSION = 1
MOST_NEIGHBOURS = 65535
_BATCH = 256
_COUNT = struct.Struct("!H")
_ENTRY = struct.Struct("!BB6s16s")  # IP version, state, MAC address, IP address (IPv4: the first four bytes)
_KNOWN = netlink.NUD_REACHABLE | netlink.NUD_DELAY | netlink.NUD_PROBE
_CARRIED = _KNOWN | netlink.NUD_STALE | netlink.NUD_PERMANENT


class NeighboursError(ValueError):
    """The peer sent a neighbour table that is none."""


_NOBODYS_PREFIX = bytes.fromhex("02de")


class Policy(StrEnum):
    """What a guest knows of the MAC addresses around it once it has moved.

    `move`: what it knew, as memory that moves along. `forget`: nothing, so it asks for each before it can
    answer. `stale`: what it knew is wrong, for at its new host others have those addresses (as a gateway
    that has another MAC address on each host); it holds for good until somebody tells it better.
    """

    MOVE = "move"
    FORGET = "forget"
    STALE = "stale"


@dataclass(frozen=True)
class Neighbour:
    """One neighbour: its address, its MAC address (6 bytes), and whether the entry is permanent or stale.

    An entry that was being confirmed again counts as good: the guest has a round trip's worth of reason to
    trust it.
    """

    address: IPv4Address | IPv6Address
    mac: bytes
    state: int


class NeighbourTable:
    """The neighbour table of one interface in a guest's namespace, over a socket opened in advance."""

    def __init__(self, guest: Namespace, interface: str) -> None:
        """OSError (ENODEV) when there is no such interface."""
        self._route = RouteSocket(
            guest.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, netlink.NETLINK_ROUTE)
        )
        try:
            self._index = self._route.link(interface).index
        except BaseException:
            self._route.close()
            raise

    def read(self) -> list[Neighbour]:
        """What is known now. Entries being resolved, or failed, are left out: the guest asks again."""
        return [
            Neighbour(
                IPv4Address(entry.destination)
                if entry.family == socket.AF_INET
                else IPv6Address(entry.destination),
                entry.mac,
                netlink.NUD_REACHABLE if entry.state & _KNOWN else entry.state,
            )
            for entry in self._route.neighbours(self._index)
            if entry.state & _CARRIED and len(entry.mac) == 6
        ]

    def install(self, neighbours: Iterable[Neighbour]) -> None:
        """Enter them, each replacing what is there for its address; 5 us each. OSError for the first one
        refused, after all of its batch have been tried.
        """
        messages = [
            netlink.neighbour(
                self._index,
                socket.AF_INET if one.address.version == 4 else socket.AF_INET6,
                one.address.packed,
                one.mac,
                one.state,
            )
            for one in neighbours
        ]
        for start in range(0, len(messages), _BATCH):
            self._route.request(netlink.prepare(*messages[start : start + _BATCH]))

    def close(self) -> None:
        self._route.close()


def arrived(table: Iterable[Neighbour], policy: Policy) -> list[Neighbour]:
    """What a guest knows at its new host of the `table` that it had. Stale entries name MAC addresses that
    nobody has: locally administered ones, whose last four bytes are the old."""
    if policy is Policy.FORGET:
        return []
    if policy is Policy.STALE:
        return [replace(one, mac=_NOBODYS_PREFIX + one.mac[2:]) for one in table]
    return list(table)


def encode(neighbours: list[Neighbour]) -> bytes:
    """The table as device state of kind `KIND`, version `VERSION`. ValueError for more than
    `MOST_NEIGHBOURS`.
    """
    if len(neighbours) > MOST_NEIGHBOURS:
        raise ValueError(f"at most {MOST_NEIGHBOURS} neighbours can be carried, not {len(neighbours)}")
    return _COUNT.pack(len(neighbours)) + b"".join(
        _ENTRY.pack(one.address.version, one.state, one.mac, one.address.packed) for one in neighbours
    )


def decode(data: bytes) -> list[Neighbour]:
    """The table that `encode` made. NeighboursError for anything else."""
    if len(data) < _COUNT.size:
        raise NeighboursError("a neighbour table begins with a count")
    (count,) = _COUNT.unpack_from(data)
    if len(data) != _COUNT.size + count * _ENTRY.size:
        raise NeighboursError(f"{count} neighbours do not take {len(data)} bytes")
    return [
        _decode_entry(*_ENTRY.unpack_from(data, _COUNT.size + number * _ENTRY.size))
        for number in range(count)
    ]


def _decode_entry(version: int, state: int, mac: bytes, packed: bytes) -> Neighbour:
    if state not in (netlink.NUD_REACHABLE, netlink.NUD_STALE, netlink.NUD_PERMANENT):
        raise NeighboursError(f"no neighbour is carried in state {state:#x}")
    if version == 4 and packed[4:] == bytes(12):
        return Neighbour(IPv4Address(packed[:4]), mac, state)
    if version == 6:
        return Neighbour(IPv6Address(packed), mac, state)
    raise NeighboursError(f"no address of IP version {version}")
