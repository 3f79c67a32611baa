"""One thread's events: descriptors that became ready, and moments that have come.

Timers stand on the absolute CLOCK_MONOTONIC, so nothing drifts. Waiting is select(2) on the epoll descriptor
alone, because its timeout counts microseconds where epoll_wait(2) counts milliseconds.

All ready descriptors are read before the first timer that is due runs: when many replies come at once, each
is stamped before any new request is sent, and the time that sending takes is not counted as waiting.
"""

from __future__ import annotations

import heapq
import select
import time
from collections.abc import Callable

Ready = Callable[[int], None]
"""Called with the epoll events of its descriptor."""

IN = select.EPOLLIN
OUT = select.EPOLLOUT
_NS = 1e-9
_LONGEST_SLEEP_S = 3600.0


class Loop:
    """Descriptors, timers, and :meth:`run`. Closing it closes no descriptor but its own."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._ready: dict[int, Ready] = {}
        self._timers: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0

    def add(self, descriptor: int, events: int, ready: Ready) -> None:
        """Call `ready` as often as one of `events` (or an error, or a hang-up) holds at `descriptor`."""
        self._epoll.register(descriptor, events)
        self._ready[descriptor] = ready

    def change(self, descriptor: int, events: int) -> None:
        self._epoll.modify(descriptor, events)

    def remove(self, descriptor: int) -> None:
        """Call before the descriptor is closed, else its number may come back as another's."""
        self._epoll.unregister(descriptor)
        del self._ready[descriptor]

    def at(self, due_ns: int, callback: Callable[[], None]) -> None:
        """Call `callback` once, as soon as CLOCK_MONOTONIC has reached `due_ns`. There is no cancelling."""
        self._order += 1
        heapq.heappush(self._timers, (due_ns, self._order, callback))

    def run(self, until: Callable[[], object], deadline_ns: int | None = None) -> bool:
        """Go on until `until` gives something true, which is asked after each round: True.

        False when `deadline_ns` came first. May be called again to go on.
        """
        poll, timers, ready, pop = self._epoll.poll, self._timers, self._ready, heapq.heappop
        waiting, clock = [self._epoll.fileno()], time.monotonic_ns
        if deadline_ns is not None:
            self.at(deadline_ns, _nothing)  # wakes the loop
        while not until():
            if deadline_ns is not None and clock() >= deadline_ns:
                return False
            sleep_s = (timers[0][0] - clock()) * _NS if timers else _LONGEST_SLEEP_S
            if sleep_s > 0:
                select.select(waiting, (), (), min(sleep_s, _LONGEST_SLEEP_S))
            for descriptor, events in poll(0):
                handler = ready.get(descriptor)
                if handler is not None:  # None: an event before it, in this round, has removed it
                    handler(events)
            now = clock()
            while timers and timers[0][0] <= now:
                pop(timers)[2]()
        return True

    def close(self) -> None:
        self._epoll.close()


def _nothing() -> None:
    pass
