"""What a program set on its sockets is set after the move, on connections and on listeners."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator

import pytest

from testbed.kernel import tcp_repair as kernel
from testbed.tcp.freeze import FreezeError, freeze, freeze_listener
from testbed.tcp.options import read_congestion_control, read_options
from testbed.tcp.state import decode, encode
from testbed.tcp.thaw import ThawError, thaw, thaw_listener
from tests.system.tcp_moves import PATIENCE_S, Pair, connect, wait_until
from tests.system.tcp_stage import GUEST_4, GUEST_6, Stage, stage

pytestmark = pytest.mark.universe

BOTH = pytest.mark.parametrize("address", [GUEST_4, GUEST_6])
LINGER = struct.pack("ii", 1, 7)
OPTIONS = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.SOL_SOCKET, socket.SO_REUSEPORT, 1),
    (socket.SOL_SOCKET, socket.SO_RCVLOWAT, 2),
    (socket.SOL_SOCKET, socket.SO_LINGER, LINGER),
    (socket.SOL_SOCKET, socket.SO_SNDBUF, 30000),
    (socket.SOL_SOCKET, socket.SO_RCVBUF, 40000),
    (socket.SOL_SOCKET, kernel.SO_MAX_PACING_RATE, (5 << 32).to_bytes(8, sys.byteorder)),
    (kernel.SOL_TCP, kernel.TCP_NODELAY, 1),
    (kernel.SOL_TCP, kernel.TCP_CORK, 1),
    (kernel.SOL_TCP, kernel.TCP_KEEPIDLE, 11),
    (kernel.SOL_TCP, kernel.TCP_KEEPINTVL, 12),
    (kernel.SOL_TCP, kernel.TCP_KEEPCNT, 3),
    (kernel.SOL_TCP, kernel.TCP_LINGER2, 14),
    (kernel.SOL_TCP, kernel.TCP_USER_TIMEOUT, 15000),
    (kernel.SOL_TCP, kernel.TCP_NOTSENT_LOWAT, 16384),
    (kernel.SOL_TCP, kernel.TCP_CONGESTION, b"reno"),
]


@pytest.fixture
def lab() -> Iterator[Stage]:
    with stage() as made:
        yield made


def _set_all(sock: socket.socket) -> None:
    for level, name, value in OPTIONS:
        sock.setsockopt(level, name, value)
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0x10)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 0x20)


@BOTH
def test_a_connection_keeps_all_of_them(lab, address):
    pair = connect(lab, address)
    pair.talk()
    _set_all(pair.server)
    before = read_options(pair.server)
    assert all(getattr(before, name) for name in ("no_delay", "cork", "linger", "traffic_class"))
    assert before.most_bytes_per_s == 5 << 32
    pair.move()
    assert read_options(pair.server) == before
    assert read_congestion_control(pair.server) == "reno"
    pair.server.setsockopt(kernel.SOL_TCP, kernel.TCP_CORK, 0)
    pair.talk()


@BOTH
def test_a_connection_on_which_nothing_was_set_has_nothing_set(lab, address):
    pair = connect(lab, address)
    pair.talk()
    before = read_options(pair.server)
    pair.move()
    after = read_options(pair.server)
    # The kernel tunes what nobody locked, and a moved buffer is no smaller than it was.
    assert after.receive_buffer_bytes >= before.receive_buffer_bytes - 1
    assert after._replace(receive_buffer_bytes=0, send_buffer_bytes=0) == before._replace(
        receive_buffer_bytes=0, send_buffer_bytes=0
    )


@pytest.mark.parametrize("blocking", [True, False])
def test_whether_a_socket_blocks(lab, blocking):
    pair = connect(lab)
    pair.server.setblocking(blocking)
    state = freeze(pair.server)
    with lab.target.entered():
        there = thaw(state)
    assert there.getblocking() == blocking


@BOTH
def test_a_listener(lab, address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with lab.source.entered():
        listener = socket.create_server((address, 7000), family=family, backlog=77)
    _set_all(listener)
    listener.setsockopt(kernel.SOL_TCP, kernel.TCP_DEFER_ACCEPT, 3)
    listener.setsockopt(kernel.SOL_TCP, kernel.TCP_CORK, 0)
    state = freeze_listener(listener)
    assert state.backlog == 77
    assert decode(encode(state)) == state
    with lab.target.entered():
        there = thaw_listener(state)
    assert freeze_listener(there) == state
    lab.cut("source")
    lab.plug("target")
    with lab.client.entered(), socket.create_connection((address, 7000), 10) as client:
        client.sendall(b"hello")
        there.setblocking(True)
        server, _ = there.accept()
        assert server.recv(5) == b"hello"


def test_a_listener_of_both_families_and_one_of_ipv6_alone(lab):
    for only in (0, 1):
        with lab.source.entered():
            made = socket.create_server(("::", 7000 + only), family=socket.AF_INET6, dualstack_ipv6=not only)
        with lab.target.entered():
            there = thaw_listener(freeze_listener(made))
        assert there.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == only


def test_an_ipv4_client_of_an_ipv6_socket(lab):
    """The addresses are IPv4-mapped; half-closed, so that segments in the peer's name are IPv4."""
    with lab.source.entered():
        listener = socket.create_server(("::", 7000), family=socket.AF_INET6, dualstack_ipv6=True)
    pair = _through(lab, listener)
    pair.talk()
    pair.client_sends(100)
    pair.client.shutdown(socket.SHUT_WR)
    wait_until(lambda: kernel.tcp_info(pair.client).state == kernel.TcpState.FIN_WAIT2)
    pair.move()
    pair.server_sends(100)
    pair.drain()
    pair.end()


def _through(lab: Stage, listener: socket.socket) -> Pair:
    with lab.client.entered():
        client = socket.create_connection((GUEST_4, 7000), PATIENCE_S)
    server, _ = listener.accept()
    server.settimeout(PATIENCE_S)
    listener.close()
    return Pair(lab, client, server)


def test_connections_are_thawed_beside_their_listener(lab):
    """SO_REUSEADDR of a prepared socket is set before repair mode; after it, bind would be refused."""
    with lab.target.entered():
        listener = socket.create_server((GUEST_4, 7000))
    pair = connect(lab)
    pair.talk()
    pair.move()
    pair.talk()
    assert listener.fileno() >= 0


def test_what_cannot_be_frozen_says_so_and_goes_on(lab):
    pair = connect(lab)
    with lab.source.entered(), socket.create_server((GUEST_4, 7001)) as listener:
        with pytest.raises(FreezeError, match="state 10"):
            freeze(listener)
    with pytest.raises(FreezeError, match="does not listen"):
        freeze_listener(pair.server)
    pair.talk()


def test_a_thaw_without_an_address_names_the_connection_and_leaves_no_socket(lab):
    pair = connect(lab)
    state = freeze(pair.server)
    with lab.client.entered(), pytest.raises(ThawError, match=r"ESTABLISHED 10\.7\.0\.10:7000 <- "):
        thaw(state)
