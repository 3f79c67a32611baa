"""Connections in every state at once, through a whole migration: no reset, no refusal, no hang."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from testbed.lab.lab import Lab
from tests.system.labs import PRELOAD, SMALL, lab_of, move

pytestmark = pytest.mark.universe(preload=PRELOAD)

PORT = 7000
DEADLINE_S = 30.0
ADDRESSES = {socket.AF_INET: "10.7.0.10", socket.AF_INET6: "fd07::10"}
MUCH = 24 << 20  # more than both ends' buffers hold


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with lab_of(replace(SMALL, ram_bytes=128 << 20, dirty_rate_pages_per_s=500), tmp_path) as standing:
        standing.boot()
        yield standing


def dial(lab: Lab, family: int = socket.AF_INET) -> socket.socket:
    connection = lab.topology.namespace("client1").socket(family, socket.SOCK_STREAM)
    connection.settimeout(DEADLINE_S)
    connection.connect((ADDRESSES[family], PORT))
    return connection


def migrate(lab: Lab) -> None:
    source_answer, target_answer = move(lab)
    assert "error" not in source_answer, source_answer
    assert "error" not in target_answer, target_answer


def read_all(connection: socket.socket) -> bytes:
    """Everything to the end of the stream."""
    parts: list[bytes] = []
    while data := connection.recv(1 << 20):
        parts.append(data)
    return b"".join(parts)


def exchange(connection: socket.socket, data: bytes) -> None:
    connection.sendall(data)
    assert connection.recv(len(data), socket.MSG_WAITALL) == data


def fill(connection: socket.socket, data: memoryview) -> int:
    """Send until nothing more is taken: both receive queues and both send queues are full then."""
    connection.settimeout(0.3)
    sent = 0
    try:
        while sent < len(data):
            sent += connection.send(data[sent : sent + (1 << 16)])
    except TimeoutError:
        return sent
    finally:
        connection.settimeout(DEADLINE_S)
    pytest.fail(f"all of {len(data)} bytes found room: the windows never closed")


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
def test_connections_in_all_states_move_together(lab: Lab, family: int) -> None:
    pattern = memoryview(os.urandom(1 << 20) * (MUCH >> 20))
    idle = dial(lab, family)
    busy = dial(lab, family)
    exchange(busy, b"before")
    unread = dial(lab, family)
    unread.sendall(b"u" * 5000)  # the reply waits in the client's receive queue
    client_ended = dial(lab, family)
    exchange(client_ended, b"nothing more from me")
    stuffed = dial(lab, family)
    stuffed_bytes = fill(stuffed, pattern)
    stuffed_and_ended = dial(lab, family)
    stuffed_and_ended_bytes = fill(stuffed_and_ended, pattern)
    stuffed_and_ended.shutdown(socket.SHUT_WR)

    migrate(lab)

    for connection in (idle, busy):
        exchange(connection, b"after" * 100)
    assert unread.recv(5000, socket.MSG_WAITALL) == b"u" * 5000
    exchange(unread, b"after")
    client_ended.shutdown(socket.SHUT_WR)
    assert read_all(client_ended) == b""
    assert read_all(stuffed_and_ended) == bytes(pattern[:stuffed_and_ended_bytes])
    reader: list[bytes] = []
    reading = threading.Thread(target=lambda: reader.append(read_all(stuffed)))
    reading.start()
    stuffed.sendall(pattern[stuffed_bytes:])
    stuffed.shutdown(socket.SHUT_WR)
    reading.join(DEADLINE_S)
    assert reader == [bytes(pattern)]


def test_connections_that_close_during_the_migration_end_cleanly(lab: Lab) -> None:
    closing = [dial(lab) for _ in range(40)]
    for connection in closing:
        exchange(connection, b"hello")
    ended: list[bytes] = []

    def close_one_after_the_other() -> None:
        for connection in closing:
            connection.sendall(b"last words")
            connection.shutdown(socket.SHUT_WR)
            ended.append(read_all(connection))

    closer = threading.Thread(target=close_one_after_the_other)
    closer.start()
    migrate(lab)
    closer.join(DEADLINE_S)
    assert ended == [b"last words"] * len(closing)
    stats = lab.vm.stats()
    assert stats is not None
    assert stats["guest"]["resets"] == stats["guest"]["faults"] == 0


def test_connections_that_are_made_during_the_migration_are_served(lab: Lab) -> None:
    over = threading.Event()
    served: list[bool] = []
    failures: list[OSError] = []

    def connect_all_the_time() -> None:
        namespace = lab.topology.namespace("client1")
        with namespace.entered():
            while not over.is_set():
                try:
                    with socket.create_connection(
                        (ADDRESSES[socket.AF_INET], PORT), DEADLINE_S
                    ) as connection:
                        exchange(connection, b"served?")
                except OSError as error:
                    failures.append(error)
                served.append(True)

    connecting = threading.Thread(target=connect_all_the_time)
    connecting.start()
    for _ in range(3):
        migrate(lab)
    over.set()
    connecting.join(DEADLINE_S)
    assert not failures
    assert len(served) > 50
