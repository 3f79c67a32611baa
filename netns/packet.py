"""Packet sockets: constants, classic BPF as data, and a receive ring.

Transcription only. Names are those of ``linux/if_packet.h``, ``linux/if_ether.h``, ``linux/filter.h`` and
``linux/virtio_net.h``.

Between two veths a frame may be up to 64 KiB long and its checksum unfinished (the offloads are never undone
where no wire needs it). What is missing is said by a ``virtio_net_hdr``, ten bytes before the frame, which
PACKET_VNET_HDR makes the kernel add on receiving and heed on sending. Without it such a frame is taken for a
corrupt one.
"""

from __future__ import annotations

import ctypes
import mmap
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

# linux/if_ether.h
ETH_P_ALL = 0x0003
ETH_P_IP = 0x0800
ETH_P_ARP = 0x0806
ETH_P_RARP = 0x8035
ETH_P_8021Q = 0x8100
ETH_P_IPV6 = 0x86DD

# linux/if_packet.h
SOL_PACKET = 263
PACKET_OUTGOING = 4
PACKET_RX_RING = 5
PACKET_STATISTICS = 6
PACKET_VERSION = 10
PACKET_VNET_HDR = 15
PACKET_QDISC_BYPASS = 20
PACKET_IGNORE_OUTGOING = 23
TPACKET_V2 = 1
TPACKET_V3 = 2
TP_STATUS_KERNEL = 0
TP_STATUS_USER = 1
TP_STATUS_VLAN_VALID = 1 << 4
TP_STATUS_VLAN_TPID_VALID = 1 << 6

# linux/virtio_net.h: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
VNET_HEADER = struct.Struct("=BBHHHH")
VNET_HEADER_BYTES = VNET_HEADER.size
VIRTIO_NET_HDR_F_NEEDS_CSUM = 1

# asm-generic/socket.h
SO_ATTACH_FILTER = 26
SO_RCVBUFFORCE = 33

# linux/udp.h
UDP_SEGMENT = 103

# linux/filter.h, linux/bpf_common.h: the instructions that frame filters here are made of
BPF_LD_W_ABS = 0x20
BPF_LD_H_ABS = 0x28
BPF_LD_B_ABS = 0x30
BPF_LD_W_LEN = 0x80
BPF_LD_B_IND = 0x50
BPF_LDX_B_MSH = 0xB1
BPF_AND_K = 0x54
BPF_JA = 0x05
BPF_JEQ_K = 0x15
BPF_JGT_K = 0x25
BPF_JSET_K = 0x45
BPF_RET_K = 0x06
BPF_MAXINSNS = 4096
SKF_AD_OFF = 0xFFFFF000
SKF_AD_PKTTYPE = 4
WHOLE_FRAME = 0x00040000

_SOCK_FILTER = struct.Struct("=HBBI")
_SOCK_FPROG = struct.Struct("@HP")
_TPACKET_REQ = struct.Struct("=IIII")  # block size, blocks, frame size, frames
_TPACKET_STATS = struct.Struct("=II")  # packets (drops included), drops
_TPACKET2_HDR = struct.Struct("=IIIHHII")  # status, length, captured, mac, net, seconds, nanoseconds


@dataclass(frozen=True)
class Instruction:
    """One classic BPF instruction; `jt` and `jf` count instructions to skip."""

    code: int
    jt: int
    jf: int
    k: int


Program = tuple[Instruction, ...]


def encode_program(program: Program) -> bytes:
    """The array of ``sock_filter`` that the kernel wants; ValueError when it would refuse the length."""
    if not 0 < len(program) <= BPF_MAXINSNS:
        raise ValueError(f"a BPF program has 1 to {BPF_MAXINSNS} instructions, not {len(program)}")
    return b"".join(_SOCK_FILTER.pack(one.code, one.jt, one.jf, one.k) for one in program)


def attach_filter(packet: socket.socket, program: Program) -> None:
    """Let `packet` receive only what `program` accepts from now on. Replaces the filter that was there."""
    encoded = ctypes.create_string_buffer(encode_program(program))
    packet.setsockopt(
        socket.SOL_SOCKET, SO_ATTACH_FILTER, _SOCK_FPROG.pack(len(program), ctypes.addressof(encoded))
    )


