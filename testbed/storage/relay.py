"""The redirected way: a host carries its peer's storage traffic from the migration network to the target.

Plain TCP, byte for byte: who may write what remains the target's to decide, by the key, lease and epoch that
the peer's own connection names. Three ports in a row are served (:class:`RelayPorts`), each for one
destination.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
from dataclasses import dataclass
from pathlib import Path

from testbed.storage import stream
from testbed.storage.paths import abandon, cut
from testbed.storage.stream import Address, StreamLost

PIECE_BYTES = 256 << 10
CONNECT_DEADLINE_S = 1.0
_SILENT_MS = 30_000  # of a peer whose wire is cut: what it left half said is thrown away


@dataclass(frozen=True, slots=True)
class RelayPorts:
    """Where a host listens for its peer: for the target's NBD port, its LUN service, and for this host's own
    volume service, which the peer asks for changes of the volume while this host is the coordinator."""

    host: str
    nbd: int

    @property
    def lun(self) -> int:
        return self.nbd + 1

    @property
    def service(self) -> int:
        return self.nbd + 2


def listen(ports: RelayPorts, target_nbd: Address, target_lun: Address, control: Path) -> None:
    """Carry connections from now on, in threads of their own. OSError if a port is taken."""
    for port, goal in ((ports.nbd, target_nbd), (ports.lun, target_lun), (ports.service, control)):
        listener = socket.create_server((ports.host, port), backlog=64)
        threading.Thread(target=_accept, args=(listener, goal), name=f"relay-{port}", daemon=True).start()


def _accept(listener: socket.socket, goal: Address) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError as error:  # it broke off before we came to it, or we have no descriptor left
            logging.warning("a connection could not be accepted: %s", error)
            continue
        threading.Thread(target=carry, args=(connection, goal), name="relay", daemon=True).start()


def carry(near: socket.socket, goal: Address) -> None:
    """Connect to `goal` and carry bytes both ways until both sides have ended, or one of them is lost. Where
    the goal cannot be reached the near side is closed at once."""
    try:
        far = stream.connect(goal, CONNECT_DEADLINE_S)
    except StreamLost:
        abandon(near)
        return
    stream.set_deadline(far, None)
    for connection in (near, far):
        if connection.family == socket.AF_INET:
            _notice_silence(connection)
    back = threading.Thread(target=_pump, args=(far, near), name="relay-back", daemon=True)
    back.start()
    _pump(near, far)
    back.join()
    near.close()
    far.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Carry one direction. Its orderly end is passed on; where one side is lost, the other is cut as well, so
    that nobody waits for what will not come.

    What a peer has sent and then aborted is not carried any further: it goes another way by now, and an old
    write must not arrive after it. The kernel would still hand it out, before it tells of the abort. Where
    the abort itself is lost, the target ends the connection, when the peer's next turn comes.
    """
    buffer = memoryview(bytearray(PIECE_BYTES))
    errors = select.poll()
    errors.register(source, 0)  # POLLERR is told unasked; POLLHUP comes with an orderly end as well
    try:
        while got := source.recv_into(buffer):
            if any(event & select.POLLERR for _, event in errors.poll(0)):
                break
            sink.sendall(buffer[:got])
        else:
            sink.shutdown(socket.SHUT_WR)
            return
    except OSError as error:
        logging.info("a relayed connection was lost: %s", error)
    cut(source)
    cut(sink)


def _notice_silence(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENT_MS)
