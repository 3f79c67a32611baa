"""Telling the network where the VM is now: which frames, and when. Pure."""

from __future__ import annotations

from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address

SCHEDULE_MS = (0, 50, 200, 450, 800)
"""When the rounds go out, after the first one. Hypervisors' spacing: a lost frame is soon made up for, a lost
link that takes its time to come up too.
"""

_BROADCAST = "ff:ff:ff:ff:ff:ff"
_NOBODY = "00:00:00:00:00:00"
_ALL_NODES_MAC = "33:33:00:00:00:01"
_ALL_NODES = "ff02::1"


class Kind(StrEnum):
    """How the VM is announced.

    `garp-request`: an ARP request for the VM's own address, by itself (RFC 5227, 1.1 and 2.3: ARP
    announcement). `garp-reply`: an ARP reply to everybody (RFC 5944, 4.6). Both change the neighbour entry of
    who has one, and for IPv6 go with their twin, the unsolicited neighbour advertisement (RFC 4861, 7.2.6).
    `rarp`: a reverse ARP request (RFC 903) that names no address, as QEMU sends it. It goes alone, without an
    advertisement, for it is there to show what happens when only switches are taught. `none`: silence.
    """

    GARP_REQUEST = "garp-request"
    GARP_REPLY = "garp-reply"
    RARP = "rarp"
    NONE = "none"


def build(kind: Kind, mac: bytes, ipv4: IPv4Address | None, ipv6: IPv6Address | None) -> tuple[bytes, ...]:
    """The Ethernet frames of one round for a VM with this MAC address (6 bytes) and these addresses.

    Loads scapy, which takes a quarter of a second the first time: build before the pause.
    """
    if kind is Kind.NONE:
        return ()
    if kind is Kind.RARP:
        return (_rarp(mac.hex(":")),)
    frames: list[bytes] = []
    if ipv4 is not None:
        frames.append(_gratuitous_arp(kind, mac.hex(":"), str(ipv4)))
    if ipv6 is not None:
        frames.append(_unsolicited_advertisement(mac.hex(":"), str(ipv6)))
    return tuple(frames)


def due_ns(first_ns: int, rounds_sent: int) -> int | None:
    """When the next round is due if the first was sent at `first_ns`; None when the last has been sent."""
    if rounds_sent >= len(SCHEDULE_MS):
        return None
    return first_ns + SCHEDULE_MS[rounds_sent] * 1_000_000


def _gratuitous_arp(kind: Kind, mac: str, ip: str) -> bytes:
    from scapy.layers.l2 import ARP, Ether

    # A reply names the sender as its target too: Linux takes one with another target for no gratuitous ARP
    # (net/ipv4/arp.c, arp_is_garp).
    operation, target = ("who-has", _NOBODY) if kind is Kind.GARP_REQUEST else ("is-at", mac)
    return bytes(
        Ether(src=mac, dst=_BROADCAST) / ARP(op=operation, hwsrc=mac, psrc=ip, hwdst=target, pdst=ip)
    )


def _rarp(mac: str) -> bytes:
    from scapy.layers.l2 import ARP, Ether

    request = ARP(op=3, hwsrc=mac, psrc="0.0.0.0", hwdst=mac, pdst="0.0.0.0")
    return bytes(Ether(src=mac, dst=_BROADCAST, type=0x8035) / request)


def _unsolicited_advertisement(mac: str, ip: str) -> bytes:
    from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6
    from scapy.layers.l2 import Ether

    advertisement = ICMPv6ND_NA(R=0, S=0, O=1, tgt=ip) / ICMPv6NDOptDstLLAddr(lladdr=mac)
    return bytes(Ether(src=mac, dst=_ALL_NODES_MAC) / IPv6(src=ip, dst=_ALL_NODES, hlim=255) / advertisement)
