"""The life of a lab that stands: brought up, migrated as often as somebody asks, brought down.

Each migration leaves ``migration-N/`` in the lab's folder, which is the folder of a run: ``result.json``,
``events.jsonl`` and the clients' samples, all of the time since the migration before. The lab's own
``result.json`` has them all. This is the one place of this room that knows :class:`testbed.lab.lab.Lab`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from testbed.clients.control import ClientFailed
from testbed.clients.control import ControlError as ClientGone
from testbed.experiment import outcome, run
from testbed.experiment.checks import judge
from testbed.experiment.spans import span, together
from testbed.host.control import CommandFailed, ControlError
from testbed.host.network import guest_namespace
from testbed.lab import plan as planned
from testbed.lab.environment import environment
from testbed.lab.lab import Lab, Readable
from testbed.measure.result import Clients, Result
from testbed.scenario.options import Options
from testbed.standing.journal import FILE, Journal, write
from testbed.standing.protocol import Refused

SPAN_S = 60.0
"""After so long without a migration the clients let go of their samples, or a lab would grow for ever."""
FIRST_LOOK_S = 0.2
"""How long the clients are watched before a lab is said to stand."""
WRONG_REQUEST, FAILED = 2, 1


class Life:
    """A lab that stands, and what has happened in it. Close it (a context manager) to bring it down.

    `say` is told what is about to be done while it comes up. Raises what a run raises that cannot be brought
    up.
    """

    def __init__(
        self,
        options: Options,
        name: str,
        folder: Path,
        import_path: Sequence[str],
        say: Callable[[str], None],
        on_events: Callable[[], None] = lambda: None,
    ) -> None:
        self.options, self.name, self.folder = options, name, folder
        self.started_at = datetime.now().astimezone().isoformat(timespec="seconds")
        self.busy: str | None = None
        """What is being done with it that nothing else may be done beside."""
        self.results: list[Result] = []
        self.gone: dict[str, str] = {}
        """Clients that do not answer any more, and why."""
        self._import_path = list(import_path)
        self._on_events = on_events
        self._spans: list[Clients] = []
        self._before: Clients | None = None
        self._faults_before = 0
        with ExitStack() as stack:
            self.journal = Journal(folder)
            stack.callback(self.journal.close)
            self.lab = stack.enter_context(Lab(options, folder, say))
            say(f"guest: {options.program} on {self.lab.owner}")
            booted = self.lab.boot(import_path)
            self._tracker = booted["tracker"]
            self.connections = self.lab.start_clients()
            say(f"clients: {self.connections} connections")
            self._span_position, self._span_end_s = 0, time.monotonic() + SPAN_S
            self.lab.watch(FIRST_LOOK_S, self._event)
            self._stack = stack.pop_all()

    # ---- what there is

    @property
    def nodes(self) -> dict[str, str]:
        """Where one can be, and what each is: switch, host, storage, client or vm."""
        found = {planned.SWITCH: "switch"} | dict.fromkeys(planned.HOSTS, "host")
        if self.options.has_storage:
            found[planned.STORAGE] = "storage"
        found |= dict.fromkeys(planned.client_names(self.options), "client")
        return found | {planned.GUEST: "vm"}

    @property
    def links(self) -> tuple[str, ...]:
        storage = (*(f"{host}.storage" for host in planned.HOSTS), "storage")
        return (
            *planned.client_names(self.options), *planned.HOSTS, "migration",
            *(storage if self.options.has_storage else ()),
        )  # fmt: skip

    @property
    def owners(self) -> dict[str, str]:
        """The host that has each guest."""
        return {planned.GUEST: self.lab.owner}

    @property
    def hosts(self) -> tuple[str, ...]:
        return planned.HOSTS

    def namespace(self, node: str) -> str:
        """The name of a node's network namespace; a guest's is that on the host that has it now."""
        if self.nodes.get(node) == "vm":
            return guest_namespace(self.lab.owner)
        if node not in self.nodes:
            raise Refused(f"there is no node {node!r}; there are {', '.join(self.nodes)}", WRONG_REQUEST)
        return node

    # ---- what happens

    def attend(self, source: Readable, call: Callable[[], None]) -> None:
        """From now on `call` when `source` is readable, also while a guest migrates."""
        self.lab.attended[source] = call

    def dismiss(self, source: Readable) -> None:
        self.lab.attended.pop(source, None)

    def wait(self, timeout_s: float) -> None:
        """Let the lab run until something happens, for at most so long. Now and then a span ends."""
        left_s = self._span_end_s - time.monotonic()
        if left_s <= 0:
            self._end_span([], None)
            left_s = SPAN_S
        self.lab.wait(min(timeout_s, left_s), self._event)
        self.lab.recorder.events.clear()  # they are in the journal

    def _event(self, event: dict[str, Any]) -> None:
        self.journal.write([event])
        self._on_events()

    def heartbeats(self) -> dict[str, list[dict[str, Any]]]:
        """Each client's live figures, by probe (testbed.clients.control)."""
        found = {}
        for name, client in list(self.lab.clients.items()):
            try:
                found[name] = list(client.heartbeat()["probes"])
            except (ClientFailed, ClientGone) as error:
                self._lose(name, error)
        return found

    def _lose(self, client: str, error: Exception) -> None:
        self.gone[client] = str(error)
        del self.lab.clients[client]

    # ---- migrations

    def migrate(self, vm: str | None, to: str | None, witness: run.Witness) -> tuple[Result, Path]:
        """Move a guest; what came of it, and its folder. Refused where that cannot be asked, or where it
        failed so that there is nothing to judge."""
        target = self._target(vm, to)
        number = len(self.results) + 1
        folder = self.folder / f"migration-{number}"
        self.busy = f"{vm or planned.GUEST} is migrating: {self.lab.owner} → {target}"
        try:
            folder.mkdir()
            return self._migrate(folder, f"{self.name}-{number}", target, _Both(witness, self._event)), folder
        except (CommandFailed, ControlError) as error:
            with suppress(CommandFailed, ControlError):  # told is what went wrong first
                self.lab.settle(run.AFTERMATH_S)
            raise Refused(f"the migration failed: {error}", FAILED) from error
        finally:
            self.busy = None
            with suppress(OSError):  # there is something in it
                folder.rmdir()

    def _target(self, vm: str | None, to: str | None) -> str:
        if vm is not None and vm not in self.owners:
            raise Refused(f"there is no guest {vm!r}; there is {', '.join(self.owners)}", WRONG_REQUEST)
        target = self.lab.other(self.lab.owner) if to is None else to
        if target not in self.hosts:
            raise Refused(f"--to: there is no host {target!r}; there are {', '.join(self.hosts)}", WRONG_REQUEST)
        if target == self.lab.owner:
            raise Refused(f"--to: {vm or planned.GUEST} is on {target} already", WRONG_REQUEST)
        return target

    def _migrate(self, folder: Path, name: str, target: str, witness: run.Witness) -> Result:
        started_at = datetime.now().astimezone().isoformat(timespec="seconds")
        log = run.Log()
        witness.migration(self.lab.owner, target, 1, 1)
        run.move(self.lab, log, witness, self._import_path, run.AFTERMATH_S, None)
        clients, summaries = self._end_span(log.windows, folder)
        surroundings = environment(self.lab.topology.congestion_control.values(), self._tracker)
        stats = run.guest_stats(self.lab)
        whole = run.result_of(self.options, name, started_at, log, summaries, stats, surroundings, [])
        faults = whole.guest.faults[self._faults_before :]
        self._faults_before = len(whole.guest.faults)
        result = whole.model_copy(
            update={
                "clients": clients,
                "checks": judge(whole.migrations, clients, faults, hold=self.options.hold),
            }
        )
        self._leave(folder, result)
        self.results.append(result)
        return result

    def _end_span(
        self, windows: Sequence[tuple[int, int]], folder: Path | None
    ) -> tuple[Clients, dict[str, dict[str, Any]]]:
        """The clients sum up and let go of their samples, which go to `folder`."""
        summaries = {}
        for name, client in list(self.lab.clients.items()):
            save = None if folder is None else folder / f"{name}.npz"
            try:
                summaries[name] = client.report(windows, forget=True, save=save)
            except (ClientFailed, ClientGone) as error:
                self._lose(name, error)
        return self._new_span(summaries, folder), summaries

    def _new_span(self, summaries: dict[str, dict[str, Any]], folder: Path | None) -> Clients:
        now = outcome.clients(summaries)
        new = span(self._before, now)
        self._before = now
        self._spans = [together([*self._spans, new])]
        self._span_end_s = time.monotonic() + SPAN_S
        if folder is not None:
            write(folder / FILE, self.journal.since(self._span_position))
            self._span_position = self.journal.length
        return new

    def _leave(self, folder: Path, result: Result) -> None:
        (folder / "result.json").write_text(result.model_dump_json(indent=2) + "\n")
        run.give_to_caller(self.folder)

    # ---- the end

    def finish(self) -> Result | None:
        """The clients stop; the result of the lab's whole life is written. None where nothing migrated: then
        there is nothing to tell."""
        summaries = {}
        for name, client in list(self.lab.clients.items()):
            try:
                summaries[name] = client.stop([])
            except (ClientFailed, ClientGone) as error:
                self._lose(name, error)
        clients = together([*self._spans, span(self._before, outcome.clients(summaries))])
        self.lab.programs.finish()
        self.lab.watch(run.LAST_EVENTS_S, self._event)
        if not self.results:
            return None
        migrations = [one for result in self.results for one in result.migrations]
        worst = max(self.results, key=lambda one: one.blackout_ms or 0.0)
        faults = [fault for result in self.results for fault in result.guest.faults]
        result = worst.model_copy(
            update={
                "name": self.name,
                "started_at": self.started_at,
                "outcome": run.overall(migrations),
                "clients": clients,
                "network": outcome.summed([one.network for one in migrations], worst.network),
                "checks": judge(migrations, clients, faults, hold=self.options.hold),
                "migrations": migrations,
            }
        )
        self._leave(self.folder, result)
        return result

    def close(self) -> None:
        """Bring all of it down."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Both:
    """A witness, and the journal beside it."""

    def __init__(self, witness: run.Witness, on_event: Callable[[dict[str, Any]], None]) -> None:
        self._witness, self._on_event = witness, on_event
        self.say, self.migration = witness.say, witness.migration

    def event(self, event: dict[str, Any]) -> None:
        self._on_event(event)
        self._witness.event(event)
