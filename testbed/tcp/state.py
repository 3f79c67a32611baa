"""The state of a TCP connection and of a listener, as values and as bytes.

    freeze -> ConnectionState -> encode -> bytes ... bytes -> decode -> ConnectionState -> thaw

Pure: nothing here touches a socket. Sequence numbers are modulo 2**32.

The send queue is held in the two parts that TCP tells apart, because the peer may acknowledge the first
and does not know of the second::

    snd_una              snd_nxt            write_seq
       | sent, unacknowledged | never sent [FIN] |

Bytes on the wire, all little-endian::

    u8 version  u8 kind  u8 family  ...fixed part...  u8 length, congestion control name (ASCII)
    u32 length, bytes   three times: unread, sent, unsent            (connections only)

A decoder accepts exactly what an encoder can have written: known version and kind, values in range,
lengths within bounds, nothing left over. Anything else is a :class:`StateError`.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from typing import NamedTuple

VERSION = 1
KIND_CONNECTION = 1
KIND_LISTENER = 2

INET = 2
INET6 = 10

QUEUE_LIMIT_BYTES = 64 << 20
"""More than the kernel's largest default buffers hold (tcp_rmem: 6 to 32 MiB)."""

ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE, CLOSE_WAIT, LAST_ACK, CLOSING = 1, 4, 5, 7, 8, 9, 11
STATES = {
    ESTABLISHED: "ESTABLISHED",
    FIN_WAIT1: "FIN_WAIT1",
    FIN_WAIT2: "FIN_WAIT2",
    CLOSE: "CLOSE",
    CLOSE_WAIT: "CLOSE_WAIT",
    LAST_ACK: "LAST_ACK",
    CLOSING: "CLOSING",
}
"""The states that can be moved, by the kernel's numbers."""

OUR_FIN_STATES = frozenset({FIN_WAIT1, FIN_WAIT2, CLOSING, LAST_ACK})
"""We have ended our direction: the send queue's last number is our FIN."""
PEER_FIN_STATES = frozenset({CLOSE_WAIT, LAST_ACK, CLOSING})
"""The peer has ended its direction: the receive queue's last number is its FIN."""


class StateError(ValueError):
    """Bytes that are no connection state of ours, or values that none can have. Whoever wrote them is at
    fault."""


class Endpoint(NamedTuple):
    """One end of a connection: a packed address (4 or 16 bytes), a port, and what IPv6 adds to them."""

    address: bytes
    port: int
    flow: int = 0
    scope: int = 0

    def __str__(self) -> str:
        host = ipaddress.ip_address(self.address)
        return f"[{host}]:{self.port}" if len(self.address) == 16 else f"{host}:{self.port}"


UNPACED = (1 << 64) - 1


class SocketOptions(NamedTuple):
    """What a program can set on its socket, in the kernel's units (buffers: twice what was asked for)."""

    nonblocking: int
    reuse_address: int
    reuse_port: int
    keep_alive: int
    receive_low_bytes: int
    linger: int
    linger_s: int
    buffer_locks: int
    send_buffer_bytes: int
    receive_buffer_bytes: int
    no_delay: int
    cork: int
    keep_idle_s: int
    keep_interval_s: int
    keep_count: int
    linger2_s: int
    user_timeout_ms: int
    not_sent_low_bytes: int
    traffic_class: int
    most_bytes_per_s: int
    """SO_MAX_PACING_RATE; UNPACED where there is no limit."""


