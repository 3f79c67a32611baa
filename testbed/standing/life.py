"""The life of a lab that stands: brought up, changed and migrated as often as somebody asks, brought down.

Each migration leaves ``migration-N/`` in the lab's folder, which is the folder of a run: ``result.json``,
``events.jsonl`` and the clients' samples, all of the time since the migration before. The lab's own
``result.json`` has them all. This is the one place of this room that knows :class:`testbed.lab.lab.Lab`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from netns.apply import TopologyError
from netns.link_figures import BackendMissing
from netns.links import LinkError
from netns.relayed import RelayDied
from testbed.clients.control import ClientFailed
from testbed.clients.control import ControlError as ClientGone
from testbed.experiment import link_figures, outcome, run
from testbed.experiment.capturing import Capturing
from testbed.experiment.checks import judge
from testbed.experiment.course import Course, Witness, running_stats
from testbed.experiment.spans import span, together
from testbed.experiment.thresholds import waived
from testbed.host.control import CommandFailed, ControlError
from testbed.lab import plan as planned
from testbed.lab.evidence import gather
from testbed.lab.lab import Lab, Readable
from testbed.measure.result import Clients, LinkFigures, Result
from testbed.measure.trace import BEAT
from testbed.scenario.files import ScenarioError, read
from testbed.scenario.steps import Step
from testbed.standing.journal import Journal
from testbed.standing.protocol import Refused
from testbed.standing.tap import CaptureError, Tap
from testbed.standing.wanted import Wanted

SPAN_S = 60.0
"""After so long without a migration the clients let go of their samples, or a lab would grow for ever."""
FIRST_LOOK_S = 0.2
"""How long the clients are watched before a lab is said to stand."""
LAST_EVENTS_S = 0.01
"""How long the last events are waited for, after all who tell them have been asked to end."""
WRONG_REQUEST, FAILED = 2, 1
_OF_STEP = re.compile(r"^[^:]*: step\[1\](\.|: )?")


class Life:
    """A lab that stands, and what has happened in it. Close it (a context manager) to bring it down.

    `say` is told what is about to be done while it comes up, `on_event` that the journal has grown. Raises
    what a run raises that cannot be brought up.
    """

    def __init__(self, wanted: Wanted, say: Callable[[str], None], capturing: Capturing) -> None:
        self.scenario, self.folder = wanted.scenario, wanted.folder
        self.started_at = _now()
        self.busy: str | None = None
        """What is being done with it that nothing else may be done beside."""
        self.results: list[Result] = []
        self.gone: dict[str, str] = {}
        """Clients that do not answer any more, and why."""
        self.on_event: Callable[[], None] = lambda: None
        self._options = dict(wanted.options)
        self._import_path = list(wanted.import_path)
        self._whole: Result | None = None
        self._spans: list[Clients] = []
        self._before: Clients | None = None
        self._faults_before: dict[str, int] = {}
        with ExitStack() as stack:
            self.journal = Journal(self.folder)
            stack.callback(self.journal.close)
            self.lab = stack.enter_context(Lab(self.scenario, self.folder, say, on_network=capturing.begin))
            for name, guest in self.lab.vms.items():
                say(f"guest: {guest.vm.guest_program} on {guest.owner} ({name})")
            self._booted = self.lab.boot(self._import_path)
            self.connections = self.lab.start_clients()
            self.lab.start_client_programs("baseline")
            say(f"clients: {self.connections} connections")
            self._span_position, self._span_end_s = 0, time.monotonic() + SPAN_S
            self.lab.watch(FIRST_LOOK_S, self._event)
            self._stack = stack.pop_all()

    # ---- what there is

    @property
    def nodes(self) -> dict[str, str]:
        """Where one can be, and what each is: switch, host, storage, client or vm."""
        kinds = dict.fromkeys(self.scenario.hosts, "host") | {planned.STORAGE: "storage"}
        kinds |= dict.fromkeys((client.name for client in self.scenario.clients), "client")
        found = {node: kinds.get(node, "switch") for node in self.scenario.nodes}
        return found | dict.fromkeys(self.lab.vms, "vm")

    @property
    def owners(self) -> dict[str, str]:
        """The host that has each guest."""
        return {name: guest.owner for name, guest in self.lab.vms.items()}

    def namespace(self, node: str) -> str:
        """The name of a node's network namespace; a guest's is that on the host that has it now."""
        if node in self.lab.vms:
            return self.lab.vms[node].namespace
        if node not in self.nodes:
            raise Refused(f"there is no node {node!r}; there are {', '.join(self.nodes)}", WRONG_REQUEST)
        return node

    @property
    def links(self) -> tuple[str, ...]:
        return tuple(self.lab.links)

    def figures(self, link: str | None) -> list[LinkFigures]:
        """Of one link, or of all that have had conditions: what was asked, and what came of it."""
        if link is not None and link not in self.lab.links:
            there = ", ".join(self.lab.links)
            raise Refused(f"there is no link {link!r}; there are {there}", WRONG_REQUEST)
        told = self.lab.links.figures()
        return [link_figures.link(name, one) for name, one in told.items() if link in (None, name)]

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
            self._new_span(self._summaries([], None))
            left_s = SPAN_S
        self.lab.wait(min(timeout_s, left_s), self._event)
        self.lab.recorder.events.clear()  # they are in the journal

    def _event(self, event: dict[str, Any]) -> None:
        if event["event"] == BEAT:
            return  # of use at the moment only
        self.journal.write([event])
        self.on_event()

    def heartbeats(self) -> dict[str, list[dict[str, Any]]]:
        """Each client's live figures, by probe (testbed.clients.control)."""
        found = {}
        for name, client in list(self.lab.clients.items()):
            try:
                found[name] = list(client.heartbeat()["probes"])
            except (ClientFailed, ClientGone) as error:
                self._lose(name, error)
        return found

    def look(self) -> Clients:
        """What clients have counted so far, and how long they waited since the last span's end."""
        return self._clients(self._summaries([], None, forget=False))

    def span_since(self, begin_ns: int) -> tuple[Clients, Clients]:
        """A span ends now. What clients have counted so far; and what is new in the span, where the longest
        waits are those since `begin_ns` (CLOCK_MONOTONIC)."""
        summaries = self._summaries([(begin_ns, time.monotonic_ns())], None)
        return self._clients(summaries), self._new_span(summaries)

    def _beat(self, every_ms: int) -> None:
        """Have the clients tell of their waits from now on, or (0) no more."""
        for name, client in list(self.lab.clients.items()):
            try:
                client.beat(every_ms)
            except (ClientFailed, ClientGone) as error:
                self._lose(name, error)

    def evidence(self) -> Path:
        """Write down what the network looks like now; the folder."""
        return gather(self.lab, self.folder)

    def _lose(self, client: str, error: Exception) -> None:
        self.gone[client] = str(error)
        del self.lab.clients[client]

    def step(self, said: Mapping[str, Any]) -> Step:
        """A step in the words of a scenario file, checked against this lab. Refused."""
        try:
            words = self.scenario.as_json() | {"step": [dict(said)]}
            asked = read(words, self.scenario.name)
        except ScenarioError as error:
            raise Refused(_OF_STEP.sub("", str(error)), WRONG_REQUEST) from error
        if asked.is_quick != self.scenario.is_quick and said.get("migrate") is not None:
            how = "one host's at a time" if self.scenario.is_quick else "shared, or there is none"
            raise Refused(f"mode: in this lab the LUN is {how}; bring up another", WRONG_REQUEST)
        return asked.steps[0]

    def change_link(self, said: Mapping[str, Any]) -> list[LinkFigures]:
        """Do a step that sets or resets a link's conditions; what holds now, and who does it. Refused."""
        step = self.step(said)
        try:
            Course(self.lab, _Unwatched(self._event), ()).perform(step)
        except (OSError, ValueError, BackendMissing, LinkError, RelayDied, TopologyError) as error:
            raise Refused(f"{step.link}: {error}", WRONG_REQUEST) from error
        return self.figures(step.link)

    def tap(self, link: str, file: Path, snap_bytes: int | None, limit_bytes: int) -> Tap:
        """Begin to capture a link. Refused."""
        self.figures(link)  # whether there is such a link
        position = self.journal.length
        ends = self.lab.links[link]
        try:
            return Tap(
                self.lab.topology, link, ends, file, position, snap_bytes=snap_bytes, limit_bytes=limit_bytes
            )
        except (CaptureError, OSError) as error:
            raise Refused(f"{link} cannot be captured: {error}", FAILED) from error

    def untap(self, tap: Tap) -> dict[str, Any]:
        """End a capture: its file is written. Refused."""
        try:
            return tap.finish(self.journal.since(tap.position))
        except (CaptureError, OSError) as error:
            raise Refused(f"the capture of {tap.link} is lost: {error}", FAILED) from error

    # ---- migrations

    def migrate(
        self, said: Mapping[str, Any], witness: Witness, beat_ms: int = 0
    ) -> tuple[Result, Path]:
        """Do a step that migrates; what came of it, and its folder. With `beat_ms` the witness is told of the
        clients' waits as often. Refused where that cannot be asked, or where it failed so that there is
        nothing to judge."""
        step = self.step({"migrate": list(self.lab.vms)[:1]} | dict(said))
        assert step.migrate is not None
        for name in step.migrate:
            if step.to == self.lab.vms[name].owner:
                raise Refused(f"--to: {name} is on {step.to} already", WRONG_REQUEST)
        self.busy = f"{', '.join(step.migrate)} on the way to {step.to or 'the next host'}"
        folder = self.folder / f"migration-{len(self.results) + 1}"
        folder.mkdir()
        try:
            self._beat(beat_ms)
            result = self._migrate(step, folder, witness)
        except (CommandFailed, ControlError, OSError) as error:
            raise Refused(f"the migration failed: {error}", FAILED) from error
        finally:
            if beat_ms:
                self._beat(0)
            self.busy = None
            with suppress(OSError):  # there is something in it
                folder.rmdir()
        self.results.append(result)
        return result, folder

    def _migrate(self, step: Step, folder: Path, witness: Witness) -> Result:
        started_at = _now()
        both = _Both(witness, self._event)
        course = Course(self.lab, both, self._import_path, programs_wait=not self.results)
        course.perform(step)
        self.lab.watch(self.scenario.aftermath_ns / 1e9, both.event)
        course.finish()
        summaries = self._summaries(course.windows, folder)
        found = run.Found(
            course=course,
            summaries=summaries,
            stats={name: running_stats(guest) for name, guest in self.lab.vms.items()},
            owners=self.owners,
            programs=[],
            links=self.figures(None),
            events=self.journal.since(self._span_position),
            surroundings=run.surroundings_of(self.lab, self._booted[self.lab.vm.name], course),
            before=self._before,
            faults_before=dict(self._faults_before),
        )
        asked = self.scenario.model_copy(
            update={"name": f"{self.scenario.name}-{len(self.results) + 1}", "steps": (step,), "checks": ()}
        )
        result = run.result_of(asked, started_at, found, self._options)
        self._new_span(summaries)
        for guest in result.guests:
            self._faults_before[guest.vm] = self._faults_before.get(guest.vm, 0) + len(guest.faults)
        run.write_events(folder, found.events)
        self._span_position = self.journal.length
        run.write_result(folder, result)
        if not all(check.passed for check in result.checks):
            gather(self.lab, folder)
        run.give_to_caller(self.folder)
        return result

    def _summaries(
        self, windows: Sequence[tuple[int, int]], folder: Path | None, *, forget: bool = True
    ) -> dict[str, dict[str, Any]]:
        """The clients sum up and let go of their samples (`forget`), which go to `folder`."""
        summaries = {}
        for name, client in list(self.lab.clients.items()):
            save = None if folder is None else folder / f"{name}.npz"
            try:
                summaries[name] = client.report(windows, forget=forget, save=save)
            except (ClientFailed, ClientGone) as error:
                self._lose(name, error)
        return summaries

    def _new_span(self, summaries: dict[str, dict[str, Any]]) -> Clients:
        now = self._clients(summaries)
        new = span(self._before, now)
        self._spans = [together([*self._spans, new])]
        self._before = now
        self._span_end_s = time.monotonic() + SPAN_S
        return new

    def _clients(self, summaries: dict[str, dict[str, Any]]) -> Clients:
        vm_of = {address: vm.name for vm in self.scenario.vms for address in (vm.ipv4, vm.ipv6)}
        return outcome.clients(summaries, vm_of)

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
        self._new_span(summaries)
        self.lab.programs.finish()
        self.lab.watch(LAST_EVENTS_S, self._event)
        if self.results:
            self._whole = self._all_together(self._spans[0]).model_copy(
                update={"programs": self.lab.programs.runs()}
            )
            run.write_result(self.folder, self._whole)
        return self._whole

    def write_captures(self, capturing: Capturing) -> None:
        """Make files of what was captured from the beginning; takes its time. The lab need not stand any
        more."""
        captures = capturing.files(self.journal.since(0), lambda _: None)
        if captures and self._whole is not None:
            run.write_result(self.folder, self._whole.model_copy(update={"captures": captures}))
        run.give_to_caller(self.folder)

    def _all_together(self, clients: Clients) -> Result:
        """All migrations together: the figures of one are those of the one with the longest blackout."""
        migrations = [one for result in self.results for one in result.migrations]
        worst = max(self.results, key=lambda one: one.blackout_ms or 0.0)
        faults = [fault for result in self.results for guest in result.guests for fault in guest.faults]
        not_held = [vm.name for vm in self.scenario.vms if not vm.hold]
        checks = judge(migrations, clients, faults, not_held=not_held)
        return worst.model_copy(
            update={
                "name": self.scenario.name,
                "started_at": self.started_at,
                "outcome": run.overall(migrations),
                "clients": clients,
                "network": outcome.summed([one.network for one in migrations], worst.network),
                "checks": waived(checks, self.scenario.waive),
                "migrations": migrations,
                "scenario": self.scenario.as_json(),
            }
        )

    def close(self) -> None:
        """Bring all of it down."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Unwatched:
    """A witness of what is done to the lab itself, which nobody watches but the journal."""

    def __init__(self, on_event: Callable[[dict[str, Any]], None]) -> None:
        self.event = on_event

    def say(self, text: str) -> None: ...

    def migration(self, source: str, target: str, number: int, of: int, vm: str | None = None) -> None: ...


class _Both:
    """A witness, and the journal beside it."""

    def __init__(self, witness: Witness, on_event: Callable[[dict[str, Any]], None]) -> None:
        self._witness, self._on_event = witness, on_event
        self.say, self.migration = witness.say, witness.migration

    def event(self, event: dict[str, Any]) -> None:
        self._on_event(event)
        self._witness.event(event)


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


