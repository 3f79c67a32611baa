"""A receive window that was offered and then taken back: what the peer sent into it is not lost by a move.

RFC 9293 (section 3.8.6) asks receivers not to shrink a window, and senders to bear it. Linux does it where
memory gives out (``tcp_select_window``, ICSK_ACK_NOMEM), and always where net.ipv4.tcp_shrink_window says so.
From 6.17 on ``tcp_sequence`` drops whatever ends behind the new edge while anything is unread, and the
acknowledgement in it is not heard either. A connection that is moved like this must come free again.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.kernel import tcp_repair as kernel
from tests.conftest import require
from tests.system.tcp_moves import Pair, arrived, connect, counted, offer, wait_until
from tests.system.tcp_stage import CLIENT_4, CLIENT_6, GUEST_4, GUEST_6, NOWHERE, Stage, stage, sysctl

pytestmark = pytest.mark.universe

BOTH = pytest.mark.parametrize("address", [GUEST_4, GUEST_6])
LEAST_BUFFER_BYTES = 2304
"""SOCK_MIN_RCVBUF: the kernel makes no buffer smaller."""
SHRINKS = "net/ipv4/tcp_shrink_window"


@pytest.fixture
def lab() -> Iterator[Stage]:
    with stage() as made:
        yield made


def shrink(sock: socket.socket, size_bytes: int = LEAST_BUFFER_BYTES) -> None:
    """Leave `sock` less room than it has offered."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size_bytes)


def unread_on_both_sides(pair: Pair, count: int) -> None:
    pair.client_sends(count)
    pair.server_sends(count)
    wait_until(lambda: arrived(pair.server) == arrived(pair.client) == count)


@BOTH
@pytest.mark.parametrize("heard", [True, False])
def test_bytes_in_flight_into_a_window_that_was_taken_back(lab, address, heard):
    """No room for them: the source drops them and closes its window, of which the client may have heard."""
    pair = connect(lab, address)
    pair.talk()
    pair.client_sends(20_000)
    wait_until(lambda: arrived(pair.server) == 20_000)
    shrink(pair.server)
    offered = offer(pair.client)
    if not heard:
        lab.know_neighbour("source", CLIENT_6 if ":" in address else CLIENT_4, NOWHERE)
    pair.client_sends(30_000)
    wait_until(lambda: counted(lab.source, "TCPRcvQDrop") > 0 and (not heard or offer(pair.client) == 0))
    in_flight = kernel.outq(pair.client) - kernel.outq_not_sent(pair.client)
    assert 0 < in_flight < offered
    require("a kernel that takes windows back", pair.freeze().window.rcv_wnd == 0)
    pair.move()
    pair.drain()
    pair.talk()
    pair.end()


def test_both_windows_were_taken_back_and_neither_end_has_heard_it(lab):
    """Each end drops the other's bytes, and with them its acknowledgements, until one has read.

    What the server had sent waits for the restored socket's first timeout, see ``ConnectionState``.
    """
    sysctl(lab.source, "net/ipv4/tcp_slow_start_after_idle", "0")  # it sends all at once
    pair = connect(lab)
    pair.talk()
    unread_on_both_sides(pair, 20_000)
    shrink(pair.server)
    shrink(pair.client)
    lab.know_neighbour("source", CLIENT_4, NOWHERE)
    pair.client_sends(30_000)
    pair.server_sends(30_000)
    wait_until(lambda: counted(lab.source, "TCPRcvQDrop") > 0)
    state = pair.freeze()
    require("a kernel that takes windows back", state.window.rcv_wnd == 0)
    assert len(state.sent) == 30_000
    pair.move()
    pair.drain()
    pair.talk()
    pair.end()


@BOTH
def test_a_window_that_is_smaller_than_the_bytes_in_flight(lab, address):
    """Where windows may shrink it is not closed, but what is under way to it ends behind its edge."""
    for host in (lab.source, lab.target):
        with host.entered():
            require("tcp_shrink_window", Path("/proc/sys", SHRINKS).exists)
        sysctl(host, SHRINKS, "1")
    pair = connect(lab, address)
    pair.talk()
    offered = offer(pair.client)
    shrink(pair.server, 12_000)
    lab.know_neighbour("source", CLIENT_6 if ":" in address else CLIENT_4, NOWHERE)
    pair.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    pair.client_sends(1000)
    wait_until(lambda: arrived(pair.server) == 1000)
    lab.cut("source")
    pair.client_sends(40_000)
    state = pair.freeze()
    edge = state.window.rcv_wup + state.window.rcv_wnd - state.rcv_nxt
    assert 0 < edge < 40_000 < offered
    pair.move()
    pair.drain()
    pair.talk()
    pair.end()