class Window(NamedTuple):
    """Both windows of a connection: see ``struct tcp_repair_window`` in testbed.kernel.tcp_repair."""

    snd_wl1: int
    snd_wnd: int
    max_window: int
    rcv_wnd: int
    rcv_wup: int


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """One TCP connection, complete: what its other end can tell from what we send, and what our program set.

    Not moved, because the kernel shows none of it: congestion window and round trip estimate (they start
    anew), segments received out of order (TCP requires the peer to keep them; it sends them again), urgent
    data, keys of TCP-AO and TLS. Until an acknowledgement has given a round trip, the kernel waits one second
    for its tail probe and three for a retransmission (TCP_TIMEOUT_INIT and TCP_TIMEOUT_FALLBACK, RFC 6298
    section 5.7): what the source sent and the network lost comes late. So let the guest's frames out until
    its sockets are frozen.
    """

    family: int
    state: int
    local: Endpoint
    remote: Endpoint
    rcv_nxt: int
    """Number of the byte that we expect next; behind the peer's FIN where that came."""
    write_seq: int
    """Number of the byte that our program writes next; behind our FIN where that is queued."""
    window: Window
    handshake_options: int
    """TCPI_OPT bits: timestamps 1, SACK 2, window scale 4."""
    peer_scale: int
    our_scale: int
    maximum_segment: int
    timestamp: int
    """Our timestamp clock at the freeze; 0 without timestamps."""
    our_fin_unsent: bool
    """Our program ended its direction, but the FIN has not left yet."""
    segments_in: int
    """Segments received at the freeze: see ``testbed.tcp.freeze.unchanged``."""
    options: SocketOptions
    congestion_control: str
    unread: bytes
    """Received, acknowledged, not read by the program."""
    sent: bytes
    """Sent, not acknowledged."""
    unsent: bytes
    """Written by the program, never sent."""

    @property
    def our_fin(self) -> bool:
        """Whether our program has ended its direction."""
        return self.state in OUR_FIN_STATES

    @property
    def peer_fin(self) -> bool:
        """Whether the peer has ended its direction."""
        return self.state in PEER_FIN_STATES

    @property
    def receive_start(self) -> int:
        """Number of the first unread byte."""
        return (self.rcv_nxt - self.peer_fin - len(self.unread)) & 0xFFFFFFFF

    @property
    def send_start(self) -> int:
        """Number of the first byte of the send queue; in FIN_WAIT2, where all is acknowledged, of our FIN."""
        return (self.write_seq - self.our_fin - len(self.sent) - len(self.unsent)) & 0xFFFFFFFF

    @property
    def acknowledgement_due(self) -> bool:
        """We received something that the peer has had no acknowledgement for."""
        return self.window.rcv_wup != self.rcv_nxt

    def __str__(self) -> str:
        return f"{STATES.get(self.state, self.state)} {self.local} <- {self.remote}"


@dataclass(frozen=True, slots=True)
class ListenerState:
    """A listening socket: where it listens, its backlog, and the options that its connections inherit."""

    family: int
    local: Endpoint
    backlog: int
    only_ipv6: bool
    defer_accept_s: int
    fast_open: int
    """Length of the fast open queue; 0: not offered."""
    maximum_segment: int
    """TCP_MAXSEG that was set; 0: none."""
    options: SocketOptions
    congestion_control: str

    def __str__(self) -> str:
        return f"LISTEN {self.local}"


# version kind family | state handshake_options peer_scale our_scale our_fin_unsent | local, remote: address
# port flow scope | rcv_nxt write_seq maximum_segment timestamp segments_in | window | options
_ENDPOINT = "16sHII"
_OPTIONS = "19iQ"
_CONNECTION = struct.Struct("<BBB" + "BBBBB" + _ENDPOINT * 2 + "5I" + "5I" + _OPTIONS)
_LISTENER = struct.Struct("<BBB" + _ENDPOINT + "IBIII" + _OPTIONS)
_LENGTH = struct.Struct("<I")
_OPTION_COUNT = len(SocketOptions._fields)


def encode(state: ConnectionState | ListenerState) -> bytes:
    """`state` as bytes; StateError where a value has no place in them."""
    try:
        if isinstance(state, ConnectionState):
            return _encode_connection(state)
        return _encode_listener(state)
    except (struct.error, UnicodeEncodeError, ValueError) as error:
        raise StateError(f"{state} cannot be encoded: {error}") from None


def decode(data: bytes | memoryview) -> ConnectionState | ListenerState:
    """The state that :func:`encode` wrote; StateError for any other bytes."""
    if len(data) < 2 or data[0] != VERSION:
        raise StateError(f"version {data[0] if len(data) else 'missing'}, {VERSION} is known")
    try:
        if data[1] == KIND_CONNECTION:
            return _decode_connection(memoryview(data))
        if data[1] == KIND_LISTENER:
            return _decode_listener(memoryview(data))
    except struct.error as error:
        raise StateError(f"truncated: {error}") from None
    raise StateError(f"kind {data[1]}, {KIND_CONNECTION} and {KIND_LISTENER} are known")


def _encode_connection(s: ConnectionState) -> bytes:
    _check_queues(len(s.unread), len(s.sent), len(s.unsent))
    head = _CONNECTION.pack(
        VERSION, KIND_CONNECTION, s.family,
        s.state, s.handshake_options, s.peer_scale, s.our_scale, s.our_fin_unsent,
        *s.local, *s.remote,
        s.rcv_nxt, s.write_seq, s.maximum_segment, s.timestamp, s.segments_in,
        *s.window, *s.options,
    )  # fmt: skip
    return b"".join((
        head, _name(s.congestion_control),
        _LENGTH.pack(len(s.unread)), s.unread,
        _LENGTH.pack(len(s.sent)), s.sent,
        _LENGTH.pack(len(s.unsent)), s.unsent,
    ))  # fmt: skip


