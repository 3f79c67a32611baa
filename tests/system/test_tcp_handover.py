"""Connections that move while their client looks on: every state, every queue, byte for byte."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from testbed.kernel import tcp_repair as kernel
from testbed.kernel.tcp_repair import TcpState
from testbed.measure.pattern import pattern
from testbed.tcp import options
from testbed.tcp.freeze import freeze, unchanged, unfreeze
from tests.system.tcp_moves import (
    arrived,
    connect,
    counted,
    offer,
    quiet,
    readable,
    tcp_state,
    wait_until,
)
from tests.system.tcp_stage import CLIENT_4, CLIENT_6, GUEST_4, GUEST_6, NOWHERE, Stage, stage, sysctl

pytestmark = pytest.mark.universe

BOTH = pytest.mark.parametrize("address", [GUEST_4, GUEST_6])


@pytest.fixture
def lab() -> Iterator[Stage]:
    with stage() as made:
        yield made


# --- established, by what stands in the queues


@BOTH
@pytest.mark.parametrize("probe", [True, False])
def test_an_idle_connection(lab, address, probe):
    pair = connect(lab, address)
    pair.talk()
    pair.move(probe=probe)
    pair.talk()
    assert pair.lost() == 0
    pair.end()


@BOTH
@pytest.mark.parametrize("count", [1, 5000, 60000])
def test_unread_bytes(lab, address, count):
    pair = connect(lab, address)
    pair.client_sends(count)
    wait_until(lambda: arrived(pair.server) == count and quiet(pair.client))
    assert len(pair.freeze().unread) == count
    pair.move()
    pair.drain()
    pair.talk()
    assert pair.lost() == 0
    pair.end()


@BOTH
def test_bytes_that_were_sent_and_lost(lab, address):
    """Sent into the cut, so never acknowledged: the target sends them again, and each once."""
    pair = connect(lab, address)
    pair.talk()
    lab.cut("source")
    pair.server_sends(20000)
    assert len(pair.freeze().sent) > 0
    pair.move()
    pair.drain()
    pair.talk()
    pair.end()


@BOTH
def test_bytes_that_arrived_but_whose_acknowledgement_did_not(lab, address):
    """The client has them: the target offers them again, and the client takes none twice."""
    pair = connect(lab, address)
    pair.talk()
    pair.server_sends(3000)
    wait_until(lambda: arrived(pair.client) == 3000)
    state = pair.freeze()
    pair.move(edit=lambda _: replace(state, sent=pattern(pair.to_client - 3000, 3000)))
    pair.drain()
    pair.talk()
    assert not arrived(pair.client)
    pair.end()


@BOTH
def test_a_client_that_does_not_read(lab, address):
    """Window of the client at zero, megabytes written and never sent."""
    pair = connect(lab, address)
    pair.server_fills()
    state = pair.freeze()
    assert state.window.snd_wnd < 65536
    assert len(state.unsent) > 100_000
    pair.move()
    pair.drain()
    pair.talk()
    pair.end()


@BOTH
def test_more_to_send_than_an_ordinary_user_may_have_a_buffer_for(lab, address, monkeypatch):
    """Tuned by the kernel past net.core.wmem_max, where only the real root may follow."""
    monkeypatch.setattr(
        options, "set_buffer", lambda sock, which, _: sock.getsockopt(socket.SOL_SOCKET, which)
    )
    pair = connect(lab, address)
    pair.server_fills()
    queued = len(pair.freeze().unsent)
    before = default_buffers(lab)
    assert queued > int(before.split()[1]), "a new socket would have had room: this was no test"
    pair.move()
    assert default_buffers(lab) == before
    pair.drain()
    pair.talk()
    pair.end()


def default_buffers(lab: Stage) -> str:
    with lab.target.entered():
        return Path("/proc/sys/net/ipv4/tcp_wmem").read_text()


@BOTH
def test_a_server_that_does_not_read(lab, address):
    """Our own window at zero, the client holding what found no room."""
    pair = connect(lab, address)
    pair.client_fills()
    assert len(pair.freeze().unread) > 50_000
    pair.move()
    pair.drain()
    pair.talk()
    pair.end()


def test_more_unread_bytes_than_a_new_socket_has_room_for(lab):
    pair = connect(lab)
    for _ in range(40):
        pair.talk(400_000)
    pair.client_fills()
    assert len(pair.freeze().unread) > 1 << 20
    pair.move()
    pair.drain()
    pair.end()


@BOTH
def test_both_directions_full(lab, address):
    pair = connect(lab, address)
    pair.client_fills()
    pair.server_fills()
    pair.move()
    pair.drain()
    pair.talk()
    pair.end()


def test_a_window_that_the_source_had_tuned_large_is_kept(lab):
    """The client may send all that it was offered at once: the target has room for it, nothing is sent
    twice."""
    pair = connect(lab)
    for _ in range(40):
        pair.talk(400_000)
    state = pair.freeze()
    tuned = state.options.receive_buffer_bytes
    pair.move()
    assert pair.server.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= tuned - 1
    assert pair.server.getsockopt(socket.SOL_SOCKET, kernel.SO_BUF_LOCK) == 0
    pair.client_fills()
    assert arrived(pair.server) >= state.window.rcv_wnd > 1 << 20
    assert sum(counted(lab.target, name) for name in DROPS) == 0
    pair.drain()


def test_there_and_back_and_there_again(lab):
    pair = connect(lab)
    for number in range(6):
        pair.talk(50_000)
        pair.client_sends(100)
        pair.move()
        lab.swap()
        assert pair.lost() == 0, number
    pair.drain()
    pair.end()


# --- half-closed and closing


@BOTH
@pytest.mark.parametrize("unread", [0, 5000])
def test_close_wait(lab, address, unread):
    pair = connect(lab, address)
    pair.client_sends(unread)
    pair.client.shutdown(socket.SHUT_WR)
    wait_until(lambda: tcp_state(pair.client) == TcpState.FIN_WAIT2)
    assert pair.freeze().state == TcpState.CLOSE_WAIT
    pair.move()
    assert tcp_state(pair.server) == TcpState.CLOSE_WAIT
    pair.server_sends(5000)
    pair.drain()
    pair.end()
    assert pair.lost() == 0


@BOTH
def test_fin_wait2(lab, address):
    pair = connect(lab, address)
    pair.server_sends(5000)
    pair.server.shutdown(socket.SHUT_WR)
    wait_until(lambda: tcp_state(pair.server) == TcpState.FIN_WAIT2)
    pair.client_sends(500)
    wait_until(lambda: arrived(pair.server) == 500)
    assert pair.freeze().state == TcpState.FIN_WAIT2
    pair.move()
    assert tcp_state(pair.server) == TcpState.FIN_WAIT2
    pair.client_sends(5000)
    pair.drain()
    pair.end()
    assert pair.lost() == 0


@BOTH
@pytest.mark.parametrize("count", [0, 5000])
def test_fin_wait1_with_a_lost_fin(lab, address, count):
    pair = connect(lab, address)
    pair.talk()
    lab.cut("source")
    if count:
        pair.server_sends(count)
    pair.server.shutdown(socket.SHUT_WR)
    state = pair.freeze()
    assert (state.state, state.our_fin_unsent, len(state.sent)) == (TcpState.FIN_WAIT1, False, count)
    pair.move()
    assert tcp_state(pair.server) == TcpState.FIN_WAIT1
    pair.client_sends(100)
    pair.drain()
    pair.end()


@BOTH
def test_fin_wait1_with_a_fin_behind_unsent_bytes(lab, address):
    pair = connect(lab, address)
    pair.server_fills()
    pair.server.shutdown(socket.SHUT_WR)
    state = pair.freeze()
    assert (state.state, state.our_fin_unsent) == (TcpState.FIN_WAIT1, True)
    pair.move()
    assert tcp_state(pair.server) == TcpState.FIN_WAIT1
    pair.client_sends(100)
    pair.drain()
    pair.end()


@BOTH
@pytest.mark.parametrize("count", [0, 5000])
def test_last_ack(lab, address, count):
    pair = connect(lab, address)
    pair.client.shutdown(socket.SHUT_WR)
    wait_until(lambda: tcp_state(pair.client) == TcpState.FIN_WAIT2)
    lab.cut("source")
    if count:
        pair.server_sends(count)
    pair.server.shutdown(socket.SHUT_WR)
    assert pair.freeze().state == TcpState.LAST_ACK
    pair.move()
    assert tcp_state(pair.server) == TcpState.LAST_ACK
    pair.drain()
    pair.end()
    wait_until(lambda: tcp_state(pair.server) == TcpState.CLOSE)


@BOTH
def test_last_ack_with_unsent_bytes(lab, address):
    pair = connect(lab, address)
    pair.client.shutdown(socket.SHUT_WR)
    wait_until(lambda: tcp_state(pair.client) == TcpState.FIN_WAIT2)
    pair.server_fills()
    pair.server.shutdown(socket.SHUT_WR)
    state = pair.freeze()
    assert (state.state, state.our_fin_unsent) == (TcpState.LAST_ACK, True)
    pair.move()
    assert tcp_state(pair.server) == TcpState.LAST_ACK
    pair.drain()
    pair.end()


@BOTH
@pytest.mark.parametrize("unread", [0, 3000])
def test_closing(lab, address, unread):
    """Both ends have ended their direction at the same time, and our FIN was lost."""
    pair = connect(lab, address)
    pair.talk()
    lab.know_neighbour("source", CLIENT_6 if ":" in address else CLIENT_4, NOWHERE)
    pair.server.shutdown(socket.SHUT_WR)
    pair.client_sends(unread)
    pair.client.shutdown(socket.SHUT_WR)
    wait_until(lambda: tcp_state(pair.server) == TcpState.CLOSING)
    pair.freeze()
    pair.move()
    pair.drain()
    pair.end()


@BOTH
def test_a_connection_that_is_over_still_gives_what_was_not_read(lab, address):
    pair = connect(lab, address)
    pair.client_sends(3000)
    wait_until(lambda: arrived(pair.server) == 3000)
    pair.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    pair.client.close()
    wait_until(lambda: tcp_state(pair.server) == TcpState.CLOSE)
    assert pair.freeze().state == TcpState.CLOSE
    pair.move()
    assert tcp_state(pair.server) == TcpState.CLOSE
    while pair.read_by_server < 3000:
        pair._read(pair.server)
    assert pair.server.recv(1) == b""
    with pytest.raises(BrokenPipeError):
        pair.server.send(b"x")


# --- what the handshake agreed on


RTAX_RTO_MIN = 13  # <linux/rtnetlink.h>; counts only where it is locked


def be_patient(namespace, address, **more):
    """What `namespace` sends to `address` it takes for lost after two seconds, not after a fifth of one.
    `more` are metrics of that route."""
    with namespace.entered(), IPRoute() as inside:
        (eth0,) = inside.link_lookup(ifname="eth0")
        metrics = {"lock": 1 << RTAX_RTO_MIN, "rto_min": 2000, **more}
        inside.route("add", dst=address, oif=eth0, metrics=metrics)


@BOTH
@pytest.mark.parametrize("without", ["tcp_window_scaling", "tcp_sack", "tcp_timestamps"])
def test_a_client_without(lab, address, without):
    sysctl(lab.client, f"net/ipv4/{without}", "0")
    be_patient(lab.client, address)
    pair = connect(lab, address)
    pair.talk(200_000)
    before = pair.freeze()
    offered = offer(pair.client)
    pair.move()
    after = kernel.tcp_info(pair.server)
    assert after.options == before.handshake_options
    assert after.scales == before.peer_scale | before.our_scale << 4
    pair.talk(1000)
    assert offer(pair.client) > offered // 2, "the window that the client sees has collapsed"
    pair.talk(2_000_000)
    assert pair.lost() == 0
    pair.end()


@BOTH
def test_a_client_with_small_segments(lab, address):
    pair = connect(lab, address, lambda client: client.setsockopt(kernel.SOL_TCP, kernel.TCP_MAXSEG, 700))
    pair.talk()
    assert pair.freeze().maximum_segment == 700
    pair.move()
    kernel.repair_on(pair.server)
    assert kernel.maximum_segment(pair.server) == 700
    kernel.repair_off(pair.server, probe=False)
    pair.talk(100_000)
    pair.end()


DROPS = ("BeyondWindow", "TCPRcvQDrop", "RcvPruned", "OfoPruned", "TCPZeroWindowDrop", "TCPBacklogDrop")


# --- what its program wrote before, a socket sends by itself


def paced_with_much_to_send(lab, address):
    """A connection whose peer may be sent much at once, of which a timer sends 64 KiB each 128 ms."""
    be_patient(lab.source, {GUEST_4: CLIENT_4, GUEST_6: CLIENT_6}[address], initcwnd=1000)
    pair = connect(lab, address)
    pair.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")  # which keeps to that
    for _ in range(30):
        pair.server_sends(100_000)
        pair.drain()
    pair.server.setsockopt(socket.SOL_SOCKET, kernel.SO_MAX_PACING_RATE, 500_000)
    for _ in range(6):
        pair.server_sends(100_000)
    return pair


@BOTH
def test_a_frozen_socket_sends_nothing_new_while_its_way_out_is_open(lab, address):
    pair = paced_with_much_to_send(lab, address)
    lab.divert("source")
    time.sleep(0.05)  # what had passed the bridge arrives: an acknowledgement would open the window again
    pair.state = freeze(pair.server)
    unsent = len(pair.state.unsent)
    assert unsent > 100_000
    time.sleep(0.4)  # three turns of the timer
    assert kernel.outq_not_sent(pair.server) == unsent
    lab.cut("source")
    assert unchanged(pair.server, pair.state)
    pair.move()
    pair.drain()
    pair.talk()
    pair.end()


@BOTH
def test_after_a_rollback_a_socket_goes_on_sending_what_had_to_wait(lab, address):
    pair = paced_with_much_to_send(lab, address)
    lab.divert("source")
    state = freeze(pair.server)
    unsent = len(state.unsent)
    time.sleep(0.2)  # the timer comes in vain, and does not come again by itself
    unfreeze(pair.server, state)
    assert kernel.outq_not_sent(pair.server) < unsent
    lab.plug("source")
    pair.drain()
    pair.talk()
    pair.end()


# --- rollback


@BOTH
def test_a_frozen_connection_goes_on_at_the_source_after_a_rollback(lab, address):
    pair = connect(lab, address)
    pair.talk()
    pair.client_sends(100)
    wait_until(lambda: arrived(pair.server) == 100)
    state = pair.freeze()
    unfreeze(pair.server, state)
    lab.plug("source")
    pair.count_anew()
    assert pair.server.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == state.options.reuse_address == 1
    pair.talk()
    assert pair.lost() == 0
    pair.end()


def test_closing_a_frozen_socket_tells_its_peer_nothing(lab):
    pair = connect(lab)
    pair.talk()
    freeze(pair.server)
    pair.server.close()
    assert not readable(pair.client, 0.2)


# --- what is owed, and negative controls


def freeze_while_an_acknowledgement_is_due(pair):
    """The kernel gives it after 40 ms: where that was earlier, all over again."""
    for _ in range(20):
        for _ in range(20):
            pair.talk(1)
        pair.client_sends(1)
        wait_until(lambda: arrived(pair.server) == 1)
        state = pair.freeze()
        if state.acknowledgement_due:
            return
        unfreeze(pair.server, state)
        pair.lab.plug("source")
        pair.drain()
    pytest.fail("each time it was given before the connection was frozen")


@pytest.mark.parametrize("given", [True, False])
def test_an_acknowledgement_that_was_due_is_given(lab, given):
    """The source took a byte and had not acknowledged it. If nobody does, the client sends it again."""
    pair = connect(lab)
    freeze_while_an_acknowledgement_is_due(pair)
    pair.move(acknowledges=given)
    wait_until(lambda: quiet(pair.client))
    if given:
        assert pair.resent == 0
    else:
        assert kernel.tcp_info(pair.client).total_retrans > 0


@pytest.mark.parametrize("arrived_before", [True, False])
def test_a_move_that_takes_long_makes_a_client_send_again_and_loses_nothing(lab, arrived_before):
    """What the source had is not lost, however often the client has sent it since; what it had not, is."""
    pair = connect(lab)
    pair.talk()
    if arrived_before:
        pair.client_sends(100)
        wait_until(lambda: arrived(pair.server) == 100)
    pair.freeze()
    if not arrived_before:
        pair.client_sends(100)
    wait_until(lambda: pair.resent >= 2)
    resent_into_the_cut = pair.resent
    pair.move()
    if not arrived_before:
        pair.resent_before = resent_into_the_cut  # it may be heard before the move has counted anew
    pair.drain()
    pair.talk()
    assert (pair.lost() == 0) == arrived_before


@pytest.mark.parametrize("restored", [True, False])
def test_a_clock_of_timestamps_that_runs_backwards_cuts_the_client_off(lab, restored):
    """RFC 7323, PAWS: what looks older than what was heard is dropped."""
    pair = connect(lab)
    pair.talk()
    old = replace(pair.freeze(), timestamp=pair.state.timestamp - 1_000_000 & 0xFFFFFFFF)
    pair.move(edit=lambda state: state if restored else old)
    pair.server_sends(100)
    assert readable(pair.client, 10.0 if restored else 2.5) == restored


@pytest.mark.parametrize("in_order", [True, False])
def test_what_a_frozen_socket_hears_is_lost_so_the_cut_comes_first(lab, in_order):
    pair = connect(lab)
    pair.talk()
    if in_order:
        lab.cut("source")
    pair.state = freeze(pair.server)
    pair.client_sends(10)
    if not in_order:
        wait_until(lambda: quiet(pair.client))
    assert unchanged(pair.server, pair.state) == in_order
    lab.cut("source")
    pair.move()
    # In order the client sends it again; acknowledged to the frozen socket, it never does.
    assert readable(pair.server, 10.0 if in_order else 2.5) == in_order
