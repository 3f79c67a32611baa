"""A key-value server that does one thing wrong, on purpose: the ledger must find it out."""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import time
from typing import Any

from netns.forkserver import ready
from testbed.guest.programs.resp import parse


class Store:
    """Keys and values; the write number `at` (from 1) and what follows it meet the `fault`."""

    def __init__(self, argument: dict[str, Any]) -> None:
        self.fault = argument["fault"]
        self.at = argument["at"]
        self.values: dict[bytes, bytes] = {}
        self.writes = 0

    def answer(self, words: list[bytes]) -> bytes | None:
        """The reply; None: the connection breaks."""
        if words[0] == b"GET":
            value = self.values.get(words[1])
            return b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value)
        self.writes += 1
        struck = self.writes == self.at
        if struck and self.fault == "refuse":
            return b"-ERR disk full\r\n"
        if not (struck and self.fault in ("forget", "break-before")):
            self.values[words[1]] = b"1:invented" if struck and self.fault == "invent" else words[2]
        return None if struck and self.fault in ("break-before", "break-after", "lose-all") else b"+OK\r\n"


def serve(argument: dict[str, Any], fds: list[int]) -> int:
    """Serve for ever. `fault`: none, refuse, forget (a write is acknowledged and not stored), invent (another
    value is stored), break-before and break-after (the connection is reset in place of a reply, the write not
    stored, or stored), lose-all (every connection is reset and every value gone). It is told to the pipe
    `fds[1]`.
    """
    listener = socket.socket(fileno=fds[0])
    listener.setblocking(False)
    store, epoll = Store(argument), select.epoll()
    connections: dict[int, tuple[socket.socket, bytearray]] = {}
    epoll.register(listener, select.EPOLLIN)
    ready()
    while True:
        for fd, _ in epoll.poll():
            if fd == listener.fileno():
                connection, _ = listener.accept()
                connections[connection.fileno()] = connection, bytearray()
                epoll.register(connection, select.EPOLLIN)
            elif fd in connections and (data := connections[fd][0].recv(65536)):
                if not _serve_one(store, *connections[fd], data):
                    broken = [fd]
                    if store.fault == "lose-all":
                        broken = list(connections)
                        store.values.clear()
                    for each in broken:
                        _reset(connections.pop(each)[0])
            elif fd in connections:
                connections.pop(fd)[0].close()
            if store.at and store.writes >= store.at:
                now_ns = time.monotonic_ns()
                os.write(fds[1], json.dumps([store.fault, now_ns, now_ns]).encode() + b"\n")
                store.at = 0


def _serve_one(store: Store, connection: socket.socket, inbox: bytearray, data: bytes) -> bool:
    """Whether the connection goes on."""
    inbox += data
    while inbox and (command := parse(bytes(inbox), 0)) is not None:
        words, end = command
        del inbox[:end]
        reply = store.answer(words)
        if reply is None:
            return False
        connection.sendall(reply)
    return True


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
