"""netem's netlink message by hand: transcription only, no policy.

pyroute2 encodes netem too, but takes its rate for an attribute of the queue (`TCA_RATE`) and fails. Names and
numbers are those of <linux/pkt_sched.h> and <linux/rtnetlink.h>; how the kernel reads them is in
net/sched/sch_netem.c (netem_change).
"""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass

_NETLINK_ROUTE = 0
_NLMSG_ERROR = 2
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_REPLACE, _NLM_F_CREATE = 0x1, 0x4, 0x100, 0x400
_RTM_NEWQDISC = 36
_TC_H_ROOT = 0xFFFFFFFF
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_NETEM_REORDER, _TCA_NETEM_RATE = 3, 6
_TCA_NETEM_RATE64, _TCA_NETEM_LATENCY64, _TCA_NETEM_JITTER64, _TCA_NETEM_PRNG_SEED = 8, 10, 11, 14

_NLMSGHDR = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_TCMSG = struct.Struct("=BxxxiIII")  # family, index, handle, parent, info
_ATTRIBUTE = struct.Struct("=HH")
_QOPT = struct.Struct("=6I")  # struct tc_netem_qopt: latency, limit, loss, gap, duplicate, jitter
_REORDER = struct.Struct("=II")  # struct tc_netem_reorder: probability, correlation
_RATE = struct.Struct("=IiIi")  # struct tc_netem_rate: rate, packet_overhead, cell_size, cell_overhead
_ALWAYS = 0xFFFFFFFF  # a probability of one
_TICK_NS_SHIFT = 6  # PSCHED_SHIFT, include/net/pkt_sched.h; what the 64 bit attributes overrule
_MOST_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Netem:
    """What netem is set to: nanoseconds, shares of one, bytes a second, and how many frames it may hold,
    those under way included. `seed` makes its chances come again where the kernel knows of it (6.6)."""

    limit_frames: int
    delay_ns: int = 0
    jitter_ns: int = 0
    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    rate_bytes_per_s: int | None = None
    seed: int = 0


def message(index: int, asked: Netem) -> bytes:
    """The request to make netem the root queue of interface number `index`, or to change it."""
    options = _QOPT.pack(
        _tick(asked.delay_ns),
        asked.limit_frames,
        _share(asked.loss),
        1 if asked.reordering else 0,
        _share(asked.duplication),
        _tick(asked.jitter_ns),
    )
    options += _attribute(_TCA_NETEM_LATENCY64, struct.pack("=q", asked.delay_ns))
    options += _attribute(_TCA_NETEM_JITTER64, struct.pack("=q", asked.jitter_ns))
    options += _attribute(_TCA_NETEM_PRNG_SEED, struct.pack("=Q", asked.seed))
    if asked.reordering:
        options += _attribute(_TCA_NETEM_REORDER, _REORDER.pack(_share(asked.reordering), 0))
    if asked.rate_bytes_per_s is not None:
        rate = asked.rate_bytes_per_s
        options += _attribute(_TCA_NETEM_RATE, _RATE.pack(min(rate, 0xFFFFFFFF), 0, 0, 0))
        options += _attribute(_TCA_NETEM_RATE64, struct.pack("=Q", rate))
    body = _TCMSG.pack(socket.AF_UNSPEC, index, 0, _TC_H_ROOT, 0)
    body += _attribute(_TCA_KIND, b"netem\0") + _attribute(_TCA_OPTIONS, options)
    flags = _NLM_F_REQUEST | _NLM_F_ACK | _NLM_F_CREATE | _NLM_F_REPLACE
    return _NLMSGHDR.pack(_NLMSGHDR.size + len(body), _RTM_NEWQDISC, flags, 1, 0) + body


def put(route: socket.socket, index: int, asked: Netem) -> None:
    """Do it, on a routing netlink socket in the interface's namespace. OSError if the kernel refuses."""
    route.send(message(index, asked))
    answer = route.recv(_MOST_BYTES)
    _, kind, _, _, _ = _NLMSGHDR.unpack_from(answer)
    (negative,) = struct.unpack_from("=i", answer, _NLMSGHDR.size)
    if kind != _NLMSG_ERROR or negative:
        raise OSError(-negative, os.strerror(-negative))


def _tick(time_ns: int) -> int:
    return min(time_ns >> _TICK_NS_SHIFT, 0xFFFFFFFF)


def _share(probability: float) -> int:
    return round(probability * _ALWAYS)


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)
