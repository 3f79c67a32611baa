"""A client and a server's connection on the stage, and its move from source to target."""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from netns.namespace import Namespace
from testbed.kernel import tcp_repair as kernel
from testbed.measure.pattern import pattern
from testbed.tcp.freeze import freeze, unchanged
from testbed.tcp.injector import Injector
from testbed.tcp.state import ConnectionState, decode, encode
from testbed.tcp.thaw import acknowledge, prepare, release, thaw
from tests.system.tcp_stage import GUEST_4, Stage

PORT = 7000
PATIENCE_S = 15.0
"""Far more than anything here takes on a busy machine; the restored retransmission timer is one second."""


@dataclass
class Pair:
    """One connection. Bytes either way follow the pattern; the counts say how far each direction is.

    What a move loses, the client sends again once the guest is heard again: :meth:`lost`. What it sends again
    before that, into the cut, says only how long the test had to wait for a processor (0.3 s: one segment,
    1 s: three, 2 s: four), because a connection whose acknowledgement is due has timers that run.
    """

    lab: Stage
    client: socket.socket
    server: socket.socket
    state: ConnectionState | None = None
    to_client: int = 0
    to_server: int = 0
    read_by_client: int = 0
    read_by_server: int = 0
    resent_before: int = 0
    needless_before: int = 0

    def client_sends(self, count: int) -> None:
        """`count` bytes into the client's socket, which takes them all."""
        self.client.sendall(pattern(self.to_server, count))
        self.to_server += count

    def server_sends(self, count: int) -> None:
        """`count` bytes into the server's socket, which takes them all."""
        self.server.sendall(pattern(self.to_client, count))
        self.to_client += count

    def client_fills(self) -> None:
        """Write until the server's window and the client's buffer are full."""
        self.to_server += _fill(self.client, self.to_server)

    def server_fills(self) -> None:
        """Write until the client's window and the server's buffer are full."""
        self.to_client += _fill(self.server, self.to_client)

    def drain(self) -> None:
        """Read on both sides all that was written, and check each byte."""
        deadline_s = time.monotonic() + PATIENCE_S
        while self.read_by_client < self.to_client or self.read_by_server < self.to_server:
            assert time.monotonic() < deadline_s, f"stuck: {self}"
            readers = [self.client, self.server]
            for reader in select.select(readers, [], [], 0.1)[0]:
                self._read(reader)

    def _read(self, reader: socket.socket) -> None:
        data = reader.recv(1 << 16, socket.MSG_DONTWAIT)
        if reader is self.client:
            assert data == pattern(self.read_by_client, len(data))
            self.read_by_client += len(data)
        else:
            assert data == pattern(self.read_by_server, len(data))
            self.read_by_server += len(data)

    def talk(self, count: int = 3000) -> None:
        """Both sides write and read `count` bytes, a piece at a time."""
        for piece in [10_000] * (count // 10_000) + [count % 10_000]:
            self.client_sends(piece)
            self.server_sends(piece)
            self.drain()

    def freeze(self) -> ConnectionState:
        """Cut the source, read the server's socket, and see that the peer was not heard in between."""
        self.lab.cut("source")
        self.state = freeze(self.server)
        assert unchanged(self.server, self.state)
        return self.state

    def move(
        self,
        *,
        probe: bool = True,
        acknowledges: bool = True,
        edit: Callable[[ConnectionState], ConnectionState] | None = None,
    ) -> None:
        """Freeze (where that is not done yet), thaw from the encoded bytes, plug in and release."""
        state = self.state or self.freeze()
        moved = decode(encode(edit(state) if edit else state))
        assert isinstance(moved, ConnectionState)
        with self.lab.target.entered(), Injector() as injector:
            there = thaw(moved, prepare(state.family), injector)
            if state.state != kernel.TcpState.CLOSE:
                assert kernel.window(there) == moved.window
            self.server.close()
            self.lab.plug("target")
            release(there, moved, probe)
            if acknowledges:
                acknowledge([moved], injector)
        if self.client.fileno() >= 0:
            self.count_anew()
        there.settimeout(PATIENCE_S)
        self.server, self.state = there, None

    def end(self) -> None:
        """Both sides end what they have not ended yet; both hear the other's end, and nobody a reset."""
        for one, other in ((self.server, self.client), (self.client, self.server)):
            if kernel.tcp_info(one).state in (kernel.TcpState.ESTABLISHED, kernel.TcpState.CLOSE_WAIT):
                one.shutdown(socket.SHUT_WR)
            assert readable(other)
            assert other.recv(1) == b""
        for sock in (self.server, self.client):
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0

    def count_anew(self) -> None:
        """From here on the guest is heard again: what the client sends again counts."""
        self.resent_before, self.needless_before = _sent_again(self.client)

    @property
    def resent(self) -> int:
        """Segments that the client sent again since the move."""
        return _sent_again(self.client)[0] - self.resent_before

    def lost(self) -> int:
        """Segments that the client had to send again since the move, because nobody had the first copy.

        Of what it sent again because an acknowledgement was late, the guest says so (D-SACK, RFC 2883), if it
        has agreed on SACK. That too may come late: waits a second for it.
        """
        deadline_s = time.monotonic() + 1.0
        while True:
            resent, needless = _sent_again(self.client)
            lost = resent - self.resent_before - (needless - self.needless_before)
            if lost <= 0 or time.monotonic() > deadline_s:
                return max(lost, 0)
            time.sleep(0.001)


def connect(
    lab: Stage, address: str = GUEST_4, prepare_client: Callable[[socket.socket], object] | None = None
) -> Pair:
    """A connection from `client` to `source`; its listener is gone."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with lab.source.entered():
        listener = socket.create_server((address, PORT), family=family)
    with lab.client.entered():
        client = socket.socket(family)
        if prepare_client:
            prepare_client(client)
        client.settimeout(PATIENCE_S)
        client.connect((address, PORT))
    server, _ = listener.accept()
    listener.close()
    server.settimeout(PATIENCE_S)
    return Pair(lab, client, server)


def wait_until(holds: Callable[[], bool]) -> None:
    """Ask until it holds; some states of a socket have no event."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline_s, "it never came to hold"
        time.sleep(0.001)


def readable(sock: socket.socket, timeout_s: float = PATIENCE_S) -> bool:
    """Whether bytes, the end or an error come within `timeout_s`."""
    return bool(select.select([sock], [], [], timeout_s)[0])


def tcp_state(sock: socket.socket) -> int:
    """The kernel's number of the connection's state."""
    return kernel.tcp_info(sock).state


def quiet(sock: socket.socket) -> bool:
    """Whether all that `sock` wrote is acknowledged."""
    return kernel.outq(sock) == 0


def arrived(sock: socket.socket) -> int:
    """Bytes that wait to be read."""
    (count,) = struct.unpack("i", fcntl.ioctl(sock, kernel.SIOCINQ, bytes(4)))
    return int(count)


def counted(namespace: Namespace, name: str) -> int:
    """A counter of /proc/net/netstat; 0 where this kernel does not have it."""
    with namespace.entered():
        lines = Path("/proc/thread-self/net/netstat").read_text().splitlines()
    names, values = lines[0].split(), lines[1].split()
    return int(values[names.index(name)]) if name in names else 0


def offer(client: socket.socket) -> int:
    """Bytes that the server offered to take, as the client knows it (tcp_info: tcpi_snd_wnd, Linux 5.4)."""
    data = client.getsockopt(kernel.SOL_TCP, kernel.TCP_INFO, 232)
    return int.from_bytes(data[228:232], "little")


def _sent_again(client: socket.socket) -> tuple[int, int]:
    """Segments that `client` sent again, and those of them that were needless (tcp_info: tcpi_total_retrans,
    tcpi_dsack_dups, Linux 4.19)."""
    data = client.getsockopt(kernel.SOL_TCP, kernel.TCP_INFO, 232)
    return int.from_bytes(data[100:104], "little"), int.from_bytes(data[216:220], "little")


def _fill(sock: socket.socket, offset: int) -> int:
    """Write until the socket takes nothing for a tenth of a second, that is until the peer is full as
    well."""
    total = 0
    while select.select([], [sock], [], 0.1)[1]:
        total += sock.send(pattern(offset + total, 1 << 16), socket.MSG_DONTWAIT)
    return total
