"""A guest of a lab: on which host it runs, and the agent on each host that could have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from netns.apply import Topology
from netns.namespace import Namespace
from testbed.handover.wiring import PortNames
from testbed.host.control import Line
from testbed.host.keeper import Stage
from testbed.host.network import guest_namespace
from testbed.lab import plan as planned
from testbed.lab.migrations import Move, Way
from testbed.lab.storage import access
from testbed.lab.supervisor import Supervisor
from testbed.scenario.model import Scenario
from testbed.scenario.parts import Vm

ANSWER_DEADLINE_S = 30.0
BOOT_DEADLINE_S = 120.0


class LabGuest:
    """One guest and its agents, which are started when this is made and not yet ready. Close it to end them.

    A virtual machine monitor is a process of its own for each guest, and so is the agent: on every host there
    is one for this guest. It is called as the host where the lab has only this guest, else ``host:guest``.
    """

    def __init__(
        self,
        scenario: Scenario,
        vm: Vm,
        topology: Topology,
        folder: Path,
        recorder: Path,
        peer_deadline_s: float,
    ) -> None:
        self.name = vm.name
        self.vm = vm
        self.description = planned.guest(scenario, vm)
        self.owner = vm.host
        """The host that has it."""
        self._scenario = scenario
        self._peer_deadline_s = peer_deadline_s
        self.number = scenario.vms.index(vm)
        self.ports = PortNames.numbered(self.number)
        self.agents: dict[str, Supervisor] = {}
        several = len(scenario.vms) > 1
        try:
            for host in scenario.hosts:
                name = f"{host}:{vm.name}" if several else host
                argument = {
                    "name": name,
                    "host": host,
                    "number": self.number,
                    "vm": vm.name if several else None,
                    "bridge": planned.BRIDGE,
                    "uplink": planned.UPLINK,
                    "port_delay_s": scenario.network.port_delay_ns / 1e9,
                    "recorder": str(recorder),
                    "deadline_s": peer_deadline_s,
                    "storage": access(host, scenario) if scenario.has_storage else None,
                }
                log = folder / f"{name.replace(':', '-')}.log"
                self.agents[host] = Supervisor(name, topology.namespace(host), argument, log)
        except BaseException:
            self.close()
            raise

    def wait_ready(self, deadline_s: float) -> None:
        for agent in self.agents.values():
            agent.process.wait_ready(deadline_s)

    def line(self, host: str) -> Line:
        """To its agent on a host."""
        return self.agents[host].line

    @property
    def namespace(self) -> str:
        """The name of the network namespace in which it lives on the host that has it."""
        return guest_namespace(self.agents[self.owner].name)

    def boot(self, import_path: Sequence[str]) -> dict[str, Any]:
        """Start it on its host; {"tracker", "passed_over"}. Raises CommandFailed with the guest's own
        word."""
        request = {"do": "boot", "guest": self.description.as_json(), "import_path": list(import_path)}
        return dict(self.line(self.owner).ask(request, BOOT_DEADLINE_S))

    def next_host(self) -> str:
        """Where it goes if nobody says whither: the next host of the scenario, after the last the first."""
        hosts = self._scenario.hosts
        return hosts[(hosts.index(self.owner) + 1) % len(hosts)]

    def way(self, move: Move) -> Way:
        """How it gets where it is to go. A Quick Migration may be silent while RAM goes to the LUN or comes
        from it."""
        return Way(
            planned.migration_address(self._scenario, move.target),
            planned.MIGRATION_PORT + self.number,
            (move.peer_deadline_s or self._peer_deadline_s) + planned.standstill_s(self._scenario),
        )

    def stats(self) -> dict[str, Any] | None:
        """What it says of itself now: {"guest", "counts", "first_heard_ns"}; None where it is not."""
        stats = self.line(self.owner).ask({"do": "stats"}, ANSWER_DEADLINE_S)
        return None if stats is None else dict(stats)

    def statuses(self, deadline_s: float) -> dict[str, dict[str, Any]]:
        """What each host's agent says of it; an agent that has died is replaced first."""
        return {host: agent.ask_status(deadline_s) for host, agent in self.agents.items()}

    def settle(self, deadline_s: float) -> dict[str, dict[str, Any]]:
        """After a migration that failed: learn who has it. `owner` is its host afterwards, if it runs; the
        answers are each host's status.

        Without shared storage an agent may not be able to tell whether the guest runs elsewhere; here all can
        be asked.
        """
        found = self.statuses(deadline_s)
        for host, status in found.items():
            if status["guest"] == "paused" and status["stage"] == Stage.YIELDED.name.lower():
                elsewhere = any(found[other]["guest"] == "running" for other in found if other != host)
                self.line(host).ask({"do": "release" if elsewhere else "resume"}, ANSWER_DEADLINE_S)
        found = self.statuses(deadline_s)
        for host, status in found.items():
            if status["guest"] == "running":
                self.owner = host
        return found

    def release(self) -> None:
        """Remove what is left of it, wherever that is."""
        for host, status in self.statuses(ANSWER_DEADLINE_S).items():
            if status["guest"] is not None:
                self.line(host).ask({"do": "release"}, ANSWER_DEADLINE_S)

    def close(self) -> None:
        """End its agents, and with them it. They are ended, not asked, which is quicker; what they had named
        is removed in their place."""
        for agent in reversed(self.agents.values()):
            agent.close()
            with suppress(FileNotFoundError), Namespace.open(guest_namespace(agent.name)) as left:
                left.delete()


def all_agents(guests: Mapping[str, LabGuest]) -> list[Supervisor]:
    return [agent for guest in guests.values() for agent in guest.agents.values()]
