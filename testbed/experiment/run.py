"""One run: a lab is brought up, its guests migrate under the eyes of its clients, and what they saw is
written down."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from testbed.experiment import outcome
from testbed.experiment.capturing import Capturing
from testbed.experiment.checks import judge
from testbed.experiment.course import Course, Witness, running_stats
from testbed.experiment.foreseeing import foresee
from testbed.experiment.link_figures import link
from testbed.experiment.machine import instrument
from testbed.experiment.spans import span
from testbed.experiment.thresholds import held, waived
from testbed.lab.environment import environment
from testbed.lab.evidence import FOLDER as EVIDENCE
from testbed.lab.evidence import gather
from testbed.lab.lab import Lab, Usage
from testbed.measure.result import (
    Clients,
    Guest,
    LinkFigures,
    Migration,
    Outcome,
    ProgramRun,
    Ram,
    Result,
)
from testbed.migration.overheads import Overheads
from testbed.scenario.from_options import scenario_of
from testbed.scenario.model import Scenario
from testbed.scenario.options import Options
from testbed.scenario.pcap import Pcap
from testbed.scenario.units import format_count

__all__ = [
    "Found",
    "Witness",
    "give_to_caller",
    "make_folder",
    "overall",
    "result_of",
    "run",
    "run_options",
    "surroundings_of",
    "write_events",
    "write_result",
]


@dataclass(frozen=True)
class Found:
    """All that a lab has told by its end, or by the end of a span of its life; `before` and `faults_before`
    are what clients and guests had counted when that began."""

    course: Course
    summaries: Mapping[str, Mapping[str, Any]]
    stats: Mapping[str, dict[str, Any] | None]
    """What each guest says of itself; None of one that does not run."""
    owners: Mapping[str, str]
    programs: Sequence[ProgramRun]
    links: Sequence[LinkFigures]
    events: list[dict[str, Any]]
    surroundings: dict[str, Any]
    before: Clients | None = None
    faults_before: Mapping[str, int] = field(default_factory=dict)


def make_folder(root: Path, name: str) -> Path:
    """A new folder for a run: ``<time>-<name>`` under `root`. Raises OSError where it cannot be made."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{number}" for number in range(2, 1000))):
        folder = root / f"{stamp}-{name}{suffix}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(17, "too many runs in one second", str(root))


def run_options(
    options: Options,
    name: str,
    folder: Path,
    witness: Witness,
    import_path: Sequence[str] = (),
    *,
    overheads: Overheads | None = None,
) -> Result:
    """:func:`run` of the scenario that the options of a command stand for."""
    return run(scenario_of(options, name), folder, witness, import_path, options, overheads=overheads)


def run(
    scenario: Scenario,
    folder: Path,
    witness: Witness,
    import_path: Sequence[str] = (),
    options: Options | None = None,
    pcap: Pcap | None = None,
    beat_ms: int = 0,
    overheads: Overheads | None = None,
    on_failure: Callable[[Lab, Result], None] = lambda *_: None,
) -> Result:
    """Run `scenario` inside a universe; leaves ``result.json`` and ``events.jsonl`` in `folder`, also of a
    migration that failed, and the captures that `pcap` asks for. `options` are told in the result, where the
    scenario comes of some. With `beat_ms` the witness is told of the clients' waits as often. Where a check
    has failed there is ``evidence/`` too, and `on_failure` is called while the lab still stands. Raises what
    brings a lab down before there is anything to judge.
    """
    started_at = datetime.now().astimezone().isoformat(timespec="seconds")
    with Capturing(pcap, folder) as capturing:
        table = overheads or Overheads.shipped()
        with Lab(scenario, folder, witness.say, on_network=capturing.begin) as lab:
            found = _performed(lab, witness, import_path, beat_ms, table)
            capturing.stop()
            write_events(folder, found.events)
            result = result_of(scenario, started_at, found, {} if options is None else options.as_dict())
            write_result(folder, result)  # before the captures, which take their time
            if all(check.passed for check in result.checks):
                shutil.rmtree(folder / EVIDENCE)
            else:
                on_failure(lab, result)
        captures = capturing.files(found.events, witness.say)
    if captures:
        result = result.model_copy(update={"captures": captures})
        write_result(folder, result)
    return result


