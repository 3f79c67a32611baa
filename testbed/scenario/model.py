"""A scenario: a network, guests and clients, what happens to them, and what must come of it.

:class:`Scenario` is checked as a whole once it exists: what it names is there, no name or address is used
twice, and it asks for nothing that the lab cannot do. Names, addresses and hosts that a file leaves out are
filled in. Run as a module it writes the JSON Schema of scenario files, for editors.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from testbed.clients import spec
from testbed.scenario.fitting import Misfit, problems
from testbed.scenario.omissions import filled_in
from testbed.scenario.options import Mode, OnStall, Options
from testbed.scenario.part import Name, Part, key
from testbed.scenario.parts import Client, LinkPart, Network, Settings, Storage, Vm
from testbed.scenario.probing import Probe
from testbed.scenario.quantities import Duration, Whole
from testbed.scenario.steps import Check, StandardCheck, Step

if TYPE_CHECKING:
    from testbed.migration.strategy import Policy

SCHEMA_FILE = Path(__file__).with_name("scenario.schema.json")
MOST_HOSTS, MOST_VMS, MOST_CLIENTS = 8, 16, 100


@dataclass(frozen=True)
class Manner:
    """How one migration goes: the scenario's settings with the step's, and what neither says as always."""

    mode: Mode
    downtime_limit_ns: int
    max_rounds: int
    on_stall: OnStall
    max_bandwidth_bits_per_s: int | None = None

    @property
    def policy(self) -> Policy:
        from testbed.migration.strategy import Policy  # late: it brings the whole wire format with it

        return Policy(self.downtime_limit_ns, self.max_rounds, self.on_stall)


def _of_a_folder(name: str) -> str:
    """It goes into the name of the run's folder."""
    if not name.isprintable() or not name or "/" in name or name.startswith(".") or len(name) > 100:
        raise ValueError(
            f"{name!r} cannot be part of a folder's name: at most 100 characters, no slash, no dot first"
        )
    return name


class Scenario(Part):
    """What a scenario file says. `shows` and `expect` are for people: what it is for, and what one should
    see. The clients are watched for `baseline` before the first step and for `aftermath` after the last.
    `waive` names standard checks that it means to fail."""

    name: Annotated[str, AfterValidator(_of_a_folder)] = "scenario"
    shows: str = ""
    expect: str = ""
    seed: Whole = 1
    baseline_ns: Duration = key("baseline", 10**9)
    aftermath_ns: Duration = key("aftermath", 10**9)
    hosts: Annotated[tuple[Name, ...], Field(min_length=2, max_length=MOST_HOSTS)] = ("host-a", "host-b")
    network: Network = Network()
    storage: Storage = Storage()
    vms: Annotated[tuple[Vm, ...], Field(min_length=1, max_length=MOST_VMS)] = key("vm", ())
    clients: Annotated[tuple[Client, ...], Field(min_length=1, max_length=MOST_CLIENTS)] = key("client", ())
    links: tuple[LinkPart, ...] = key("link", ())
    migration: Settings = Settings()
    steps: Annotated[tuple[Step, ...], Field(min_length=1)] = key("step", ())
    checks: tuple[Check, ...] = key("check", ())
    waive: tuple[StandardCheck, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, value: Any) -> Any:
        return filled_in(value)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if found := problems(self):
            raise Misfit(found)
        return self

    def vm(self, name: str) -> Vm:
        return next(vm for vm in self.vms if vm.name == name)

    def seeded(self, seed: int) -> Scenario:
        """The same with other random numbers."""
        return self.model_copy(update={"seed": seed})

    def manner(self, step: Step | None = None) -> Manner:
        """How the migrations of a step go, or those that no step asked for."""
        defaults = Options()
        said = {name: getattr(defaults, name) for name in Settings.model_fields} | self.migration.given()
        if step is not None:
            said |= {name: value for name, value in step.given().items() if name in Settings.model_fields}
        return Manner(**said)

    @property
    def most_moving_bytes(self) -> int:
        """The most RAM that is on the move at once; where a host is drained, perhaps that of all."""
        ram = {vm.name: vm.ram_bytes for vm in self.vms}
        moving = [sum(ram[name] for name in step.migrate or ()) for step in self.steps]
        moving += [
            sum(ram.values()) if step.at_once else max(ram.values()) for step in self.steps if step.drain
        ]
        return max(moving)

    @property
    def has_storage(self) -> bool:
        """Whether the hosts share storage (and, unless nbdkit serves it, ownership is decided there)."""
        return any(vm.disk_bytes for vm in self.vms)

    @property
    def is_quick(self) -> bool:
        """Whether guests move by Quick Migration here: the LUN is one host's at a time then."""
        return any(
            self.manner(step).mode == "quick" for step in self.steps if step.verb in ("migrate", "drain")
        )

    @property
    def own_wire(self) -> bool:
        return self.network.migration == "own"

    @property
    def link_names(self) -> tuple[str, ...]:
        """The links that conditions can be set on: by the node that one plugs into the clients' network, the
        wire of the migrations, and what leads to the storage."""
        migration: tuple[str, ...] = ()
        if self.own_wire:
            migration = (
                ("migration",) if len(self.hosts) == 2 else tuple(f"{host}.migration" for host in self.hosts)
            )
        storage = (*(f"{host}.storage" for host in self.hosts), "storage") if self.has_storage else ()
        return (*(client.name for client in self.clients), *self.hosts, *migration, *storage)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Every node of the network: where a command can run."""
        migration = ("migration-switch",) if self.own_wire and len(self.hosts) > 2 else ()
        storage = ("storage",) if self.has_storage else ()
        return ("switch", *self.hosts, *(client.name for client in self.clients), *migration, *storage)

    def asked(self, probe: Probe) -> Vm:
        """The guest that a probe asks."""
        return self.vms[0] if probe.vm is None else self.vm(probe.vm)

    def probe_argument(self, probe: Probe) -> dict[str, Any]:
        """The probe as the argument of a client's process has it (testbed.clients.spec.parse)."""
        vm = self.asked(probe)
        found: dict[str, Any] = {
            "kind": probe.kind,
            "address": vm.ipv4 if probe.family == "ipv4" else vm.ipv6,
        }
        if probe.program is not None:
            found["program"] = probe.program
        elif vm.guest_program in spec.programs_for(probe.kind):
            found["program"] = vm.guest_program
        if probe.port is not None:
            found["port"] = probe.port
        return found | probe.of_its_kind()

    def as_json(self) -> dict[str, Any]:
        """As a file would say it, with everything that was filled in; for the result."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


# ---- for editors


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a scenario file, as it ships in :data:`SCHEMA_FILE`."""
    made = Scenario.model_json_schema(mode="validation", by_alias=True)
    for required in (made["$defs"]["Vm"], made["$defs"]["Client"]):
        del required["required"]  # what is left out is filled in
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


if __name__ == "__main__":
    SCHEMA_FILE.write_text(json.dumps(schema(), indent=2) + "\n")
