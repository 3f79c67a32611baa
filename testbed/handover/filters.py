"""Which frames concern the VM: the filters of the hold and of the held handshakes, as BPF programs. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from netns import packet
from netns.packet import Goto, Jump, Label, Line, Program, accept, assemble, load, reject

# Offsets in an Ethernet frame (IEEE 802.3), and in what follows its 14 bytes: ARP (RFC 826), IPv4 (RFC 791),
# IPv6 (RFC 8200), TCP (RFC 9293), neighbour solicitation (RFC 4861, 4.3).
_ETHER_DESTINATION, _ETHER_SOURCE, _ETHER_TYPE = 0, 6, 12
_ARP_SENDER_IP, _ARP_TARGET_MAC, _ARP_TARGET_IP = 14 + 14, 14 + 18, 14 + 24
_IPV4_FRAGMENT, _IPV4_PROTOCOL, _IPV4_DESTINATION = 14 + 6, 14 + 9, 14 + 16
_IPV6_NEXT_HEADER, _IPV6_DESTINATION = 14 + 6, 14 + 24
_ICMPV6_TYPE, _SOLICITED_TARGET = 14 + 40, 14 + 40 + 8
_IPPROTO_TCP, _IPPROTO_ICMPV6 = 6, 58
_NEIGHBOUR_SOLICITATION, _NEIGHBOUR_ADVERTISEMENT = 135, 136
_TCP_FLAGS, _SYN, _ACK = 13, 0x02, 0x10
_IPV4_HEADER = 14


@dataclass(frozen=True)
class Identity:
    """Who the VM is on the client network: the MAC addresses that are its own, and its addresses.

    There are two MAC addresses where the policy is one MAC a host: the one it has and the one it had.
    """

    macs: tuple[bytes, ...]
    ipv4: tuple[IPv4Address, ...] = ()
    ipv6: tuple[IPv6Address, ...] = ()


def concerning(identity: Identity, *, longer_than: int = -1, at_most: int = 0xFFFFFFFF) -> Program:
    """Accept what the VM would have wanted to hear, of a length within the bounds (bytes, Ethernet header
    included).

    That is: a frame to its MAC address; an ARP message about its IPv4 address; a neighbour solicitation for
    its IPv6 address. Not what it sends itself: its own announcement, which the bridge floods, is no news to
    it. Nor what the capturing interface transmits.
    """
    lines: list[Line] = [
        load(packet.BPF_LD_B_ABS, packet.SKF_AD_OFF + packet.SKF_AD_PKTTYPE),
        Jump(packet.BPF_JEQ_K, packet.PACKET_OUTGOING, true="reject"),
        load(packet.BPF_LD_W_LEN),
        Jump(packet.BPF_JGT_K, at_most, true="reject"),
    ]
    if longer_than >= 0:
        lines.append(Jump(packet.BPF_JGT_K, longer_than, false="reject"))
    lines += _any_mac(_ETHER_SOURCE, identity.macs, "reject")
    lines += _any_mac(_ETHER_DESTINATION, identity.macs, "accept")
    lines += [
        load(packet.BPF_LD_H_ABS, _ETHER_TYPE),
        Jump(packet.BPF_JEQ_K, packet.ETH_P_ARP, true="arp"),
        Jump(packet.BPF_JEQ_K, packet.ETH_P_IPV6, false="reject"),
        load(packet.BPF_LD_B_ABS, _IPV6_NEXT_HEADER),
        Jump(packet.BPF_JEQ_K, _IPPROTO_ICMPV6, false="reject"),
        load(packet.BPF_LD_B_ABS, _ICMPV6_TYPE),
        Jump(packet.BPF_JEQ_K, _NEIGHBOUR_SOLICITATION, false="reject"),
        *_any_address(_SOLICITED_TARGET, [address.packed for address in identity.ipv6], "accept"),
        Goto("reject"),
        Label("arp"),
        *_any_address(_ARP_TARGET_IP, [address.packed for address in identity.ipv4], "accept"),
        Label("reject"),
        reject(),
        Label("accept"),
        accept(),
    ]
    return assemble(lines)


def handshakes(identity: Identity) -> Program:
    """Accept a TCP segment with SYN and without ACK on its way out of the interface, to one of the VM's
    addresses.

    IPv6 extension headers are not walked: a SYN behind one is not caught, and comes again a second later.
    """
    lines: list[Line] = [
        load(packet.BPF_LD_B_ABS, packet.SKF_AD_OFF + packet.SKF_AD_PKTTYPE),
        Jump(packet.BPF_JEQ_K, packet.PACKET_OUTGOING, false="reject"),
        load(packet.BPF_LD_H_ABS, _ETHER_TYPE),
        Jump(packet.BPF_JEQ_K, packet.ETH_P_IPV6, true="ipv6"),
        Jump(packet.BPF_JEQ_K, packet.ETH_P_IP, false="reject"),
        load(packet.BPF_LD_B_ABS, _IPV4_PROTOCOL),
        Jump(packet.BPF_JEQ_K, _IPPROTO_TCP, false="reject"),
        load(packet.BPF_LD_H_ABS, _IPV4_FRAGMENT),
        Jump(packet.BPF_JSET_K, 0x1FFF, true="reject"),
        *_any_address(_IPV4_DESTINATION, [address.packed for address in identity.ipv4], "ipv4 flags"),
        Goto("reject"),
        Label("ipv4 flags"),
        load(packet.BPF_LDX_B_MSH, _IPV4_HEADER),
        load(packet.BPF_LD_B_IND, _IPV4_HEADER + _TCP_FLAGS),
        Jump(packet.BPF_JSET_K, _ACK, true="reject"),
        Jump(packet.BPF_JSET_K, _SYN, true="accept", false="reject"),
        Label("ipv6"),
        load(packet.BPF_LD_B_ABS, _IPV6_NEXT_HEADER),
        Jump(packet.BPF_JEQ_K, _IPPROTO_TCP, false="reject"),
        *_any_address(_IPV6_DESTINATION, [address.packed for address in identity.ipv6], "ipv6 flags"),
        Goto("reject"),
        Label("ipv6 flags"),
        load(packet.BPF_LD_B_ABS, 14 + 40 + _TCP_FLAGS),
        Jump(packet.BPF_JSET_K, _ACK, true="reject"),
        Jump(packet.BPF_JSET_K, _SYN, true="accept"),
        Label("reject"),
        reject(),
        Label("accept"),
        accept(),
    ]
    return assemble(lines)


def claims(identity: Identity) -> Program:
    """Accept every frame in which somebody says where one of the VM's addresses, or the VM, is.

    That is: an ARP message whose sender's address is the VM's and its target's too; a reverse ARP message
    about one of its MAC addresses; a neighbour advertisement for its IPv6 address to all nodes.
    """
    lines: list[Line] = [
        load(packet.BPF_LD_H_ABS, _ETHER_TYPE),
        Jump(packet.BPF_JEQ_K, packet.ETH_P_ARP, true="arp"),
        Jump(packet.BPF_JEQ_K, packet.ETH_P_RARP, true="rarp"),
        Jump(packet.BPF_JEQ_K, packet.ETH_P_IPV6, false="reject"),
        load(packet.BPF_LD_B_ABS, _ETHER_DESTINATION),
        Jump(packet.BPF_JSET_K, 1, false="reject"),
        load(packet.BPF_LD_B_ABS, _IPV6_NEXT_HEADER),
        Jump(packet.BPF_JEQ_K, _IPPROTO_ICMPV6, false="reject"),
        load(packet.BPF_LD_B_ABS, _ICMPV6_TYPE),
        Jump(packet.BPF_JEQ_K, _NEIGHBOUR_ADVERTISEMENT, false="reject"),
        *_any_address(_SOLICITED_TARGET, [address.packed for address in identity.ipv6], "accept"),
        Goto("reject"),
        Label("rarp"),
        *_any_mac(_ARP_TARGET_MAC, identity.macs, "accept"),
        Goto("reject"),
        Label("arp"),
        *_any_address(_ARP_SENDER_IP, [address.packed for address in identity.ipv4], "arp target"),
        Goto("reject"),
        Label("arp target"),
        *_any_address(_ARP_TARGET_IP, [address.packed for address in identity.ipv4], "accept"),
        Label("reject"),
        reject(),
        Label("accept"),
        accept(),
    ]
    return assemble(lines)


def _any_mac(offset: int, macs: Sequence[bytes], target: str) -> Iterator[Line]:
    for number, mac in enumerate(macs):
        other = f"not mac {number} at {offset}"
        yield load(packet.BPF_LD_W_ABS, offset)
        yield Jump(packet.BPF_JEQ_K, int.from_bytes(mac[:4], "big"), false=other)
        yield load(packet.BPF_LD_H_ABS, offset + 4)
        yield Jump(packet.BPF_JEQ_K, int.from_bytes(mac[4:], "big"), true=target)
        yield Label(other)


def _any_address(offset: int, addresses: Sequence[bytes], target: str) -> Iterator[Line]:
    for number, address in enumerate(addresses):
        other = f"not address {number} at {offset}"
        for word in range(0, len(address), 4):
            last = word + 4 == len(address)
            yield load(packet.BPF_LD_W_ABS, offset + word)
            yield Jump(
                packet.BPF_JEQ_K,
                int.from_bytes(address[word : word + 4], "big"),
                true=target if last else None,
                false=other,
            )
        yield Label(other)