def write_result(folder: Path, result: Result) -> None:
    (folder / "result.json").write_text(result.model_dump_json(indent=2) + "\n")


def _performed(
    lab: Lab, witness: Witness, import_path: Sequence[str], beat_ms: int, overheads: Overheads
) -> Found:
    """Everything from the guests' boot to the clients' last word. What the network looked like before that
    lies in the run's folder then."""
    scenario, begun_ns = lab.scenario, lab.begun_ns
    for vm in scenario.vms:
        witness.say(
            f"guest: {vm.guest_program} on {vm.host}" + (f" ({vm.name})" if len(lab.vms) > 1 else "")
        )
    booted = lab.boot(import_path)
    up_ms = (time.monotonic_ns() - begun_ns) / 1e6
    _begin_service(lab, witness, beat_ms)
    foresights = foresee(lab, overheads, witness.event)
    used_before = lab.usage()
    course = Course(lab, witness, import_path, foresights)
    for step in scenario.steps:
        course.perform(step)
        if course.lost:
            witness.say(f"{', '.join(course.lost)} does not run any more: what was to follow is left out")
            break
    lab.watch(scenario.aftermath_ns / 1e9, witness.event)
    course.finish()
    used_after = lab.usage()
    lab.wait_for_client_programs(witness.event)
    gather(lab, lab.folder)
    witness.say("clients finish what they asked")
    summaries = lab.stop_clients(course.windows)
    lab.programs.finish()
    stats = {name: running_stats(guest) for name, guest in lab.vms.items()}
    lab.watch(0.01, witness.event)
    surroundings = surroundings_of(lab, booted[lab.vm.name], course) | {"up_ms": round(up_ms, 1)}
    usage = {"usage_before": course.used_warm or used_before, "usage_after": used_after}
    surroundings |= {name: _by_name(used) for name, used in usage.items()}
    owners = {name: guest.owner for name, guest in lab.vms.items()}
    links = [
        link(name, figures, *lab.links.soundings.get(name, ()))
        for name, figures in lab.links.figures().items()
    ]
    programs, events = lab.programs.runs(), lab.recorder.events
    return Found(course, summaries, stats, owners, programs, links, events, surroundings)


def surroundings_of(lab: Lab, booted: Mapping[str, Any], course: Course) -> dict[str, Any]:
    """What the figures depend on and nobody asked for; `booted` is what the first guest said when it was."""
    found = environment(lab.topology.congestion_control.values(), booted["tracker"])
    found["trackers_passed_over"] = booted["passed_over"]
    found["urgent_switchover"] = all(one.source_answer.get("urgent", False) for one in course.told)
    return found


def _begin_service(lab: Lab, witness: Witness, beat_ms: int) -> None:
    """The clients begin; a baseline of normal service is to follow."""
    if lab.links.are_conditioned:
        witness.say("links: measured under their conditions")
        lab.links.sound()
    connections = format_count(lab.start_clients(beat_ms), "connection")
    lab.start_client_programs("baseline")
    baseline_s = lab.scenario.baseline_ns / 1e9
    witness.say(f"clients: {connections}; {baseline_s:g} s of normal service first")


def _by_name(usage: Sequence[Usage]) -> dict[str, dict[str, int]]:
    return {one.name: {"private_bytes": one.private_bytes, "descriptors": one.descriptors} for one in usage}


