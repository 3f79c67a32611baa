"""How frames pass one direction of a link under its conditions: when each comes out, if it does. Pure.

Frames go in with the time of their arrival and come out when they are due; `now` is an argument, and chance
comes from a seed. The relay process (`netns.relay`) moves the frames; what becomes of them is decided here.

                      +-- lost --+-- doubled --+-- waits for the wire --+-- under way --+
    offer(t, frame) ->| announcements, chance  |  rate, queue            | delay, jitter  |-> due(now)
                      +------------------------+------------------------+---------------+

All times are in nanoseconds on one clock. A frame is a virtio_net_hdr followed by an Ethernet frame, as a
packet socket with PACKET_VNET_HDR gives it.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from netns.conditions import Conditions
from netns.packet import ETH_P_ARP, ETH_P_IPV6, ETH_P_RARP, VNET_HEADER, VNET_HEADER_BYTES
from netns.topology import token_bucket

MOST_BYTES = 128 << 20
"""What one direction holds at most; a frame that finds no room is counted as overrun, not as lost."""

_GSO_TYPE_AT = 1  # in a virtio_net_hdr
_UDP_HEADER_BYTES = 8
_GSO_UDP_L4 = 5  # VIRTIO_NET_HDR_GSO_UDP_L4, linux/virtio_net.h
_PARETO_SHAPE = 3.0
_PARETO_MEAN, _PARETO_DEVIATION = 1.5, 0.75**0.5  # of the shape above with a least value of 1

# Offsets behind the virtio_net_hdr: ARP (RFC 826), IPv6 (RFC 8200), neighbour advertisement (RFC 4861, 4.4)
_DESTINATION = VNET_HEADER_BYTES
_ETHER_TYPE = slice(VNET_HEADER_BYTES + 12, VNET_HEADER_BYTES + 14)
_ARP_SENDER_IP = slice(VNET_HEADER_BYTES + 28, VNET_HEADER_BYTES + 32)
_ARP_TARGET_IP = slice(VNET_HEADER_BYTES + 38, VNET_HEADER_BYTES + 42)
_IPV6_NEXT_HEADER = VNET_HEADER_BYTES + 20
_ICMPV6_TYPE = VNET_HEADER_BYTES + 54
_ICMPV6, _NEIGHBOUR_ADVERTISEMENT = 58, 136
_ANNOUNCING = {kind.to_bytes(2, "big") for kind in (ETH_P_ARP, ETH_P_RARP, ETH_P_IPV6)}


@dataclass(slots=True)
class Times:
    """A distribution of times to a 256th of each, in a bounded number of classes."""

    counts: dict[int, int] = field(default_factory=dict)

    def add(self, value_ns: int) -> None:
        shift = max(0, value_ns.bit_length() - 9)
        key = shift << 9 | value_ns >> shift
        self.counts[key] = self.counts.get(key, 0) + 1

    def quantile_ns(self, share: float) -> int | None:
        """The time that `share` (0 to 1) of all do not exceed; None where there are none."""
        rank = share * sum(self.counts.values())
        seen = 0
        for key in sorted(self.counts):
            seen += self.counts[key]
            if seen >= rank:
                shift = key >> 9
                return ((key & 511) << shift) + (1 << shift >> 1)
        return None


@dataclass(slots=True)
class Tally:
    """What a passage has done since its last `reset`: frames (as on a wire) and bytes of them, by fate."""

    received_frames: int = 0
    received_bytes: int = 0
    passed_frames: int = 0
    passed_bytes: int = 0
    lost: int = 0
    announcements_lost: int = 0
    queue_dropped: int = 0
    overrun: int = 0
    duplicated: int = 0
    reordered: int = 0
    first_ns: int | None = None
    last_ns: int | None = None
    transit: Times = field(default_factory=Times)
    """From the arrival to the departure: queue, delay and what the relay was late."""
    late: Times = field(default_factory=Times)
    """From when it was due to the departure: the relay's own error."""


class Held(NamedTuple):
    """A frame on its way. Ordered by when it is due, then by arrival (a tuple, for the sake of the heap)."""

    due_ns: int
    number: int
    on_wire_ns: int
    arrived_ns: int
    frames: int
    size: int
    data: bytes


