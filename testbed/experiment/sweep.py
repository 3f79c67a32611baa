"""Every fault, one after the other: what becomes of the guest, of its clients, and of the next migration.

One lab lives through many faults, since it has to: after each the wires are mended, agents that died are
replaced, a guest that died is booted from its disk, and a migration without a fault follows. A fault that
leaves the lab in a state that this does not end in is told, and the next one gets a new lab.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from testbed.clients.control import ClientFailed
from testbed.clients.control import ControlError as ClientControlError
from testbed.experiment.run import write_events
from testbed.faults.kinds import Fault, Kind
from testbed.host.control import CommandFailed, ControlError
from testbed.lab.lab import Lab
from testbed.lab.migrations import Move, Moved
from testbed.scenario.from_options import scenario_of
from testbed.scenario.options import Options

PEER_DEADLINE_S = 2.0
"""How long one side may be silent where a fault is made: what it makes silent is to be noticed soon. The
migration after it has the patience of any other, for a busy machine can be silent for seconds."""
MIGRATION_DEADLINE_S = 60.0
AFTER_S = 0.4
"""How long clients are watched after a fault: a retransmission takes 0.2 s."""
_LOST = ("writes_lost", "writes_phantom", "unsettled", "bytes_lost", "bytes_duplicated", "bytes_corrupted")
_BROKEN = ("broken", "resets", "failed_connects")


@dataclass(frozen=True)
class Cell:
    """What came of one fault.

    `outcome`: completed, rolled-back, or restarted where the guest died and was booted from its disk;
    `owners` are the hosts on which the guest ran right afterwards, before anything was restarted. `broken`
    and `lost` count connections and acknowledged writes or bytes. `clean`: the next migration completed and
    was verified. `wrong` says what was not as it must be; empty if all was. `reason` is what the agents said
    of the fault.
    """

    fault: str
    outcome: str
    owners: tuple[str, ...]
    broken: int
    lost: int
    clean: bool
    duration_s: float
    wrong: tuple[str, ...]
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Sweep:
    """Runs faults in labs of `options`, whose files go to `folder`. A context manager."""

    def __init__(self, options: Options, folder: Path, import_path: Sequence[str] = ()) -> None:
        self._options = options
        self._folder = folder
        self._import_path = list(import_path)
        self._stack = ExitStack()
        self._lab: Lab | None = None
        self._before: dict[str, int] = {}
        self._labs = 0

    def __enter__(self) -> Sweep:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, faults: Sequence[Fault]) -> Iterator[Cell]:
        """Each fault's cell as soon as it is known."""
        for fault in faults:
            begun = time.monotonic()
            cell = self._cell(fault, begun)
            yield cell
            if cell.wrong:
                self._leave_lab()

    def _cell(self, fault: Fault, begun: float) -> Cell:
        wrong: list[str] = []
        outcome, reason, spoilt = "failed", "", "not reached"
        owners: tuple[str, ...] = ()
        counts = dict.fromkeys((*_BROKEN, *_LOST), 0)
        try:
            lab = self._lab or self._new_lab()
            outcome, owners, reason = self._make(lab, fault)
            spoilt = self._migrate_once_more(lab)
            lab.watch(AFTER_S, _nothing)
            counts = self._last_counts(lab) if outcome == "restarted" else self._new_counts(lab)
            wrong = judge(fault, outcome, owners, counts, spoilt)
        except (CommandFailed, ControlError, ClientFailed, ClientControlError, OSError) as error:
            wrong = [f"{type(error).__name__}: {error}"]
        broken, lost = (sum(counts[name] for name in names) for names in (_BROKEN, _LOST))
        duration_s = round(time.monotonic() - begun, 2)
        return Cell(str(fault), outcome, owners, broken, lost, not spoilt, duration_s, tuple(wrong), reason)

    def _make(self, lab: Lab, fault: Fault) -> tuple[str, tuple[str, ...], str]:
        """One migration with the fault: what came of it, who has the guest, and what the agents said."""
        source = lab.vm.owner
        move = Move(lab.vm.name, lab.vm.next_host(), lab.scenario.manner(), fault, PEER_DEADLINE_S)
        if fault.kind is Kind.ORCHESTRATOR_KILLED:
            moved = lab.migrate_by_another(move, _nothing, MIGRATION_DEADLINE_S, self._import_path)
        else:
            (moved,) = lab.migrate([move], _nothing, MIGRATION_DEADLINE_S, self._import_path)
        reason = _errors(moved)
        found = lab.settle(lab.vm, MIGRATION_DEADLINE_S)
        owners = tuple(host for host, status in found.items() if status["guest"] == "running")
        if not owners:
            lab.restart(lab.vm, self._import_path)
            return "restarted", owners, reason
        return "rolled-back" if lab.vm.owner == source else "completed", owners, reason

    def _migrate_once_more(self, lab: Lab) -> str:
        """A migration without a fault: what was wrong with it, empty if nothing was."""
        move = Move(lab.vm.name, lab.vm.next_host(), lab.scenario.manner())
        (moved,) = lab.migrate([move], _nothing, MIGRATION_DEADLINE_S, self._import_path)
        return spoilt_by(moved)

    def _new_counts(self, lab: Lab) -> dict[str, int]:
        """What the clients have counted since the last time. Ledgers have read every key back meanwhile."""
        now = counted(lab.report_clients())
        new = {name: count - self._before.get(name, 0) for name, count in now.items()}
        self._before = now
        return new

    def _last_counts(self, lab: Lab) -> dict[str, int]:
        """A guest that died has cut off its clients: the same from their last word, for which ledgers read
        every key back once more, and others in their place.
        """
        last = counted(lab.stop_clients([]))
        new = {name: count - self._before.get(name, 0) for name, count in last.items()}
        lab.start_clients()
        self._before = {}
        return new

    def _new_lab(self) -> Lab:
        self._labs += 1
        folder = self._folder / f"lab-{self._labs}"
        folder.mkdir()
        lab = Lab(scenario_of(self._options), folder)
        self._lab = self._stack.enter_context(lab)
        self._lab.boot(self._import_path)
        self._lab.start_clients()
        self._before = {}
        return self._lab

    def _leave_lab(self) -> None:
        """Something was wrong in it: what all have told stays in its folder."""
        if self._lab is not None:
            write_events(self._lab.folder, self._lab.recorder.events)
        self._lab = None
        self._stack.close()


