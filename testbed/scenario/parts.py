"""The parts of a scenario: networks, clients and their programs, guests, links, migrations.

Every part is checked once it exists, by itself; what must fit together is checked by
:class:`testbed.scenario.model.Scenario`. A key of a file is named without its unit (``ram``), the attribute
with it (``ram_bytes``): see :mod:`testbed.scenario.quantities`.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from netns import conditions as netns
from netns.conditions import ConditionsError
from testbed.scenario.options import (
    MIN_RAM_BYTES,
    PAGE,
    PROGRAMS,
    SECTOR,
    SMALLEST_DURABLE_BYTES,
    Announce,
    MacPolicy,
    Mode,
    Neighbours,
    OnStall,
    Pattern,
    StorageServer,
    Tracker,
)
from testbed.scenario.part import Command, Name, Part, key
from testbed.scenario.probing import Probe
from testbed.scenario.quantities import Duration, Rate, Share, Size, Whole, YesNo

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_WRITTEN_CONDITIONS = {
    "jitter_ns": "jitter",
    "delay_ns": "delay",
    "duplication": "duplicate",
    "reordering": "reorder",
    "queue_frames": "queue",
}
_SHORTEST_AGEING_NS = 10_000_000
CLIENT_NETWORKS = {4: "10.7.0.0/24", 6: "fd07::/64"}


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _shortest(value: Any) -> Any:
    """An address as the kernel writes it; what is none is left to the check that says so."""
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        return value


class Network(Part):
    """The networks. `migration`: a wire of its own between the hosts (with more than two, a switch), or the
    clients' network. `bandwidth` is that of the own wire. What follows is what real networks do to a guest
    that moves: at its new host the guest's port forwards only after `port_delay`; the switch loses the first
    `drop_announcements` announcements; with `relearn` off the switch keeps to what it knows of an address
    until that is older than `switch_ageing`.
    """

    migration: Literal["own", "shared"] = "own"
    bandwidth_bits_per_s: Rate | None = key("bandwidth")
    switch_ageing_ns: Duration | None = key("switch_ageing")
    port_delay_ns: Duration = key("port_delay", 0)
    drop_announcements: Whole = Field(default=0, ge=0, le=1000)
    relearn: YesNo = True

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.migration == "shared" and self.bandwidth_bits_per_s is not None:
            raise ValueError(
                "bandwidth: is that of a wire of its own; a shared network has the hosts' links: "
                "[[link]] name = a host, rate = ..."
            )
        if self.switch_ageing_ns is not None and self.switch_ageing_ns < _SHORTEST_AGEING_NS:
            raise ValueError("switch_ageing: at least 10ms")
        if not self.relearn and self.switch_ageing_ns is None:
            raise ValueError("relearn: without it the switch must age: give switch_ageing too")
        return self


class Storage(Part):
    """Shared storage: there is some as soon as a guest has a disk. `rate` is that of each host's link to
    it."""

    rate_bits_per_s: Rate | None = key("rate")
    server: StorageServer = "testbed"


class Program(Part):
    """An ordinary program as a client, started when the `baseline` begins or with the first `migration`. With
    a `deadline` (from its start) the run waits for its end, and ends it then; without one it is ended with
    the clients, if it has not ended by itself."""

    command: Command
    environment: dict[str, str] = Field(default_factory=dict)
    deadline_ns: Duration | None = key("deadline")
    start: Literal["baseline", "migration"] = "baseline"


class Client(Part):
    """A machine that uses guests. `on` is where it is plugged in: the switch, or a host's own bridge. An
    `idle` one asks nothing: it is there for whoever uses the lab."""

    name: Name
    on: str = "switch"
    probes: tuple[Probe, ...] = key("probe", ())
    programs: tuple[Program, ...] = key("program", ())
    idle: YesNo = False


class Load(Part):
    """What a guest writes besides its service: `dirty_rate` pages a second among `working_set`."""

    dirty_rate_pages_per_s: Whole = Field(
        default=2000, ge=0, le=10_000_000, validation_alias="dirty_rate", serialization_alias="dirty_rate"
    )
    working_set_bytes: Size = key("working_set", 16 << 20)
    pattern: Pattern = "uniform"


class Vm(Part):
    """A guest, and the host on which it begins.

    `mac`: its MAC address moves along (``keep``) or is another on each host (``per-host``: `mac_address` with
    the host's number in its fifth byte). `neighbours`: what it knows of others' MAC addresses moves along
    (``move``), is gone (``forget``), or is wrong at its new host (``stale``), as where a gateway has another
    one on each host. `program` is a name or ``package.module:Class``; `durable` makes of
    kv the one that keeps its data on the `disk`. `fill` is the share of RAM that holds data."""

    name: Name
    host: str
    ram_bytes: Size = key("ram", 256 << 20)
    fill: Annotated[float, Field(ge=0, le=0.9)] = 0.5
    program: str = "echo"
    disk_bytes: Size = key("disk", 0)
    durable: YesNo = False
    mac: MacPolicy = "keep"
    mac_address: Annotated[str, BeforeValidator(_lower)]
    ipv4: Annotated[str, BeforeValidator(_shortest)]
    ipv6: Annotated[str, BeforeValidator(_shortest)]
    announce: Announce = "garp-request"
    hold: YesNo = True
    neighbours: Neighbours = "move"
    tracker: Tracker = "auto"
    load: Load = Load()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.ram_bytes % PAGE or self.ram_bytes < MIN_RAM_BYTES:
            raise ValueError(
                f"ram: {self.ram_bytes} bytes; a guest has whole pages of {PAGE} bytes, and at least "
                f"{MIN_RAM_BYTES >> 20}MiB"
            )
        if (
            self.load.dirty_rate_pages_per_s
            and not PAGE <= self.load.working_set_bytes <= self.ram_bytes // 2
        ):
            raise ValueError(
                f"load.working_set: {self.load.working_set_bytes} bytes; a memory load needs one page "
                f"at least, and half of RAM at most"
            )
        self._check_disk()
        if not _MAC.fullmatch(self.mac_address) or int(self.mac_address[:2], 16) & 1:
            raise ValueError(f"mac_address: {self.mac_address!r} is no interface's, as 02:00:00:00:00:42")
        if not int(self.mac_address.replace(":", ""), 16):
            raise ValueError("mac_address: all zero is no interface's; one is 02:00:00:00:00:42")
        for name, version in (("ipv4", 4), ("ipv6", 6)):
            _check_address(name, getattr(self, name), version)
        return self

    def _check_disk(self) -> None:
        if self.program not in PROGRAMS and ":" not in self.program:
            raise ValueError(
                f"program: {self.program!r} is none of {', '.join(PROGRAMS)}, nor package.module:Class"
            )
        if self.durable and self.program not in ("kv", "kv-durable"):
            raise ValueError(f"durable: {self.program} keeps nothing on a disk; only kv can")
        if self.disk_bytes % SECTOR:
            raise ValueError(f"disk: {self.disk_bytes} bytes are not whole sectors of {SECTOR} bytes")
        if self.guest_program == "kv-durable" and self.disk_bytes < SMALLEST_DURABLE_BYTES:
            raise ValueError(
                f"disk: {self.disk_bytes} bytes; a durable kv needs "
                f"{SMALLEST_DURABLE_BYTES >> 20}MiB at least"
            )

    @property
    def guest_program(self) -> str:
        """The program that the guest runs: of kv, where it is durable, the one that is."""
        return "kv-durable" if self.durable else self.program


def _check_address(name: str, value: str, version: int) -> None:
    network = ipaddress.ip_network(CLIENT_NETWORKS[version])
    try:
        address = ipaddress.ip_address(value)
        right = address.version == version and address in network
    except ValueError:
        right = False
    if not right:
        raise ValueError(f"{name}: {value!r} is not an address of the clients' network {network}")
    if address == network.network_address or (version == 4 and address == network.broadcast_address):
        raise ValueError(f"{name}: {value!r} is that of the whole network {network}, not a guest's")


class Conditions(Part):
    """What a link does to what crosses it. A rate and a queue (of so many frames) hold in each direction by
    itself; `jitter` is how far the delay strays, as `distribution` says. Loss, duplicates and reordering are
    shares of all frames."""

    direction: Literal["both", "from-node", "to-node"] = "both"
    rate_bits_per_s: Rate | None = key("rate")
    delay_ns: Duration = key("delay", 0)
    jitter_ns: Duration = key("jitter", 0)
    distribution: Literal["uniform", "normal", "pareto"] = "uniform"
    loss: Share = 0.0
    duplicate: Share = 0.0
    reorder: Share = 0.0
    queue_frames: Annotated[int, Field(strict=True, ge=1)] | None = key("queue")

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        try:
            self.of_a_wire()
        except ConditionsError as error:
            told = str(error)
            for name, written in _WRITTEN_CONDITIONS.items():
                told = told.replace(name, written)
            raise ValueError(told) from None
        return self

    def of_a_wire(self, seed: int = 0, lost_announcements: int = 0) -> netns.Conditions:
        """As the network has them, in one direction. ConditionsError where no link can have them."""
        return netns.Conditions(
            rate_bits_per_s=self.rate_bits_per_s,
            delay_ns=self.delay_ns,
            jitter_ns=self.jitter_ns,
            distribution=self.distribution,
            loss=self.loss,
            duplication=self.duplicate,
            reordering=self.reorder,
            queue_frames=self.queue_frames,
            lost_announcements=lost_announcements,
            seed=seed,
        )


def client_addresses(number: int) -> tuple[str, str]:
    """The addresses of the client of this number, from 1: IPv4 and IPv6."""
    return f"10.7.0.{100 + number}", f"fd07::{100 + number}"


class LinkPart(Conditions):
    """A link under conditions from the beginning; what its name is says :attr:`Scenario.link_names`."""

    name: str


class Settings(Part):
    """How a migration is to go. On a step what is given goes before what the scenario says of all."""

    mode: Mode | None = None
    downtime_limit_ns: Duration | None = key("downtime_limit")
    max_rounds: Annotated[int, Field(strict=True, ge=1, le=1000)] | None = None
    on_stall: OnStall | None = None
    max_bandwidth_bits_per_s: Rate | None = key("max_bandwidth")
