"""Datagrams that leave as one offloaded frame (UDP_SEGMENT), as those of QUIC servers do."""

from __future__ import annotations

import socket
from collections import Counter
from contextlib import ExitStack

from netns.namespace import Namespace
from netns.packet import UDP_SEGMENT

_SEGMENT_BYTES = 100
"""So small that the receiver's buffer holds all of them."""
_SILENCE_S = 2.0
_FIRST = 255


def segments_that_arrive(
    source: Namespace, target: Namespace, address: str, *, frames: int, of: int
) -> list[int]:
    """`frames` (255 at most) times `of` datagrams leave `source` as one frame; how many of each reach
    `address` of `target`.
    """
    with ExitStack() as stack:
        into = stack.enter_context(target.socket(socket.AF_INET, socket.SOCK_DGRAM))
        into.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        into.bind((address, 0))
        into.settimeout(_SILENCE_S)
        out = stack.enter_context(source.socket(socket.AF_INET, socket.SOCK_DGRAM))
        out.connect(into.getsockname())
        out.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, _SEGMENT_BYTES)
        while _heard(into) is None:  # until the neighbour is known
            out.send(bytes([_FIRST]) * _SEGMENT_BYTES)
        for number in range(frames):
            out.send(bytes([number]) * _SEGMENT_BYTES * of)
        found = Counter(iter(lambda: _heard(into), None))
    return [found[number] for number in range(frames)]


def _heard(into: socket.socket) -> int | None:
    """The number in the next datagram; None if there is silence."""
    try:
        return into.recv(_SEGMENT_BYTES)[0]
    except TimeoutError:
        return None