def bind(packet: socket.socket, interface: str, protocol: int = ETH_P_ALL) -> None:
    """Bind to `interface` (a name in the socket's namespace). Waits for an RCU grace period: 10 to 25 ms."""
    packet.bind((interface, protocol))


def drops(packet: socket.socket) -> int:
    """Frames that the filter accepted and that found no room, since the last call: the kernel resets the
    count."""
    _, dropped = _TPACKET_STATS.unpack(packet.getsockopt(SOL_PACKET, PACKET_STATISTICS, _TPACKET_STATS.size))
    return int(dropped)


def arrivals(packet: socket.socket) -> int:
    """Frames that the filter accepted since the last call, whether there was room for them or not: the
    kernel resets the count, and that of `drops`."""
    arrived, _ = _TPACKET_STATS.unpack(packet.getsockopt(SOL_PACKET, PACKET_STATISTICS, _TPACKET_STATS.size))
    return int(arrived)


class Captured(NamedTuple):
    """A frame from a ring: `t_ns` on CLOCK_REALTIME, and `data`, a virtio_net_hdr followed by the frame."""

    t_ns: int
    data: bytes


def status_words(ring: mmap.mmap) -> memoryview:
    """The words of a ring, for writing the status of a slot, which is in the first of it, by one store.

    `struct.pack_into` takes two: it sets to zero what it is going to write. Zero gives a slot back, so where
    the ring is full the kernel may fill it in between, and the second store would make of a slot that is full
    one that is empty: whoever reads would wait there for ever, with news behind it.
    """
    return memoryview(ring).cast("I")


