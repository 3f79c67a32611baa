"""When the guest was last heard on one host, and first on the other: the silence on the wire."""

from __future__ import annotations

import socket
import time

from netns import packet
from netns.namespace import Namespace
from netns.packet import Jump, ReceiveRing, accept, assemble, load, reject

_SLOT_BYTES = 256


class EgressWatch:
    """Times of the frames that the guest sends, seen on the host's end of its wire.

    The kernel stamps each frame as it arrives; the ring has room for 4096, so look now and then.
    """

    def __init__(self, host: Namespace, port: str) -> None:
        """Open on `port`, not watching. 25 ms: RCU. OSError names what."""
        self._packet = host.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        try:
            self._packet.setsockopt(packet.SOL_PACKET, packet.PACKET_VNET_HDR, 1)
            packet.attach_filter(self._packet, assemble([reject()]))
            self._ring = ReceiveRing(self._packet, _SLOT_BYTES, ReceiveRing.BLOCK_BYTES // _SLOT_BYTES)
            packet.bind(self._packet, port)
        except BaseException:
            self._packet.close()
            raise

    def start(self) -> None:
        """Watch from here on."""
        self._ring.times()
        packet.drops(self._packet)
        packet.attach_filter(
            self._packet,
            assemble(
                [
                    load(packet.BPF_LD_B_ABS, packet.SKF_AD_OFF + packet.SKF_AD_PKTTYPE),
                    Jump(packet.BPF_JEQ_K, packet.PACKET_OUTGOING, true="reject"),
                    accept(),
                    packet.Label("reject"),
                    reject(),
                ]
            ),
        )

    def times_ns(self) -> list[int]:
        """Times (CLOCK_MONOTONIC) of the frames since the last call, oldest first; makes room for as many
        again.

        The kernel stamps frames with CLOCK_REALTIME; the distance of the two clocks is taken now, so a step
        of the former in between would show.
        """
        apart_ns = time.monotonic_ns() - time.time_ns()
        return [t_ns + apart_ns for t_ns in self._ring.times()]

    def last_ns(self, before: int | None) -> int | None:
        """When the guest was last heard (CLOCK_MONOTONIC): `before`, where that was not since the last call.
        None where so many frames have come since that there was no room for the last ones."""
        times_ns = self.times_ns()
        if packet.drops(self._packet):
            return None
        return times_ns[-1] if times_ns else before

    def stop(self) -> None:
        """Watch no longer; what was seen is kept for :meth:`times_ns`."""
        packet.attach_filter(self._packet, assemble([reject()]))

    def close(self) -> None:
        self._ring.close()
        self._packet.close()
