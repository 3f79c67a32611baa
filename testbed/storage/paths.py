"""The ways from a host to the storage target, and which of them its I/O takes at the moment.

    direct       over the storage network
    redirected   over the migration network to the peer host, whose relay goes on over the storage network
    offline      neither works: I/O waits

One thread watches: it asks the target's LUN service over the way in use a few times a second, and when that
stays without an answer it looks for another, the direct one first. Whoever waits for an answer over a way
that is lost does not find out by a time limit of its own, which a slow disk or a shared link would exceed as
well: the watch cuts its connection.
"""

from __future__ import annotations

import math
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from testbed.storage.lun_client import LunClient, LunLost, LunRefused
from testbed.storage.stream import set_deadline

IO_DEADLINE_S = 1.0
"""How long the target may stay silent on a question that costs it nothing before a way counts as lost."""

CONNECT_DEADLINE_S = 0.3
LOOK_INTERVAL_S = 0.2
OFFLINE = "offline"

_ABORT = struct.pack("ii", 1, 0)  # struct linger: close() sends RST and forgets what was not sent (socket(7))


@dataclass(frozen=True, slots=True)
class Route:
    """A way to the target: where its NBD port and its LUN service are to be reached."""

    name: str
    host: str
    nbd_port: int
    lun_port: int

    @property
    def nbd(self) -> tuple[str, int]:
        return self.host, self.nbd_port

    @property
    def lun(self) -> tuple[str, int]:
        return self.host, self.lun_port


class Offline(Exception):
    """There is no way to the storage target, neither direct nor through the peer host."""


class Paths:
    """Which way is taken, for all connections of a host. `routes` are in the order in which they are
    preferred; `told` is called with the state's name at each change; before the first, that is "offline".

    A way that is lost may come back, and then the kernel would still deliver what a connection over it has in
    its send buffer: an old write, after the same write and newer ones have gone another way. So whoever
    leaves a connection behind must abort it (:func:`abandon`), which empties the buffer; :meth:`carrying`
    sees to that. What is past that buffer the target keeps out (:class:`testbed.storage.turns.Turns`).
    """

    def __init__(self, routes: tuple[Route, ...], told: Callable[[str], None]) -> None:
        self._routes = routes
        self._told = told
        self._changed = threading.Condition()
        self._route: Route | None = None
        self._why = "nobody has looked yet"
        self._last_told = OFFLINE
        self._carried: dict[socket.socket, Route] = {}
        self._look_now = threading.Event()
        self._asking: dict[Route, LunClient] = {}

    def start(self) -> None:
        """Look once, and from then on all the time, in a thread of its own."""
        self._look()
        threading.Thread(target=self._watch, name="paths", daemon=True).start()

    @property
    def state(self) -> str:
        """The name of the way in use, or "offline"."""
        route = self._route
        return OFFLINE if route is None else route.name

    def route(self, deadline_s: float = math.inf, given_up: Callable[[], bool] = lambda: False) -> Route:
        """The way to take. Waits for one; Offline after `deadline_s`, or when `given_up` says that nobody
        wants it any more (asked now and then)."""
        end_s = time.monotonic() + deadline_s
        with self._changed:
            while self._route is None:
                left_s = end_s - time.monotonic()
                if left_s <= 0 or given_up():
                    raise Offline(f"no way to the storage: {self._why}")
                self._changed.wait(min(left_s, IO_DEADLINE_S))
            return self._route

    def failed(self, route: Route) -> None:
        """A connection over `route` has failed. Returns when the watch has looked, or a little later: whoever
        tries again at once may come too early."""
        with self._changed:
            self._look_now.set()
            self._changed.wait_for(lambda: self._route != route, LOOK_INTERVAL_S)

    @contextmanager
    def carrying(self, connection: socket.socket, route: Route) -> Iterator[None]:
        """For the length of the block, `connection` is cut if `route` is lost. What is cut leaves nothing
        behind that could arrive later."""
        with self._changed:
            self._carried[connection] = route
            if self._route != route:
                cut(connection)  # it was lost while the connection was being made
        try:
            yield
        finally:
            with self._changed:
                del self._carried[connection]

    # ---- the watching thread

    def _watch(self) -> None:
        while True:
            self._look_now.wait(LOOK_INTERVAL_S)
            self._look_now.clear()
            self._look()

    def _look(self) -> None:
        """Find the best way that works, and tell those concerned if it is another than before. A way that is
        not the best any more is watched as long as somebody may wait for an answer over it."""
        reasons = []
        best = None
        for route in self._routes:
            if best is not None and not self._carries(route):
                continue
            reason = self._silent(route)
            if reason is None:
                best = best or route
            else:
                self._lose(route)
                reasons.append(f"{route.name}: {reason}")
        with self._changed:
            self._route = best
            self._why = "; ".join(reasons)
            self._changed.notify_all()
        if self._last_told != self.state:
            self._last_told = self.state
            self._told(self._last_told)

    def _carries(self, route: Route) -> bool:
        with self._changed:
            return route in self._carried.values()

    def _lose(self, route: Route) -> None:
        """Nobody waits any longer for an answer over `route`."""
        with self._changed:
            if self._route == route:
                self._route = None
            for connection, over in self._carried.items():
                if over == route:
                    cut(connection)

    def _silent(self, route: Route) -> str | None:
        """Why `route` does not work; None if it does. A kept connection may have ended for reasons of its own
        (the target was started again): then a new one decides."""
        kept = self._asking.pop(route, None)
        if kept is not None:
            try:
                kept.luns()
            except (LunLost, LunRefused):
                abandon(kept.socket)
            else:
                self._asking[route] = kept
                return None
        try:
            fresh = LunClient.connect(route.lun, deadline_s=CONNECT_DEADLINE_S)
        except LunLost as error:
            return str(error)
        try:
            fresh.luns()
        except (LunLost, LunRefused) as error:
            abandon(fresh.socket)
            return str(error)
        set_deadline(fresh.socket, IO_DEADLINE_S)
        self._asking[route] = fresh
        return None


def cut(connection: socket.socket) -> None:
    """End a connection that another thread uses: it notices at once, and its close() will be an abort."""
    with suppress(OSError):  # it has ended by itself
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        connection.shutdown(socket.SHUT_RDWR)


def abandon(connection: socket.socket) -> None:
    """Close a connection and throw away what it has not sent: nothing of it arrives later."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
    connection.close()
