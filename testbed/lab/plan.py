"""A scenario's lab as data: its network, its guests and what each client does. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from netns.topology import Bridge, End, Link, Node, Spec
from testbed.clients.spec import ChurnSpec, ProbeSpec, parse
from testbed.host.description import GuestDescription
from testbed.scenario.model import Scenario
from testbed.scenario.parts import Client, Vm, client_addresses

SWITCH = "switch"
BRIDGE = "br0"
UPLINK = "uplink"
CLIENT_INTERFACE = "eth0"
MIGRATION = "mig0"
MIGRATION_SWITCH = "migration-switch"
MIGRATION_PORT = 7900
"""Of the first guest; each has its own, from here on."""
MIGRATION_MTU = 9000
CLIENT_PREFIXES = (24, 64)
STORAGE = "storage"
STORAGE_LINK = "stor0"
SLOWEST_STORAGE_BITS_PER_S = 500_000_000
"""Of a link that is not limited: what this machine gives when it is busy."""
_SPARE_CONNECTIONS = 512


@dataclass(frozen=True)
class Ends:
    """A link that conditions can be set on: the interface at the node that names it, and the far one."""

    node: tuple[str, str]
    far: tuple[str, str]
    rate_mbit: float | None = None
    """What it was made with."""


def host_number(scenario: Scenario, host: str) -> int:
    """From 1, in the order of the scenario."""
    return scenario.hosts.index(host) + 1


def migration_address(scenario: Scenario, host: str) -> str:
    return f"10.6.0.{host_number(scenario, host)}"


def storage_address(scenario: Scenario, node: str) -> str:
    """Of a host, or of the storage itself."""
    return "10.5.0.10" if node == STORAGE else f"10.5.0.{host_number(scenario, node)}"


def network(scenario: Scenario) -> Spec:
    """Hosts and clients on a switch, a way between the hosts for migrations, and storage if there is any."""
    nodes = [Node(SWITCH, bridges=(Bridge(BRIDGE, ageing_ns=scenario.network.switch_ageing_ns),))]
    for host in scenario.hosts:
        shared = () if scenario.own_wire else (f"{migration_address(scenario, host)}/24",)
        nodes.append(Node(host, bridges=(Bridge(BRIDGE, addresses=shared),)))
    nodes += [Node(client.name) for client in scenario.clients]
    if scenario.own_wire and len(scenario.hosts) > 2:
        nodes.append(Node(MIGRATION_SWITCH, bridges=(Bridge(BRIDGE, mtu=MIGRATION_MTU),)))
    if scenario.has_storage:
        nodes.append(Node(STORAGE, bridges=(Bridge(BRIDGE),)))
    return Spec(tuple(nodes), tuple(link for _, link in _links(scenario)))


def links(scenario: Scenario) -> dict[str, Ends]:
    """The links that conditions can be set on, by name (:attr:`Scenario.link_names`)."""
    return {
        name: Ends((link.a.node, link.a.ifname), (link.b.node, link.b.ifname), link.rate_mbit)
        for name, link in _links(scenario)
    }


def _links(scenario: Scenario) -> Iterator[tuple[str, Link]]:
    for host in scenario.hosts:
        yield host, Link(End(host, UPLINK, bridge=BRIDGE), End(SWITCH, host, bridge=BRIDGE))
    for number, client in enumerate(scenario.clients, 1):
        addresses = tuple(
            f"{address}/{prefix}"
            for address, prefix in zip(client_addresses(number), CLIENT_PREFIXES, strict=True)
        )
        near = End(client.name, CLIENT_INTERFACE, addresses=addresses)
        yield client.name, Link(near, End(client.on, client.name, bridge=BRIDGE))
    if scenario.own_wire:
        yield from _migration_links(scenario)
    if scenario.has_storage:
        yield from _storage_links(scenario)


def _migration_links(scenario: Scenario) -> Iterator[tuple[str, Link]]:
    rate = _mbit(scenario.network.bandwidth_bits_per_s)
    ends = [
        End(host, MIGRATION, addresses=(f"{migration_address(scenario, host)}/24",))
        for host in scenario.hosts
    ]
    if len(ends) == 2:
        yield "migration", Link(ends[0], ends[1], mtu=MIGRATION_MTU, rate_mbit=rate)
        return
    for end in ends:
        port = End(MIGRATION_SWITCH, end.node, bridge=BRIDGE)
        yield f"{end.node}.migration", Link(end, port, mtu=MIGRATION_MTU, rate_mbit=rate)


def _storage_links(scenario: Scenario) -> Iterator[tuple[str, Link]]:
    """The storage network: both hosts and the target's own interface on a switch inside the storage node."""
    rate = _mbit(scenario.storage.rate_bits_per_s)
    for host in scenario.hosts:
        end = End(host, STORAGE_LINK, addresses=(f"{storage_address(scenario, host)}/24",))
        port = End(STORAGE, host, bridge=BRIDGE)
        yield f"{host}.storage", Link(end, port, mtu=MIGRATION_MTU, rate_mbit=rate)
    target = End(STORAGE, STORAGE_LINK, addresses=(f"{storage_address(scenario, STORAGE)}/24",))
    yield STORAGE, Link(target, End(STORAGE, "target", bridge=BRIDGE), mtu=MIGRATION_MTU)


