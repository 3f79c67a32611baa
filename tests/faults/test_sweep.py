"""Every fault at every phase: one owner, no client of a living guest broken, no acknowledged write lost, and
a clean migration after it.

With shared storage each phase's faults are made in one lab, one after the other, as a person would with
``testbed faults``. Without it there is nothing that decides, so only what can be decided is swept.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from testbed.commands.faults import options_for
from testbed.experiment.sweep import PEER_DEADLINE_S, Cell, Sweep
from testbed.faults.kinds import Fault, Kind, chosen
from testbed.lab.lab import PRELOAD, Lab
from testbed.lab.migrations import Move, Moved
from testbed.migration.phases import Phase

pytestmark = [pytest.mark.universe(preload=PRELOAD), pytest.mark.timeout(900)]

PHASES = [pytest.param(one, marks=[] if one is Phase.COMMIT else pytest.mark.slow) for one in Phase]
"""The commit is swept wherever tests run; the others are slow, all together."""

QUIET = {Phase.SETUP, Phase.PROVISION, Phase.DELETE}
"""Nothing of the guest is in the balance then: here the faults that end a process or a way, the rest by
`testbed faults`."""


def sweep(folder: Path, faults: list[Fault], *, storage: bool = True, mode: str = "live") -> list[Cell]:
    with Sweep(options_for("16MiB", mode, 1, storage=storage), folder) as sweeping:
        return list(sweeping.run(faults))


def assert_all_as_it_must_be(cells: list[Cell]) -> None:
    assert {cell.fault: cell.wrong for cell in cells if cell.wrong} == {}


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.value)
def test_every_fault_of_a_phase_leaves_one_owner_and_no_write_lost(tmp_path: Path, phase: Phase) -> None:
    kinds = ("*-killed", "link-*", "storage-cut-both") if phase in QUIET else ("*",)
    cells = sweep(tmp_path, chosen([f"{phase.value}:{kind}" for kind in kinds], storage=True))
    assert len(cells) == len(Kind) or phase in QUIET
    assert_all_as_it_must_be(cells)


@pytest.mark.slow
def test_what_can_be_decided_without_shared_storage(tmp_path: Path) -> None:
    """A dead agent is replaced, and those who hold the lab can ask both sides."""
    faults = chosen(["*:*-agent-killed", "commit:link-reset", "commit:orchestrator-killed"], storage=False)
    assert_all_as_it_must_be(sweep(tmp_path, faults, storage=False))


@pytest.mark.slow
def test_faults_of_a_quick_migration(tmp_path: Path) -> None:
    faults = chosen(["*:*-agent-killed", "*:link-reset", "pause:lun-full", "commit:storage-*"], storage=True)
    cells = sweep(tmp_path, faults, mode="quick")
    assert_all_as_it_must_be(cells)
    by_fault = {cell.fault: cell for cell in cells}
    assert by_fault["pause:lun-full"].outcome == "rolled-back"
    assert "volume full" in by_fault["pause:lun-full"].reason


def test_a_guest_that_dies_is_booted_from_its_disk_with_every_acknowledged_write(tmp_path: Path) -> None:
    cells = sweep(tmp_path, chosen(["precopy:guest-killed", "resume:guest-killed"], storage=True))
    assert [cell.outcome for cell in cells] == ["restarted", "restarted"]
    assert all(cell.broken for cell in cells)  # its clients have noticed, so it did die
    assert_all_as_it_must_be(cells)


def test_a_lab_in_which_something_was_wrong_leaves_its_events_and_only_faults_are_hasty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[Move] = []
    migrate = Lab.migrate

    def watched(lab: Lab, asked: Sequence[Move], *others: Any) -> list[Moved]:
        moves.extend(asked)
        return migrate(lab, asked, *others)

    monkeypatch.setattr(Lab, "migrate", watched)
    monkeypatch.setattr("testbed.experiment.sweep.judge", lambda *_: ["whatever it was"])
    (cell,) = sweep(tmp_path, chosen(["setup:link-slow"], storage=True))
    assert (cell.wrong, cell.clean) == (("whatever it was",), True)
    assert '"event":"fault"' in (tmp_path / "lab-1" / "events.jsonl").read_text()
    patience = [(bool(one.fault), one.peer_deadline_s) for one in moves]
    assert patience == [(True, PEER_DEADLINE_S), (False, None)]
