"""What there is to do to make a network, one value a step. A step can describe itself; `netns.apply` performs
it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MakeNode:
    """A named network namespace: loopback up, IPv6 saying nothing unasked, this congestion control if it may
    be set.
    """

    node: str
    congestion_control: str

    def describe(self) -> str:
        return f"node {self.node}, quiet, with {self.congestion_control} if it may be chosen"


@dataclass(frozen=True, slots=True)
class SetSysctl:
    """A sysctl of one node, by its dotted name."""

    node: str
    name: str
    value: str

    def describe(self) -> str:
        return f"{self.node}: sysctl {self.name} = {self.value}"


@dataclass(frozen=True, slots=True)
class MakeBridge:
    """A learning switch: no spanning tree, no delay before forwarding, multicast flooded, no queries of its
    own.
    """

    node: str
    ifname: str
    mac: str
    mtu: int
    ageing_ns: int | None = None
    """How long it knows an address that it does not hear any more; None: the kernel's five minutes."""

    def describe(self) -> str:
        ageing = "" if self.ageing_ns is None else f", ageing {self.ageing_ns / 1e9:g} s"
        return f"{self.node}: bridge {self.ifname}, {self.mac}, MTU {self.mtu}{ageing}"


@dataclass(frozen=True, slots=True)
class MakeVeth:
    """A pair of interfaces, each the other end of one wire, down. Offloads stay on: frames of up to 64 KiB
    pass.

    `index` is the near end's number, and unlike any that the kernel gives the far end: see
    `links.Links.add_veth`.
    """

    index: int
    node: str
    ifname: str
    mac: str
    peer_node: str
    peer_ifname: str
    peer_mac: str
    mtu: int

    def describe(self) -> str:
        here = f"{self.node}/{self.ifname} ({self.mac})"
        there = f"{self.peer_node}/{self.peer_ifname} ({self.peer_mac})"
        return f"link {here} to {there}, MTU {self.mtu}"


@dataclass(frozen=True, slots=True)
class Enslave:
    """Make an interface a port of a bridge. From its next carrier on, the port is *forwarding*."""

    node: str
    ifname: str
    bridge: str

    def describe(self) -> str:
        return f"{self.node}: {self.ifname} into {self.bridge}"


@dataclass(frozen=True, slots=True)
class AddAddress:
    """An address with its prefix length. IPv6 without duplicate address detection, so that it is usable at
    once.

    Whoever has an IPv6 address joins the multicast group that belongs to it, and says so: two MLD reports
    within a second of the interface coming up. No switch of the kernel's turns these off.
    """

    node: str
    ifname: str
    address: str

    def describe(self) -> str:
        return f"{self.node}: {self.address} on {self.ifname}"


@dataclass(frozen=True, slots=True)
class LimitRate:
    """A token bucket on what an interface sends: see `topology.token_bucket` for its measures."""

    node: str
    ifname: str
    rate_mbit: float

    def describe(self) -> str:
        return f"{self.node}: {self.ifname} sends at most {self.rate_mbit:g} Mbit/s"


@dataclass(frozen=True, slots=True)
class BringUp:
    """Set an interface up."""

    node: str
    ifname: str

    def describe(self) -> str:
        return f"{self.node}: {self.ifname} up"


Step = MakeNode | SetSysctl | MakeBridge | MakeVeth | Enslave | AddAddress | LimitRate | BringUp
