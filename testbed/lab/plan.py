"""The default lab as data: its network, its guest and what each client does. Pure."""

from __future__ import annotations

from typing import Any

from netns.topology import Bridge, End, Link, Node, Spec
from testbed.host.description import GuestDescription
from testbed.scenario.options import Options

HOSTS = ("host-a", "host-b")
SWITCH = "switch"
BRIDGE = "br0"
UPLINK = "uplink"
MIGRATION = "mig0"
MIGRATION_ADDRESS = {"host-a": "10.6.0.1", "host-b": "10.6.0.2"}
MIGRATION_PORT = 7900
MIGRATION_MTU = 9000
GUEST_IPV4 = "10.7.0.10/24"
GUEST_IPV6 = "fd07::10/64"
GUEST_MAC = "02:00:00:00:00:42"
PER_HOST_MACS = {"host-a": "02:00:00:00:0a:42", "host-b": "02:00:00:00:0b:42"}
PORTS = {"echo": 7000, "ramp": 7001, "bulk": 7002, "kv": 6379, "kv-durable": 6379, "http": 80}
STORAGE = "storage"
STORAGE_LINK = "stor0"
STORAGE_ADDRESS = {"host-a": "10.5.0.1", "host-b": "10.5.0.2", STORAGE: "10.5.0.10"}
GUEST = "vm1"
GUEST_DISK = GUEST
SLOWEST_STORAGE_BITS_PER_S = 500_000_000
"""Of a link that is not limited: what this machine gives when it is busy."""


def client_names(options: Options) -> tuple[str, ...]:
    return tuple(f"client{number}" for number in range(1, options.clients + 1))


def network(options: Options) -> Spec:
    """Two hosts and the clients on a switch, and a wire between the hosts for the migration alone."""
    clients = client_names(options)
    nodes = (
        Node(SWITCH, bridges=(Bridge(BRIDGE),)),
        *(Node(host, bridges=(Bridge(BRIDGE),)) for host in HOSTS),
        *(Node(client) for client in clients),
    )
    uplinks = [Link(End(host, UPLINK, bridge=BRIDGE), End(SWITCH, host, bridge=BRIDGE)) for host in HOSTS]
    access = [
        Link(
            End(client, "eth0", addresses=(f"10.7.0.{100 + number}/24", f"fd07::{100 + number}/64")),
            End(SWITCH, client, bridge=BRIDGE),
        )
        for number, client in enumerate(clients, 1)
    ]
    rate = options.bandwidth_bits_per_s
    ends = [End(host, MIGRATION, addresses=(f"{MIGRATION_ADDRESS[host]}/24",)) for host in HOSTS]
    wire = Link(ends[0], ends[1], mtu=MIGRATION_MTU, rate_mbit=_mbit(rate))
    if not options.has_storage:
        return Spec(nodes, (*uplinks, *access, wire))
    storage = Node(STORAGE, bridges=(Bridge(BRIDGE),))
    return Spec((*nodes, storage), (*uplinks, *access, wire, *_storage_links(options)))


def _storage_links(options: Options) -> list[Link]:
    """The storage network: both hosts and the target's own interface on a switch inside the storage node."""
    rate = _mbit(options.storage_rate_bits_per_s)
    hosts = [
        Link(
            End(host, STORAGE_LINK, addresses=(f"{STORAGE_ADDRESS[host]}/24",)),
            End(STORAGE, host, bridge=BRIDGE),
            mtu=MIGRATION_MTU,
            rate_mbit=rate,
        )
        for host in HOSTS
    ]
    target = Link(
        End(STORAGE, STORAGE_LINK, addresses=(f"{STORAGE_ADDRESS[STORAGE]}/24",)),
        End(STORAGE, "target", bridge=BRIDGE),
        mtu=MIGRATION_MTU,
    )
    return [*hosts, target]


def _mbit(bits_per_s: int | None) -> float | None:
    return None if bits_per_s is None else bits_per_s / 1e6


def guest(options: Options) -> GuestDescription:
    """The guest that the options ask for."""
    macs = dict.fromkeys(HOSTS, GUEST_MAC) if options.mac == "keep" else PER_HOST_MACS
    load = {
        "rate_pages_per_s": options.dirty_rate_pages_per_s,
        "working_set_bytes": options.working_set_bytes if options.dirty_rate_pages_per_s else 0,
        "pattern": options.pattern,
        "seed": options.seed,
    }
    return GuestDescription(
        program=options.program,
        ram_bytes=options.ram_bytes,
        macs=macs,
        ipv4=GUEST_IPV4,
        ipv6=GUEST_IPV6,
        announce=options.announce,
        hold=options.hold,
        tracker=options.tracker,
        max_connections=_most_connections(options),
        fill=options.fill,
        seed=options.seed,
        load=load,
        disk=GUEST_DISK if options.has_storage else None,
    )


def _most_connections(options: Options) -> int:
    """With room to spare, but no more: the table is read as a whole when the guest is attached. New
    connections that come while it stands still are all there at once when it runs again.
    """
    arriving = options.churn_per_s * (2 + standstill_s(options))
    return 512 + 2 * options.connections + int(arriving)


def standstill_s(options: Options) -> float:
    """How long the guest may stand still: in a Quick Migration, while RAM goes to the LUN and comes back."""
    rate = options.storage_rate_bits_per_s or SLOWEST_STORAGE_BITS_PER_S
    return 3 * options.ram_bytes * 8 / rate if options.mode == "quick" else 0.0


def probes(options: Options) -> dict[str, list[dict[str, Any]]]:
    """The probes of each client. Connections are dealt out in turn; with both families every other one is
    IPv6's."""
    families = {"both": ("ipv4", "ipv6"), "ipv4": ("ipv4",), "ipv6": ("ipv6",)}[options.family]
    addresses = {"ipv4": GUEST_IPV4.split("/")[0], "ipv6": GUEST_IPV6.split("/")[0]}
    clients = client_names(options)
    result: dict[str, list[dict[str, Any]]] = {client: [] for client in clients}
    counts: dict[tuple[str, str], int] = {}
    for number in range(options.connections):
        place = (clients[number % len(clients)], families[number // len(clients) % len(families)])
        counts[place] = counts.get(place, 0) + 1
    for (client, family), count in counts.items():
        result[client].append(_main_probe(options, count) | {"address": addresses[family]})
    for number, client in enumerate(clients):
        family = families[number % len(families)]
        result[client] += [extra | {"address": addresses[family]} for extra in _extra_probes(options)]
    return {client: of_client for client, of_client in result.items() if of_client}


def _main_probe(options: Options, connections: int) -> dict[str, Any]:
    if options.program == "ramp":
        return {"kind": "ramp", "connections": connections}
    if options.program == "bulk":
        return {"kind": "download", "connections": connections}
    if options.program == "kv-durable":
        interval_us = options.interval_ns // 1000
        return {"kind": "ledger", "connections": connections, "interval_us": interval_us}
    program = options.program if options.program in PORTS else "echo"
    probe = {"kind": "closed-loop", "program": program, "connections": connections}
    return probe | {"interval_us": options.interval_ns // 1000}


def _extra_probes(options: Options) -> list[dict[str, Any]]:
    """What the echo program lets clients do besides: a steady stream on each, and new connections all the
    time."""
    if options.program != "echo":
        return []
    extra: list[dict[str, Any]] = []
    if options.stream_rate_per_s:
        extra.append({"kind": "open-loop", "connections": 1, "rate_per_s": options.stream_rate_per_s})
    share = options.churn_per_s / options.clients
    if share:
        extra.append({"kind": "churn", "rate_per_s": share})
    return extra