def judge(
    fault: Fault, outcome: str, owners: Sequence[str], counts: Mapping[str, int], spoilt: str
) -> list[str]:
    """What of a cell is not as it must be; `spoilt` says what was wrong with the migration after it. Pure."""
    wrong = []
    if len(owners) > 1:
        wrong.append(f"runs on {' and '.join(owners)}")
    if not owners and fault.kind is not Kind.GUEST_KILLED:
        wrong.append("runs nowhere")
    if outcome != "restarted":
        wrong += [f"{name} {counts[name]}" for name in _BROKEN if counts.get(name)]
    allowed = ("bytes_lost",) if outcome == "restarted" else ()  # replies that a dead guest owed
    wrong += [f"{name} {counts[name]}" for name in _LOST if counts.get(name) and name not in allowed]
    if spoilt:
        wrong.append(f"the next migration was not clean: {spoilt}")
    return wrong


def spoilt_by(moved: Moved) -> str:
    """What was wrong with a migration without a fault; empty only if it completed and was verified. Pure."""
    if moved.failed:
        return f"it failed: {_errors(moved)}"
    return "" if moved.source_answer["audited"] else "it was not verified"


def _errors(moved: Moved) -> str:
    """What the agents said of a migration that failed."""
    answers = (moved.source_answer, moved.target_answer)
    return "; ".join(str(one["error"]) for one in answers if "error" in one)


def counted(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """The counts of all clients' probes together. Pure."""
    probes = [probe for summary in summaries.values() for probe in summary["probes"]]
    return {name: sum(int(probe.get(name) or 0) for probe in probes) for name in (*_BROKEN, *_LOST)}


def _nothing(_: dict[str, Any]) -> None:
    """Nobody watches the events of a sweep; they lie in its folder."""
