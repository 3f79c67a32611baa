"""A switch that does not believe that an address has moved, until what it knows of it has aged.

Some switches keep to the port on which they learned an address (port security, sticky addresses, a full or
broken table) and forget it only some time after they last heard it there. Linux's bridge moves an entry with
the next frame. Here an address's entry is pinned (static and sticky, `NTF_STICKY`) to the port on which it
was learned; when no frame from the address has come in by that port for `ageing`, the entry is deleted, and
the switch floods, learns, and pins it again where it is heard next. Frames *from* an address that has moved
pass meanwhile, as through such a switch: it is those *to* it that go astray.

A process in the switch's namespace does that; it ends with the object that started it. It says what it does
on its control socket (SOCK_SEQPACKET, one JSON object a message):

    {"t_ns": CLOCK_MONOTONIC, "mac": ..., "port": ..., "event": "pinned" | "let-go"}
"""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from netns import packet
from netns.forkserver import Process, ready, spawn
from netns.links import Links
from netns.namespace import Namespace
from netns.observe import ForwardingWatch, forwarding
from netns.packet import Jump, Label, Program, accept, assemble, load, reject

_READY_DEADLINE_S = 30.0
_MESSAGE_BYTES = 4096
_LOOKS = 20
"""In one ageing time: how often it is looked whether the address has been heard."""


@dataclass(frozen=True, slots=True)
class Belief:
    """At `t_ns` (CLOCK_MONOTONIC) the switch pinned `mac` to `port`, or let it go (`pinned` False)."""

    t_ns: int
    mac: str
    port: str
    pinned: bool


class StubbornSwitch:
    """Makes the bridge `bridge` of a namespace stubborn about some addresses, while it is there.

    `macs` like "02:00:00:00:00:42". `fileno()` is readable when there is news. Closed, it believes as a
    bridge does: what is pinned is let go. A context manager.
    """

    def __init__(self, switch: Namespace, bridge: str, macs: Sequence[str], ageing_ns: int) -> None:
        """ValueError for an ageing time that is none; what `spawn` raises; nothing is left then."""
        if ageing_ns <= 0:
            raise ValueError(f"ageing {ageing_ns} ns: must be more than nothing")
        argument = {"switch": switch.name, "bridge": bridge, "macs": list(macs), "ageing_ns": ageing_ns}
        with ExitStack() as stack:
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.enter_context(self._control)
            with theirs:
                self._process: Process = spawn(
                    "netns.stubborn:main", argument, namespace=switch, fds=[theirs.fileno()],
                    name=f"stubborn {switch.name}",
                )
            stack.enter_context(self._process)
            self._process.wait_ready(_READY_DEADLINE_S)
            self._stack = stack.pop_all()

    def fileno(self) -> int:
        return self._control.fileno()

    def read(self, timeout_s: float = 0.0) -> list[Belief]:
        """The news so far; waits up to `timeout_s` seconds for the first."""
        news: list[Belief] = []
        while select.select([self._control], [], [], 0 if news else timeout_s)[0]:
            message = self._control.recv(_MESSAGE_BYTES)
            if not message:
                break
            told = json.loads(message)
            news.append(Belief(told["t_ns"], told["mac"], told["port"], told["event"] == "pinned"))
        return news

    def close(self) -> None:
        """Let go and end the process."""
        self._control.shutdown(socket.SHUT_WR)
        self._process.wait(_READY_DEADLINE_S)
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def main(argument: dict[str, Any], fds: Sequence[int]) -> int:
    """Entry for the fork server. `argument`: {"switch", "bridge", "macs", "ageing_ns"}; `fds`: the control
    socket. Ends when that is closed.
    """
    control = socket.socket(fileno=fds[0])
    with ExitStack() as stack:
        switch = stack.enter_context(Namespace.open(argument["switch"]))
        watch = stack.enter_context(ForwardingWatch(switch, argument["bridge"]))
        links = stack.enter_context(Links(switch))
        mind = _Mind(control, links, argument["macs"], argument["ageing_ns"])
        for entry in forwarding(switch, argument["bridge"]):
            mind.heard(entry.mac, entry.port)
        ready()
        patience_s = argument["ageing_ns"] / _LOOKS / 1e9
        sources = [control.fileno(), watch.fileno()]
        while sources[0] not in (found := select.select(sources, [], [], patience_s)[0]):
            if found:
                for change in watch.read():
                    if not change.gone:
                        mind.heard(change.entry.mac, change.entry.port)
            mind.look()
        mind.forget_all()
    return 0


@dataclass
class _Pin:
    """What is believed of an address: its port, a socket that counts its frames there, when it was heard
    last."""

    port: str
    counter: socket.socket
    heard_ns: int


class _Mind:
    """What the switch believes."""

    def __init__(self, control: socket.socket, links: Links, macs: Sequence[str], ageing_ns: int) -> None:
        self._control = control
        self._links = links
        self._macs = set(macs)
        self._ageing_ns = ageing_ns
        self._pins: dict[str, _Pin] = {}

    def heard(self, mac: str, port: str) -> None:
        """The bridge has learned an address: believe it, if nothing else is believed."""
        if mac in self._macs and mac not in self._pins:
            self._links.pin(mac, port)
            now_ns = time.monotonic_ns()
            self._pins[mac] = _Pin(port, _counter(mac, port), now_ns)
            self._tell(now_ns, mac, port, "pinned")

    def look(self) -> None:
        """Forget what has not been heard for the ageing time."""
        now_ns = time.monotonic_ns()
        for mac, pin in list(self._pins.items()):
            if packet.arrivals(pin.counter):
                pin.heard_ns = now_ns
            elif now_ns - pin.heard_ns >= self._ageing_ns:
                self._forget(mac)

    def _forget(self, mac: str) -> None:
        pin = self._pins.pop(mac)
        pin.counter.close()
        self._links.unpin(mac, pin.port)
        self._tell(time.monotonic_ns(), mac, pin.port, "let-go")

    def forget_all(self) -> None:
        for mac in list(self._pins):
            self._forget(mac)

    def _tell(self, t_ns: int, mac: str, port: str, event: str) -> None:
        told = {"t_ns": t_ns, "mac": mac, "port": port, "event": event}
        try:
            self._control.send(json.dumps(told).encode(), socket.MSG_DONTWAIT)
        except (BlockingIOError, BrokenPipeError):
            return  # nobody reads the news; the switch is no less stubborn


def _counter(mac: str, port: str) -> socket.socket:
    """A packet socket that counts what comes in by `port` from `mac`; it is never read."""
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    made.setsockopt(packet.SOL_PACKET, packet.PACKET_IGNORE_OUTGOING, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    packet.attach_filter(made, _from(bytes.fromhex(mac.replace(":", ""))))
    packet.bind(made, port)
    return made


def _from(mac: bytes) -> Program:
    return assemble(
        [
            load(packet.BPF_LD_W_ABS, 6),
            Jump(packet.BPF_JEQ_K, int.from_bytes(mac[:4], "big"), false="reject"),
            load(packet.BPF_LD_H_ABS, 10),
            Jump(packet.BPF_JEQ_K, int.from_bytes(mac[4:], "big"), false="reject"),
            accept(),
            Label("reject"),
            reject(),
        ]
    )
