"""Frames that had passed the bridge when it was turned, and reach a socket after it was read."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from netns import packet
from netns.namespace import Namespace
from testbed.handover.hold import FrameRelease
from testbed.kernel import tcp_repair as kernel
from testbed.kernel.tcp_repair import TcpState
from testbed.tcp import freeze as freezing
from testbed.tcp.freeze import freeze, freeze_again, unfreeze
from tests.system.labs import PRELOAD, failed_checks, migrate
from tests.system.tcp_moves import Pair, arrived, connect, quiet, readable, tcp_state, wait_until
from tests.system.tcp_stage import CLIENT_MAC, GUEST_4, GUEST_6, Stage, stage

pytestmark = pytest.mark.universe(preload=(*PRELOAD, "tests.system.late_agent"))

BOTH = pytest.mark.parametrize("address", [GUEST_4, GUEST_6])


class Wire:
    """The client's segments as the bridge gets them, to be given to the source whatever the bridge does."""

    def __init__(self) -> None:
        self._packet = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._packet.setsockopt(packet.SOL_PACKET, packet.PACKET_VNET_HDR, 1)
        packet.bind(self._packet, "client")
        with Namespace("here", os.open("/proc/thread-self/ns/net", os.O_RDONLY)) as here:
            self._release = FrameRelease(here, "source")

    def next(self) -> bytes:
        """The client's next segment since the last call."""
        sender = bytes.fromhex(CLIENT_MAC.replace(":", ""))
        while True:
            whole = self._packet.recv(1 << 17)
            frame = whole[packet.VNET_HEADER_BYTES :]
            protocol = frame[23] if frame[12:14] == b"\x08\x00" else frame[20]
            if frame[6:12] == sender and protocol == socket.IPPROTO_TCP:
                return whole

    def forget(self) -> None:
        """What came so far."""
        self._packet.setblocking(False)
        try:
            while self._packet.recv(1 << 17):
                pass
        except BlockingIOError:
            self._packet.setblocking(True)

    def deliver(self, frame: bytes) -> None:
        assert self._release.release([frame]) == 1

    def close(self) -> None:
        self._packet.close()
        self._release.close()


@pytest.fixture
def lab() -> Iterator[Stage]:
    with stage() as made:
        yield made


@pytest.fixture
def wire(lab: Stage) -> Iterator[Wire]:
    with closing(Wire()) as made:
        yield made


def heard(pair: Pair) -> int:
    return kernel.tcp_info(pair.server).segs_in


def frozen(lab: Stage, wire: Wire, address: str = GUEST_4) -> Pair:
    """A connection that is frozen, its way out cut, and what it was told before forgotten."""
    pair = connect(lab, address)
    pair.talk()
    settle(pair)
    lab.cut("source")
    pair.state = freeze(pair.server)
    wire.forget()
    return pair


def settle(pair: Pair) -> None:
    """Until both sides have heard all that was sent: neither says anything more by itself then."""
    wait_until(lambda: quiet(pair.client) and quiet(pair.server))


@BOTH
def test_what_comes_before_the_second_look_comes_along(lab: Stage, wire: Wire, address: str) -> None:
    pair = frozen(lab, wire, address)
    before = pair.state
    assert before is not None
    pair.client_sends(10)
    wire.deliver(wire.next())
    wait_until(lambda: arrived(pair.server) == 10)
    pair.state = freeze_again(pair.server, before)
    assert len(pair.state.unread) == 10
    assert freeze_again(pair.server, pair.state) is pair.state
    assert pair.state.window.snd_wnd > 0, "the peer's window, not the one that keeps the socket still"
    pair.move()
    pair.drain()
    pair.talk()
    assert pair.lost() == 0
    pair.end()


@BOTH
def test_what_comes_after_the_second_look_is_sent_again(lab: Stage, wire: Wire, address: str) -> None:
    """The source takes it in, and nobody hears of that."""
    pair = frozen(lab, wire, address)
    pair.client_sends(10)
    wire.deliver(wire.next())
    wait_until(lambda: arrived(pair.server) == 10)
    pair.move()
    pair.drain()
    pair.talk()
    assert pair.lost() > 0
    pair.end()


