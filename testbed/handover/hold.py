"""Holding the frames that nobody can take now, and giving them to the guest later."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Sequence
from operator import attrgetter

from netns import packet
from netns.namespace import Namespace
from netns.packet import Captured, Program, ReceiveRing
from testbed.handover.filters import Identity, concerning, handshakes

SMALL_SLOT_BYTES = 2048
SMALL_SLOTS = 8192
SYN_SLOTS = 512
LARGE_SLOT_BYTES = 68 << 10
LARGE_SLOTS = 240
_SLOT_OVERHEAD_BYTES = 96
_arrival = attrgetter("t_ns")


class FrameHold:
    """What the bridge sends to the hold port, kept by the kernel in two rings until it is drained.

    Most frames are small and some are 64 KiB (an offload's size: no wire is there to cut them). Slots are of
    one size in a ring, so there is one ring for each kind, 16 MiB each, and the filters share the frames out
    by their length. Merged by their time stamps they are in the order of arrival again.

    The rings fill all the time with what the hold port gets, which is little while the entry points at the
    guest: questions about the VM's address that the guest has answered itself. `start` throws those away.
    """

    def __init__(self, host: Namespace, interface: str, identity: Identity) -> None:
        """Open both rings on `interface`, the hold pair's outer end. OSError names what cannot be opened.

        20 to 200 ms, for the kernel clears the rings and waits for RCU grace periods.
        """
        largest_small = SMALL_SLOT_BYTES - _SLOT_OVERHEAD_BYTES
        self._lanes: list[_Lane] = []
        self._dropped = 0
        self._received = 0
        try:
            for program, slot_bytes, slots in (
                (concerning(identity, at_most=largest_small), SMALL_SLOT_BYTES, SMALL_SLOTS),
                (concerning(identity, longer_than=largest_small), LARGE_SLOT_BYTES, LARGE_SLOTS),
            ):
                self._lanes.append(_Lane(host, interface, program, slot_bytes, slots))
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Forget what was held so far, and what was dropped. Once a migration, right before
        `GuestPort.cut`: frames of an earlier cut that nobody has drained are lost by it.
        """
        self.drain()
        self._count_drops()
        self._dropped = 0
        self._received = 0

    def drain(self) -> list[bytes]:
        """What was held since the last call, in order of arrival: each a virtio_net_hdr followed by a frame.

        Never waits; 1 us when there is nothing, 1 us a frame.
        """
        taken: list[Captured] = []
        for lane in self._lanes:
            taken += lane.ring.take()
        taken.sort(key=_arrival)
        self._received += len(taken)
        return [one.data for one in taken]

    @property
    def held(self) -> int:
        """Frames drained since `start`."""
        return self._received

    @property
    def dropped(self) -> int:
        """Frames lost since `start` because a ring was full or the frame did not fit into a slot."""
        self._count_drops()
        return self._dropped

    def descriptors(self) -> tuple[int, ...]:
        """Descriptors that poll as readable when there is something to drain."""
        return tuple(lane.packet.fileno() for lane in self._lanes)

    def _count_drops(self) -> None:
        for lane in self._lanes:
            self._dropped += packet.drops(lane.packet) + lane.ring.unusable
            lane.ring.unusable = 0

    def close(self) -> None:
        """Stop holding. 10 ms or more for each ring: after the migration, not in it. Twice is allowed."""
        while self._lanes:
            self._lanes.pop().close()


class SynHold:
    """The handshakes that arrive for the guest while it still runs but accepts no new ones.

    Between "no new handshakes" and the cut the guest's port is open and its listeners drop every SYN (a
    filter on the listener). Here a copy of each is caught as it leaves the bridge towards the guest, and
    given to the target's guest like a held frame: the client sees a slow handshake instead of a retry a
    second later.

    Start this before the listeners' filters are attached: a SYN seen by both is then answered by the old
    connection's socket as a repeated one, whereas a SYN seen by neither is lost.
    """

    def __init__(self, host: Namespace, port: str, identity: Identity) -> None:
        """Open on `port`, the host's end of the guest's veth, not catching. 25 ms: RCU."""
        self._program = handshakes(identity)
        self._lane = _Lane(host, port, packet.assemble([packet.reject()]), SMALL_SLOT_BYTES, SYN_SLOTS)

    def start(self) -> None:
        """Catch from here on. The handshakes before this the guest takes itself."""
        self._lane.ring.take()
        packet.drops(self._lane.packet)
        packet.attach_filter(self._lane.packet, self._program)

    def stop(self) -> None:
        """Catch no more: the guest hears them itself again (rollback)."""
        packet.attach_filter(self._lane.packet, packet.assemble([packet.reject()]))

    def drain(self) -> list[bytes]:
        """The handshakes since `start` or the last call, in order, each a virtio_net_hdr followed by a
        frame."""
        return [one.data for one in self._lane.ring.take()]

    def dropped(self) -> int:
        """Handshakes for which there was no room, since the last call."""
        return packet.drops(self._lane.packet)

    def close(self) -> None:
        self._lane.close()


class FrameRelease:
    """Gives frames to the guest over the host's end of its veth, whatever state the bridge port is in."""

    BACKLOG_PATIENCE_NS = 20_000_000
    FRAME_PATIENCE_NS = 100_000
    """For each frame of a release besides: after a long standstill there are thousands."""

    def __init__(self, host: Namespace, port: str) -> None:
        self._packet = _open(host)
        self._packet.setsockopt(packet.SOL_PACKET, packet.PACKET_QDISC_BYPASS, 1)
        packet.bind(self._packet, port, 0)
        self.released = 0
        self.dropped = 0
        self.retried = 0
        """Times that a frame found the guest's backlog full. The wire counts each as a drop of its own."""

    def release(self, frames: Sequence[bytes], *, rewrite: tuple[bytes, bytes] | None = None) -> int:
        """Hand `frames` (as `drain` gives them) to the guest in their order; returns how many it got. 3 us a
        frame.

        With `rewrite` = (old, new) a frame to the MAC address `old` is sent to `new` instead: under the
        policy of one MAC address a host, the sender did not know better. No checksum covers an Ethernet
        address.

        A frame that the guest's backlog has no room for is tried again, for 20 ms in all and 0.1 ms more for
        each frame, then counted in `dropped`. A frame that the kernel refuses as malformed is counted there
        too, for it came from the network.
        """
        send = self._packet.send
        patience_ends_ns = 0
        patience_ns = self.BACKLOG_PATIENCE_NS + len(frames) * self.FRAME_PATIENCE_NS
        count = 0
        for frame in frames:
            whole = frame if rewrite is None else _readdressed(frame, *rewrite)
            while True:
                try:
                    send(whole)
                except OSError as error:
                    if error.errno == errno.ENOBUFS:
                        now_ns = time.monotonic_ns()
                        patience_ends_ns = patience_ends_ns or now_ns + patience_ns
                        if now_ns < patience_ends_ns:
                            self.retried += 1
                            os.sched_yield()
                            continue
                    elif error.errno not in (errno.EINVAL, errno.EMSGSIZE):
                        raise
                    self.dropped += 1
                else:
                    count += 1
                break
        self.released += count
        return count

    def close(self) -> None:
        self._packet.close()


def _readdressed(frame: bytes, old: bytes, new: bytes) -> bytes:
    start = packet.VNET_HEADER_BYTES
    if frame[start : start + 6] != old:
        return frame
    return frame[:start] + new + frame[start + 6 :]


class _Lane:
    """A packet socket with a filter and a ring."""

    def __init__(
        self, host: Namespace, interface: str, program: Program, slot_bytes: int, slots: int
    ) -> None:
        self.packet = _open(host)
        try:
            packet.attach_filter(self.packet, program)
            self.ring = ReceiveRing(self.packet, slot_bytes, slots)
            packet.bind(self.packet, interface)
        except BaseException:
            self.packet.close()
            raise

    def close(self) -> None:
        self.ring.close()
        self.packet.close()


def _open(host: Namespace) -> socket.socket:
    """A packet socket in the host's namespace that receives nothing yet (protocol 0) and speaks
    virtio_net_hdr."""
    opened = host.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    opened.setsockopt(packet.SOL_PACKET, packet.PACKET_VNET_HDR, 1)
    return opened
