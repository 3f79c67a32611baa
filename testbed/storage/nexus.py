"""A connection to the target that outlives the way it takes: a block device that is slow at worst."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar

from testbed.storage import stream
from testbed.storage.client import NbdClient, NbdLost
from testbed.storage.paths import IO_DEADLINE_S, Paths, Route, abandon

T = TypeVar("T")
STUCK_S = 60.0
"""A target that answers the watch, but not a request for so long, has lost it. A disk may be slow."""


class Nexus:
    """The export `export` of the target, which names a key, for one thread.

    A request whose answer does not come is made again over the way that then works: every one of them may be
    carried out twice, but none after a newer one, for each connection is the next turn of one session
    (:class:`testbed.storage.turns.Turns`). What the target refuses is refused (NbdRefused). While no way
    works a request waits, for `deadline_s` at most: Offline.
    """

    def __init__(self, paths: Paths, export: str, deadline_s: float) -> None:
        self.export = export
        self._paths = paths
        self._deadline_s = deadline_s
        self._given_up: Callable[[], bool] = lambda: False
        self._session = secrets.token_hex(8)
        self._turn = 0
        self._client: NbdClient | None = None
        self._route: Route | None = None
        self._carried = ExitStack()

    def wait_until(self, given_up: Callable[[], bool]) -> None:
        """From now on, while no way works, wait for ever, or until `given_up` says that nobody waits any
        more."""
        self._deadline_s, self._given_up = math.inf, given_up

    def open(self) -> None:
        """Connect now, so that the first request finds a connection. NbdRefused if there is no such
        export."""
        self._ask(_nothing)

    @property
    def size(self) -> int:
        return self._ask(lambda client: client.size)

    def read(self, offset: int, length: int) -> bytes:
        return self._ask(lambda client: client.read(offset, length))

    def read_into(self, offset: int, view: memoryview) -> None:
        self._ask(lambda client: client.read_into(offset, view))

    def write(self, offset: int, data: bytes | memoryview, *, fua: bool = False) -> None:
        self._ask(lambda client: client.write(offset, data, fua=fua))

    def write_zeroes(self, offset: int, length: int, *, no_hole: bool = False) -> None:
        self._ask(lambda client: client.write_zeroes(offset, length, no_hole=no_hole))

    def trim(self, offset: int, length: int) -> None:
        self._ask(lambda client: client.trim(offset, length))

    def flush(self) -> None:
        """What was written over another way is flushed as well: the target's exports are one cache."""
        self._ask(lambda client: client.flush())

    def close(self) -> None:
        """Go. Nothing happens if it is closed already."""
        self._carried.close()
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _ask(self, request: Callable[[NbdClient], T]) -> T:
        while True:
            route = self._paths.route(self._deadline_s, self._given_up)
            try:
                return request(self._connected(route))
            except NbdLost:
                self._abandon()
                self._paths.failed(route)

    def _connected(self, route: Route) -> NbdClient:
        """The connection over `route`. One over another way, with nothing under way, is given up for it."""
        if self._client is not None and self._route == route:
            return self._client
        self.close()
        client = NbdClient.connect(route.nbd, self._next_turn(), deadline_s=IO_DEADLINE_S)
        stream.set_deadline(client.socket, STUCK_S)
        self._carried.enter_context(self._paths.carrying(client.socket, route))
        self._client, self._route = client, route
        return client

    def _next_turn(self) -> str:
        """The export's name for a new connection, which ends those before it."""
        self._turn += 1
        return f"{self.export}&session={self._session}&turn={self._turn}"

    def _abandon(self) -> None:
        """Leave the connection behind so that nothing of it arrives later where the peer hears of it; where
        it does not, the next turn sees to that."""
        self._carried.close()
        client, self._client = self._client, None
        if client is not None:
            abandon(client.socket)


def _nothing(_: NbdClient) -> None:
    """What is asked of a connection that only has to be there."""
