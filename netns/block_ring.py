"""A receive ring that is read in blocks of many frames: for whoever takes everything and is in no hurry.

TPACKET_V3 of packet(7). The kernel packs frames one behind the other into a block, and hands the block over
when it is full or when it has waited for :data:`RETIRE_MS`. So a frame of 60 bytes takes no slot of 64 KiB,
and reading costs one call for hundreds of frames; but a frame may be seen only when its block is
(`netns.packet.ReceiveRing` shows it at once). Frames that find no block are dropped and counted.

Where a block lies in the ring it is described by itself, so a copy of its used bytes can be read later by
:func:`frames_in`: nothing needs to be understood while it goes on.
"""

from __future__ import annotations

import mmap
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from netns import packet
from netns.packet import SOL_PACKET

RETIRE_MS = 50
BLOCK_BYTES = 1 << 18

# linux/if_packet.h
_TPACKET_REQ3 = struct.Struct("=7I")  # block size, blocks, frame size, frames, retire ms, private, features
_TPACKET_STATS_V3 = struct.Struct("=III")  # packets (drops included), drops, freezes
_BLOCK = struct.Struct("=IIIIIIQ")  # version, private; status, packets, first, length used, number
_STATUS_AT = 8
_TPACKET3_HDR = struct.Struct("=IIIIIIHHIIHH8x")
"""Offset of the next; s, ns; captured, length; status; offsets of frame and payload; hash, VLAN, its type."""
_FRAME_BYTES = 1 << 11
"""The kernel wants it and, in this version, does not use it; it must divide a block."""

_UNUSED_TYPE = 0x88B5
"""IEEE 802's local experimental ethertype: nothing on a loopback interface is of it."""


@dataclass(frozen=True)
class Frame:
    """A frame in a block: `t_ns` on CLOCK_REALTIME; `length` on the wire, of which `data` may be the
    beginning only. `needs_checksum` is where the sum over the rest of the frame begins and where it is to be
    put (offsets into `data`), or None where the frame has its checksum."""

    t_ns: int
    length: int
    data: bytes
    needs_checksum: tuple[int, int] | None


