"""What crosses of a UDP socket. Pure: bytes in, values out.

A socket (foreseen, before the pause)::

    u8 IP version | u8 only IPv6 | u16 port | 16 bytes local address (IPv4: the first four) |
    u32 receive buffer | u32 send buffer        (bytes, as getsockopt says them)

A datagram of its receive queue (in the pause; in the order of arrival)::

    u8 IP version | u8 zero | u16 port of the socket | u16 port of the sender | 16 bytes sender's address |
    u32 length | data

All integers little-endian. Not moved: the time at which a datagram arrived, its TTL and traffic class.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

VERSION = 1
MOST_SOCKETS = 64
LARGEST_BYTES = 65_535

_SOCKET = struct.Struct("<BBH16sII")
_DATAGRAM = struct.Struct("<BBHH16sI")

Address = IPv4Address | IPv6Address


class UdpStateError(ValueError):
    """What came is no UDP state."""


class SocketState(NamedTuple):
    """A UDP socket: where it is bound, and how large its buffers are."""

    local: Address
    port: int
    only_ipv6: bool
    receive_buffer_bytes: int
    send_buffer_bytes: int


class Datagram(NamedTuple):
    """One datagram that waits in the queue of the socket on `port`."""

    port: int
    sender: Address
    sender_port: int
    data: bytes


def encode_sockets(sockets: Iterable[SocketState]) -> bytes:
    return b"".join(
        _SOCKET.pack(
            one.local.version,
            one.only_ipv6,
            one.port,
            one.local.packed,
            one.receive_buffer_bytes,
            one.send_buffer_bytes,
        )
        for one in sockets
    )


def decode_sockets(data: bytes) -> list[SocketState]:
    """What :func:`encode_sockets` made. UdpStateError for anything else."""
    if len(data) % _SOCKET.size or len(data) > MOST_SOCKETS * _SOCKET.size:
        raise UdpStateError(f"{len(data)} bytes are no UDP sockets")
    return [
        SocketState(_address(version, packed), port, bool(only_ipv6), receive, send)
        for version, only_ipv6, port, packed, receive, send in _SOCKET.iter_unpack(data)
    ]


def encode_queue(datagrams: Iterable[Datagram]) -> bytes:
    parts: list[bytes] = []
    for one in datagrams:
        head = (one.sender.version, 0, one.port, one.sender_port, one.sender.packed, len(one.data))
        parts += (_DATAGRAM.pack(*head), one.data)
    return b"".join(parts)


def decode_queue(data: bytes) -> list[Datagram]:
    """What :func:`encode_queue` made. UdpStateError for anything else."""
    datagrams, at = [], 0
    while at < len(data):
        if len(data) - at < _DATAGRAM.size:
            raise UdpStateError("a datagram's head is cut short")
        version, _, port, sender_port, packed, length = _DATAGRAM.unpack_from(data, at)
        at += _DATAGRAM.size
        if length > LARGEST_BYTES or length > len(data) - at:
            raise UdpStateError(f"a datagram of {length} bytes is cut short, or too long")
        datagrams.append(Datagram(port, _address(version, packed), sender_port, data[at : at + length]))
        at += length
    return datagrams


def _address(version: int, packed: bytes) -> Address:
    if version == 4 and packed[4:] == bytes(12):
        return IPv4Address(packed[:4])
    if version == 6:
        return IPv6Address(packed)
    raise UdpStateError(f"no address of IP version {version}")
