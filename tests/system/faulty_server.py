"""An echo server that does one thing wrong, on purpose, and says when. The clients' probes must find it
out."""

from __future__ import annotations

import ctypes
import json
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from netns.forkserver import ready
from testbed.measure.pattern import pattern

# <linux/filter.h>: one instruction, BPF_RET|BPF_K with 0: keep no byte of any packet
_DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
LASTING = ("pause", "deaf")


def serve(argument: dict[str, Any], fds: list[int]) -> int:
    """Echo on the listener `fds[0]` for ever. With the piece of input number `at` (from 1) do `fault`
    instead:

    `pause`, `drop`, `flip`, `duplicate`, `reset`, `close`, `deaf` (packets of that connection are dropped),
    `die` (listener and all), or `none`. `[fault, begin_ns, end_ns]` is then written to the pipe `fds[1]`.
    Those that last, `pause` and `deaf`, write `[fault, begin_ns]` first, and last until a byte comes from the
    pipe `fds[2]`: nothing else is served meanwhile.
    """
    listener = socket.socket(fileno=fds[0])
    listener.setblocking(False)
    epoll, connections, pieces = select.epoll(), {}, 0
    epoll.register(listener, select.EPOLLIN)
    ready()
    while True:
        for descriptor, _ in epoll.poll():
            if descriptor == listener.fileno():
                connection, _ = listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connections[connection.fileno()] = connection
                epoll.register(connection, select.EPOLLIN)
                continue
            connection = connections[descriptor]
            data = connection.recv(65536)
            pieces += bool(data)
            keep = bool(data)
            if data and pieces == argument["at"]:
                begin_ns = time.monotonic_ns()
                if argument["fault"] in LASTING:
                    with _deaf(connection) if argument["fault"] == "deaf" else nullcontext():
                        os.write(fds[1], json.dumps([argument["fault"], begin_ns]).encode() + b"\n")
                        os.read(fds[2], 1)
                end_ns = time.monotonic_ns()
                keep = _misbehave(argument, connection, data, listener)
                report = [argument["fault"], begin_ns, end_ns]
                os.write(fds[1], json.dumps(report).encode() + b"\n")
            elif data:
                connection.sendall(data)
            if not keep:
                epoll.unregister(descriptor)
                connections.pop(descriptor).close()


def _misbehave(
    argument: dict[str, Any], connection: socket.socket, data: bytes, listener: socket.socket
) -> bool:
    """Whether the connection is to be kept."""
    match argument["fault"]:
        case "none" | "pause" | "deaf":
            connection.sendall(data)
        case "drop":
            pass
        case "flip":
            connection.sendall(data[:5] + bytes([data[5] ^ 1]) + data[6:])
        case "duplicate":
            connection.sendall(data + data)
        case "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        case "close":
            return False
        case "die":
            listener.close()
            connection.sendall(data)
        case unknown:
            raise ValueError(unknown)
    return True


@contextmanager
def _deaf(connection: socket.socket) -> Iterator[None]:
    """Drop whatever arrives for `connection`: as good as lost on the wire."""
    instructions = ctypes.create_string_buffer(_DROP_ALL, len(_DROP_ALL))
    program = struct.pack("HxxxxxxP", 1, ctypes.addressof(instructions))  # struct sock_fprog
    connection.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
    yield
    connection.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def serve_ramp(argument: dict[str, Any], fds: list[int]) -> int:
    """The byte ramp both ways, a process for each run: sends as fast as it can, checks all that comes.

    `fault` at byte `at` sent: `skip` leaves out `count` bytes, `repeat` sends the `count` bytes
    before it again, `flip` alters one. Ends with the first connection; `[received, mismatches]` goes to the
    pipe `fds[1]`.
    """
    listener = socket.socket(fileno=fds[0])
    ready()
    connection, _ = listener.accept()
    connection.setblocking(False)
    sent, received, mismatches, jump, open_ = 0, 0, 0, 0, True
    while open_:
        readable, writable, _ = select.select([connection], [connection], [])
        if readable:
            data = connection.recv(65536)
            open_ = bool(data)
            due = pattern(received, len(data))
            mismatches += sum(a != b for a, b in zip(data, due, strict=True)) if data != due else 0
            received += len(data)
        if writable and open_:
            at, count = argument["at"], argument.get("count", 0)
            piece = min(32768, at - sent) if sent < at else 32768
            data = pattern(sent + jump, piece)
            if sent == at:
                match argument["fault"]:
                    case "skip":
                        jump += count
                    case "repeat":
                        jump -= count
                data = pattern(sent + jump, piece)
                if argument["fault"] == "flip":
                    data = bytes([data[0] ^ 0x80]) + data[1:]
                argument["at"] = -1
            sent += connection.send(data)
    os.write(fds[1], json.dumps([received, mismatches]).encode() + b"\n")
    connection.close()
    return 0
