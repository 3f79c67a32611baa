"""A host's rights to a LUN: the commands of the target's LUN service, over whichever way works."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

from testbed.storage.lun_client import LunClient, LunLost, LunRefused
from testbed.storage.paths import CONNECT_DEADLINE_S, Paths, Route, abandon
from testbed.storage.stream import set_deadline

T = TypeVar("T")
ANSWER_DEADLINE_S = 10.0
"""The target answers a claim when no write that it forbids is under way any more: that may take a moment."""


class Rights:
    """The LUN `lun` and this host's `key`. For any thread; one command at a time is under way.

    The connection is made before it is needed and kept, so that a claim takes one round trip. A command whose
    answer is lost is given again: each of them may be. Every command raises LunRefused, or Offline when no
    way to the target works for `deadline_s`.
    """

    def __init__(self, paths: Paths, lun: str, key: str, deadline_s: float) -> None:
        self.lun = lun
        self.key = key
        self._paths = paths
        self._deadline_s = deadline_s
        self._one_at_a_time = threading.Lock()
        self._client: LunClient | None = None
        self._route: Route | None = None
        self._carried = ExitStack()

    def status(self) -> dict[str, Any]:
        """See :meth:`testbed.storage.lun_client.LunClient.status`."""
        return self._ask(lambda client: client.status(self.lun))

    def register(self) -> None:
        self._ask(lambda client: client.register(self.lun, self.key))

    def unregister(self) -> None:
        """Nothing happens if the key is not registered."""
        self._done_anyway("NotRegistered", lambda client: client.unregister(self.lun, self.key))

    def reserve(self, kind: str) -> None:
        self._ask(lambda client: client.reserve(self.lun, self.key, kind))

    def preempt(self, victim: str) -> None:
        self._ask(lambda client: client.preempt(self.lun, self.key, victim))

    def guard(self, lease: str, ranges: Sequence[tuple[int, int]]) -> int:
        """Make a lease that is ours, or change the ranges of one that is anybody's. Its epoch."""
        return int(self._ask(lambda client: client.guard(self.lun, self.key, lease, ranges))["epoch"])

    def unguard(self, lease: str) -> None:
        """Nothing happens if there is no such lease."""
        self._done_anyway("NoSuchLease", lambda client: client.unguard(self.lun, self.key, lease))

    def claim(self, lease: str, expect: int) -> int:
        """Take a lease over; its epoch from now on. When this returns, nothing that its holder before has
        written can land any more. LunRefused "Lost" if its epoch was not `expect`."""
        return self._ask(lambda client: client.claim(self.lun, self.key, lease, expect))

    def connect(self) -> None:
        """Have a connection when this returns, so that the next command takes one round trip."""
        self._ask(_nothing)

    def close(self) -> None:
        with self._one_at_a_time:
            self._leave()

    def _done_anyway(self, kind: str, command: Callable[[LunClient], None]) -> None:
        try:
            self._ask(command)
        except LunRefused as refused:
            if refused.kind != kind:
                raise

    def _ask(self, command: Callable[[LunClient], T]) -> T:
        while True:
            route = self._paths.route(self._deadline_s)
            with self._one_at_a_time:
                try:
                    return command(self._connected(route))
                except LunLost:
                    self._leave()
            self._paths.failed(route)

    def _connected(self, route: Route) -> LunClient:
        if self._client is not None and self._route == route:
            return self._client
        self._leave()
        client = LunClient.connect(route.lun, deadline_s=CONNECT_DEADLINE_S)
        set_deadline(client.socket, ANSWER_DEADLINE_S)
        self._carried.enter_context(self._paths.carrying(client.socket, route))
        self._client, self._route = client, route
        return client

    def _leave(self) -> None:
        self._carried.close()
        client, self._client = self._client, None
        if client is not None:
            abandon(client.socket)


def _nothing(_: LunClient) -> None:
    """What is asked of a connection that only has to be there."""
