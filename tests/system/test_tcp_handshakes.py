"""New handshakes wait while they are held, and those under way are counted to their end."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import pytest

from testbed.tcp.handshakes import HalfOpen, HandshakeHold
from tests.system.tcp_stage import CLIENT_4, CLIENT_MAC, GUEST_4, GUEST_6, Stage, stage

pytestmark = pytest.mark.universe


@pytest.fixture
def lab() -> Iterator[Stage]:
    with stage() as made:
        yield made


def _listen(lab: Stage, address: str) -> socket.socket:
    with lab.source.entered():
        return socket.create_server((address, 7000), family=_family(address))


def _begin(lab: Stage, address: str) -> socket.socket:
    with lab.client.entered():
        client = socket.socket(_family(address), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        client.connect_ex((address, 7000))
    return client


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _ready(sock: socket.socket, event: int, timeout_ms: int) -> bool:
    poll = select.poll()
    poll.register(sock, event)
    return bool(poll.poll(timeout_ms))


@pytest.mark.parametrize("address", [GUEST_4, GUEST_6])
def test_a_held_listener_hears_no_new_client_until_the_release(lab, address):
    listener = _listen(lab, address)
    with lab.source.entered():
        half_open = HalfOpen()
    with HandshakeHold([listener]):
        client = _begin(lab, address)
        assert not _ready(client, select.POLLOUT, 200)
        assert half_open.count() == 0
    # The client's own second try, a second later, gets through.
    assert _ready(client, select.POLLOUT, 20_000)
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    assert listener.accept()[0]


@pytest.mark.parametrize("address", [GUEST_4, GUEST_6])
def test_without_hold_the_same_client_is_connected_at_once(lab, address):
    listener = _listen(lab, address)
    HandshakeHold([listener])
    client = _begin(lab, address)
    assert _ready(client, select.POLLOUT, 20_000)
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def test_a_connection_made_during_the_hold_carries_data_after_it(lab):
    """A handshake under way at the hold completes, and its socket, which inherits the filter, works."""
    listener = _listen(lab, GUEST_4)
    with lab.source.entered():
        half_open = HalfOpen()
    client = _half_open(lab, half_open)
    hold = HandshakeHold([listener])
    hold.hold()
    assert half_open.wait_for_none(0.01) == 1
    _unmute(lab)
    assert half_open.wait_for_none(10.0) == 0
    server, _ = listener.accept()
    hold.release()
    client.setblocking(True)
    client.sendall(b"hello")
    assert server.recv(5) == b"hello"
    server.sendall(b"world")
    assert client.recv(5) == b"world"


@pytest.mark.parametrize("port", [0, 7000])
def test_half_open_counts_only_its_port(lab, port):
    _listener = _listen(lab, GUEST_4)
    with lab.source.entered():
        half_open = HalfOpen()
    _client = _half_open(lab, half_open)
    assert half_open.count(port) == 1
    assert half_open.count(7001) == 0


def _half_open(lab: Stage, half_open: HalfOpen) -> socket.socket:
    """A client whose first segment arrived and who never hears the answer."""
    lab.know_neighbour("source", CLIENT_4, "02:00:00:00:00:99")
    client = _begin(lab, GUEST_4)
    while half_open.count() == 0:
        select.select([], [], [], 0.001)
    return client


def _unmute(lab: Stage) -> None:
    lab.know_neighbour("source", CLIENT_4, CLIENT_MAC)
