"""A link that a relay process conditions: the process, the detour through it, and what it says."""

from __future__ import annotations

import errno
import json
import os
import socket
from contextlib import ExitStack
from functools import cache
from typing import Any

from netns import packet
from netns.conditions import Conditions
from netns.detour import Detour, Place
from netns.forkserver import Process, spawn
from netns.link_figures import DirectionFigures
from netns.namespace import Namespace
from netns.relay import DIRECTIONS, LARGEST_MESSAGE_BYTES, as_json

_READY_DEADLINE_S = 30.0
_ANSWER_DEADLINE_S = 10.0
_SETTLE_DEADLINE_S = 90.0
"""Over the longest delay: what is inside when the conditions end comes out as it was meant to."""


class RelayDied(Exception):
    """The relay of a link has ended or is silent; the link passes nothing until it is reset."""


@cache
def packet_sockets_take_udp_segments() -> bool:
    """Whether datagrams that left as one offloaded frame (UDP_SEGMENT) can be relayed as one. Before Linux
    6.2 a virtio header has no word for it, and the kernel drops them (linux/virtio_net.h,
    virtio_net_hdr_from_skb). Tried on the loopback of a namespace made for that.
    """
    with ExitStack() as stack:
        namespace = stack.enter_context(Namespace.create(f"probe-udp-{os.getpid()}"))
        stack.callback(namespace.delete)
        seen = stack.enter_context(namespace.socket(socket.AF_PACKET, socket.SOCK_RAW))
        seen.setsockopt(packet.SOL_PACKET, packet.PACKET_VNET_HDR, 1)
        packet.bind(seen, "lo")
        seen.settimeout(_READY_DEADLINE_S)
        datagram = stack.enter_context(namespace.socket(socket.AF_INET, socket.SOCK_DGRAM))
        datagram.bind(("127.0.0.1", 0))
        datagram.setsockopt(socket.IPPROTO_UDP, packet.UDP_SEGMENT, 1)
        datagram.sendto(b"ab", datagram.getsockname())
        try:
            seen.recv(packet.VNET_HEADER_BYTES)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        return True


class RelayedLink:
    """Leads a link through a relay of its own while it is there. Close it: the link is as it was.

    The relay ends with this object, and with the process that holds it.
    """

    def __init__(self, a: Place, b: Place) -> None:
        """Start it; nothing is led through it before `set`. Raises what `spawn` and `Detour` raise; nothing
        is left then.
        """
        self._asked = (Conditions(), Conditions())
        self._name = f"{a} to {b}"
        with ExitStack() as stack:
            # The name is for the time of making only: afterwards the process is what keeps the namespace.
            middle = Namespace.create(f"relay-{a.namespace.name}-{a.ifname}")
            with ExitStack() as unname:
                unname.callback(middle.delete)
                self._detour = stack.enter_context(Detour(a, b, middle))
                self._process, self._control = self._start(stack, middle, a)
            self._stack = stack.pop_all()

    def _start(self, stack: ExitStack, middle: Namespace, a: Place) -> tuple[Process, socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.enter_context(ours)
        with theirs:
            process = spawn(
                "netns.relay:main", as_json(*self._asked), namespace=middle, fds=[theirs.fileno()],
                name=f"relay {a.namespace.name}",
            )
        stack.enter_context(process)
        process.wait_ready(_READY_DEADLINE_S)
        return process, ours

    def set(self, forward: Conditions, backward: Conditions) -> None:
        """From now on. What is inside stays inside; a direction without conditions is not led around."""
        leads = [not one.is_none for one in (forward, backward)]
        always = not packet_sockets_take_udp_segments()
        self._detour.cut_up(
            forward=always or forward.needs_wire_frames, backward=always or backward.needs_wire_frames
        )
        self._ask({"set": as_json(forward, backward)}, _ANSWER_DEADLINE_S)
        if any(not asked.is_none and not lead for asked, lead in zip(self._asked, leads, strict=True)):
            self._ask({"settle": True}, _SETTLE_DEADLINE_S)
        self._detour.lead(forward=leads[0], backward=leads[1])
        self._asked = (forward, backward)
        self.restart()

    def drain(self) -> None:
        """Let out what is inside, then lead nothing through it any more. Nothing to do if it has died."""
        if self._process.wait(0) is not None:
            return
        self.set(Conditions(), Conditions())
        self._ask({"settle": True}, _SETTLE_DEADLINE_S)  # what came between the first time and the last lead

    def restart(self) -> None:
        """Count anew."""
        self._ask({"reset": True}, _ANSWER_DEADLINE_S)

    def figures(self) -> tuple[DirectionFigures, DirectionFigures]:
        """Both directions since the last restart."""
        answer = self._ask({"figures": True}, _ANSWER_DEADLINE_S)
        forward, backward = (
            _direction(asked, answer[name]) for name, asked in zip(DIRECTIONS, self._asked, strict=True)
        )
        return forward, backward

    def processor_ns(self) -> int:
        """How long the relay has had a processor, since it was started."""
        return int(self._ask({"figures": True}, _ANSWER_DEADLINE_S)["processor_ns"])

    def _ask(self, request: dict[str, Any], deadline_s: float) -> dict[str, Any]:
        try:
            self._control.settimeout(deadline_s)
            self._control.send(json.dumps(request).encode())
            answer = self._control.recv(LARGEST_MESSAGE_BYTES)
        except OSError as error:
            raise RelayDied(f"relay of {self._name}: {error}{self._last_words()}") from error
        if not answer:
            raise RelayDied(f"relay of {self._name} has ended{self._last_words()}")
        return dict(json.loads(answer))

    def _last_words(self) -> str:
        tail = self._process.stderr_tail().strip()
        return f"; its last words:\n{tail}" if tail else ""

    def close(self) -> None:
        self._stack.close()


def _direction(asked: Conditions, told: dict[str, Any]) -> DirectionFigures:
    if asked.is_none:
        return DirectionFigures(asked, wire_frames=False)
    first_ns, last_ns = told["first_ns"], told["last_ns"]
    return DirectionFigures(
        asked,
        wire_frames=True,
        received_frames=told["received_frames"],
        passed_frames=told["passed_frames"],
        passed_bytes=told["passed_bytes"],
        lost=told["lost"],
        announcements_lost=told["announcements_lost"],
        queue_dropped=told["queue_dropped"],
        overrun=told["overrun"],
        duplicated=told["duplicated"],
        reordered=told["reordered"],
        delay_p50_ns=told["transit"]["p50"],
        delay_p99_ns=told["transit"]["p99"],
        late_p50_ns=told["late"]["p50"],
        late_p99_ns=told["late"]["p99"],
        active_ns=last_ns - first_ns if first_ns is not None and last_ns > first_ns else None,
    )
