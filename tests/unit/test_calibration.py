"""The calibration without a lab: its trials, what becomes of figures, where it is kept, how it is told."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from rich.console import Console

from netns.conditions import Conditions
from netns.link_figures import DirectionFigures, LinkFigures
from testbed.clients.spec import KINDS, parse
from testbed.experiment import machine
from testbed.experiment.calibration import Request, condition_of, count_of, pauses_of
from testbed.experiment.trials import CONDITIONS, COUNTS, PAUSES, PAUSES_NS, Reading, kinds_tried
from testbed.guest.program import load_program
from testbed.measure import calibration as model
from testbed.measure.accuracy import Deviation, Stall
from testbed.report.calibration import show_calibration, verdict

MS = 1_000_000
CLOSED = PAUSES[0]


def deviations(error_ns: int | None, *lengths_ns: int, own_ns: int | None = None) -> list[Deviation]:
    return [
        Deviation(Stall(length, 0, length), length + (error_ns or 0), error_ns, own_ns)
        for length in lengths_ns
    ]


def made(*, error_ns: int = 100_000, found: int = 5) -> model.Calibration:
    """A calibration with one probe that is wrong by `error_ns`, and one that found so many of five bytes."""
    pauses = pauses_of(CLOSED, deviations(2 * error_ns, *PAUSES_NS, *PAUSES_NS, own_ns=error_ns))
    count = count_of(COUNTS[0], "bytes_lost", 5, found)
    return model.Calibration(
        name="x", started_at="2026-01-01T00:00:00+00:00", machine=machine.this_machine(), repeats=2, seed=1,
        gap_error_ms=pauses.own, gap_bound_ms=pauses.error, pauses=[pauses], counts=[count], conditions=[],
        left_out=[], holds=pauses.holds and count.holds, environment={},
    )  # fmt: skip


# ---- trials


def test_every_kind_of_probe_has_a_trial() -> None:
    assert kinds_tried() == set(KINDS)


@pytest.mark.parametrize(
    "trial", [*PAUSES, *COUNTS, *CONDITIONS], ids=lambda one: f"{type(one).__name__} {one.name}"
)
def test_what_a_trial_asks_for_can_be_had(trial: Any) -> None:
    parse({"name": "client1", "probes": [{"address": "10.7.0.10", **trial.request}]})
    load_program(trial.program)


def test_names_tell_trials_apart() -> None:
    for trials in (PAUSES, COUNTS):
        assert len({one.name for one in trials}) == len(trials)
    readings = [(trial.name, reading.what) for trial in CONDITIONS for reading in trial.readings]
    assert len(set(readings)) == len(readings)


def test_the_lengths_are_those_that_were_promised() -> None:
    assert [length / MS for length in PAUSES_NS] == [0, 1, 2, 5, 10, 50, 200]


def test_only_what_was_asked_for_is_done() -> None:
    assert Request().is_whole
    assert Request(repeats=1).only(()).is_whole
    some = Request().only(("churn", "udp"))
    assert not some.is_whole
    assert {one.kind for one in (*some.pauses, *some.counts, *some.conditions)} == {"churn", "udp"}


# ---- figures


@pytest.mark.parametrize("error_ns", [100_000, -100_000])
def test_an_error_below_the_promise_holds(error_ns: int) -> None:
    pauses = pauses_of(CLOSED, deviations(error_ns, *PAUSES_NS))
    assert pauses.holds
    assert pauses.error is not None
    assert pauses.error.median == error_ns / MS
    assert pauses.error.count == len(PAUSES_NS) - 1, "a pause of zero is the noise floor, not an error"
    assert pauses.noise_ms == error_ns / MS
    assert [one.asked_ms for one in pauses.lengths] == [0, 1, 2, 5, 10, 50, 200]


def test_what_guest_and_network_take_is_not_held_against_the_probe() -> None:
    assert pauses_of(CLOSED, deviations(5 * MS, *PAUSES_NS, own_ns=100_000)).holds
    assert not pauses_of(CLOSED, deviations(100_000, *PAUSES_NS, own_ns=MS)).holds


def test_stamps_that_lag_are_found_where_lengths_are_right() -> None:
    seen = [replace(one, late_ns=20 * MS) for one in deviations(0, *PAUSES_NS, own_ns=0)]
    assert not pauses_of(CLOSED, seen).holds


@pytest.mark.parametrize("error_ns", [MS // 2, -MS // 2, 5 * MS])
def test_an_error_as_large_as_the_promise_does_not(error_ns: int) -> None:
    assert not pauses_of(CLOSED, deviations(error_ns, *PAUSES_NS)).holds


def test_pauses_that_went_unnoticed_are_told_and_no_error() -> None:
    seen = [*deviations(None, MS, MS), *deviations(1000, MS)]
    (length,) = pauses_of(CLOSED, seen).lengths
    assert (length.unnoticed, length.error is not None and length.error.count) == (2, 1)
    assert length.of_pause.count == 3


@pytest.mark.parametrize(
    ("done", "found", "holds"), [(5, 5, True), (5, 4, False), (5, 6, False), (0, 0, False)]
)
def test_a_count_holds_only_if_it_is_exact_and_something_was_done(done: int, found: int, holds: bool) -> None:
    assert count_of(COUNTS[0], "bytes_lost", done, found).holds is holds


# ---- conditions


def told_of(**figures: int) -> LinkFigures:
    """The same of both directions."""
    one = DirectionFigures(Conditions(), wire_frames=True, **figures)
    return LinkFigures("relay", "", one, one)


def true_of(name: str, what: str, told: LinkFigures, earlier: LinkFigures) -> float | None:
    readings = [reading for trial in CONDITIONS if trial.name == name for reading in trial.readings]
    (reading,) = [reading for reading in readings if reading.what == what]
    return reading.true(told, earlier)


def test_the_truth_is_the_word_of_who_brought_the_conditions_about() -> None:
    nothing = told_of()
    told = told_of(delay_p50_ns=10 * MS, lost=7, passed_bytes=10**6, passed_frames=1000, active_ns=10**9)
    later = told_of(passed_bytes=3 * 10**6, passed_frames=2000, active_ns=3 * 10**9)
    assert true_of("udp", "one way there", told, told) == true_of("udp", "one way back", told, told) == 10
    assert true_of("closed-loop", "round trip", told, told) == true_of("churn", "connect", told, told) == 20
    assert true_of("udp", "lost", told, told) == true_of("icmp", "lost", told, told) == 14
    for name in ("download", "upload"):
        assert true_of(name, "rate", later, told) == pytest.approx((2e6 - 1000 * 66) * 8 / 2e6)
        assert true_of(name, "rate", told, told) is None, "nothing passed in between"
    for trial in CONDITIONS:
        assert [reading.true(nothing, nothing) for reading in trial.readings] == [None] * len(trial.readings)


@pytest.mark.parametrize(("measured", "holds"), [(20.4, True), (19.6, True), (20.6, False), (19.4, False)])
def test_a_condition_holds_within_what_is_allowed(measured: float, holds: bool) -> None:
    trial = CONDITIONS[0]
    found = condition_of(trial, trial.readings[0], 20.0, measured)
    assert found.holds is holds
    assert found.error == pytest.approx(measured - 20)
    assert not condition_of(trial, trial.readings[0], 0.0, 0.0).holds, "nothing was done"


def test_a_reading_finds_its_figure() -> None:
    reading = Reading("x", "ms", ("rows", 0, "p50_ns"), lambda *_: 1.0, 1.0, MS)
    assert reading.of({"rows": [{"p50_ns": 3 * MS}]}) == 3


# ---- the file


def test_what_ships_is_what_the_models_say() -> None:
    shipped = json.loads(model.SCHEMA_FILE.read_text())
    assert shipped == model.schema(), "run: python -m testbed.measure.calibration"
    jsonschema.Draft202012Validator.check_schema(shipped)
    jsonschema.validate(json.loads(made().model_dump_json()), shipped)


# ---- where it is kept


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def test_a_run_carries_the_last_calibration(state: Path) -> None:
    assert machine.instrument() is None
    path = machine.keep(made())
    assert path.is_relative_to(state)
    carried = machine.instrument()
    assert carried is not None
    assert (carried.gap_error_ms, carried.gap_error_p95_ms, carried.gap_bound_ms) == (0.1, 0.1, 0.2)
    assert carried.holds
    machine.keep(made(error_ns=3 * MS))
    assert machine.last_calibration() == made(error_ns=3 * MS)
    assert [one.name for one in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("changed", ["host", "processor", "kernel", "version", "instrument"])
def test_of_another_machine_or_version_it_says_nothing(state: Path, changed: str) -> None:
    other = machine.this_machine().model_copy(update={changed: "another"})
    machine.keep(made().model_copy(update={"machine": other}))
    assert machine.instrument() is None


def test_what_is_no_calibration_is_none(state: Path) -> None:
    machine.keep(made()).write_text("{}")
    assert machine.last_calibration() is None


def test_without_a_state_folder_it_is_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for nothing in ("", "not/absolute"):
        monkeypatch.setenv("XDG_STATE_HOME", nothing)
        assert machine.kept_at().is_relative_to(tmp_path / ".local" / "state")


def test_what_root_keeps_in_somebodys_home_is_theirs(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str] = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chown", lambda path, uid, gid: given.append(str(path)))
    monkeypatch.setattr(machine, "owner_of", lambda _: (1000, 1001))
    path = machine.keep(made())
    assert given == [str(one) for one in (path, path.parent, state)]


# ---- the table


def shown(calibration: model.Calibration) -> str:
    console = Console(file=StringIO(), width=80, highlight=False)
    show_calibration(console, calibration, "runs/x", Path("/home/x/calibration.json"))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_a_person_sees_each_length_and_the_verdict() -> None:
    lines = shown(made()).splitlines()
    rows = [line.split() for line in lines if line.startswith("  closed-loop ") and "bytes" not in line]
    assert rows == [["closed-loop", *[signed] * 8, plain, plain] for signed, plain in
                    (("+0.10", "0.10"), ("+0.20", "0.20"), ("+0.20", "0.20"))]  # fmt: skip
    assert "  closed-loop bytes lost    5     5 ✓" in lines
    assert max(len(line) for line in lines) <= 80
    assert verdict(made()) == (
        "✓ the gap's error is +0.10 ms at the median, 0.10 ms at p95; "
        "with the guest's first steps and the network +0.20 ms"
    )


def test_what_does_not_hold_is_named() -> None:
    wide, wrong = made(error_ns=-2 * MS), made(found=4)
    assert verdict(wide).startswith("✗ ")
    assert "over the promised 0.5 ms at the median: closed-loop" in verdict(wide)
    assert verdict(wrong).endswith("not as it was done: closed-loop (bytes lost)")
