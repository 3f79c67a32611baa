"""What a test holds of its lab: the lab itself, its guests, its client machines and its links."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from netns.namespace import Namespace
from testbed.standing.client import Conversation
from testbed.standing.protocol import Refused

if TYPE_CHECKING:
    from testbed.measure.result import Result
    from testbed.scenario.model import Scenario

MIGRATION_DEADLINE_S = 900.0


class Node:
    """A machine of the lab. As a context manager: in the block this *thread* is on it, and so is every socket
    and every process that it makes there; afterwards it is back where it was. Blocks may lie in one
    another."""

    def __init__(self, lab: Lab, name: str) -> None:
        self._lab = lab
        self.name = name
        self._entered = threading.local()

    def run(self, *command: str, **given: Any) -> subprocess.CompletedProcess[str]:
        """subprocess.run on it, with text captured unless told otherwise."""
        with self._there():
            return subprocess.run(list(command), **({"capture_output": True, "text": True} | given))

    def _there(self) -> AbstractContextManager[Any]:
        with ExitStack() as stack:
            namespace = stack.enter_context(Namespace.open(self._lab.namespace_of(self.name)))
            stack.enter_context(namespace.entered())
            return stack.pop_all()

    def __enter__(self) -> Self:
        entered: list[AbstractContextManager[Any]] = self._entered.__dict__.setdefault("stack", [])
        entered.append(self._there())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered.stack.pop().__exit__(kind, error, trace)

    def __repr__(self) -> str:
        return f"<{self.name}>"


class Client(Node):
    """A client machine, with its own probes going on."""

    @property
    def address(self) -> str:
        """Its IPv4 address."""
        told = json.loads(self.run("ip", "-json", "-4", "addr", "show", "dev", "eth0", check=True).stdout)
        return str(told[0]["addr_info"][0]["local"])


class Vm(Node):
    """A guest. In a ``with`` block one is in its network, on the host where it was when the block began."""

    def __init__(self, lab: Lab, name: str, ipv4: str, ipv6: str) -> None:
        super().__init__(lab, name)
        self.address = ipv4
        self.address6 = ipv6

    @property
    def host(self) -> str:
        """The host that has it now."""
        return str(self._lab.ask({"do": "ps"})["owners"][self.name])

    def migrate(self, to: str | None = None, **how: Any) -> Result:
        """Move it to a host, or to the next; returns the result of that migration when it is over.

        `how` is what a step of a scenario can say: mode, downtime_limit, max_rounds, on_stall, max_bandwidth,
        times, fault. AssertionError where it did not get there; Refused for what cannot be asked.
        """
        return self._lab.migrate([self.name], to, **how)


class Link:
    """The conditions of a link, while traffic flows."""

    def __init__(self, lab: Lab, name: str) -> None:
        self._lab = lab
        self.name = name

    def set(self, **conditions: Any) -> None:
        """In the words of a scenario: direction, rate="100mbit", delay="25ms", jitter, distribution,
        loss=0.001, duplicate, reorder, queue. What is not given is as on a link without conditions."""
        self._lab.ask({"do": "link", "step": {"link": self.name, **conditions}})

    def reset(self) -> None:
        """As it was made."""
        self._lab.ask({"do": "link", "step": {"link": self.name, "reset": True}})

    def figures(self) -> dict[str, Any] | None:
        """As testbed.measure.result.LinkFigures; None if it never had conditions."""
        links = self._lab.ask({"do": "figures", "link": self.name})["links"]
        return dict(links[0]) if links else None


class Lab:
    """The lab of one test. `folder` is its run folder, `results` what came of each migration."""

    def __init__(
        self, scenario: Scenario, standing: Mapping[str, Any], line: Conversation, name: str | None = None
    ) -> None:
        self.scenario = scenario
        self.name = name
        """By which the commands find it, where they can (``--testbed-pause-on-failure``)."""
        self.folder = Path(standing["folder"])
        self.results: list[Result] = []
        nodes: dict[str, str] = standing["nodes"]
        self.hosts = [name for name, kind in nodes.items() if kind == "host"]
        self.clients = [Client(self, name) for name, kind in nodes.items() if kind == "client"]
        self.vms = [Vm(self, name, **addresses) for name, addresses in standing["guests"].items()]
        self._nodes = nodes
        self._links: Sequence[str] = standing["links"]
        self._line = line
        self._lock = threading.Lock()

    @property
    def vm(self) -> Vm:
        """The first guest: the only one of most labs."""
        return self.vms[0]

    def node(self, name: str) -> Node:
        """Any node: host-a, switch, client1, ... Refused if there is none of that name."""
        self.namespace_of(name)
        return Node(self, name)

    def link(self, name: str) -> Link:
        """A link by its name: client1, host-a, migration, ..."""
        if name not in self._links:
            raise Refused(f"there is no link {name!r}; there are {', '.join(self._links)}", 2)
        return Link(self, name)

    def migrate(self, vms: Sequence[str] | None = None, to: str | None = None, **how: Any) -> Result:
        """Move guests, by name, all at once. As :meth:`Vm.migrate`."""
        step = {"migrate": list(vms or [self.vm.name]), **how} | ({} if to is None else {"to": to})
        told = self.ask({"do": "migrate", "step": step}, MIGRATION_DEADLINE_S)
        from testbed.measure.result import Result

        result = Result.model_validate_json((Path(told["folder"]) / "result.json").read_text())
        self.results.append(result)
        __tracebackhide__ = True
        for one in result.migrations:
            assert one.outcome == "completed", (
                f"{one.vm} did not get from {one.source} to {one.target}: {one.outcome}, {one.reason}"
            )
        return result

    def events(self) -> list[dict[str, Any]]:
        """Every event so far (testbed.measure.trace)."""
        from testbed.standing.journal import FILE

        return [json.loads(line) for line in (self.folder / FILE).read_text().splitlines()]

    def namespace_of(self, node: str) -> str:
        """The name of a node's network namespace, where it is now."""
        return str(self.ask({"do": "node", "node": node})["namespace"]) if node not in self._fixed else node

    @property
    def _fixed(self) -> list[str]:
        """Nodes that are always in the namespace of their name."""
        return [name for name, kind in self._nodes.items() if kind != "vm"]

    def ask(self, request: dict[str, Any], deadline_s: float = 60.0) -> dict[str, Any]:
        """A request to the lab's server (testbed.standing.protocol), from any thread."""
        with self._lock:
            return self._line.ask(request, deadline_s)