class ReceiveRing:
    """A TPACKET_V2 receive ring of `slots` slots of `slot_bytes`, shared with the kernel.

    A socket buffer's size is capped by net.core.rmem_max for whoever is not root on the machine, and counts
    every frame at several times its length; a ring is bounded by its slots alone. Each slot has a header of
    its own, so a frame can be taken as soon as it is in (in TPACKET_V3 a block must fill or time out first).

    Give `packet` its PACKET_VNET_HDR first, and bind it last: from then on the ring fills.
    """

    BLOCK_BYTES = 1 << 20

    def __init__(self, packet: socket.socket, slot_bytes: int, slots: int) -> None:
        per_block = self.BLOCK_BYTES // slot_bytes
        if slot_bytes % 16 or slots % per_block:
            raise ValueError(
                f"slots must be of 16n bytes and fill blocks of {per_block}, not {slots} of {slot_bytes}"
            )
        blocks = slots // per_block
        packet.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V2)
        packet.setsockopt(
            SOL_PACKET, PACKET_RX_RING, _TPACKET_REQ.pack(self.BLOCK_BYTES, blocks, slot_bytes, slots)
        )
        self._map = mmap.mmap(packet.fileno(), blocks * self.BLOCK_BYTES)
        self._words = status_words(self._map)
        self._offsets = [
            number // per_block * self.BLOCK_BYTES + number % per_block * slot_bytes
            for number in range(slots)
        ]
        self._next = 0
        self.unusable = 0
        """Frames received that were longer than a slot or carried a VLAN tag: neither can be passed on
        whole."""

    def take(self) -> list[Captured]:
        """Everything that has arrived, oldest first. Empty when nothing has: 1 us. Never waits."""
        taken: list[Captured] = []
        ring, words, offsets = self._map, self._words, self._offsets
        while True:
            slot = offsets[self._next]
            status, length, captured, mac, _, seconds, nanoseconds = _TPACKET2_HDR.unpack_from(ring, slot)
            if not status & TP_STATUS_USER:
                return taken
            if captured < length or status & TP_STATUS_VLAN_VALID:
                self.unusable += 1
            else:
                start = slot + mac - VNET_HEADER_BYTES
                data = ring[start : slot + mac + captured]
                taken.append(Captured(seconds * 1_000_000_000 + nanoseconds, data))
            words[slot // words.itemsize] = TP_STATUS_KERNEL
            self._next = (self._next + 1) % len(offsets)

    def times(self) -> list[int]:
        """The times alone (CLOCK_REALTIME, ns) of everything that has arrived, cut short or not, oldest
        first."""
        times: list[int] = []
        while True:
            slot = self._offsets[self._next]
            status, _, _, _, _, seconds, nanoseconds = _TPACKET2_HDR.unpack_from(self._map, slot)
            if not status & TP_STATUS_USER:
                return times
            times.append(seconds * 1_000_000_000 + nanoseconds)
            self._words[slot // self._words.itemsize] = TP_STATUS_KERNEL
            self._next = (self._next + 1) % len(self._offsets)

    def close(self) -> None:
        """Unmap. The kernel frees the ring when the socket is closed as well."""
        self._words.release()
        self._map.close()


# --- assembling
# -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Jump:
    """A comparison with `k` whose outcomes are labels; None means the next instruction."""

    code: int
    k: int
    true: str | None = None
    false: str | None = None


@dataclass(frozen=True)
class Goto:
    """On to `label`, in any case."""

    label: str


@dataclass(frozen=True)
class Label:
    """A name for the instruction that follows."""

    name: str


Line = Instruction | Jump | Goto | Label


def load(code: int, k: int = 0) -> Instruction:
    return Instruction(code, 0, 0, k)


def accept() -> Instruction:
    return Instruction(BPF_RET_K, 0, 0, WHOLE_FRAME)


def reject() -> Instruction:
    return Instruction(BPF_RET_K, 0, 0, 0)


def assemble(lines: Iterable[Line]) -> Program:
    """Resolve labels. ValueError for a label that is missing, that stands before its jump, or over 255
    away."""
    lines = list(lines)
    positions: dict[str, int] = {}
    code: list[Instruction | Jump | Goto] = []
    for line in lines:
        if isinstance(line, Label):
            positions[line.name] = len(code)
        else:
            code.append(line)
    return tuple(_resolve(line, number, positions) for number, line in enumerate(code))


def _resolve(line: Instruction | Jump | Goto, number: int, positions: dict[str, int]) -> Instruction:
    if isinstance(line, Instruction):
        return line
    if isinstance(line, Goto):
        return Instruction(BPF_JA, 0, 0, _skip(line.label, number, positions))
    jt, jf = (0 if label is None else _skip(label, number, positions) for label in (line.true, line.false))
    if max(jt, jf) > 255:
        raise ValueError(f"label {line.true if jt > 255 else line.false!r} is over 255 instructions away")
    return Instruction(line.code, jt, jf, line.k)


def _skip(label: str, number: int, positions: dict[str, int]) -> int:
    if label not in positions:
        raise ValueError(f"no label {label!r} to jump to")
    if positions[label] <= number:
        raise ValueError(f"label {label!r} stands before the jump to it: there are no loops in BPF")
    return positions[label] - number - 1


def matches(program: Sequence[Instruction], frame: bytes, packet_type: int = 0) -> bool:
    """Run `program` on `frame` as the kernel would, which hands it over with `packet_type`.

    A reference for tests and for explaining a filter. ValueError for an instruction not in the table above.
    """
    accumulator, index, at = 0, 0, 0
    widths = {BPF_LD_W_ABS: 4, BPF_LD_H_ABS: 2, BPF_LD_B_ABS: 1, BPF_LD_B_IND: 1}
    while True:
        one = program[at]
        at += 1
        if one.code == BPF_RET_K:
            return one.k != 0
        if one.k == SKF_AD_OFF + SKF_AD_PKTTYPE:
            accumulator = packet_type
        elif one.code in widths:
            start = one.k + (index if one.code == BPF_LD_B_IND else 0)
            end = start + widths[one.code]
            if end > len(frame):
                return False
            accumulator = int.from_bytes(frame[start:end], "big")
        elif one.code == BPF_LDX_B_MSH:
            if one.k >= len(frame):
                return False
            index = (frame[one.k] & 0xF) * 4
        elif one.code == BPF_JA:
            at += one.k
        elif one.code == BPF_LD_W_LEN:
            accumulator = len(frame)
        elif one.code == BPF_AND_K:
            accumulator &= one.k
        elif one.code == BPF_JEQ_K:
            at += one.jt if accumulator == one.k else one.jf
        elif one.code == BPF_JGT_K:
            at += one.jt if accumulator > one.k else one.jf
        elif one.code == BPF_JSET_K:
            at += one.jt if accumulator & one.k else one.jf
        else:
            raise ValueError(f"instruction code {one.code:#x} is not one that a filter here is made of")
