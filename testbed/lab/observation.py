"""What the network believes, and when it changed its mind: the tables that a migration has to move.

Three kinds of news, of the guests alone. A *neighbour* entry of a client says at which MAC address it
believes a guest's IP address to be; a *forwarding* entry of a bridge (the switch, the hosts) says behind
which port it believes a guest's MAC address to be; and an *announcement* is what is sent to change both. The
watches are the kernel's own notifications, and a packet socket in each client, so that what counts is what
reached the client and not what was sent to it.

A table's time is when the news was read: the kernel puts none into them. Whoever waits on
:meth:`Observation.fileno` reads within a wake-up; one that is busy with something else reads late, and never
early (:mod:`testbed.lab.observer` does nothing else). An announcement has the time at which the kernel
received it.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, Self

from netns.namespace import Namespace
from netns.observe import Change, ForwardingWatch, NeighbourWatch, ObserveError, Watch
from testbed.handover.filters import Identity
from testbed.handover.observers import AnnouncementObserver

Event = dict[str, Any]

ONLY_BRIDGE = "br0"
CLIENT_INTERFACE = "eth0"


class Observation:
    """Watches clients and bridges from construction to :meth:`close`; a context manager.

    Events (all with `t_ns` and `source`, the node; with several guests also `vm`, where it is known whose):

    - ``neighbour``: `address`, `mac` (None: not resolved), `was` (the MAC address before), `state` (the
      kernel's word), `gone`. The state alone may have changed.
    - ``forwarding``: `mac`, `port`, `was` (the port before; None: there was no entry), `gone`.
    - ``announcement-seen``: `kind`, `mac` (who sent it).
    - ``news-lost``: `table`, `error`. What happened meanwhile is not known; the watch goes on.
    """

    def __init__(
        self,
        *,
        clients: Mapping[str, Namespace],
        bridges: Mapping[str, Namespace],
        guests: Mapping[str, Identity],
        bridge: str = ONLY_BRIDGE,
        interface: str = CLIENT_INTERFACE,
    ) -> None:
        """Listen from now on: `interface` and the neighbour table of each of `clients`, the forwarding table
        of `bridge` in each of `bridges`, for the `guests` (identities by name). OSError or ObserveError where
        there is no such interface; nothing is open then.
        """
        self._several = len(guests) > 1
        self._vm_of = {
            key: vm
            for vm, identity in guests.items()
            for key in (
                *(mac.hex(":") for mac in identity.macs),
                *(str(address) for address in (*identity.ipv4, *identity.ipv6)),
            )
        }
        self._last: dict[tuple[str, str], str] = {}
        self._readers: dict[int, Callable[[], Iterator[Event]]] = {}
        with ExitStack() as stack:
            self._epoll = stack.enter_context(select.epoll())
            for node, namespace in bridges.items():
                watch = stack.enter_context(ForwardingWatch(namespace, bridge))
                self._add(watch.fileno(), partial(self._forwarding, node, watch))
            for node, namespace in clients.items():
                table = stack.enter_context(NeighbourWatch(namespace))
                self._add(table.fileno(), partial(self._neighbours, node, table))
                heard = AnnouncementObserver(namespace, interface, _all_of(guests))
                stack.callback(heard.close)
                self._add(heard.fileno(), partial(self._announcements, node, heard))
            self._stack = stack.pop_all()

    def fileno(self) -> int:
        """Readable when there is news: then :meth:`take`."""
        return self._epoll.fileno()

    def take(self) -> list[Event]:
        """The news so far, of each source in order. Never waits."""
        return [event for fd, _ in self._epoll.poll(0) for event in self._readers[fd]()]

    def close(self) -> None:
        """Stop listening. Each client's packet socket waits for an RCU grace period, 10 to 25 ms."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _add(self, fd: int, reader: Callable[[], Iterator[Event]]) -> None:
        self._readers[fd] = reader
        self._epoll.register(fd, select.EPOLLIN)

    def _forwarding(self, node: str, watch: ForwardingWatch) -> Iterator[Event]:
        for change in _read_all(watch):
            if isinstance(change, ObserveError):
                yield _lost(node, "forwarding", change)
                continue
            entry = change.entry
            if entry.mac in self._vm_of:
                was = self._replace(node, entry.mac, None if change.gone else entry.port)
                told: Event = {"mac": entry.mac, "port": entry.port, "was": was, "gone": change.gone}
                yield self._event(change.at_ns, node, "forwarding", entry.mac, told)

    def _neighbours(self, node: str, watch: NeighbourWatch) -> Iterator[Event]:
        for change in _read_all(watch):
            if isinstance(change, ObserveError):
                yield _lost(node, "neighbour", change)
                continue
            entry = change.entry
            if entry.address in self._vm_of:
                mac = None if change.gone else entry.mac
                was = self._replace(node, entry.address, mac)
                told: Event = {"address": entry.address, "mac": mac, "was": was}
                told |= {"state": entry.state, "gone": change.gone}
                yield self._event(change.at_ns, node, "neighbour", entry.address, told)

    def _announcements(self, node: str, heard: AnnouncementObserver) -> Iterator[Event]:
        for sighting in heard.take():
            mac = sighting.mac.hex(":")
            told = {"kind": sighting.kind, "mac": mac}
            yield self._event(sighting.t_ns, node, "announcement-seen", mac, told)

    def _replace(self, node: str, key: str, value: str | None) -> str | None:
        """Remember what `node` holds for `key` now; returns what it held before."""
        was = self._last.pop((node, key), None)
        if value is not None:
            self._last[node, key] = value
        return was

    def _event(self, t_ns: int, node: str, event: str, whose: str, told: Event) -> Event:
        vm = {"vm": self._vm_of[whose]} if self._several and whose in self._vm_of else {}
        return {"t_ns": t_ns, "source": node, "event": event, **vm, **told}


def _read_all(watch: Watch[Change]) -> Iterator[Change | ObserveError]:
    """All news of a watch, and in their place the word that some were lost."""
    while True:
        try:
            changes = watch.read()
        except ObserveError as error:
            yield error
            changes = watch.read()
        if not changes:
            return
        yield from changes


def _all_of(guests: Mapping[str, Identity]) -> Identity:
    """One identity that is all of them: for a filter that lets through what concerns any."""
    identities = guests.values()
    return Identity(
        tuple(mac for one in identities for mac in one.macs),
        tuple(address for one in identities for address in one.ipv4),
        tuple(address for one in identities for address in one.ipv6),
    )


def _lost(node: str, table: str, error: ObserveError) -> Event:
    return {
        "t_ns": time.monotonic_ns(),
        "source": node,
        "event": "news-lost",
        "table": table,
        "error": str(error),
    }