@BOTH
def test_a_second_look_sends_nothing(lab: Stage, wire: Wire, address: str) -> None:
    """Of what the program wrote and the peer's window kept back, nothing goes into the cut: it would count as
    sent."""
    pair = connect(lab, address)
    pair.talk()
    settle(pair)
    wire.forget()
    pair.client_sends(1)
    old = wire.next()
    pair.drain()
    pair.server_fills()
    lab.cut("source")
    state = freeze(pair.server)
    pair.state = state = freeze_again(pair.server, state)
    assert len(state.unsent) > 0
    before = heard(pair)
    wire.deliver(old)  # says nothing new, and nothing of a window
    wait_until(lambda: heard(pair) > before)
    pair.state = freeze_again(pair.server, state)
    assert pair.state is not state
    assert (pair.state.unsent, pair.state.window) == (state.unsent, state.window)
    pair.move()
    pair.drain()
    pair.talk()
    pair.end()


@BOTH
def test_a_reset_that_comes_late_ends_the_connection_there(lab: Stage, wire: Wire, address: str) -> None:
    pair = frozen(lab, wire, address)
    state = pair.state
    assert state is not None
    pair.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    pair.client.close()
    wire.deliver(wire.next())
    wait_until(lambda: tcp_state(pair.server) == TcpState.CLOSE)
    pair.state = freeze_again(pair.server, state)
    assert pair.state.state == TcpState.CLOSE
    assert not kernel.in_repair(pair.server)
    unfreeze(pair.server, pair.state)  # what a rollback does
    assert readable(pair.server)
    with pytest.raises(ConnectionResetError):
        pair.server.recv(1)
    pair.move()
    assert pair.server.recv(1) == b""


@BOTH
@pytest.mark.parametrize("again", [False, True])
def test_a_frame_that_comes_while_a_socket_is_read_is_read_with_it(
    lab: Stage, wire: Wire, address: str, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue is longer than it was a moment ago: that is no reason to give a migration up."""
    pair = connect(lab, address)
    pair.talk()
    settle(pair)
    wire.forget()
    pair.client_sends(5)
    old = wire.next()
    wait_until(lambda: arrived(pair.server) == 5)
    settle(pair)
    lab.cut("source")
    first = None
    if again:
        first = freeze(pair.server)
        before = heard(pair)
        wire.deliver(old)  # there is something to look at
        wait_until(lambda: heard(pair) > before)
    wire.forget()
    pair.client_sends(10)
    late = [wire.next()]

    def counted_too_early(sock: socket.socket) -> int:
        count = inq(sock)
        while late:
            wire.deliver(late.pop())
            wait_until(lambda: arrived(sock) == 15)
        return count

    inq = kernel.inq
    monkeypatch.setattr(freezing.kernel, "inq", counted_too_early)
    pair.state = freeze_again(pair.server, first) if first else freeze(pair.server)
    assert len(pair.state.unread) == 15
    pair.move()
    pair.drain()
    pair.talk()
    assert pair.lost() == 0
    pair.end()


def test_what_cannot_be_read_is_an_error_and_the_window_is_open_again(
    lab: Stage, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = connect(lab)
    pair.client_sends(5)
    wait_until(lambda: arrived(pair.server) == 5)
    monkeypatch.setattr(freezing.kernel, "inq", lambda _: 4)
    with pytest.raises(freezing.FreezeError, match="counts 4 bytes in a queue and shows 5"):
        freeze(pair.server)
    assert not kernel.in_repair(pair.server)
    monkeypatch.undo()
    pair.talk()
    pair.end()


# --- as a whole


def test_a_migration_breaks_no_connection_of_which_a_frame_comes_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its agent lets requests reach the source's socket when all sockets were read for
    the last time, and keeps the frame from the target."""
    monkeypatch.setattr("testbed.lab.supervisor.ENTRY", "tests.system.late_agent:main")
    result = migrate(tmp_path, clients=1, connections=4, family="ipv4")
    assert result.outcome == "completed"
    assert failed_checks(result) == []
