"""What of a scenario does not fit together: names and addresses used twice, places that are not there, what
the lab cannot do. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from testbed.clients import spec
from testbed.faults.kinds import Fault, Kind
from testbed.scenario.parts import client_addresses
from testbed.scenario.steps import Step

if TYPE_CHECKING:
    from testbed.scenario.model import Scenario


class Misfit(ValueError):
    """A scenario whose parts do not fit together. `problems` has one for each thing; the text is the first of
    them."""

    def __init__(self, found: Sequence[str]) -> None:
        self.problems = tuple(found)
        super().__init__(self.problems[0])


def problems(scenario: Scenario) -> list[str]:
    """Each thing that is wrong, as ``key: what; what is allowed``. Where names lead nowhere that is all that
    can be told: the rest takes them for granted."""
    found = [*_names_twice(scenario), *_addresses_twice(scenario), *_places(scenario)]
    if found:
        return found
    found = [*_probe_problems(scenario), *_storage_problems(scenario)]
    for number, step in enumerate(scenario.steps, 1):
        found += [f"step[{number}].{problem}" for problem in _step_problems(scenario, step)]
    return found


def _names_twice(scenario: Scenario) -> Iterator[str]:
    nodes = [("hosts", name) for name in scenario.hosts]
    nodes += [("client", client.name) for client in scenario.clients]
    nodes += [("vm", vm.name) for vm in scenario.vms]
    yield from _twice(nodes, "something")
    ways = {"both": ("to-node", "from-node")}
    links = [
        (link.name, way) for link in scenario.links for way in ways.get(link.direction, (link.direction,))
    ]
    yield from _twice([("link", f"{name} ({way})") for name, way in links], "a link")


def _twice(named: Iterable[tuple[str, str]], what: str) -> Iterator[str]:
    seen: dict[str, str] = {}
    for where, name in named:
        if name in seen:
            yield f"{where}: {what} called {name} is there already, under {seen[name]}"
        seen[name] = where


def _addresses_twice(scenario: Scenario) -> Iterator[str]:
    seen: dict[str, str] = {}
    for number, client in enumerate(scenario.clients, 1):
        seen |= dict.fromkeys(client_addresses(number), client.name)
    for vm in scenario.vms:
        for name in ("ipv4", "ipv6", "mac_address"):
            address = getattr(vm, name)
            if address in seen:
                yield f"vm[{vm.name}].{name}: {address} is {seen[address]}'s already"
            seen[address] = vm.name


def _places(scenario: Scenario) -> Iterator[str]:
    hosts, vms = ", ".join(scenario.hosts), [vm.name for vm in scenario.vms]
    for vm in scenario.vms:
        if vm.host not in scenario.hosts:
            yield f"vm[{vm.name}].host: there is no host {vm.host!r}; there are: {hosts}"
    for client in scenario.clients:
        if client.on not in ("switch", *scenario.hosts):
            yield f"client[{client.name}].on: {client.on!r} is none of switch, {hosts}"
        for number, probe in enumerate(client.probes, 1):
            if probe.vm is not None and probe.vm not in vms:
                yield (
                    f"client[{client.name}].probe[{number}].vm: there is no guest {probe.vm!r}; "
                    f"there are: {', '.join(vms)}"
                )
    for link in scenario.links:
        if link.name not in scenario.link_names:
            yield f"link: there is no link {link.name!r}; there are: {', '.join(scenario.link_names)}"


def _probe_problems(scenario: Scenario) -> Iterator[str]:
    for client in scenario.clients:
        if not client.probes and not client.programs and not client.idle:
            yield f"client[{client.name}]: does nothing; give it a probe or a program, or say idle = true"
        if client.idle and (client.probes or client.programs):
            yield f"client[{client.name}].idle: it has a probe or a program, so it is not"
        for number, probe in enumerate(client.probes, 1):
            guest, programs = scenario.asked(probe).guest_program, spec.programs_for(probe.kind)
            if probe.program is None and guest in spec.PROGRAM_PORTS and programs and guest not in programs:
                yield (
                    f"client[{client.name}].probe[{number}].kind: {probe.kind} talks to "
                    f"{', '.join(programs)}, and {scenario.asked(probe).name} runs {guest}"
                )
            try:
                spec.parse({"name": client.name, "probes": [scenario.probe_argument(probe)]})
            except spec.SpecError as error:
                told = str(error).partition(": ")[2]
                for field, key in probe.fields_written().items():
                    told = told.replace(f"`{field}`", key)
                yield f"client[{client.name}].probe[{number}]: {told}"


def _storage_problems(scenario: Scenario) -> Iterator[str]:
    if not scenario.has_storage:
        if scenario.storage.rate_bits_per_s is not None or scenario.storage.server != "testbed":
            yield 'storage: there is none unless a guest has a disk; give one its disk = "64MiB"'
        return
    if len(scenario.hosts) > 2:
        yield (
            f"hosts: shared storage (a guest has a disk) is for two hosts, and here are {len(scenario.hosts)}"
        )
    with_disk = [vm.name for vm in scenario.vms if vm.disk_bytes]
    if scenario.storage.server == "nbdkit":
        if len(with_disk) > 1:
            yield "storage.server: nbdkit serves the disk of one guest, not of several"
        if scenario.is_quick:
            yield "storage.server: nbdkit has no LUN that moves; mode quick needs testbed"
    if scenario.is_quick:
        modes = {scenario.manner(step).mode for step in scenario.steps if step.verb in ("migrate", "drain")}
        if modes != {"quick"}:
            others = ", ".join(sorted(modes - {"quick"}))
            yield f"migration.mode: quick moves the LUN as a whole, so no migration beside it can be {others}"
        if len(scenario.vms) > 1:
            yield "migration.mode: quick moves the whole LUN, so it is for one guest alone"


def _step_problems(scenario: Scenario, step: Step) -> Iterator[str]:
    hosts, vms = ", ".join(scenario.hosts), [vm.name for vm in scenario.vms]
    for name in step.migrate or ():
        if name not in vms:
            yield f"migrate: there is no guest {name!r}; there are: {', '.join(vms)}"
    if len(set(step.migrate or ())) < len(step.migrate or ()):
        yield "migrate: a guest is named twice"
    for name, host in (("to", step.to), ("drain", step.drain)):
        if host is not None and host not in scenario.hosts:
            yield f"{name}: there is no host {host!r}; there are: {hosts}"
    if step.drain is not None and step.drain == step.to:
        yield f"to: {step.to!r} is the host that is drained"
    if step.link is not None and step.link not in scenario.link_names:
        yield f"link: there is no link {step.link!r}; there are: {', '.join(scenario.link_names)}"
    if step.on is not None and step.on not in scenario.nodes:
        yield f"on: there is no node {step.on!r}; there are: {', '.join(scenario.nodes)}"
    if step.fault is not None:
        kind = Fault.parse(step.fault).kind
        if kind.needs_storage and not scenario.has_storage:
            yield f"fault: {step.fault} needs shared storage: give the guest a disk"
        if kind in (Kind.LINK_BLACK_HOLE, Kind.LINK_SLOW) and not scenario.own_wire:
            yield f'fault: {step.fault} is of a wire of the migrations\' own: network.migration = "own"'
