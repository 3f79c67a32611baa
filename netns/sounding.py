"""A link measured from its own two ends: frames that bear the time at which they were sent, and come back.

Independent of whoever brings the link's conditions about: what a relay or a queue says of itself is held
against this. Frames are of an experimental kind (IEEE 802: 88B5) and go to an address that no bridge passes
on (IEEE 802.1Q, 8.6.3), so nobody but the two ends hears of it, and bridge ports can be sounded as well.

The clock of both ends is one, so each direction has a delay of its own: from just before the sending to the
kernel's time of arrival.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from netns import packet
from netns.detour import Place
from netns.links import Links
from netns.packet import Jump, Label, ReceiveRing, accept, assemble, load, reject
from netns.topology import token_bucket

COUNT = 200
"""How many frames go out by default: a loss of a few per cent shows."""
SPACING_NS = 1_000_000
PATIENCE_NS = 500_000_000
"""How long the last frame is waited for, besides the delay that is expected."""
RATE_PROBE_S = 0.2
OFFERED_OVER_ASKED = 1.5
LONGEST_BURST_S = 3.0
"""A slow token bucket lets its first burst pass at once; where using that up takes longer, the throughput is
not measured."""

_KIND = 0x88B5  # local experimental EtherType 1, IEEE 802
_GROUP = bytes.fromhex("0180c200000e")  # nearest bridge group address
_PAYLOAD = struct.Struct(">8sIq")  # whose, number, sent at (CLOCK_REALTIME)
_HEADER_BYTES = 14
_LONG_FRAME_BYTES = 1514
_SO_TIMESTAMPNS = 35  # <asm-generic/socket.h>: SO_TIMESTAMPNS_OLD, and the same for its control message
_TIMESPEC = struct.Struct("@qq")
_SLOT_BYTES, _SLOTS = 256, 1 << 15


@dataclass(frozen=True, slots=True)
class Sounded:
    """One direction: frames sent and arrived, and what they took. None where nothing arrived or was asked.

    A frame that arrived twice counts once in `arrived`, and in `duplicated` for each time more (the last
    frame's duplicate may come when the measurement is over); `overtaken` are those that arrived after one
    that was sent later.
    """

    sent: int
    arrived: int
    delay_p50_ns: int | None
    delay_p99_ns: int | None
    throughput_bits_per_s: float | None = None
    delay_least_ns: int | None = None
    duplicated: int = 0
    overtaken: int = 0

    @property
    def loss(self) -> float | None:
        return 1 - self.arrived / self.sent if self.sent else None


@dataclass(frozen=True, slots=True)
class Sounding:
    """Both directions, and the round trip, without the time that the far end took to answer."""

    forward: Sounded
    backward: Sounded
    round_trip_p50_ns: int | None


@dataclass
class _Trip:
    """What became of one direction's frames, by number."""

    sent: int = 0
    taken_ns: dict[int, int] = field(default_factory=dict)
    duplicated: int = 0
    overtaken: int = 0
    _latest: int = -1

    def arrived(self, number: int, taken_ns: int) -> bool:
        """Whether it is the first time."""
        if number in self.taken_ns:
            self.duplicated += 1
            return False
        self.taken_ns[number] = taken_ns
        self.overtaken += number < self._latest
        self._latest = max(self._latest, number)
        return True

    def sounded(self, throughput_bits_per_s: float | None) -> Sounded:
        taken = sorted(self.taken_ns.values())
        return Sounded(
            self.sent, len(taken), _quantile(taken, 0.5), _quantile(taken, 0.99), throughput_bits_per_s,
            min(taken, default=None), self.duplicated, self.overtaken,
        )  # fmt: skip


def sound(
    a: Place,
    b: Place,
    *,
    count: int = COUNT,
    expected_delay_ns: int = 0,
    rates_bits_per_s: tuple[float | None, float | None] = (None, None),
    rate_probe_s: float = RATE_PROBE_S,
) -> Sounding:
    """Measure the link between two interfaces: `count` frames there, 1 ms apart, each of which is answered.

    `expected_delay_ns`: how much longer than half a second the last answer may take (both ways together).
    Where `rates_bits_per_s` says what the rate of a direction should be, half as much again is sent after,
    until any burst is used up and for `rate_probe_s` more, in which the throughput is measured; the link is
    full then. OSError if an end cannot be opened.
    """
    with ExitStack() as stack:
        near, far = (stack.enter_context(_Ear(place)) for place in (a, b))
        there, back = _Trip(), _Trip()
        _echo(near, far, there, back, count, expected_delay_ns)
    rates = [
        None if rate is None else _throughput(source, target, rate, expected_delay_ns, rate_probe_s)
        for (source, target), rate in zip(((a, b), (b, a)), rates_bits_per_s, strict=True)
    ]
    both = sorted(there.taken_ns[number] + taken for number, taken in back.taken_ns.items())
    return Sounding(there.sounded(rates[0]), back.sounded(rates[1]), _quantile(both, 0.5))


def _echo(near: _Ear, far: _Ear, there: _Trip, back: _Trip, count: int, expected_ns: int) -> None:
    """All `count` go out, however slow this machine is, and the last that either end says is waited for."""
    next_ns = end_ns = time.monotonic_ns()
    while len(back.taken_ns) < count:
        now_ns = time.monotonic_ns()
        if there.sent < count and now_ns >= next_ns:
            near.say(there.sent)
            there.sent += 1
            next_ns += SPACING_NS
            end_ns = now_ns + expected_ns + PATIENCE_NS
        elif there.sent == count and now_ns >= end_ns:
            return
        until_ns = next_ns if there.sent < count else end_ns
        ears = [near.socket, far.socket]
        found, _, _ = select.select(ears, [], [], max(0.0, (until_ns - now_ns) / 1e9))
        if far.socket in found:
            for number, taken_ns in far.hear():
                if there.arrived(number, taken_ns):  # a duplicate is not answered twice
                    far.say(number)
                    back.sent += 1
                    end_ns = time.monotonic_ns() + expected_ns + PATIENCE_NS
        if near.socket in found:
            for number, taken_ns in near.hear():
                back.arrived(number, taken_ns)


class _Ear:
    """A packet socket on one end, which hears the other end's frames of this sounding alone."""

    def __init__(self, place: Place) -> None:
        self._cookie = os.getpid().to_bytes(8, "big")
        self._source = _mac(place)
        self.socket = _open(place)
        self.socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self.socket.setblocking(False)

    def say(self, number: int) -> None:
        payload = _PAYLOAD.pack(self._cookie, number, time.time_ns())
        self.socket.send(_frame(self._source, payload))

    def hear(self) -> list[tuple[int, int]]:
        """(number, time taken in ns) of every frame that has come."""
        heard: list[tuple[int, int]] = []
        while True:
            try:
                data, ancillary, _, _ = self.socket.recvmsg(256, 64)
            except BlockingIOError:
                return heard
            cookie, number, sent_ns = _PAYLOAD.unpack_from(data, _HEADER_BYTES)
            if cookie == self._cookie:
                seconds, nanoseconds = _TIMESPEC.unpack_from(ancillary[0][2])
                heard.append((number, max(0, seconds * 1_000_000_000 + nanoseconds - sent_ns)))

    def __enter__(self) -> _Ear:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def _throughput(
    source: Place, target: Place, rate: float, expected_ns: int, probe_s: float = RATE_PROBE_S
) -> float | None:
    """What arrives of a stream that is half as much again as `rate`: bits a second of whole frames."""
    frame = _frame(_mac(source), bytes(_LONG_FRAME_BYTES - _HEADER_BYTES))
    apart_ns = len(frame) * 8e9 / (rate * OFFERED_OVER_ASKED)
    burst_s = token_bucket(rate / 1e6).burst_bytes * 8 / rate / (OFFERED_OVER_ASKED - 1)
    if burst_s > LONGEST_BURST_S:
        return None
    with ExitStack() as stack:
        out = stack.enter_context(_open(source))
        heard = stack.enter_context(_open(target, bound=False))
        ring = ReceiveRing(heard, _SLOT_BYTES, _SLOTS)
        stack.callback(ring.close)
        packet.bind(heard, target.ifname)
        _stream(out, frame, apart_ns, burst_s)
        ring.times()  # the burst, and what has come behind it: the link is full from here on
        _stream(out, frame, apart_ns, max(probe_s, 20 * apart_ns / 1e9))
        arrivals = ring.times()
        select.select([heard], [], [], (expected_ns + PATIENCE_NS) / 1e9)
        arrivals += ring.times()
    if len(arrivals) < 2 or arrivals[-1] <= arrivals[0]:
        return None
    return (len(arrivals) - 1) * len(frame) * 8e9 / (arrivals[-1] - arrivals[0])


def _stream(out: socket.socket, frame: bytes, apart_ns: float, duration_s: float) -> None:
    begin_ns, sent = time.monotonic_ns(), 0
    while (elapsed_ns := time.monotonic_ns() - begin_ns) < duration_s * 1e9:
        while sent < elapsed_ns / apart_ns:
            out.send(frame)
            sent += 1
        select.select([], [], [], apart_ns / 1e9)


def _open(place: Place, *, bound: bool = True) -> socket.socket:
    """A packet socket on an interface that hears frames of our kind as they arrive, 200 bytes of each."""
    opened = place.namespace.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    opened.setsockopt(packet.SOL_PACKET, packet.PACKET_IGNORE_OUTGOING, 1)
    packet.attach_filter(
        opened,
        assemble(
            [
                load(packet.BPF_LD_H_ABS, 12),
                Jump(packet.BPF_JEQ_K, _KIND, false="reject"),
                accept(),
                Label("reject"),
                reject(),
            ]
        ),
    )
    if bound:
        packet.bind(opened, place.ifname)
    return opened


def _frame(source: bytes, payload: bytes) -> bytes:
    return _GROUP + source + _KIND.to_bytes(2, "big") + payload


def _mac(place: Place) -> bytes:
    with Links(place.namespace) as links:
        return bytes.fromhex(links.hardware(place.ifname)[0].replace(":", ""))


def _quantile(ordered: Sequence[int], share: float) -> int | None:
    """Nearest rank."""
    return ordered[max(0, -(-len(ordered) * round(share * 100) // 100) - 1)] if ordered else None
