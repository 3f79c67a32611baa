"""Which frames the filters take, against frames that scapy builds.

The reference interpreter stands in for the kernel here; tests/system/test_hold.py holds its verdicts against
the kernel's own.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6ND_RA, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from netns import packet
from netns.packet import Goto, Instruction, Jump, Label, accept, assemble, load, matches, reject
from testbed.handover import announcement
from testbed.handover.announcement import Kind
from testbed.handover.filters import Identity, claims, concerning, handshakes

VM = "02:00:00:00:00:42"
CLIENT = "02:00:00:00:00:01"
OTHER = "02:00:00:00:00:43"
BROADCAST = "ff:ff:ff:ff:ff:ff"
VM4, CLIENT4, OTHER4 = "10.7.0.10", "10.7.0.1", "10.7.0.11"
VM6, CLIENT6, OTHER6 = "fd07::10", "fd07::1", "fd07::1:10"
IDENTITY = Identity((bytes.fromhex("020000000042"),), (IPv4Address(VM4),), (IPv6Address(VM6),))


def arp_request(target: str) -> Packet:
    return Ether(src=CLIENT, dst=BROADCAST) / ARP(hwsrc=CLIENT, psrc=CLIENT4, pdst=target)


def solicitation(target: str) -> Packet:
    group = IPv6Address(IPv6Address("ff02::1:ff00:0").packed[:13] + IPv6Address(target).packed[13:])
    frame = Ether(src=CLIENT, dst="33:33:ff:00:00:10") / IPv6(src=CLIENT6, dst=str(group))
    return frame / ICMPv6ND_NS(tgt=target)


def to_vm(payload: Packet) -> Packet:
    return Ether(src=CLIENT, dst=VM) / payload


CONCERNING = {
    "unicast IPv4": to_vm(IP(src=CLIENT4, dst=VM4) / TCP(flags="A")),
    "unicast IPv6": to_vm(IPv6(src=CLIENT6, dst=VM6) / UDP()),
    "unicast of a protocol unknown": Ether(src=CLIENT, dst=VM, type=0x88B5) / b"whatever",
    "an ARP request for it": arp_request(VM4),
    "a unicast ARP reply to it": to_vm(ARP(op=2, hwsrc=CLIENT, psrc=CLIENT4, hwdst=VM, pdst=VM4)),
    "a solicitation for it": solicitation(VM6),
}
NOT_CONCERNING = {
    "unicast to another": Ether(src=CLIENT, dst=OTHER) / IP(src=CLIENT4, dst=VM4) / TCP(),
    "an ARP request for another": arp_request(OTHER4),
    "a solicitation for another of the same group": solicitation(OTHER6),
    "an advertisement to all": Ether(src=CLIENT, dst="33:33:00:00:00:01")
    / IPv6(dst="ff02::1")
    / ICMPv6ND_NA(tgt=VM6),
    "a router advertisement": Ether(src=CLIENT, dst="33:33:00:00:00:01")
    / IPv6(dst="ff02::1")
    / ICMPv6ND_RA(),
    "broadcast IPv4": Ether(src=CLIENT, dst=BROADCAST) / IP(src=CLIENT4, dst="10.7.0.255") / UDP(),
    "its own announcement, flooded": Ether(src=VM, dst=BROADCAST) / ARP(hwsrc=VM, psrc=VM4, pdst=VM4),
    "a frame cut short": b"\x02\x00\x00",
}


@pytest.mark.parametrize("name", CONCERNING)
def test_the_hold_takes(name: str) -> None:
    assert matches(concerning(IDENTITY), bytes(CONCERNING[name]))


@pytest.mark.parametrize("name", NOT_CONCERNING)
def test_the_hold_leaves(name: str) -> None:
    assert not matches(concerning(IDENTITY), bytes(NOT_CONCERNING[name]))


def test_the_hold_leaves_what_its_own_interface_sends() -> None:
    frame = bytes(CONCERNING["unicast IPv4"])
    assert not matches(concerning(IDENTITY), frame, packet_type=packet.PACKET_OUTGOING)


@pytest.mark.parametrize("length", [60, 1951, 1952, 1953, 65535])
def test_every_frame_belongs_to_exactly_one_ring(length: int) -> None:
    frame = bytes(CONCERNING["unicast IPv4"]).ljust(length, b"\0")
    small = matches(concerning(IDENTITY, at_most=1952), frame)
    large = matches(concerning(IDENTITY, longer_than=1952), frame)
    assert (small, large) == (length <= 1952, length > 1952)


def test_the_hold_knows_the_mac_that_the_vm_had_as_well() -> None:
    identity = Identity((*IDENTITY.macs, bytes.fromhex("020000000043")), IDENTITY.ipv4, IDENTITY.ipv6)
    frame = bytes(Ether(src=CLIENT, dst=OTHER) / IP(src=CLIENT4, dst=VM4) / TCP())
    assert matches(concerning(identity), frame)
    assert not matches(concerning(IDENTITY), frame)


def test_without_an_ipv6_address_no_solicitation_concerns_it() -> None:
    only_ipv4 = Identity(IDENTITY.macs, IDENTITY.ipv4)
    assert not matches(concerning(only_ipv4), bytes(solicitation(VM6)))
    assert matches(concerning(only_ipv4), bytes(arp_request(VM4)))


HANDSHAKES = {
    "IPv4": to_vm(IP(src=CLIENT4, dst=VM4) / TCP(flags="S")),
    "IPv4 with options in its header": to_vm(IP(src=CLIENT4, dst=VM4, options=b"\x01" * 8) / TCP(flags="S")),
    "IPv4 asking for ECN": to_vm(IP(src=CLIENT4, dst=VM4) / TCP(flags="SEC")),
    "IPv6": to_vm(IPv6(src=CLIENT6, dst=VM6) / TCP(flags="S")),
}
NO_HANDSHAKES = {
    "an acknowledgement": to_vm(IP(src=CLIENT4, dst=VM4) / TCP(flags="A")),
    "the answer to one": to_vm(IP(src=CLIENT4, dst=VM4) / TCP(flags="SA")),
    "an IPv6 acknowledgement": to_vm(IPv6(src=CLIENT6, dst=VM6) / TCP(flags="A")),
    "the answer to one over IPv6": to_vm(IPv6(src=CLIENT6, dst=VM6) / TCP(flags="SA")),
    "a reset": to_vm(IP(src=CLIENT4, dst=VM4) / TCP(flags="R")),
    "for another": to_vm(IP(src=CLIENT4, dst=OTHER4) / TCP(flags="S")),
    "for another over IPv6": to_vm(IPv6(src=CLIENT6, dst=OTHER6) / TCP(flags="S")),
    "UDP that looks like one": to_vm(IP(src=CLIENT4, dst=VM4) / UDP() / (b"\x02" * 20)),
    "a later fragment": to_vm(IP(src=CLIENT4, dst=VM4, frag=1, proto=6) / (b"\x02" * 20)),
    "ICMP": to_vm(IP(src=CLIENT4, dst=VM4) / ICMP()),
}


@pytest.mark.parametrize("name", HANDSHAKES)
def test_handshakes_are_caught_on_their_way_to_the_guest(name: str) -> None:
    frame = bytes(HANDSHAKES[name])
    assert matches(handshakes(IDENTITY), frame, packet_type=packet.PACKET_OUTGOING)
    assert not matches(handshakes(IDENTITY), frame)


@pytest.mark.parametrize("name", NO_HANDSHAKES)
def test_nothing_else_is_caught_as_a_handshake(name: str) -> None:
    assert not matches(handshakes(IDENTITY), bytes(NO_HANDSHAKES[name]), packet_type=packet.PACKET_OUTGOING)


@pytest.mark.parametrize("kind", list(Kind))
def test_every_frame_of_an_announcement_is_a_claim(kind: Kind) -> None:
    frames = announcement.build(kind, IDENTITY.macs[0], IDENTITY.ipv4[0], IDENTITY.ipv6[0])
    assert all(matches(claims(IDENTITY), frame) for frame in frames)


@pytest.mark.parametrize("frame", [*CONCERNING.values(), *HANDSHAKES.values()], ids=repr)
def test_nothing_that_concerns_it_is_a_claim(frame: Packet) -> None:
    assert not matches(claims(IDENTITY), bytes(frame))


def test_an_answer_to_one_client_is_no_claim() -> None:
    reply = Ether(src=VM, dst=CLIENT) / ARP(op=2, hwsrc=VM, psrc=VM4, hwdst=CLIENT, pdst=CLIENT4)
    advertisement = Ether(src=VM, dst=CLIENT) / IPv6(src=VM6, dst=CLIENT6) / ICMPv6ND_NA(tgt=VM6)
    assert not matches(claims(IDENTITY), bytes(reply))
    assert not matches(claims(IDENTITY), bytes(advertisement))


def test_assembling_resolves_labels() -> None:
    program = assemble(
        [
            load(packet.BPF_LD_W_LEN),
            Jump(packet.BPF_JGT_K, 9, false="small"),
            accept(),
            Label("small"),
            reject(),
        ]
    )
    assert program[1] == Instruction(packet.BPF_JGT_K, 0, 1, 9)
    assert [matches(program, bytes(size)) for size in (9, 10)] == [False, True]


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([Goto("nowhere"), accept()], "no label"),
        ([Label("back"), accept(), Goto("back")], "no loops"),
        ([Jump(packet.BPF_JEQ_K, 0, true="far"), *[accept()] * 256, Label("far"), reject()], "over 255"),
    ],
)
def test_assembling_refuses_what_the_kernel_would(lines: list[packet.Line], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        assemble(lines)


@pytest.mark.parametrize("count", [0, 4097])
def test_a_program_has_a_length_that_the_kernel_takes(count: int) -> None:
    with pytest.raises(ValueError, match="1 to 4096"):
        packet.encode_program((accept(),) * count)
