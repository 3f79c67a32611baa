"""What a connection costs: ``python -m testbed.tcp.bench [CONNECTIONS]`` prints medians in microseconds.

Run it in a network namespace of its own (``unshare -rn``, loopback up): it moves connections of a loopback
server onto themselves, the server's end frozen and closed, then thawed where it stood.
"""

from __future__ import annotations

import gc
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from testbed.tcp.freeze import freeze, freeze_again
from testbed.tcp.handshakes import HalfOpen
from testbed.tcp.state import ConnectionState, decode, encode
from testbed.tcp.thaw import prepare, release, thaw

T = TypeVar("T")
_UNREAD_BYTES = 1000


def main(connections: int = 500) -> None:
    """Move `connections` connections and print what each step took, per connection."""
    for address, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)):
        for unread in (0, _UNREAD_BYTES):
            print(f"{family.name}, {connections} connections, {unread} bytes unread each")
            _move(address, family, connections, unread)


def _move(address: str, family: socket.AddressFamily, connections: int, unread: int) -> None:
    listener = socket.create_server((address, 0), family=family, backlog=connections)
    clients = [socket.create_connection(listener.getsockname()[:2]) for _ in range(connections)]
    servers = [listener.accept()[0] for _ in clients]
    for client in clients:
        client.sendall(b"x" * unread)
    gc.collect()
    gc.freeze()

    states: list[ConnectionState] = _each("freeze", freeze, servers)
    _each("look again", lambda pair: freeze_again(pair[0], pair[1]), zip(servers, states, strict=True))
    encoded = _each("encode", encode, states)
    decoded = _each("decode", decode, encoded)
    for server in servers:
        server.close()
    prepared = _each("prepare", lambda _: prepare(family), states)
    assert decoded == states
    thawed = _each("thaw", lambda pair: thaw(pair[0], pair[1]), zip(states, prepared, strict=True))
    _each("release", lambda pair: release(pair[0], pair[1], False), zip(thawed, states, strict=True))
    with HalfOpen() as half_open:
        _each("half-open", lambda _: half_open.count(), range(20))
    for client, server in zip(clients, thawed, strict=True):
        client.sendall(b"y")
        assert len(server.recv(unread + 1)) in (unread, unread + 1)
        client.close()
        server.close()


def _each(what: str, do: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
    took_ns = []
    results = []
    for item in items:
        began_ns = time.perf_counter_ns()
        results.append(do(item))
        took_ns.append(time.perf_counter_ns() - began_ns)
    worst = statistics.quantiles(took_ns, n=100)[98]
    print(f"  {what:<10} {statistics.median(took_ns) / 1000:8.1f} us, 99th percentile {worst / 1000:8.1f} us")
    return results


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
