"""The relay carries bytes both ways, passes an orderly end on, and lets nobody wait in vain."""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from testbed.storage.relay import carry

DEADLINE_S = 20.0


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The client's end and the goal's end of a connection that is being carried."""
    goal = tmp_path / "goal"
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(goal))
        listener.listen()
        client, near = (stack.enter_context(one) for one in socket.socketpair())
        thread = threading.Thread(target=carry, args=(near, goal))
        thread.start()
        server, _ = listener.accept()
        stack.enter_context(server)
        for end in (client, server):
            end.settimeout(DEADLINE_S)
        yield client, server
        client.close()
        server.close()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
        assert near.fileno() < 0


def read_to_the_end(connection: socket.socket) -> bytes:
    data = b""
    while part := connection.recv(1 << 16):
        data += part
    return data


def test_what_is_said_arrives_both_ways_also_after_one_side_has_ended(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    client, server = ends
    question = bytes(range(256)) * 10_000
    sender = threading.Thread(target=lambda: (client.sendall(question), client.shutdown(socket.SHUT_WR)))
    sender.start()
    assert read_to_the_end(server) == question
    sender.join(DEADLINE_S)
    server.sendall(b"answer")
    server.close()
    assert read_to_the_end(client) == b"answer"


def test_where_one_side_is_lost_the_other_hears_of_it(ends: tuple[socket.socket, socket.socket]) -> None:
    client, server = ends
    client.sendall(b"never read")
    server.recv(1, socket.MSG_PEEK)
    server.close()  # with something unread: a reset, no orderly end
    assert client.recv(1) == b""


def test_what_the_peer_has_aborted_is_not_carried_any_further(tmp_path: Path) -> None:
    """A relay that comes to it late: the data is there, and so is the reset."""
    goal = tmp_path / "goal"
    with socket.socket(socket.AF_UNIX) as listener, socket.create_server(("127.0.0.1", 0)) as entry:
        listener.bind(str(goal))
        listener.listen()
        client = socket.create_connection(entry.getsockname())
        near, _ = entry.accept()
        client.sendall(b"an old write")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        arrived = select.poll()
        arrived.register(near, 0)
        assert arrived.poll(DEADLINE_S * 1000)
        carry(near, goal)
        server, _ = listener.accept()
        with server:
            server.settimeout(DEADLINE_S)
            assert read_to_the_end(server) == b""


def test_where_the_goal_cannot_be_reached_the_connection_is_closed_at_once(tmp_path: Path) -> None:
    client, near = socket.socketpair()
    with client:
        client.settimeout(DEADLINE_S)
        carry(near, tmp_path / "nothing")
        assert client.recv(1) == b""
