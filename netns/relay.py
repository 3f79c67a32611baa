"""The process in the middle of a link that lets its frames pass under conditions.

It stands in a namespace of its own with one interface towards each end of the link, `a` and `b` (see
`netns.detour` for how frames get there), and moves what comes in by one to the other, each when
`netns.passage` says so. Frames of 64 KiB with unfinished checksums pass as they are.

Delays count from the kernel's time of a frame's arrival, so what the process is late in reading is not added
to them; what it is late in writing is, and is measured. A wire waits for no processor, so the relay asks for
a real-time class, and sets its timer's slack to nothing. It cannot starve those whose frames it carries for
long: while they do not run, they send none.

The conversation on its control socket (SOCK_SEQPACKET, one JSON object a message, one answer to each, which
says besides how long the process has had a processor so far, "processor_ns"):

    {"set": {"forward": CONDITIONS, "backward": CONDITIONS}}   -> {}
    {"settle": true}      -> {} once nothing is inside; at most as late as the longest delay
    {"figures": true}     -> {"forward": {...}, "backward": {...}}, counts since the last reset
    {"reset": true}       -> {}
"""

from __future__ import annotations

import errno
import gc
import json
import os
import select
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from operator import itemgetter
from typing import Any

from netns import packet, syscalls
from netns.conditions import Conditions
from netns.forkserver import ready
from netns.packet import Captured, Instruction, Jump, Label, ReceiveRing, accept, assemble, load, reject
from netns.passage import Held, Passage, Tally, Times

DIRECTIONS = ("forward", "backward")
ENDS = ("a", "b")
LARGEST_MESSAGE_BYTES = 1 << 16

_SMALL_SLOT_BYTES, _SMALL_SLOTS = 2048, 2048
_LARGE_SLOT_BYTES, _LARGE_SLOTS = 68 << 10, 120
_SLOT_OVERHEAD_BYTES = 96
_LARGEST_SMALL = _SMALL_SLOT_BYTES - _SLOT_OVERHEAD_BYTES
_BACKLOG_PATIENCE_NS = 2_000_000
_NEVER_NS = 1 << 62
_arrival = itemgetter(0)


def main(argument: dict[str, Any], fds: Sequence[int]) -> int:
    """Entry for the fork server; `argument` is {"forward": CONDITIONS, "backward": CONDITIONS}, `fds` the
    control socket. Ends when that is closed.
    """
    syscalls.prctl(syscalls.PR_SET_TIMERSLACK, 1)
    with suppress(PermissionError):  # not root of the machine: later wake-ups, which the figures show
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    gc.freeze()
    gc.disable()  # nothing here makes cycles, and a collection would hold every frame up
    control = socket.socket(fileno=fds[0])
    sides = [_Side(end) for end in ENDS]
    ways = [
        _Way(Passage(Conditions(**argument[name]), name), source, target)
        for name, source, target in zip(DIRECTIONS, sides, reversed(sides), strict=True)
    ]
    ready()
    _Relay(control, ways).run()
    return 0


class _Side:
    """One interface: two rings, for small frames and for large ones, and a socket to send on.

    Most frames are small and some are 64 KiB; the slots of a ring are of one size, and 68 KiB for each small
    frame would be too much.
    """

    def __init__(self, ifname: str) -> None:
        self._small = _Lane(ifname, False, _SMALL_SLOT_BYTES, _SMALL_SLOTS)
        self._large = _Lane(ifname, True, _LARGE_SLOT_BYTES, _LARGE_SLOTS)
        self._early: list[Captured] = []
        self._out = _socket()
        self._out.setsockopt(packet.SOL_PACKET, packet.PACKET_QDISC_BYPASS, 1)
        packet.bind(self._out, ifname, 0)

    def descriptors(self) -> tuple[int, int]:
        return self._small.packet.fileno(), self._large.packet.fileno()

    @property
    def has_early(self) -> bool:
        """Whether the next `take` has something already."""
        return bool(self._early)

    def take(self) -> list[Captured]:
        """What has arrived, in order. Of the large ones those only that came before the small ones were
        looked at: between the two looks a small one may have come that is older.
        """
        looked_ns = time.time_ns()
        small, large = self._small.ring.take(), self._large.ring.take()
        if not large and not self._early:
            return small
        self._early += large
        settled = [one for one in self._early if one[0] <= looked_ns]
        self._early = [one for one in self._early if one[0] > looked_ns]
        return sorted(small + settled, key=_arrival) if settled else small

    def send(self, data: bytes) -> bool:
        """Whether the frame went out. A full backlog is waited for, for 2 ms."""
        patience_ends_ns = 0
        while True:
            try:
                self._out.send(data)
                return True
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    return False  # the interface is down or gone, or takes no such frame
            now_ns = time.monotonic_ns()
            patience_ends_ns = patience_ends_ns or now_ns + _BACKLOG_PATIENCE_NS
            if now_ns > patience_ends_ns:
                return False
            os.sched_yield()

    def overrun(self) -> int:
        """Frames that found no room in a ring since the last call."""
        return sum(lane.overrun() for lane in (self._small, self._large))


