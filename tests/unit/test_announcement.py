"""Announcements, byte by byte, against the fields that the RFCs name. Nothing here reads them with scapy."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

import pytest

from testbed.handover.announcement import SCHEDULE_MS, Kind, build, due_ns

MAC = bytes.fromhex("020000000042")
IPV4 = IPv4Address("10.7.0.10")
IPV6 = IPv6Address("fd07::10")
BROADCAST = bytes.fromhex("ffffffffffff")


def arp_fields(frame: bytes) -> tuple[bytes, bytes, int, int, bytes, bytes, bytes, bytes]:
    destination, source, ether_type = struct.unpack_from("!6s6sH", frame)
    hardware, protocol, hardware_length, protocol_length, operation = struct.unpack_from("!HHBBH", frame, 14)
    assert (hardware, protocol, hardware_length, protocol_length) == (1, 0x0800, 6, 4)
    assert len(frame) == 42
    return destination, source, ether_type, operation, *struct.unpack_from("!6s4s6s4s", frame, 22)


def test_the_request_form_is_that_of_rfc_5227() -> None:
    frame = build(Kind.GARP_REQUEST, MAC, IPV4, None)[0]
    assert arp_fields(frame) == (BROADCAST, MAC, 0x0806, 1, MAC, IPV4.packed, bytes(6), IPV4.packed)


def test_the_reply_form_is_that_of_rfc_5944() -> None:
    frame = build(Kind.GARP_REPLY, MAC, IPV4, None)[0]
    assert arp_fields(frame) == (BROADCAST, MAC, 0x0806, 2, MAC, IPV4.packed, MAC, IPV4.packed)


def test_reverse_arp_names_no_address_and_goes_alone() -> None:
    (frame,) = build(Kind.RARP, MAC, IPV4, IPV6)
    assert arp_fields(frame) == (BROADCAST, MAC, 0x8035, 3, MAC, bytes(4), MAC, bytes(4))


@pytest.mark.parametrize("kind", [Kind.GARP_REQUEST, Kind.GARP_REPLY])
def test_ipv6_is_announced_by_an_unsolicited_advertisement_that_overrides(kind: Kind) -> None:
    frame = build(kind, MAC, IPV4, IPV6)[1]
    all_nodes = IPv6Address("ff02::1").packed
    assert struct.unpack_from("!6s6sH", frame) == (bytes.fromhex("333300000001"), MAC, 0x86DD)
    length, next_header, hop_limit, source, destination = struct.unpack_from("!HBB16s16s", frame, 18)
    assert (length, next_header, hop_limit) == (
        32,
        58,
        255,
    )  # RFC 4861, 7.1.2: a hop limit of 255 or it is ignored
    assert (source, destination) == (IPV6.packed, all_nodes)
    message = frame[54:]
    kind_, code, _, flags, target = struct.unpack_from("!BBHI16s", message)
    assert (kind_, code, target) == (136, 0, IPV6.packed)
    assert flags == 0x20000000  # override; not solicited (7.2.6), not a router
    assert message[24:] == bytes((2, 1)) + MAC  # target link-layer address option, of 8 bytes
    assert ones_complement_sum(source + destination + struct.pack("!II", 32, 58) + message) == 0xFFFF


def ones_complement_sum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def test_none_is_silence() -> None:
    assert build(Kind.NONE, MAC, IPV4, IPV6) == ()


@pytest.mark.parametrize("kind", [Kind.GARP_REQUEST, Kind.GARP_REPLY])
def test_only_the_addresses_that_the_vm_has_are_announced(kind: Kind) -> None:
    assert len(build(kind, MAC, IPV4, None)) == 1
    assert [frame[12:14] for frame in build(kind, MAC, None, IPV6)] == [b"\x86\xdd"]


def test_rounds_are_spaced_as_the_schedule_says_and_end() -> None:
    times = [due_ns(1_000, rounds) for rounds in range(len(SCHEDULE_MS) + 1)]
    assert times == [1_000, 50_001_000, 200_001_000, 450_001_000, 800_001_000, None]