class BlockRing:
    """Everything that `interface` (of the namespace of `tap`) receives from now on, in `blocks` blocks.

    `tap` is an AF_PACKET socket, raw and of protocol 0, that belongs to the ring afterwards; `snap_bytes`
    cuts frames short, None takes them whole. What the interface itself sends is left out. Construction waits
    for an RCU grace period, 10 to 25 ms. OSError when there is no such interface, or no memory for the ring.
    """

    def __init__(
        self, tap: socket.socket, interface: str, blocks: int, snap_bytes: int | None = None
    ) -> None:
        self._tap = tap
        tap.setsockopt(SOL_PACKET, packet.PACKET_VERSION, packet.TPACKET_V3)
        tap.setsockopt(SOL_PACKET, packet.PACKET_VNET_HDR, 1)
        tap.setsockopt(SOL_PACKET, packet.PACKET_IGNORE_OUTGOING, 1)
        size = blocks * BLOCK_BYTES
        request = (BLOCK_BYTES, blocks, _FRAME_BYTES, size // _FRAME_BYTES, RETIRE_MS, 0, 0)
        tap.setsockopt(SOL_PACKET, packet.PACKET_RX_RING, _TPACKET_REQ3.pack(*request))
        if snap_bytes is not None:
            packet.attach_filter(tap, (packet.Instruction(packet.BPF_RET_K, 0, 0, snap_bytes),))
        self._map = mmap.mmap(tap.fileno(), size)
        self._view = memoryview(self._map)
        self._words = packet.status_words(self._map)
        self._blocks = blocks
        self._next = 0
        self.received = self.dropped = 0
        """As far as :meth:`count` has asked: frames that came by, and of them those that found no room."""
        packet.bind(tap, interface)

    def fileno(self) -> int:
        """Readable when a block is there."""
        return self._tap.fileno()

    def peek(self) -> memoryview | None:
        """The used bytes of the oldest block that is there, in the ring itself: valid until :meth:`pop`."""
        at = self._next * BLOCK_BYTES
        status, _, _, used = struct.unpack_from("=4I", self._view, at + _STATUS_AT)
        return self._view[at : at + used] if status & packet.TP_STATUS_USER else None

    def pop(self) -> None:
        """Give the oldest block back to the kernel."""
        at = self._next * BLOCK_BYTES + _STATUS_AT
        self._words[at // self._words.itemsize] = packet.TP_STATUS_KERNEL
        self._next = (self._next + 1) % self._blocks

    def count(self) -> None:
        """Ask the kernel how many frames there were since it was last asked."""
        answer = self._tap.getsockopt(SOL_PACKET, packet.PACKET_STATISTICS, _TPACKET_STATS_V3.size)
        received, dropped, _ = _TPACKET_STATS_V3.unpack(answer)
        self.received += received
        self.dropped += dropped

    def unhook(self) -> None:
        """No more frames from now on; those that are in stay to be read. Waits for RCU, and so for whoever is
        about to put one in.

        Not every kernel lets a socket be bound to nothing, so it is bound to what never comes.
        """
        packet.bind(self._tap, "lo", _UNUSED_TYPE)

    def close(self) -> None:
        self._words.release()
        self._view.release()
        self._map.close()
        self._tap.close()


def packets_in(block: memoryview) -> int:
    """How many frames a block holds."""
    return int(_BLOCK.unpack_from(block)[3])


def frames_in(block: memoryview) -> Iterator[Frame]:
    """The frames of a block, or of a copy of its used bytes, in the order in which they came."""
    _, _, _, count, at, _, _ = _BLOCK.unpack_from(block)
    for _ in range(count):
        following, s, ns, captured, length, status, mac, _, _, tci, tpid, _ = _TPACKET3_HDR.unpack_from(
            block, at
        )
        data = bytes(block[at + mac : at + mac + captured])
        flags, _, _, _, start, offset = packet.VNET_HEADER.unpack_from(
            block, at + mac - packet.VNET_HEADER_BYTES
        )
        missing = None
        if flags & packet.VIRTIO_NET_HDR_F_NEEDS_CSUM:
            missing = (start, start + offset)
        frame = Frame(s * 1_000_000_000 + ns, length, data, missing)
        if status & packet.TP_STATUS_VLAN_VALID:
            tpid = tpid if status & packet.TP_STATUS_VLAN_TPID_VALID else packet.ETH_P_8021Q
            frame = _tagged(frame, tpid, tci)
        yield frame
        at += following


def _tagged(frame: Frame, tpid: int, tci: int) -> Frame:
    """With the VLAN tag that the kernel keeps beside a frame put where it is on a wire."""
    tag = struct.pack("!HH", tpid, tci)
    data = frame.data[:12] + tag + frame.data[12:]
    missing = frame.needs_checksum
    moved = None if missing is None else (missing[0] + len(tag), missing[1] + len(tag))
    return Frame(frame.t_ns, frame.length + len(tag), data, moved)


def with_checksum(frame: Frame) -> bytes:
    """The frame's bytes with the checksum that the sender left to the hardware (none, on a veth).

    The field holds the sum of the pseudo header already; what is missing is the sum from there to the end
    (Documentation/networking/checksum-offloads.rst). Of a frame that was cut short it cannot be known, and
    such a frame is given back as it is: Wireshark does not check those.
    """
    if frame.needs_checksum is None or len(frame.data) < frame.length:
        return frame.data
    start, at = frame.needs_checksum
    rest = frame.data[start:]
    # A number's remainder by 0xffff is the ones' complement sum of its 16-bit digits (RFC 1071).
    total = int.from_bytes(rest + bytes(len(rest) % 2), "big") % 0xFFFF
    return frame.data[:at] + (0xFFFF - total).to_bytes(2, "big") + frame.data[at + 2 :]