class _Lane:
    """A packet socket with a ring for the frames of one size."""

    def __init__(self, ifname: str, large: bool, slot_bytes: int, slots: int) -> None:
        self.packet = _socket()
        self.packet.setsockopt(packet.SOL_PACKET, packet.PACKET_IGNORE_OUTGOING, 1)
        packet.attach_filter(self.packet, _of_size(large))
        self.ring = ReceiveRing(self.packet, slot_bytes, slots)
        packet.bind(self.packet, ifname)

    def overrun(self) -> int:
        count = packet.drops(self.packet) + self.ring.unusable
        self.ring.unusable = 0
        return count


def _of_size(large: bool) -> tuple[Instruction, ...]:
    to_large, to_small = ("accept", "reject") if large else ("reject", "accept")
    return assemble(
        [
            load(packet.BPF_LD_W_LEN),
            Jump(packet.BPF_JGT_K, _LARGEST_SMALL, true=to_large, false=to_small),
            Label("accept"),
            accept(),
            Label("reject"),
            reject(),
        ]
    )


class _Way:
    """One direction: its passage, where its frames come from and where they go."""

    def __init__(self, passage: Passage, source: _Side, target: _Side) -> None:
        self.passage = passage
        self.source = source
        self._target = target

    def take_in(self) -> None:
        """What has come."""
        arrived = self.source.take()
        if arrived:
            apart_ns = time.monotonic_ns() - time.time_ns()
            offer = self.passage.offer
            for t_ns, data in arrived:
                offer(t_ns + apart_ns, data)

    def let_out(self) -> int:
        """What is due; returns when the next is (a time that never comes, if there is none)."""
        passage = self.passage
        next_ns = passage.next_due_ns
        if next_ns is None:
            return _NEVER_NS
        if next_ns <= time.monotonic_ns():
            for one in passage.due(time.monotonic_ns()):
                self._send(one)
            next_ns = passage.next_due_ns
        return _NEVER_NS if next_ns is None else next_ns

    def _send(self, one: Held) -> None:
        now_ns = time.monotonic_ns()
        if self._target.send(one.data):
            self.passage.sent(one, now_ns)
        else:
            self.passage.tally.overrun += one.frames

    def figures(self) -> dict[str, Any]:
        tally = self.passage.tally
        tally.overrun += self.source.overrun()
        return figures_of(tally)


def figures_of(tally: Tally) -> dict[str, Any]:
    """A tally as JSON: its counts, and of its distributions the median, the 99th percentile and the most."""
    counts = {field.name: getattr(tally, field.name) for field in fields(tally)}
    shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    for name, value in counts.items():
        if isinstance(value, Times):
            counts[name] = {key: value.quantile_ns(share) for key, share in shares.items()}
    return counts


class _Relay:
    """The loop."""

    def __init__(self, control: socket.socket, ways: list[_Way]) -> None:
        self._control = control
        self._ways = ways
        self._settling = 0
        self._over = False

    def run(self) -> None:
        """Until the control socket is closed. A frame costs two turns, one to come and one to go, so a turn
        looks at nothing but what has news or is due.
        """
        ways, control = self._ways, self._control.fileno()
        owners = {fd: way for way in ways for fd in way.source.descriptors()}
        sources = [control, *owners]
        patience_s: float | None = None
        while not self._over:
            found, _, _ = select.select(sources, (), (), patience_s)
            for fd in found:
                if fd != control:
                    owners[fd].take_in()
            next_ns, has_early = _NEVER_NS, False
            for way in ways:
                if way.source.has_early:
                    way.take_in()
                    has_early = has_early or way.source.has_early
                next_ns = min(next_ns, way.let_out())
            if control in found:
                self._obey()
            if self._settling and all(way.passage.is_empty for way in ways):
                self._answer_settled()
            patience_s = None if next_ns == _NEVER_NS else max(0.0, (next_ns - time.monotonic_ns()) / 1e9)
            if has_early or control in found:  # conditions that have changed may have brought times forward
                patience_s = 0.0

    def _obey(self) -> None:
        message = self._control.recv(LARGEST_MESSAGE_BYTES)
        if not message:
            self._over = True
            return
        request = json.loads(message)
        if "settle" in request:
            self._settling += 1
            return
        answer: dict[str, Any] = {"processor_ns": time.process_time_ns()}
        now_ns = time.monotonic_ns()
        for name, way in zip(DIRECTIONS, self._ways, strict=True):
            if "set" in request:
                way.passage.change(now_ns, Conditions(**request["set"][name]))
            elif "figures" in request:
                answer[name] = way.figures()
            elif "reset" in request:
                way.source.overrun()
                way.passage.reset(now_ns)
        self._control.send(json.dumps(answer).encode())

    def _answer_settled(self) -> None:
        for _ in range(self._settling):
            self._control.send(b"{}")
        self._settling = 0


def as_json(forward: Conditions, backward: Conditions) -> dict[str, Any]:
    """Two conditions as `main` and "set" want them."""
    return dict(zip(DIRECTIONS, (asdict(forward), asdict(backward)), strict=True))


def _socket() -> socket.socket:
    """A packet socket that receives nothing yet (protocol 0) and speaks virtio_net_hdr."""
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    made.setsockopt(packet.SOL_PACKET, packet.PACKET_VNET_HDR, 1)
    return made
