"""The course of a run: a scenario's steps, done one after the other in a lab that stands, and what is known
of each migration afterwards.

What is told of a migration is only whole some time after it: announcements go on for a second, stragglers
come. So each is written down when its guest moves again, or at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from testbed.experiment import outcome, tables
from testbed.experiment.foresight import Foresight, Foretold
from testbed.faults.kinds import Fault, Kind
from testbed.host.control import CommandFailed, ControlError
from testbed.lab import plan as planned
from testbed.lab.guests import LabGuest
from testbed.lab.lab import Lab, Usage
from testbed.lab.migrations import Move, Moved
from testbed.scenario.steps import Step

BETWEEN_S = 0.4
"""How long clients are watched between two migrations: a retransmission takes 0.2 s; later announcements are
cut short."""
WARM_MIGRATIONS = 2
"""After so many each host has sent and received: what its agent needs is loaded, and growth from here on is a
leak."""
MIGRATION_DEADLINE_S = 600.0


class Witness(Protocol):
    """Is told of a run while it goes on. `vm` is None where the lab has only one guest."""

    def say(self, text: str) -> None: ...
    def migration(
        self, source: str, target: str, number: int, of: int, vm: str | None = None
    ) -> None: ...
    def event(self, event: dict[str, Any]) -> None: ...


@dataclass
class _Open:
    """A migration that is over, and not yet written down."""

    moved: Moved
    window: int
    events_from: int
    owner: str | None
    foretold: Foretold | None


class Course:
    """Does steps in `lab`. What came of the migrations is in :attr:`told` after :meth:`finish`, in the order
    in which they were asked for, and :attr:`windows` says when clients had to wait (each's number is in
    :attr:`window_of`). `foresights` foretell a guest's migrations, by its name, while it moves alone.
    """

    def __init__(
        self,
        lab: Lab,
        witness: Witness,
        import_path: Sequence[str],
        foresights: Mapping[str, Foresight] | None = None,
        *,
        programs_wait: bool = True,
    ) -> None:
        """`programs_wait`: the clients' programs that begin with the first migration have not begun yet."""
        self._lab = lab
        self._foresights = foresights or {}
        self._witness = witness
        self._import_path = import_path
        self.windows: list[tuple[int, int]] = []
        self.used_warm: list[Usage] | None = None
        """What the lab's processes held after WARM_MIGRATIONS, where there were more."""
        self._told: list[tuple[_Open, outcome.Told | None]] = []
        self._programs_wait = programs_wait

    @property
    def told(self) -> list[outcome.Told]:
        return [told for _, told in self._told if told is not None]

    @property
    def window_of(self) -> list[int]:
        """Of each migration that was told, which window it lay in."""
        return [one.window for one, told in self._told if told is not None]

    @property
    def lost(self) -> list[str]:
        """Guests that run nowhere any more."""
        return [one.moved.move.vm for one, _ in self._told if one.owner is None]

    def perform(self, step: Step) -> None:
        """Do one step; it is over when this returns."""
        {
            "migrate": self._migrate,
            "drain": self._drain,
            "wait": self._wait,
            "link": self._link,
            "run": self._run,
        }[step.verb](step)

    def finish(self) -> None:
        """Write down what has not been yet."""
        for one, told in list(self._told):
            if told is None:
                self._write_down(one)

    # ---- verbs

    def _migrate(self, step: Step) -> None:
        assert step.migrate is not None
        origins = {name: self._lab.vms[name].owner for name in step.migrate}
        for number in range(1, step.times + 1):
            moves = []
            for name in step.migrate:
                target = self._target(name, step, number, origins[name])
                if target == self._lab.vms[name].owner:
                    self._witness.say(f"{name} is on {target} already")
                else:
                    moves.append(self._move(name, target, step, first=number == 1))
            self._move_all(moves, number, step.times)
            if self.lost:
                return

    def _target(self, name: str, step: Step, number: int, origin: str) -> str:
        """There, and back, and there again; where nobody says whither, to the next host."""
        if step.to is None:
            return self._lab.vms[name].next_host()
        return step.to if number % 2 else origin

    def _drain(self, step: Step) -> None:
        """The host's guests go to the others in turn, or all to the one that is named."""
        assert step.drain is not None
        others = [host for host in self._lab.scenario.hosts if host != step.drain]
        leaving = [name for name, guest in self._lab.vms.items() if guest.owner == step.drain]
        targets = [step.to or others[number % len(others)] for number in range(len(leaving))]
        moves = [
            self._move(name, target, step, first=True) for name, target in zip(leaving, targets, strict=True)
        ]
        if not moves:
            self._witness.say(f"{step.drain} has no guest")
        groups = [moves] if step.at_once else [[move] for move in moves]
        for number, group in enumerate(groups, 1):
            self._move_all(group, number, len(groups))
            if self.lost:
                return

    def _wait(self, step: Step) -> None:
        assert step.wait_ns is not None
        self._witness.say(f"waiting for {step.wait_ns / 1e9:g} s")
        self._lab.watch(step.wait_ns / 1e9, self._witness.event)

    def _link(self, step: Step) -> None:
        assert step.link is not None
        if step.reset:
            self._lab.links.reset(step.link)
            told, by = "none", "none"
        else:
            by = self._lab.links.set(step.link, step.conditions).backend
            told = step.conditions.of_a_wire().describe()
        said = step.model_dump(mode="json", by_alias=True, exclude={"link", "reset"}, exclude_none=True)
        words = ", ".join(f"{key} {value}" for key, value in said.items())
        self._witness.say(f"link {step.link}: {words or 'no conditions'}")
        event = {"link": step.link, "direction": step.direction, "conditions": told, "by": by}
        self._lab.tell("link-conditions", event, self._witness.event)

    def _run(self, step: Step) -> None:
        assert step.run is not None
        assert step.on is not None
        self._witness.say(f"{step.on}: {' '.join(step.run)}")
        deadline_s = step.deadline_ns / 1e9
        name = self._lab.run_program(
            step.on, step.run, environment=step.environment, deadline_s=deadline_s
        )
        self._lab.wait_for_programs([name], deadline_s, self._witness.event)

    # ---- migrations

    def _move(self, name: str, target: str, step: Step, *, first: bool) -> Move:
        fault = Fault.parse(step.fault) if step.fault is not None and first else None
        return Move(name, target, self._lab.scenario.manner(step), fault)

    def _move_all(self, moves: Sequence[Move], number: int, of: int) -> None:
        """Guests move, all at once; what came of it stays open for a while."""
        if not moves:
            return
        lab, on_event = self._lab, self._witness.event
        for one, told in list(self._told):
            if told is None and one.moved.move.vm in [move.vm for move in moves]:
                self._write_down(one)
        self._start_programs()
        lab.links.lose_announcements_anew()
        foretold = self._foretold(moves)
        several = len(lab.vms) > 1
        for move in moves:
            vm = move.vm if several else None
            self._witness.migration(lab.vms[move.vm].owner, move.target, number, of, vm)
            if move.fault is not None:
                self._witness.say(f"fault: {move.fault}")
        events_from = len(lab.recorder.events)
        found = self._moved(moves)
        self.windows.append((min(one.ordered_ns for one in found), max(one.ended_ns for one in found)))
        found = [self._settled(moved) for moved in found]
        lab.watch(BETWEEN_S, on_event)
        for moved in found:
            guest = lab.vms[moved.move.vm]
            owner = guest.owner if running_stats(guest) is not None else None
            self._told.append((_Open(moved, len(self.windows) - 1, events_from, owner, foretold), None))
        if len(self._told) == WARM_MIGRATIONS:
            self.used_warm = lab.usage()

    def _foretold(self, moves: Sequence[Move]) -> Foretold | None:
        """What is to come of it, of one that has the wire for itself; whoever watches is told of its
        doubts."""
        (first, *others) = moves
        foresight = self._foresights.get(first.vm)
        if others or foresight is None:
            return None
        before = sum(one.moved.move.vm == first.vm for one, _ in self._told)
        foretold = foresight.foretold(before, first.manner)
        if foretold.doubt is not None:
            self._witness.say(foretold.doubt)
        return foretold

    def _moved(self, moves: Sequence[Move]) -> list[Moved]:
        lab, on_event = self._lab, self._witness.event
        by_another = [move for move in moves if move.fault and move.fault.kind is Kind.ORCHESTRATOR_KILLED]
        if by_another:
            (move,) = moves
            return [lab.migrate_by_another(move, on_event, MIGRATION_DEADLINE_S, self._import_path)]
        return lab.migrate(moves, on_event, MIGRATION_DEADLINE_S, self._import_path)

    def _start_programs(self) -> None:
        """Those of the clients that begin with the first migration."""
        if self._programs_wait:
            self._programs_wait = False
            self._lab.start_client_programs("migration")

    def _settled(self, moved: Moved) -> Moved:
        """After a fault, what a cluster does by itself: mend, replace, and boot a guest that died from its
        disk."""
        move, lab = moved.move, self._lab
        if move.fault is None:
            return moved
        guest = lab.vms[move.vm]
        found = lab.settle(guest, MIGRATION_DEADLINE_S)
        owners = [host for host, status in found.items() if status["guest"] == "running"]
        if owners:
            self._witness.say(f"after the fault the guest runs on {' and '.join(owners)}")
        elif guest.description.disk is not None:
            self._witness.say(f"after the fault the guest is dead: booted from its disk on {guest.owner}")
            lab.restart(guest, self._import_path)
        left = found[moved.source]["guest"]
        if left is not None and guest.owner == move.target:
            answer = moved.source_answer | {"left_behind": f"the guest is {left} there"}
            return replace(moved, source_answer=answer)
        return moved

    def _write_down(self, one: _Open) -> None:
        lab, moved = self._lab, one.moved
        move, source, target = moved.move, moved.source_answer, moved.target_answer
        guest = lab.vms[move.vm]
        stats = running_stats(guest)
        if stats is not None:
            # Since it answered, the host that has the guest now has announced, given it stragglers, heard it.
            if guest.owner == move.target:
                target = target | {one: stats[one] for one in ("counts", "first_heard_ns")}
            else:
                source = source | {"counts": stats["counts"]}
        events = lab.recorder.events[one.events_from :]
        vm = move.vm if len(lab.vms) > 1 else None
        clients = [client.name for client in lab.scenario.clients]
        told = outcome.Told(
            source=moved.source,
            target=move.target,
            ordered_ns=moved.ordered_ns,
            ended_ns=moved.ended_ns,
            source_answer=source,
            target_answer=target,
            events=events,
            sightings=tables.seen_by_all(events, clients, vm),
            relearned_ns=tables.relearned_ns(events, planned.SWITCH, move.target, vm),
            owner=one.owner,
            fault=None if move.fault is None else str(move.fault),
            vm=move.vm,
            mode=move.manner.mode,
            foretold=one.foretold,
        )
        self._told = [(other, told if other is one else known) for other, known in self._told]


def running_stats(guest: LabGuest) -> dict[str, Any] | None:
    """What a guest says of itself; None where it does not run any more, or its agent is gone."""
    try:
        stats = guest.stats()
    except (CommandFailed, ControlError):
        return None
    return stats if stats is not None and stats["guest"]["state"] == "running" else None
