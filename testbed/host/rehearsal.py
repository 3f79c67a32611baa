"""A rehearsal: what the switchover will do to sockets, done to one of no consequence while the guest still
runs.

The first call of anything costs many times the later ones: the interpreter specialises its code after some
calls, and memory that was never touched in this process has to be mapped. In the blackout there is no time
for that.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack

from netns.namespace import Namespace
from testbed.host import devices
from testbed.tcp.freeze import freeze, freeze_again
from testbed.tcp.state import ConnectionState
from testbed.tcp.thaw import prepare, release, thaw

TIMES = 12  # CPython 3.11 specialises a function after eight calls


def rehearse(guest: Namespace) -> None:
    """Freeze a connection on the loopback of the guest's namespace, send its state through encoding and
    decoding, thaw it and let it live, a dozen times; about 5 ms. Nothing of it leaves the namespace, and
    nothing is left.
    """
    with ExitStack() as stack, guest.entered():
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        client = stack.enter_context(socket.create_connection(listener.getsockname()))
        server, _ = listener.accept()
        for turn in range(TIMES):
            client.send(b"rehearsal")
            state = freeze(server)
            client.send(b"late")
            state = freeze_again(server, state)
            data = devices.encode_sockets([(turn, state)])
            server.close()
            [(_, decoded)] = devices.decode_sockets(data)
            assert isinstance(decoded, ConnectionState)
            server = thaw(decoded, prepare(socket.AF_INET))
            release(server, decoded, probe=False)
        server.close()