class Passage:
    """One direction. `name` keeps the chances of two directions with one seed apart."""

    def __init__(self, conditions: Conditions, name: str = "") -> None:
        self.tally = Tally()
        self._name = name
        self._counted_from_ns = 0
        self._held: list[Held] = []
        self._held_bytes = 0
        self._number = 0
        self._wire_free_ns = 0
        self._last_due_ns = 0
        self._queue: deque[tuple[int, int, int]] = deque()  # on the wire at, frames, bytes
        self._queued_frames = 0
        self._queued_bytes = 0
        self._adopt(conditions)

    def _adopt(self, conditions: Conditions) -> None:
        self.conditions = conditions
        self._chance = random.Random(f"{conditions.seed}/{self._name}")
        self._announcements_left = conditions.lost_announcements
        rate = conditions.rate_bits_per_s
        self._ns_per_byte = 8e9 / rate if rate is not None else 0.0
        self._most_frames, self._most_bytes = conditions.queue_frames, conditions.queue_bytes
        if rate is not None and self._most_frames is None and self._most_bytes is None:
            bucket = token_bucket(rate / 1e6)
            self._most_bytes = bucket.limit_bytes - bucket.burst_bytes

    def change(self, now_ns: int, conditions: Conditions) -> None:
        """New conditions from now on; none of the frames inside is lost, and they keep their order.

        What is under way arrives when it would have; what waits for the wire waits anew at the new rate.
        """
        before, self._held = self._held, []
        waiting = sorted((one for one in before if one.on_wire_ns > now_ns), key=lambda one: one.number)
        self._held = [one for one in before if one.on_wire_ns <= now_ns]
        heapq.heapify(self._held)
        self._last_due_ns = max((one.due_ns for one in self._held), default=0)
        self._held_bytes = sum(one.size for one in self._held)
        self._queue.clear()
        self._queued_frames = self._queued_bytes = 0
        self._wire_free_ns = now_ns
        self._adopt(conditions)
        for one in waiting:
            self._hold(now_ns, one.arrived_ns, one.frames, one.size, one.data)

    def reset(self, now_ns: int) -> None:
        """Count anew: what arrives from now on. What is inside passes uncounted."""
        self.tally = Tally()
        self._counted_from_ns = now_ns

    @property
    def is_empty(self) -> bool:
        return not self._held

    @property
    def next_due_ns(self) -> int | None:
        """When a frame comes out next; None while there is none."""
        return self._held[0].due_ns if self._held else None

    def offer(self, arrived_ns: int, data: bytes) -> None:
        """Take a frame in, in the order of arrival."""
        frames, size = on_wire(data) if data[_GSO_TYPE_AT] else (1, len(data) - VNET_HEADER_BYTES)
        tally, conditions = self.tally, self.conditions
        tally.received_frames += frames
        tally.received_bytes += size
        if tally.first_ns is None:
            tally.first_ns = arrived_ns
        tally.last_ns = arrived_ns
        if self._announcements_left and announces(data):
            self._announcements_left -= 1
            tally.announcements_lost += 1
            return
        if conditions.loss and self._chance.random() < conditions.loss:
            tally.lost += frames
            return
        self._enter(arrived_ns, frames, size, data)
        if conditions.duplication and self._chance.random() < conditions.duplication:
            tally.duplicated += frames
            self._enter(arrived_ns, frames, size, data)

    def _enter(self, arrived_ns: int, frames: int, size: int, data: bytes) -> None:
        """Into the queue, if there is room."""
        if self._held_bytes + size > MOST_BYTES:
            self.tally.overrun += frames
        elif self._ns_per_byte and self._is_full(arrived_ns, size):
            self.tally.queue_dropped += frames
        else:
            self._hold(arrived_ns, arrived_ns, frames, size, data)

    def _is_full(self, now_ns: int, size: int) -> bool:
        """Whether the queue has no room. An empty one has room for any frame."""
        queue = self._queue
        while queue and queue[0][0] <= now_ns:
            _, frames, gone = queue.popleft()
            self._queued_frames -= frames
            self._queued_bytes -= gone
        if self._most_frames is not None:
            return self._queued_frames >= self._most_frames
        return bool(queue) and self._queued_bytes + size > (self._most_bytes or 0)

    def _hold(self, now_ns: int, arrived_ns: int, frames: int, size: int, data: bytes) -> None:
        on_wire_ns = now_ns
        if self._ns_per_byte:
            on_wire_ns = max(now_ns, self._wire_free_ns) + round(size * self._ns_per_byte)
            self._wire_free_ns = on_wire_ns
            self._queue.append((on_wire_ns, frames, size))
            self._queued_frames += frames
            self._queued_bytes += size
        due_ns = self._due(on_wire_ns, frames)
        self._number += 1
        self._held_bytes += size
        held = Held(due_ns, self._number, on_wire_ns, arrived_ns, frames, size, data)
        heapq.heappush(self._held, held)

    def _due(self, on_wire_ns: int, frames: int) -> int:
        """When a frame that is on the wire at `on_wire_ns` comes out."""
        conditions = self.conditions
        if conditions.reordering and self._chance.random() < conditions.reordering:
            self.tally.reordered += frames if on_wire_ns < self._last_due_ns else 0
            return on_wire_ns
        due_ns = on_wire_ns + conditions.delay_ns
        if conditions.jitter_ns:
            due_ns = max(on_wire_ns, due_ns + self._jitter_ns())
        if due_ns < self._last_due_ns:
            if not conditions.jitter_reorders:
                return self._last_due_ns
            self.tally.reordered += frames
            return due_ns
        self._last_due_ns = due_ns
        return due_ns

    def _jitter_ns(self) -> int:
        spread, chance = self.conditions.jitter_ns, self._chance
        match self.conditions.distribution:
            case "uniform":
                return round(spread * (2 * chance.random() - 1))
            case "normal":
                return round(chance.gauss(0.0, spread))
            case "pareto":
                deviation: float = (chance.paretovariate(_PARETO_SHAPE) - _PARETO_MEAN) / _PARETO_DEVIATION
                return round(spread * deviation)

    def due(self, now_ns: int) -> list[Held]:
        """The frames that come out by now, in the order in which they are due."""
        out: list[Held] = []
        held = self._held
        while held and held[0].due_ns <= now_ns:
            one = heapq.heappop(held)
            self._held_bytes -= one.size
            out.append(one)
        return out

    def sent(self, one: Held, now_ns: int) -> None:
        """Count a frame as passed: it left at `now_ns`."""
        if one.arrived_ns < self._counted_from_ns:
            return
        tally = self.tally
        tally.passed_frames += one.frames
        tally.passed_bytes += one.size
        tally.transit.add(max(0, now_ns - one.arrived_ns))
        tally.late.add(max(0, now_ns - one.due_ns))


