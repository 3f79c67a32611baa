"""Makes what a plan says."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from netns.links import LinkError, Links
from netns.namespace import Namespace
from netns.observe import carries
from netns.paths import demand_universe
from netns.steps import (
    AddAddress,
    BringUp,
    Enslave,
    LimitRate,
    MakeBridge,
    MakeNode,
    MakeVeth,
    SetSysctl,
    Step,
)

_QUIET_IPV6 = (
    ("addr_gen_mode", "1"),  # none: no link-local address
    ("accept_ra", "0"),
    ("autoconf", "0"),
    ("router_solicitations", "0"),
    ("accept_dad", "0"),
    ("dad_transmits", "0"),
)
_SYSCTL = Path("/proc/sys")
_CONGESTION_CONTROL = "net.ipv4.tcp_congestion_control"


_CARRIER_DEADLINE_S = 30.0


class TopologyError(Exception):
    """A step could not be done. The message names it and the reason; what had been made before it is gone
    again.
    """


class Topology:
    """A network that stands. As a context manager it takes itself down; in any case the universe does at its
    end.

    `congestion_control` says of each node what its connections use by default: what the plan wants is not
    always allowed (a namespace can choose from tcp_allowed_congestion_control of the machine only).
    """

    def __init__(self) -> None:
        self.congestion_control: dict[str, str] = {}
        self._namespaces: dict[str, Namespace] = {}

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes' names, in the order of the spec."""
        return tuple(self._namespaces)

    def namespace(self, node: str) -> Namespace:
        """The namespace of a node; it belongs to the topology. KeyError, naming the nodes, if there is
        none.
        """
        if node not in self._namespaces:
            raise KeyError(f"no node {node!r}; there are: {', '.join(self._namespaces)}")
        return self._namespaces[node]

    def set_rate(self, node: str, ifname: str, rate_mbit: float | None) -> None:
        """Change what an interface may send, in Mbit/s, while traffic flows. None: no limit. LinkError,
        SpecError.
        """
        with Links(self.namespace(node)) as links:
            links.limit_rate(ifname, rate_mbit)

    def delete(self) -> None:
        """Take all namespaces away, and with them every interface. Processes that live in one keep it until
        they end.
        """
        while self._namespaces:
            self._namespaces.popitem()[1].delete()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.delete()

    def add_node(self, name: str) -> Namespace:
        """One more node. For `apply`, and for what joins the network later."""
        namespace = Namespace.create(name)
        self._namespaces[name] = namespace
        return namespace


def apply(plan: Iterable[Step]) -> Topology:
    """Do the steps in their order. TopologyError, and nothing is left, if one fails."""
    demand_universe("a topology")
    topology = Topology()
    with ExitStack() as undo:
        undo.callback(topology.delete)
        extend(topology, plan)
        undo.pop_all()
    return topology


def extend(topology: Topology, plan: Iterable[Step]) -> None:
    """Do more steps in a network that stands. TopologyError if one fails: those before it remain done."""
    with _Builder(topology) as builder:
        for step in plan:
            try:
                builder.do(step)
            except (LinkError, OSError) as error:
                raise TopologyError(f"{step.describe()}: {error}") from error
        builder.await_carriers()


class _Builder:
    """Does steps; keeps one netlink socket open for each node meanwhile."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._open: dict[str, Links] = {}
        self._undo = ExitStack()
        self._wires: list[tuple[str, str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def do(self, step: Step) -> None:
        match step:
            case MakeNode(node, congestion_control):
                self._make_node(node, congestion_control)
            case SetSysctl(node, name, value):
                write_sysctl(self._topology.namespace(node), name, value)
            case MakeBridge(node, ifname, mac, mtu, ageing_ns):
                self._links(node).add_bridge(ifname, mac, mtu, ageing_ns)
            case MakeVeth(index, node, ifname, mac, peer_node, peer_ifname, peer_mac, mtu):
                peer = self._topology.namespace(peer_node)
                self._links(node).add_veth(ifname, mac, peer, peer_ifname, peer_mac, mtu, index)
                self._wires += [(node, ifname), (peer_node, peer_ifname)]
            case Enslave(node, ifname, bridge):
                self._links(node).enslave(ifname, bridge)
            case AddAddress(node, ifname, address):
                self._links(node).add_address(ifname, address)
            case LimitRate(node, ifname, rate_mbit):
                self._links(node).limit_rate(ifname, rate_mbit)
            case BringUp(node, ifname):
                self._links(node).set_up(ifname)

    def _links(self, node: str) -> Links:
        if node not in self._open:
            self._open[node] = self._undo.enter_context(Links(self._topology.namespace(node)))
        return self._open[node]

    def await_carriers(self) -> None:
        """Return when every link carries: the kernel tells a bridge a little after the interface has been set
        up.
        """
        while self._wires:
            node, ifname = self._wires.pop()
            await_carrier(self._topology.namespace(node), ifname)

    def _make_node(self, node: str, congestion_control: str) -> None:
        namespace = self._topology.add_node(node)
        quieten_ipv6(namespace)
        self._topology.congestion_control[node] = prefer_congestion_control(namespace, congestion_control)


def await_carrier(namespace: Namespace, ifname: str) -> None:
    """Return when the kernel has noticed that an interface and its peer are up: until then it sends nothing.
    TopologyError if that takes longer than 5 s.
    """
    end_s = time.monotonic() + _CARRIER_DEADLINE_S
    while not carries(namespace, ifname):
        if time.monotonic() > end_s:
            raise TopologyError(f"{namespace.name}/{ifname} has no carrier after {_CARRIER_DEADLINE_S:g} s")
        time.sleep(0.001)  # until the next look; not worth a subscription in every node


def quieten_ipv6(namespace: Namespace) -> None:
    """Interfaces made in this namespace from now on neither solicit nor advertise nor probe anything by
    themselves.
    """
    with namespace.entered():
        if not (_SYSCTL / "net/ipv6").is_dir():
            return  # a kernel without IPv6 is quiet
        for name, value in _QUIET_IPV6:
            (_SYSCTL / "net/ipv6/conf/default" / name).write_text(value)


def prefer_congestion_control(namespace: Namespace, name: str) -> str:
    """Make `name` the namespace's default if the machine allows it to namespaces; what the default is now."""
    with namespace.entered():
        path = _sysctl_path(_CONGESTION_CONTROL)
        available = (_SYSCTL / "net/ipv4/tcp_available_congestion_control").read_text().split()
        if name in available:
            with suppress(PermissionError):  # there, but not for us: the caller is told what holds instead
                path.write_text(name)
        return path.read_text().strip()


def write_sysctl(namespace: Namespace, name: str, value: str) -> None:
    """Set a sysctl (dotted name) of the namespace. OSError, with its path, if there is none or it takes no
    such value.
    """
    with namespace.entered():
        _sysctl_path(name).write_text(value)


def read_sysctl(namespace: Namespace, name: str) -> str:
    """What a sysctl (dotted name) of the namespace says. OSError if there is none."""
    with namespace.entered():
        return _sysctl_path(name).read_text().strip()


def _sysctl_path(name: str) -> Path:
    return _SYSCTL / name.replace(".", "/")
