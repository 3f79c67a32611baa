"""The wire beside a client: what its network card saw, and how long a wait was there. Pure.

A capture of a client's link stamps frames in the kernel, by nobody's leave. Held against it, a probe's figure
shows what the probe itself adds: from its stamp to the frame that left, and from the frame that came to its
stamp. All that the guest and the network took is in both.

Of a request (and of a connection that is asked for) the first frame with data (or SYN) that leaves after the
probe's stamp is that request's: a client is one thread and sends right after it stamps. Its answer is the
first data that then comes to the same port. Of deliveries and silences, it is the last data that came before
the stamp, and the next to the same port.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

from testbed.measure.accuracy import Definition, Sight

SNAP_BYTES = 128
"""Of a frame, so much is looked at: the headers up to TCP's flags."""
_IPV4, _IPV6 = 0x0800, 0x86DD
_ICMP, _TCP, _UDP, _ICMPV6, _SYN = 1, 6, 17, 58, 0x02
_ETHERNET, _IPV6_HEADER, _UDP_HEADER = 14, 40, 8
_ECHO, _ECHO_REPLY = {_ICMP: 8, _ICMPV6: 128}, {_ICMP: 0, _ICMPV6: 129}
"""The type of a message that asks, and of its answer (RFC 792, RFC 4443)."""


@dataclass(frozen=True)
class Frame:
    """A frame with data of TCP or UDP, or with SYN, or with an ICMP echo, that came to the client or left it
    (`leaves`), when (CLOCK_MONOTONIC, ns), and the client's port: of an echo its identifier."""

    t_ns: int
    leaves: bool
    port: int


def frame(t_ns: int, leaves: bool, data: bytes) -> Frame | None:
    """What is to be known of an Ethernet frame with IP in it; None where it carries nothing, or something
    else. IPv6 with extension headers is something else."""
    if len(data) < _ETHERNET + 24:
        return None
    kind = int.from_bytes(data[12:14])
    if kind == _IPV4:
        header_bytes, protocol = (data[14] & 15) * 4, data[23]
        payload_bytes = int.from_bytes(data[16:18]) - header_bytes
    elif kind == _IPV6:
        header_bytes, protocol = _IPV6_HEADER, data[20]
        payload_bytes = int.from_bytes(data[18:20])
    else:
        return None
    transport = data[_ETHERNET + header_bytes :]
    port = int.from_bytes(transport[:2] if leaves else transport[2:4])
    if protocol == _UDP:
        carries = payload_bytes > _UDP_HEADER
    elif protocol == _TCP and len(transport) >= 14:
        carries = payload_bytes > (transport[12] >> 4) * 4 or bool(transport[13] & _SYN and leaves)
    elif protocol in _ECHO and len(transport) >= 6:
        carries = transport[0] == (_ECHO if leaves else _ECHO_REPLY)[protocol]
        port = int.from_bytes(transport[4:6])
    else:
        carries = False
    return Frame(t_ns, leaves, port) if carries else None


@dataclass(frozen=True)
class OnWire:
    """A wait there: how long it counts, and when the frame came that ended it."""

    length_ns: int
    ended_ns: int


class Wire:
    """The frames of one link, in the order of their times."""

    def __init__(self, frames: Iterable[Frame]) -> None:
        ordered = sorted(frames, key=lambda one: one.t_ns)
        self._left = [one for one in ordered if one.leaves]
        self._left_ns = [one.t_ns for one in self._left]
        self._came: dict[int, list[int]] = {}
        self._all_came = [one for one in ordered if not one.leaves]
        self._all_came_ns = [one.t_ns for one in self._all_came]
        for one in self._all_came:
            self._came.setdefault(one.port, []).append(one.t_ns)

    def wait(self, definition: Definition, interval_ns: int, sight: Sight) -> OnWire | None:
        """The wait that a probe saw, as it was here; None where its frames are not to be found."""
        if definition is Definition.REQUEST:
            at = bisect_left(self._left_ns, sight.longest_at_ns)
            begun, expected_ns = (self._left[at] if at < len(self._left) else None), 0
        else:
            at = bisect_right(self._all_came_ns, sight.longest_at_ns) - 1
            begun = self._all_came[at] if at >= 0 else None
            expected_ns = interval_ns if definition is Definition.DELIVERY else 0
        if begun is None:
            return None
        ended_ns = _next(self._came.get(begun.port, []), begun.t_ns)
        return None if ended_ns is None else OnWire(max(0, ended_ns - begun.t_ns - expected_ns), ended_ns)


def _next(times_ns: list[int], after_ns: int) -> int | None:
    at = bisect_right(times_ns, after_ns)
    return times_ns[at] if at < len(times_ns) else None
