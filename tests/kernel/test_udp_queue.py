"""A receive queue that is looked at, and left as it is."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from testbed.udp.sockets import QueueReader, look_at, make
from testbed.udp.state import Datagram, SocketState

DEADLINE_S = 20.0


@pytest.fixture(params=["127.0.0.1", "::1"])
def bound(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    state = SocketState(ip_address(request.param), 0, True, 1 << 18, 1 << 18)
    with make(state) as sock:
        yield sock


def look_for(reader: QueueReader, count: int) -> list[Datagram]:
    """So many datagrams, which the kernel may take its time to queue."""
    deadline_s = time.monotonic() + DEADLINE_S
    seen: list[Datagram] = []
    while len(seen) < count and time.monotonic() < deadline_s:
        seen += reader.look()
    return seen


def test_a_queue_is_seen_once_in_its_order_and_read_by_its_owner_all_the_same(bound: socket.socket) -> None:
    address = bound.getsockname()
    client = socket.socket(bound.family, socket.SOCK_DGRAM)
    sent = [b"first", b"", b"x" * 9000, b"", b"last"]
    reader = QueueReader(bound.dup())
    assert reader.look() == []
    for data in sent[:3]:
        client.sendto(data, address)
    first = look_for(reader, 3)
    for data in sent[3:]:
        client.sendto(data, address)
    second = look_for(reader, 2)
    sender = ip_address(address[0])
    port = client.getsockname()[1]
    assert first + second == [Datagram(address[1], sender, port, data) for data in sent]
    assert reader.look() == []
    reader.close()
    reader.close()
    assert [bound.recv(65536) for _ in sent] == sent
    with pytest.raises(BlockingIOError):
        bound.recv(65536)


def test_a_socket_is_made_like_the_one_that_was_looked_at(bound: socket.socket) -> None:
    state = look_at(bound)
    bound.close()
    with make(state) as again:
        assert look_at(again) == state
        assert again.gettimeout() == 0


def test_a_port_that_is_taken_is_named(bound: socket.socket) -> None:
    state = look_at(bound)
    with pytest.raises(OSError, match=f"cannot receive datagrams on {state.local} port {state.port}"):
        make(state)
