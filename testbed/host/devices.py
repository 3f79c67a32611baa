"""Device state: the parts of a guest that are not RAM, as they cross the wire.

A device is ``(name, version, data)``. What seldom changes is foreseen: it goes with Prepare, while the guest
still runs. The rest crosses in the blackout, connections in batches, so that the target rebuilds the first
while the source still reads the last::

    foreseen     neighbours   testbed.handover.neighbours, hexadecimal
                 listeners    (u32 slot, u32 length, testbed.tcp.state)*, hexadecimal
                 count        connections that there are now
                 udp-sockets  testbed.udp.state, hexadecimal
    devices      registers    JSON: what the guest's machine keeps outside RAM
                 connections  (u32 slot, u32 length, testbed.tcp.state)*; a slot that comes again replaces the
                 first
                 udp          what lies in the queues of UDP sockets (testbed.udp.state); what comes again
                 follows it
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from typing import Any

from testbed.migration.errors import ProtocolError
from testbed.tcp.state import ConnectionState, ListenerState, StateError, decode, encode

REGISTERS = "registers"
NEIGHBOURS = "neighbours"
LISTENERS = "listeners"
CONNECTIONS = "connections"
UDP_SOCKETS = "udp-sockets"
UDP = "udp"
COUNT = "count"
VERSION = 1
BATCH = 32
"""Connections in one device: enough that a message's cost does not count, few enough that the target starts
at once."""
BATCH_BYTES = 1 << 20
"""Of their queues: the connection with which they are over it is the last in its device."""

_SLOT = struct.Struct("<II")

TcpState = ConnectionState | ListenerState


def batches(
    connections: Iterable[tuple[int, ConnectionState]],
) -> Iterator[list[tuple[int, ConnectionState]]]:
    """Connections, as they come, in lists for one device each: BATCH of them, or fewer with full queues."""
    batch: list[tuple[int, ConnectionState]] = []
    room = BATCH_BYTES
    for slot, state in connections:
        batch.append((slot, state))
        room -= len(state.unread) + len(state.sent) + len(state.unsent)
        if len(batch) == BATCH or room <= 0:
            yield batch
            batch, room = [], BATCH_BYTES
    if batch:
        yield batch


def encode_sockets(sockets: Iterable[tuple[int, TcpState]]) -> bytes:
    """Sockets by slot, as device data."""
    parts: list[bytes] = []
    for slot, state in sockets:
        data = encode(state)
        parts += (_SLOT.pack(slot, len(data)), data)
    return b"".join(parts)


def decode_sockets(data: bytes) -> list[tuple[int, TcpState]]:
    """What :func:`encode_sockets` made. Raises ProtocolError for anything else."""
    sockets: list[tuple[int, TcpState]] = []
    view, at = memoryview(data), 0
    while at < len(view):
        if len(view) - at < _SLOT.size:
            raise ProtocolError("a socket's slot is cut short")
        slot, length = _SLOT.unpack_from(view, at)
        at += _SLOT.size
        if length > len(view) - at:
            raise ProtocolError("a socket's state is cut short")
        try:
            sockets.append((slot, decode(view[at : at + length])))
        except StateError as error:
            raise ProtocolError(f"a socket's state: {error}") from error
        at += length
    return sockets


def encode_registers(registers: dict[str, Any]) -> bytes:
    return json.dumps(registers, separators=(",", ":")).encode()


def decode_registers(data: bytes) -> dict[str, Any]:
    """Raises ProtocolError where it is not a JSON object."""
    try:
        registers = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("the guest's registers are not JSON") from error
    if not isinstance(registers, dict):
        raise ProtocolError("the guest's registers are not an object")
    return registers
