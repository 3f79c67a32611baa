"""What a peer says that a restored connection must hear once more, as IP packets. Pure.

A peer's FIN that our side has acknowledged is never sent again, and neither is the acknowledgement of our
own FIN; repair mode can restore neither. So both are said again in the peer's name, to the restored socket
alone. RFC 9293 section 3.10.7.4 is how the socket takes them.

The segments carry no timestamp: the kernel checks for old duplicates (RFC 7323, PAWS) only what has one.
"""

from __future__ import annotations

import struct

from testbed.tcp.state import ConnectionState, Endpoint

FIN, RST, ACK = 0x01, 0x04, 0x10

_MAPPED = bytes(10) + b"\xff\xff"
_TCP = struct.Struct("!HHIIBBHHH")
_TCP_BYTES = _TCP.size
_HOP_LIMIT = 64
_IPPROTO_TCP = 6


def fin_segment(state: ConnectionState) -> bytes:
    """The peer's FIN, acknowledging as much as the peer had acknowledged; an IPv4 or IPv6 packet."""
    return _segment(state, FIN | ACK, state.rcv_nxt - 1, state.send_start)


def fin_acknowledgement(state: ConnectionState) -> bytes:
    """The peer's acknowledgement of our FIN."""
    return _segment(state, ACK, state.rcv_nxt - state.peer_fin, state.write_seq)


def acknowledgement_request(state: ConnectionState) -> bytes:
    """An empty segment in front of the window, like a keep-alive: an open socket answers with what it has."""
    return _segment(state, ACK, state.window.rcv_wup - 1, state.send_start)


def reset(state: ConnectionState) -> bytes:
    """The peer's reset."""
    return _segment(state, RST | ACK, state.rcv_nxt, state.send_start)


def is_ipv4(state: ConnectionState) -> bool:
    """Whether the connection's packets are IPv4: also those of an IPv6 socket with IPv4-mapped addresses."""
    return len(_wire_address(state.local)) == 4


def _segment(state: ConnectionState, flags: int, sequence: int, acknowledgement: int) -> bytes:
    source, target = _wire_address(state.remote), _wire_address(state.local)
    offer = min(state.window.snd_wnd >> state.peer_scale, 0xFFFF)
    header = _TCP.pack(
        state.remote.port, state.local.port, sequence & 0xFFFFFFFF, acknowledgement & 0xFFFFFFFF,
        _TCP_BYTES // 4 << 4, flags, offer, 0, 0,
    )  # fmt: skip
    pseudo = source + target + struct.pack("!IHH", _TCP_BYTES, 0, _IPPROTO_TCP)
    header = header[:16] + checksum(pseudo + header).to_bytes(2, "big") + header[18:]
    if len(source) == 4:
        return _ipv4_header(source, target) + header
    return struct.pack("!IHBB", 6 << 28, _TCP_BYTES, _IPPROTO_TCP, _HOP_LIMIT) + source + target + header


def _ipv4_header(source: bytes, target: bytes) -> bytes:
    first = struct.pack("!BBHHHBB", 0x45, 0, 20 + _TCP_BYTES, 0, 0x4000, _HOP_LIMIT, _IPPROTO_TCP)
    sum_bytes = checksum(first + source + target).to_bytes(2, "big")
    return first + sum_bytes + source + target


def _wire_address(end: Endpoint) -> bytes:
    return end.address[12:] if end.address.startswith(_MAPPED) else end.address


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of an even number of bytes."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    total += total >> 16
    return int(~total & 0xFFFF)
