"""The stage of the TCP tests: one client, and one guest address that stands at two places of a bridge.

    client --- [bridge] --- source      source and target have the same addresses and the same MAC;
                        \\-- target      at most one of their ports forwards
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pyroute2 import IPRoute

from netns.namespace import Namespace
from testbed.kernel import netlink

CLIENT_MAC = "02:00:00:00:00:02"
MAC = "02:00:00:00:00:42"
GUEST_4, CLIENT_4 = "10.7.0.10", "10.7.0.2"
GUEST_6, CLIENT_6 = "fd07::10", "fd07::2"
_GUEST = bytes.fromhex(MAC.replace(":", ""))
NOWHERE = "02:00:00:00:00:99"
DISABLED, FORWARDING = 0, 3


class Stage:
    """The namespaces `client`, `source` and `target`, made in this universe's own namespace."""

    def __init__(self, stack: ExitStack) -> None:
        self._route = stack.enter_context(IPRoute())
        self._commands = stack.enter_context(netlink.RouteSocket(socket.socket(16, socket.SOCK_RAW, 0)))
        self._route.link("add", ifname="br0", kind="bridge")
        self._bridge = self._route.link_lookup(ifname="br0")[0]
        self._route.link("set", index=self._bridge, state="up")
        self.client = self._member("client", CLIENT_MAC, CLIENT_4, CLIENT_6)
        self.source = self._member("source", MAC, GUEST_4, GUEST_6)
        self.target = self._member("target", MAC, GUEST_4, GUEST_6)
        for name in ("source", "target"):
            self.know_neighbour(name, CLIENT_4, CLIENT_MAC)
            self.know_neighbour(name, CLIENT_6, CLIENT_MAC)
        self.cut("target")

    def _member(self, name: str, mac: str, four: str, six: str) -> Namespace:
        namespace = Namespace.create(name)
        with namespace.entered():
            _write("net/ipv6/conf/default/accept_dad", "0")
            _write("net/ipv6/conf/default/router_solicitations", "0")
        peer = {"ifname": "eth0", "net_ns_fd": namespace.fd, "address": mac}
        self._route.link("add", ifname=name, kind="veth", peer=peer)
        index = self._route.link_lookup(ifname=name)[0]
        with namespace.entered(), IPRoute() as inside:
            eth0 = inside.link_lookup(ifname="eth0")[0]
            inside.addr("add", index=eth0, address=four, prefixlen=24)
            inside.addr("add", index=eth0, address=six, prefixlen=64, flags=0x02)  # IFA_F_NODAD
            inside.link("set", index=eth0, state="up")
        self._route.link("set", index=index, master=self._bridge, state="up")
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as watch:
            # When the kernel notices a carrier, it puts the port back to forwarding: not after our cut.
            netlink.wait_operational(watch, self._commands, name, 10.0)
        return namespace

    def cut(self, name: str) -> None:
        """Nothing passes the port of `name` from here on, either way."""
        self._port(name, DISABLED)

    def divert(self, name: str) -> None:
        """Nothing reaches `name` from here on; what it sends gets out."""
        other = "target" if name == "source" else "source"
        entry = netlink.forwarding_entry(_GUEST, self._index(other), sticky=True)
        self._commands.request(netlink.prepare(entry))

    def plug(self, name: str) -> None:
        """The port of `name` forwards, and the bridge sends there what is for the guest."""
        self._port(name, FORWARDING)
        entry = netlink.forwarding_entry(_GUEST, self._index(name), sticky=False)
        self._commands.request(netlink.prepare(entry))

    def know_neighbour(self, name: str, address: str, mac: str) -> None:
        """Let `name` believe for good that `address` has `mac`; frames to a wrong one reach nobody."""
        with getattr(self, name).entered(), IPRoute() as inside:
            eth0 = inside.link_lookup(ifname="eth0")[0]
            inside.neigh("replace", dst=address, lladdr=mac, ifindex=eth0, state=0x80)  # NUD_PERMANENT

    def swap(self) -> None:
        """Source and target change places: the next move goes back."""
        self.source, self.target = self.target, self.source

    def _port(self, name: str, state: int) -> None:
        self._commands.request(netlink.prepare(netlink.port_state(self._index(name), state)))

    def _index(self, name: str) -> int:
        member: Namespace = getattr(self, name)
        index: int = self._route.link_lookup(ifname=member.name)[0]
        return index


@contextmanager
def stage() -> Iterator[Stage]:
    """A stage; what it made ends with the universe."""
    with ExitStack() as stack:
        yield Stage(stack)


def sysctl(namespace: Namespace, name: str, value: str) -> None:
    """Write /proc/sys/`name` of `namespace`."""
    with namespace.entered():
        _write(name, value)


def _write(name: str, value: str) -> None:
    with open(f"/proc/sys/{name}", "w") as file:  # noqa: PTH123
        file.write(value)
