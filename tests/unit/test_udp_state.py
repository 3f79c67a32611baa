"""UDP sockets as data, and their datagrams as frames that another implementation reads."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns.packet import VNET_HEADER_BYTES
from testbed.udp import state
from testbed.udp.frames import checksum, frames
from testbed.udp.state import Datagram, SocketState, UdpStateError

PORTS = st.integers(0, 65535)
ADDRESSES = st.ip_addresses()
SIZES = st.integers(0, 2**31)
SOCKETS = st.builds(SocketState, ADDRESSES, PORTS, st.booleans(), SIZES, SIZES)
DATAGRAMS = st.builds(Datagram, PORTS, ADDRESSES, PORTS, st.binary(max_size=200))
MAC = bytes.fromhex("020000000042")


@given(st.lists(SOCKETS, max_size=8))
def test_sockets_come_back_as_they_went(sockets: list[SocketState]) -> None:
    assert state.decode_sockets(state.encode_sockets(sockets)) == sockets


@given(st.lists(DATAGRAMS, max_size=8))
def test_a_queue_comes_back_in_its_order(queue: list[Datagram]) -> None:
    assert state.decode_queue(state.encode_queue(queue)) == queue


@given(st.lists(DATAGRAMS, min_size=1, max_size=3), st.data())
def test_a_queue_that_is_cut_or_altered_is_refused_or_another(queue: list[Datagram], data: Any) -> None:
    encoded = bytearray(state.encode_queue(queue))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    for altered in (bytes(encoded), bytes(encoded[: data.draw(st.integers(0, len(encoded)))])):
        try:
            state.decode_queue(altered)
        except UdpStateError:
            continue


def test_a_length_beyond_the_data_is_refused() -> None:
    whole = state.encode_queue([Datagram(7000, ip_address("10.7.0.101"), 5000, b"hello")])
    for cut in range(1, len(whole)):
        with pytest.raises(UdpStateError):
            state.decode_queue(whole[:cut])
    with pytest.raises(UdpStateError):
        state.decode_sockets(b"x" * 31)


@pytest.mark.parametrize("size", [0, 1, 31, 1472, 1473, 5001, 65_000])
@pytest.mark.parametrize(
    ("sender", "address"),
    [("10.7.0.101", "10.7.0.10"), ("fd07::101", "fd07::10")],
    ids=["IPv4", "IPv6"],
)
def test_scapy_reads_the_datagram_from_its_frames(sender: str, address: str, size: int) -> None:
    """Fragments are put together again, every checksum is right, and no packet is longer than the link's."""
    scapy = pytest.importorskip("scapy.layers.l2")
    inet = pytest.importorskip("scapy.layers.inet")
    inet6 = pytest.importorskip("scapy.layers.inet6")
    data = bytes(number * 31 & 255 for number in range(size))
    made = frames(Datagram(7000, ip_address(sender), 5000, data), MAC, ip_address(address), 1500, 9)
    payload = b""
    for frame in made:
        assert frame[:VNET_HEADER_BYTES] == bytes(VNET_HEADER_BYTES)
        ether = scapy.Ether(frame[VNET_HEADER_BYTES:])
        assert ether.dst == MAC.hex(":")
        assert len(frame) - VNET_HEADER_BYTES - 14 <= 1500
        if ":" in address:
            packet = ether[inet6.IPv6]
            assert packet.plen == len(packet.payload)
            following = packet.payload
            if inet6.IPv6ExtHdrFragment in packet:
                assert following.offset * 8 == len(payload)
                assert following.m == (frame is not made[-1])
                following = following.payload
        else:
            packet = ether[inet.IP]
            head = bytes(packet)[:20]
            assert checksum(head) == 0
            assert packet.frag * 8 == len(payload)
            assert bool(packet.flags.MF) == (frame is not made[-1])
            following = packet.payload
        payload += bytes(following)
        assert (packet.src, packet.dst) == (str(ip_address(sender)), str(ip_address(address)))
    udp = inet.UDP(payload[: 8 + size])
    assert (udp.sport, udp.dport, bytes(udp.payload)) == (5000, 7000, data)
    pseudo = ip_address(sender).packed + ip_address(address).packed + bytes([0, 0, 0, 17])
    assert checksum(pseudo + len(payload).to_bytes(4, "big") + payload) == 0


def test_a_sender_of_the_other_family_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be for"):
        frames(Datagram(7000, IPv4Address("10.7.0.1"), 1, b""), MAC, IPv6Address("fd07::1"), 1500, 1)


@given(st.binary(max_size=50))
def test_the_checksum_of_data_with_its_checksum_is_zero(data: bytes) -> None:
    even = data + b"\0" * (len(data) % 2)
    assert checksum(even + checksum(data).to_bytes(2, "big")) == 0
