"""One run: a lab is brought up, its guest migrates under the eyes of its clients, and what they saw is
written down."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from testbed.experiment import outcome, tables
from testbed.experiment.checks import judge
from testbed.experiment.machine import instrument
from testbed.faults.kinds import Fault, Kind
from testbed.host.control import CommandFailed, ControlError
from testbed.lab import plan as planned
from testbed.lab.environment import environment
from testbed.lab.lab import Lab, Usage
from testbed.measure.result import Guest, Migration, Outcome, ProgramRun, Result
from testbed.scenario.options import Options

AFTERMATH_S = 1.0
"""How long clients are watched after a migration: the announcement schedule ends after 0.8 s, a
retransmission takes 0.2 s."""
BETWEEN_S = 0.4
"""The same between two migrations of one run: a retransmission takes 0.2 s; later announcements are cut
short."""
WARM_MIGRATIONS = 2
"""After so many each host has sent and received: what its agent needs is loaded, and growth from here on is a
leak."""
MIGRATION_DEADLINE_S = 600.0
LAST_EVENTS_S = 0.01
"""How long the last events are waited for, after all who tell them have been asked to end."""


class Witness(Protocol):
    """Is told of a run while it goes on."""

    def say(self, text: str) -> None: ...
    def migration(self, source: str, target: str, number: int, of: int) -> None: ...
    def event(self, event: dict[str, Any]) -> None: ...


@dataclass
class Log:
    """What happened so far."""

    told: list[outcome.Told] = field(default_factory=list)
    windows: list[tuple[int, int]] = field(default_factory=list)


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


def run(
    options: Options, name: str, folder: Path, witness: Witness, import_path: Sequence[str] = ()
) -> Result:
    """Run `options` inside a universe; leaves ``result.json`` and ``events.jsonl`` in `folder`, also of a
    migration that failed. Raises what brings a lab down before there is anything to judge.
    """
    started_at = datetime.now().astimezone().isoformat(timespec="seconds")
    begun_ns = time.monotonic_ns()
    log = Log()
    with Lab(options, folder, witness.say) as lab:
        witness.say(f"guest: {options.program} on {lab.owner}")
        booted = lab.boot(import_path)
        up_ms = (time.monotonic_ns() - begun_ns) / 1e6
        connections = lab.start_clients()
        witness.say(
            f"clients: {connections} connections; {options.baseline_ns / 1e9:g} s of normal service first"
        )
        lab.watch(options.baseline_ns / 1e9, witness.event)
        used_before = lab.usage()
        for number in range(1, options.migrations + 1):
            witness.migration(lab.owner, lab.other(lab.owner), number, options.migrations)
            last = number == options.migrations
            fault = Fault.parse(options.fault) if options.fault is not None and number == 1 else None
            move(lab, log, witness, import_path, AFTERMATH_S if last else BETWEEN_S, fault)
            if log.told[-1].owner is None:
                break
            if number == WARM_MIGRATIONS:
                used_before = lab.usage()
        used_after = lab.usage()
        witness.say("clients finish what they asked")
        summaries = lab.stop_clients(log.windows)
        lab.programs.finish()
        stats = guest_stats(lab)
        lab.watch(LAST_EVENTS_S, witness.event)
        events, programs = lab.recorder.events, lab.programs.runs()
        surroundings = environment(lab.topology.congestion_control.values(), booted["tracker"])
        surroundings |= {"trackers_passed_over": booted["passed_over"], "up_ms": round(up_ms, 1)}
        surroundings["urgent_switchover"] = all(one.source_answer.get("urgent", False) for one in log.told)
        surroundings |= {"usage_before": _by_name(used_before), "usage_after": _by_name(used_after)}
    _write_events(folder, events)
    result = result_of(options, name, started_at, log, summaries, stats, surroundings, programs)
    (folder / "result.json").write_text(result.model_dump_json(indent=2) + "\n")
    return result


def _by_name(usage: Sequence[Usage]) -> dict[str, dict[str, int]]:
    return {one.name: {"private_bytes": one.private_bytes, "descriptors": one.descriptors} for one in usage}


def guest_stats(lab: Lab) -> dict[str, Any] | None:
    """What the guest says of itself; None where it does not run any more, or its agent is gone."""
    try:
        stats = lab.guest_stats()
    except (CommandFailed, ControlError):
        return None
    return stats if stats is not None and stats["guest"]["state"] == "running" else None


def move(
    lab: Lab,
    log: Log,
    witness: Witness,
    import_path: Sequence[str],
    after_s: float,
    fault: Fault | None,
) -> None:
    on_event = witness.event
    events_before = len(lab.recorder.events)
    source, target = lab.owner, lab.other(lab.owner)
    ordered_ns = time.monotonic_ns()
    if fault is not None:
        witness.say(f"fault: {fault}")
    by_another = fault is not None and fault.kind is Kind.ORCHESTRATOR_KILLED
    migrate = lab.migrate_by_another if by_another else lab.migrate
    source_answer, target_answer = migrate(on_event, MIGRATION_DEADLINE_S, import_path, fault=fault)
    ended_ns = time.monotonic_ns()
    if fault is not None:
        left = _after_fault(lab, witness, import_path)
        if source in left and lab.owner == target:
            source_answer["left_behind"] = f"the guest is {left[source]} there"
    lab.watch(after_s, on_event)
    stats = guest_stats(lab)
    if stats is not None:
        # The host that has the guest now has announced, and given it stragglers, since it answered.
        (target_answer if lab.owner == target else source_answer)["counts"] = stats["counts"]
    events = lab.recorder.events[events_before:]
    log.windows.append((ordered_ns, ended_ns))
    log.told.append(
        outcome.Told(
            source=source,
            target=target,
            ordered_ns=ordered_ns,
            ended_ns=ended_ns,
            source_answer=source_answer,
            target_answer=target_answer,
            events=events,
            sightings=tables.seen_by_all(events, list(lab.clients)),
            relearned_ns=tables.relearned_ns(events, planned.SWITCH, target),
            owner=lab.owner if stats is not None else None,
            fault=None if fault is None else str(fault),
        )
    )


def _after_fault(lab: Lab, witness: Witness, import_path: Sequence[str]) -> dict[str, str]:
    """What a cluster does by itself: mend, replace, and boot a guest that died from its disk. Returns what
    each host then had of the guest.
    """
    found = lab.settle(MIGRATION_DEADLINE_S)
    owners = [host for host, status in found.items() if status["guest"] == "running"]
    if owners:
        witness.say(f"after the fault the guest runs on {' and '.join(owners)}")
    elif lab.storage is not None:
        witness.say(f"after the fault the guest is dead: booted from its disk on {lab.owner}")
        lab.restart(import_path)
    return {host: str(status["guest"]) for host, status in found.items() if status["guest"] is not None}


def result_of(
    options: Options,
    name: str,
    started_at: str,
    log: Log,
    summaries: dict[str, dict[str, Any]],
    stats: dict[str, Any] | None,
    surroundings: dict[str, Any],
    programs: Sequence[ProgramRun],
) -> Result:
    migrations = [
        outcome.migration(told, options.ram_bytes, outcome.gap_during(summaries, number))
        for number, told in enumerate(log.told)
    ]
    clients = outcome.clients(summaries)
    told_of_guest = (stats or {}).get("guest", {})
    faults = list(told_of_guest.get("fault_lines", []))
    worst = max(migrations, key=lambda one: one.blackout_ms or 0.0)
    return Result(
        name=name,
        started_at=started_at,
        outcome=overall(migrations),
        mode=options.mode,
        total_ms=worst.total_ms,
        blackout_ms=worst.blackout_ms,
        blackout_parts_ms=worst.blackout_parts_ms,
        network_gap_ms=worst.network_gap_ms,
        rounds=worst.rounds,
        ram=worst.ram,
        clients=clients,
        network=outcome.summed([one.network for one in migrations], worst.network),
        guest=Guest(
            program=options.program,
            steps=told_of_guest.get("steps", 0),
            faults=faults,
            dirty_rate_pages_per_s=told_of_guest.get("load", {}).get("achieved_pages_per_s"),
            program_stats=told_of_guest.get("program", {}),
        ),
        checks=judge(migrations, clients, faults, hold=options.hold),
        migrations=migrations,
        programs=list(programs),
        options=options.as_dict(),
        environment=surroundings,
        instrument=instrument(),
    )


def overall(migrations: Sequence[Migration]) -> Outcome:
    outcomes = {one.outcome for one in migrations}
    return "failed" if "failed" in outcomes else "rolled-back" if "rolled-back" in outcomes else "completed"


def _write_events(folder: Path, events: list[dict[str, Any]]) -> None:
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