def _mbit(bits_per_s: int | None) -> float | None:
    return None if bits_per_s is None else bits_per_s / 1e6


def guest(scenario: Scenario, vm: Vm) -> GuestDescription:
    """A guest as its hosts are told of it. Each has random numbers of its own."""
    seed = scenario.seed + scenario.vms.index(vm)
    load = {
        "rate_pages_per_s": vm.load.dirty_rate_pages_per_s,
        "working_set_bytes": vm.load.working_set_bytes if vm.load.dirty_rate_pages_per_s else 0,
        "pattern": vm.load.pattern,
        "seed": seed,
    }
    return GuestDescription(
        program=vm.guest_program,
        ram_bytes=vm.ram_bytes,
        macs=_macs(scenario, vm),
        ipv4=f"{vm.ipv4}/{CLIENT_PREFIXES[0]}",
        ipv6=f"{vm.ipv6}/{CLIENT_PREFIXES[1]}",
        announce=vm.announce,
        hold=vm.hold,
        neighbours=vm.neighbours,
        tracker=vm.tracker,
        max_connections=_most_connections(scenario, vm),
        fill=vm.fill,
        seed=seed,
        load=load,
        disk=vm.name if vm.disk_bytes else None,
    )


def _macs(scenario: Scenario, vm: Vm) -> dict[str, str]:
    """Under the policy ``per-host`` the fifth byte says which host: 0a, 0b and so on."""
    if vm.mac == "keep":
        return dict.fromkeys(scenario.hosts, vm.mac_address)
    head, last = vm.mac_address[:12], vm.mac_address[-2:]
    return {host: f"{head}{9 + number:02x}:{last}" for number, host in enumerate(scenario.hosts, 1)}


def _most_connections(scenario: Scenario, vm: Vm) -> int:
    """With room to spare, but no more: the table is read as a whole when the guest is attached. New
    connections that come while it stands still are all there at once when it runs again.
    """
    asking = [probe for client in scenario.clients for probe in _probes_of(scenario, client, vm)]
    arriving = sum(probe.rate_per_s for probe in asking if isinstance(probe, ChurnSpec))
    standing = sum(int(getattr(probe, "connections", 0)) for probe in asking)
    return _SPARE_CONNECTIONS + 2 * standing + int(arriving * (2 + standstill_s(scenario)))


def _probes_of(scenario: Scenario, client: Client, vm: Vm) -> tuple[ProbeSpec, ...]:
    """The probes with which a client asks a guest."""
    asking = [scenario.probe_argument(probe) for probe in client.probes if scenario.asked(probe) is vm]
    return parse({"name": client.name, "probes": asking}).probes if asking else ()


def standstill_s(scenario: Scenario) -> float:
    """How long a guest may stand still: in a Quick Migration, while RAM goes to the LUN and comes back."""
    rate = scenario.storage.rate_bits_per_s or SLOWEST_STORAGE_BITS_PER_S
    largest = max(vm.ram_bytes for vm in scenario.vms)
    return 3 * largest * 8 / rate if scenario.is_quick else 0.0


def probes(scenario: Scenario) -> dict[str, list[dict[str, Any]]]:
    """What each client that has probes is told of them (testbed.clients.spec.parse)."""
    return {
        client.name: [scenario.probe_argument(probe) for probe in client.probes]
        for client in scenario.clients
        if client.probes
    }
