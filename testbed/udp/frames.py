"""A datagram as the frames in which it came: Ethernet, IP and UDP, in fragments where it is long. Pure.

RFC 768 (UDP), RFC 791 (IPv4), RFC 8200 (IPv6 and its fragment header), RFC 1071 (checksum). Each frame is
preceded by an empty virtio_net_hdr, as :class:`testbed.handover.hold.FrameRelease` wants them.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

from netns.packet import ETH_P_IP, ETH_P_IPV6, VNET_HEADER_BYTES
from testbed.udp.state import Address, Datagram

SENDER_MAC = bytes.fromhex("020000000001")
"""Whoever it was: a host learns no IP address from the MAC address of a frame."""
_UDP, _FRAGMENT = 17, 44
_TTL = 64
_MORE_IPV4, _MORE_IPV6 = 0x2000, 1
_FRAGMENT_HEADER = struct.Struct("!BxHI")


def frames(datagram: Datagram, mac: bytes, address: Address, mtu: int, number: int) -> list[bytes]:
    """The frames of `datagram` to `address` at `mac`, on a link of that MTU (bytes of IP packet). `number`
    tells its fragments from those of others: another one for each datagram. ValueError for a sender of the
    other family.
    """
    if datagram.sender.version != address.version:
        raise ValueError(f"a datagram from {datagram.sender} cannot be for {address}")
    payload = _udp(datagram, address)
    packets = (_ipv4 if isinstance(address, IPv4Address) else _ipv6)(
        payload, datagram.sender.packed, address.packed, mtu, number
    )
    kind = ETH_P_IP if address.version == 4 else ETH_P_IPV6
    head = bytes(VNET_HEADER_BYTES) + mac + SENDER_MAC + kind.to_bytes(2, "big")
    return [head + packet for packet in packets]


def _udp(datagram: Datagram, address: Address) -> bytes:
    length = 8 + len(datagram.data)
    pseudo = datagram.sender.packed + address.packed + struct.pack("!II", length, _UDP)
    head = struct.pack("!HHH", datagram.sender_port, datagram.port, length)
    sum_ = checksum(pseudo + head + b"\0\0" + datagram.data) or 0xFFFF
    return head + sum_.to_bytes(2, "big") + datagram.data


def _ipv4(payload: bytes, source: bytes, destination: bytes, mtu: int, number: int) -> list[bytes]:
    packets = []
    step = (mtu - 20) & ~7
    for at in range(0, len(payload), step):
        part = payload[at : at + step]
        more = _MORE_IPV4 if at + step < len(payload) else 0
        fixed = struct.pack("!BBHHHBB", 0x45, 0, 20 + len(part), number & 0xFFFF, more | at >> 3, _TTL, _UDP)
        sum_ = checksum(fixed + b"\0\0" + source + destination)
        packets.append(fixed + sum_.to_bytes(2, "big") + source + destination + part)
    return packets


def _ipv6(payload: bytes, source: bytes, destination: bytes, mtu: int, number: int) -> list[bytes]:
    def head(length: int, following: int) -> bytes:
        return struct.pack("!IHBB", 6 << 28, length, following, _TTL) + source + destination

    if 40 + len(payload) <= mtu:
        return [head(len(payload), _UDP) + payload]
    packets = []
    step = (mtu - 40 - _FRAGMENT_HEADER.size) & ~7
    for at in range(0, len(payload), step):
        part = payload[at : at + step]
        more = _MORE_IPV6 if at + step < len(payload) else 0
        fragment = _FRAGMENT_HEADER.pack(_UDP, at | more, number & 0xFFFFFFFF)
        packets.append(head(len(fragment) + len(part), _FRAGMENT) + fragment + part)
    return packets


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071), 16 bits."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
