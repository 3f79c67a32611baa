"""An agent to whose guest a frame of some connection comes when all sockets were read for the last time: it
was past the bridge when that was turned, and the target does not get it."""

from __future__ import annotations

import select
from collections.abc import Iterator, Sequence
from typing import Any

from netns.packet import VNET_HEADER_BYTES
from testbed.host import agent
from testbed.host.departing import DepartingGuest
from testbed.migration import wire

PATIENCE_S = 2.0
_devices, _late_devices = DepartingGuest.devices, DepartingGuest.late_devices
_late: list[bytes] = []


def _until_somebody_asks(departing: DepartingGuest) -> Iterator[wire.Device]:
    """Now, for when the egress is cut the target announces, and what is asked goes there."""
    yield from _devices(departing)
    network = departing._guest.network
    while not _late:
        assert select.select(network.late_descriptors(), [], [], PATIENCE_S)[0], "no client asked anything"
        for frame in network.held():
            (_late if _has_data(frame[VNET_HEADER_BYTES:]) else departing._kept_frames).append(frame)


def _and_then_a_late_frame(departing: DepartingGuest) -> Iterator[wire.Device]:
    yield from _late_devices(departing)
    twice = _late * 2  # what comes again is acknowledged at once
    assert departing._guest.network._release.release(twice) == len(twice)
    select.select([], [], [], 0.02)  # that nothing gets out has no event


def _has_data(frame: bytes) -> bool:
    """Whether it is a TCP segment over IPv4 that carries bytes."""
    if frame[12:14] != b"\x08\x00" or frame[23] != 6:
        return False
    header = (frame[14] & 15) * 4 + (frame[14 + 20 + 12] >> 4) * 4
    return int.from_bytes(frame[16:18], "big") > header


def main(argument: dict[str, Any], fds: Sequence[int]) -> int | None:
    DepartingGuest.devices = _until_somebody_asks  # type: ignore[method-assign]
    DepartingGuest.late_devices = _and_then_a_late_frame  # type: ignore[method-assign]
    return agent.main(argument, fds)
