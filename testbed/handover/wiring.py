"""Wires on a host: the hold pair, and a guest's network interface that nobody can hear until it is plugged
in."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pyroute2 import IPRoute

from netns.namespace import Namespace
from testbed.kernel import netlink
from testbed.kernel.netlink import RouteSocket

GUEST_INTERFACE = "eth0"
MOST_GUESTS = 16
"""That one host can have names for."""

_IFA_F_NODAD = 0x02  # linux/if_addr.h
_IFF_NOARP = 0x80  # linux/if.h
_CARRIER_DEADLINE_S = 30.0
_SYSCTL = Path("/proc/sys/net")
_CONGESTION_CONTROL = "cubic"


@dataclass(frozen=True)
class PortNames:
    """What belongs to one guest on a host's bridge: its port, its hold port, and that one's outer end."""

    guest: str
    hold: str
    hold_end: str

    @classmethod
    def numbered(cls, number: int) -> Self:
        """Those of the guest of this number, from 0."""
        return cls(f"vm{number}", f"hold{2 * number}", f"hold{2 * number + 1}")


PORTS = PortNames.numbered(0)
GUEST_PORT, HOLD_PORT, HOLD_END = PORTS.guest, PORTS.hold, PORTS.hold_end
HOLD_PORTS = frozenset(PortNames.numbered(number).hold for number in range(MOST_GUESTS))


@dataclass(frozen=True)
class GuestNic:
    """What a guest's network interface is called to the outside: its MAC address (6 bytes) and its
    addresses."""

    mac: bytes
    ipv4: IPv4Interface
    ipv6: IPv6Interface | None = None
    mtu_bytes: int = 1500


def wire_hold(host: Namespace, bridge: str, ports: PortNames = PORTS) -> None:
    """Make the hold pair of a guest on a host: a port of `bridge`, and its other end.

    Neither end speaks: no IPv6, and no ARP at the outer end, which hears every broadcast on the bridge and
    would answer questions about the host's own addresses a second time. OSError or pyroute2's NetlinkError
    when it cannot be made; nothing is left then.
    """
    with host.entered(), IPRoute() as route:
        bridge_index = _index(route, bridge)
        route.link("add", ifname=ports.hold, kind="veth", peer={"ifname": ports.hold_end})
        try:
            for name in (ports.hold, ports.hold_end):
                _set_sysctl(f"ipv6/conf/{name}/disable_ipv6", "1")
            route.link("set", index=_index(route, ports.hold), master=bridge_index, state="up")
            route.link("set", index=_index(route, ports.hold_end), flags=_IFF_NOARP, change=_IFF_NOARP)
            route.link("set", index=_index(route, ports.hold_end), state="up")
            with RouteSocket(_route_socket()) as ask, _route_socket() as watch:
                netlink.wait_operational(watch, ask, ports.hold, _CARRIER_DEADLINE_S)
        except BaseException:
            route.link("del", index=_index(route, ports.hold))
            raise


class GuestWiring:
    """A guest's network namespace on a host, wired to a port of the host's bridge that is disabled.

    A bridge puts a port to forwarding when it is enslaved and again when its carrier comes, so there is an
    instant before it can be disabled in which the guest's end could be heard. Therefore that end has nothing
    to say then: IPv6 is off in it (the reports by which it joins its multicast groups, above all) until the
    carrier has been noticed and the port is disabled. Afterwards the addresses are set, without duplicate
    address detection.

    A context manager; at its end the namespace is deleted and with it the wire.
    """

    def __init__(self, host: Namespace, namespace: Namespace, nic: GuestNic, port: str = GUEST_PORT) -> None:
        """What :meth:`make` has made, or an agent that is gone: the namespace is deleted with this object."""
        self.nic = nic
        self.namespace = namespace
        self._host = host
        self._port = port

    @classmethod
    def make(
        cls, host: Namespace, bridge: str, guest_name: str, nic: GuestNic, port: str = GUEST_PORT
    ) -> Self:
        """Make the namespace `guest_name` and wire it to `port`, which is made: 10 to 20 ms. FileExistsError
        when the name is taken; OSError or pyroute2's NetlinkError when the rest cannot be done; nothing is
        left then.
        """
        wiring = cls(host, Namespace.create(guest_name), nic, port)
        try:
            wiring._wire(host, bridge)
        except BaseException:
            wiring.namespace.delete()
            raise
        return wiring

    def _wire(self, host: Namespace, bridge: str) -> None:
        with self.namespace.entered():
            for name, value in (
                ("disable_ipv6", 1),
                ("addr_gen_mode", 1),
                ("accept_ra", 0),
                ("accept_dad", 0),
            ):
                _set_sysctl(f"ipv6/conf/default/{name}", str(value))
            if _CONGESTION_CONTROL in _get_sysctl("ipv4/tcp_allowed_congestion_control").split():
                _set_sysctl("ipv4/tcp_congestion_control", _CONGESTION_CONTROL)
        with host.entered(), IPRoute() as outside:
            bridge_index = _index(outside, bridge)
            peer = {
                "ifname": GUEST_INTERFACE,
                "net_ns_fd": self.namespace.fd,
                "address": self.nic.mac.hex(":"),
                "mtu": self.nic.mtu_bytes,
            }
            outside.link("add", ifname=self._port, kind="veth", mtu=self.nic.mtu_bytes, peer=peer)
            _set_sysctl(f"ipv6/conf/{self._port}/disable_ipv6", "1")
            with self.namespace.entered(), IPRoute() as inside:
                inside.link("set", index=_index(inside, GUEST_INTERFACE), state="up")
                port = _index(outside, self._port)
                outside.link("set", index=port, state="up")
                self._disable(host, outside, port, bridge_index)
                self._address(inside)

    def _disable(self, host: Namespace, outside: Any, port: int, bridge_index: int) -> None:
        with host.entered(), RouteSocket(_route_socket()) as ask, _route_socket() as watch:
            netlink.wait_operational(watch, ask, self._port, _CARRIER_DEADLINE_S)
            outside.link("set", index=port, master=bridge_index)
            ask.request(netlink.prepare(netlink.port_state(port, netlink.BR_STATE_DISABLED)))

    def _address(self, inside: Any) -> None:
        index = _index(inside, GUEST_INTERFACE)
        # Reports of the groups joined below: the second, which repeats the first, at once, so that both are
        # spoken into the disabled port and none comes out when it is opened.
        _set_sysctl(f"ipv6/conf/{GUEST_INTERFACE}/mldv2_unsolicited_report_interval", "1")
        _set_sysctl(f"ipv6/conf/{GUEST_INTERFACE}/disable_ipv6", "0")
        for address in (self.nic.ipv4, self.nic.ipv6):
            if address is not None:
                inside.addr(
                    "add",
                    index=index,
                    address=str(address.ip),
                    prefixlen=address.network.prefixlen,
                    flags=_IFA_F_NODAD,
                )

    def close(self) -> None:
        """Remove the wire and delete the namespace's name; 10 ms and more.

        The wire would go with the namespace, but some time after its last process: too late for a guest that
        comes to this host meanwhile.
        """
        with self._host.entered(), IPRoute() as route:
            for index in route.link_lookup(ifname=self._port):
                route.link("del", index=index)
        self.namespace.delete()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _index(route: Any, name: str) -> int:
    found = route.link_lookup(ifname=name)
    if not found:
        raise OSError(19, "no such interface", name)
    return int(found[0])


def _route_socket() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, netlink.NETLINK_ROUTE)


def _get_sysctl(name: str) -> str:
    return (_SYSCTL / name).read_text()


def _set_sysctl(name: str, value: str) -> None:
    (_SYSCTL / name).write_text(value)