def on_wire(data: bytes) -> tuple[int, int]:
    """How many frames, and how many bytes of them, an offloaded frame comes to on a wire: each segment has
    the headers of its own.
    """
    _, kind, _, segment, checksum_from, _ = VNET_HEADER.unpack_from(data)
    whole = len(data) - VNET_HEADER_BYTES
    length_at = VNET_HEADER_BYTES + checksum_from + 12
    if kind & 0x7F == _GSO_UDP_L4:
        headers = checksum_from + _UDP_HEADER_BYTES
    elif length_at < len(data):
        headers = checksum_from + (data[length_at] >> 4) * 4
    else:
        return 1, whole
    if not segment or whole <= headers:
        return 1, whole
    count = -(-(whole - headers) // segment)
    return count, whole + (count - 1) * headers


def announces(data: bytes) -> bool:
    """Whether a frame tells everybody where an address, or a machine, is: an ARP message whose sender and
    target have one address (RFC 5227, RFC 5944), a reverse ARP request, a neighbour advertisement to a group.
    """
    kind = data[_ETHER_TYPE]
    if kind not in _ANNOUNCING:
        return False
    number = int.from_bytes(kind, "big")
    if number == ETH_P_ARP:
        return data[_ARP_SENDER_IP] == data[_ARP_TARGET_IP]
    if number == ETH_P_RARP:
        return True
    to_group = bool(data[_DESTINATION] & 1)
    return (
        to_group
        and len(data) > _ICMPV6_TYPE
        and data[_IPV6_NEXT_HEADER] == _ICMPV6
        and data[_ICMPV6_TYPE] == _NEIGHBOUR_ADVERTISEMENT
    )