def result_of(scenario: Scenario, started_at: str, found: Found, options: dict[str, Any]) -> Result:
    """The result of what was found; `options` are told in it."""
    migrations = _migrations(scenario, found)
    vm_of = {address: vm.name for vm in scenario.vms for address in (vm.ipv4, vm.ipv6)}
    clients = span(found.before, outcome.clients(found.summaries, vm_of))
    guests = [_guest(scenario, name, stats, found) for name, stats in found.stats.items()]
    faults = [fault for guest in guests for fault in guest.faults]
    not_held = [vm.name for vm in scenario.vms if not vm.hold]
    asked_to_move = any(step.verb == "migrate" for step in scenario.steps)
    checks = judge(migrations, clients, faults, not_held=not_held, asked_to_move=asked_to_move)
    worst = max(migrations, key=lambda one: one.blackout_ms or 0.0, default=None)
    result = Result(
        name=scenario.name,
        started_at=started_at,
        outcome=overall(migrations),
        mode=scenario.manner().mode if worst is None else worst.mode,
        total_ms=worst.total_ms if worst else 0.0,
        blackout_ms=worst.blackout_ms if worst else None,
        blackout_parts_ms=worst.blackout_parts_ms if worst else {},
        network_gap_ms=worst.network_gap_ms if worst else None,
        rounds=worst.rounds if worst else [],
        ram=worst.ram if worst else _ram_of(scenario),
        clients=clients,
        network=outcome.summed([one.network for one in migrations], worst.network if worst else None),
        guest=guests[0],
        guests=guests,
        checks=waived(checks, scenario.waive),
        migrations=migrations,
        programs=list(found.programs),
        links=list(found.links),
        scenario=scenario.as_json(),
        options=options,
        environment=found.surroundings,
        instrument=instrument(),
    )
    own = held(scenario.checks, result)
    return result.model_copy(update={"checks": [*result.checks, *own]}) if own else result


def _migrations(scenario: Scenario, found: Found) -> list[Migration]:
    course, migrations = found.course, []
    first_ns = min((told.ordered_ns for told in course.told), default=None)
    for told, window in zip(course.told, course.window_of, strict=True):
        vm = scenario.vm(told.vm)
        gap = outcome.gap_during(found.summaries, window, (vm.ipv4, vm.ipv6))
        measured = outcome.migration(told, vm.ram_bytes, gap, first_ns)
        migrations.append(measured if told.foretold is None else told.foretold.beside(measured))
    return migrations


def _guest(scenario: Scenario, name: str, stats: dict[str, Any] | None, found: Found) -> Guest:
    told = (stats or {}).get("guest", {})
    return Guest(
        vm=name,
        owner=None if stats is None else found.owners[name],
        program=scenario.vm(name).guest_program,
        steps=told.get("steps", 0),
        faults=list(told.get("fault_lines", []))[found.faults_before.get(name, 0) :],
        dirty_rate_pages_per_s=told.get("load", {}).get("achieved_pages_per_s"),
        program_stats=told.get("program", {}),
    )


def _ram_of(scenario: Scenario) -> Ram:
    """Of a run in which nothing has moved."""
    return Ram(bytes=scenario.vms[0].ram_bytes, transferred_bytes=0, final_pages=0, verified=False)


def overall(migrations: Sequence[Migration]) -> Outcome:
    outcomes = {one.outcome for one in migrations}
    return "failed" if "failed" in outcomes else "rolled-back" if "rolled-back" in outcomes else "completed"


def write_events(folder: Path, events: list[dict[str, Any]]) -> None:
    with (folder / "events.jsonl").open("w") as file:
        for event in sorted(events, key=lambda one: one["t_ns"]):
            file.write(json.dumps(event, separators=(",", ":")) + "\n")


def give_to_caller(folder: Path) -> None:
    """Under sudo the folder is root's: give it to the user who asked. Does nothing for anybody else."""
    uid, gid = os.environ.get("SUDO_UID"), os.environ.get("SUDO_GID")
    if os.geteuid() != 0 or uid is None or gid is None:
        return
    for path in (folder.parent, folder, *folder.rglob("*")):
        os.chown(path, int(uid), int(gid))
