"""What the prepared messages say, field by field (linux/netlink.h, linux/rtnetlink.h, linux/neighbour.h)."""

from __future__ import annotations

import struct

from testbed.kernel import netlink

MAC = bytes.fromhex("020000000042")


def test_a_port_state_is_a_bridge_attribute_nested_in_a_setlink() -> None:
    data = netlink.prepare(netlink.port_state(7, 3)).data
    assert struct.unpack_from("=IHHII", data) == (len(data), 19, 0x5, 1, 0)  # RTM_SETLINK; REQUEST | ACK
    assert struct.unpack_from("=BxHiII", data, 16) == (
        7,
        0,
        7,
        0,
        0,
    )  # AF_BRIDGE; interface 7; no flag changes
    assert struct.unpack_from("=HHHHB", data, 32) == (12, 0x8000 | 12, 5, 1, 3)  # PROTINFO nests BRPORT_STATE
    assert len(data) == 44


def test_a_forwarding_entry_is_replaced_or_created_and_keeps_to_its_port_if_sticky() -> None:
    for sticky, state, flags in (
        (True, 0x40, 0x44),
        (False, 0x02, 0x04),
    ):  # NOARP, MASTER|STICKY; REACHABLE, MASTER
        data = netlink.prepare(netlink.forwarding_entry(MAC, 9, sticky=sticky)).data
        assert struct.unpack_from("=IHH", data) == (
            len(data),
            28,
            0x505,
        )  # RTM_NEWNEIGH; CREATE | REPLACE besides
        assert struct.unpack_from("=BxxxiHBB", data, 16) == (7, 9, state, flags, 0)
        assert struct.unpack_from("=HH6s", data, 28) == (10, 2, MAC)  # NDA_LLADDR


def test_messages_of_one_request_are_numbered_and_aligned() -> None:
    request = netlink.prepare(
        netlink.forwarding_entry(MAC, 1, sticky=True), netlink.port_state(1, 0), netlink.port_state(2, 0)
    )
    assert list(netlink.sequence_numbers(request)) == [1, 2, 3]
    assert len(request.data) % 4 == 0
    assert len(request.what) == 3


def test_a_neighbour_carries_its_address_whatever_the_family() -> None:
    for family, address in ((2, bytes(4)), (10, bytes(16))):
        data = netlink.prepare(netlink.neighbour(3, family, address, MAC, 0x80)).data
        assert struct.unpack_from("=BxxxiHBB", data, 16) == (family, 3, 0x80, 0, 0)
        assert data[28:] == struct.pack("=HH", 4 + len(address), 1) + address + struct.pack(
            "=HH6s2x", 10, 2, MAC
        )