def _decode_connection(data: memoryview) -> ConnectionState:
    (
        _, _, family,
        state, handshake_options, peer_scale, our_scale, our_fin_unsent,
        local_address, local_port, local_flow, local_scope,
        remote_address, remote_port, remote_flow, remote_scope,
        rcv_nxt, write_seq, maximum_segment, timestamp, segments_in,
        *rest,
    ) = _CONNECTION.unpack_from(data)  # fmt: skip
    if state not in STATES:
        raise StateError(f"state {state} is none that a connection can be moved in")
    if handshake_options > 0xFF or peer_scale > 14 or our_scale > 14 or our_fin_unsent > 1:
        raise StateError("handshake options, window scale or FIN mark out of range")
    if our_fin_unsent and state not in OUR_FIN_STATES:
        raise StateError(f"an unsent FIN in state {STATES[state]}")
    name, offset = _take_name(data, _CONNECTION.size)
    unread, offset = _take_queue(data, offset)
    sent, offset = _take_queue(data, offset)
    unsent, offset = _take_queue(data, offset)
    if offset != len(data):
        raise StateError(f"{len(data) - offset} bytes after the end")
    if unsent and state in OUR_FIN_STATES and not our_fin_unsent:
        raise StateError("a FIN that was sent before the bytes in front of it")
    width = _address_bytes(family)
    return ConnectionState(
        family, state,
        Endpoint(_address(local_address, width), local_port, local_flow, local_scope),
        Endpoint(_address(remote_address, width), remote_port, remote_flow, remote_scope),
        rcv_nxt, write_seq, Window._make(rest[:5]),
        handshake_options, peer_scale, our_scale, maximum_segment, timestamp,
        bool(our_fin_unsent), segments_in, SocketOptions._make(rest[5:]), name, unread, sent, unsent,
    )  # fmt: skip


def _encode_listener(s: ListenerState) -> bytes:
    head = _LISTENER.pack(
        VERSION, KIND_LISTENER, s.family, *s.local,
        s.backlog, s.only_ipv6, s.defer_accept_s, s.fast_open, s.maximum_segment, *s.options,
    )  # fmt: skip
    return head + _name(s.congestion_control)


def _decode_listener(data: memoryview) -> ListenerState:
    (
        _, _, family, address, port, flow, scope,
        backlog, only_ipv6, defer_accept_s, fast_open, maximum_segment, *options,
    ) = _LISTENER.unpack_from(data)  # fmt: skip
    name, offset = _take_name(data, _LISTENER.size)
    if offset != len(data):
        raise StateError(f"{len(data) - offset} bytes after the end")
    if only_ipv6 > 1:
        raise StateError(f"IPv6-only mark {only_ipv6}")
    local = Endpoint(_address(address, _address_bytes(family)), port, flow, scope)
    return ListenerState(
        family, local, backlog, bool(only_ipv6), defer_accept_s, fast_open, maximum_segment,
        SocketOptions._make(options), name,
    )  # fmt: skip


def _address_bytes(family: int) -> int:
    if family == INET:
        return 4
    if family == INET6:
        return 16
    raise StateError(f"address family {family}")


def _address(padded: bytes, width: int) -> bytes:
    if any(padded[width:]):
        raise StateError("an address longer than its family's")
    return padded[:width]


def _name(name: str) -> bytes:
    data = name.encode("ascii")
    return bytes((len(data),)) + data


def _take_name(data: memoryview, offset: int) -> tuple[str, int]:
    if offset >= len(data):
        raise StateError("truncated before the congestion control's name")
    end = offset + 1 + data[offset]
    if data[offset] > 15 or end > len(data):
        raise StateError("the congestion control's name is too long or truncated")
    name = bytes(data[offset + 1 : end])
    if not name.isascii():
        raise StateError("the congestion control's name is not ASCII")
    return name.decode("ascii"), end


def _take_queue(data: memoryview, offset: int) -> tuple[bytes, int]:
    (length,) = _LENGTH.unpack_from(data, offset)
    _check_queues(length)
    start = offset + 4
    end = start + length
    if end > len(data):
        raise StateError(f"a queue of {length} bytes is truncated")
    return bytes(data[start:end]), end


def _check_queues(*lengths: int) -> None:
    if max(lengths) > QUEUE_LIMIT_BYTES:
        raise StateError(f"a queue of {max(lengths)} bytes, {QUEUE_LIMIT_BYTES} is the limit")
