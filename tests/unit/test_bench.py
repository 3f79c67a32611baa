"""What the benches make of a run's result, and which of them a machine has room for. No lab is brought up."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from testbed import cli
from testbed.commands import bench as command
from testbed.commands.ending import CANNOT, PASSED
from testbed.experiment import bench, probing
from testbed.experiment.bench import BENCHES, NEEDS_BYTES, Figure, Setting
from testbed.report.figures import Silence
from testbed.scenario.options import Options
from testbed.storage import bench as storage_bench
from testbed.storage.bench import Rates

LUN_MS = dict.fromkeys(bench.LUN_PARTS, 6800.0)


def migration(blackout_ms: float, **parts: float) -> SimpleNamespace:
    return SimpleNamespace(outcome="completed", blackout_ms=blackout_ms, blackout_parts_ms=parts)


def run_of(options: Options, *migrations: SimpleNamespace, **clients: int) -> SimpleNamespace:
    """A result with as much in it as a bench reads."""
    counts = dict.fromkeys(
        (
            *("broken", "resets", "failed_connects", "bytes_lost", "bytes_duplicated", "bytes_corrupted"),
            *("acknowledged", "writes_lost", "writes_phantom", "ledgers_unsettled"),
        ),
        0,
    )
    told = SimpleNamespace(**counts | clients)
    return SimpleNamespace(migrations=migrations, clients=told, options=options.as_dict())


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path, Silence(), migrations=1)


def by_name(name: str, setting: Setting) -> dict[str, Figure]:
    return {one.name: one for one in BENCHES[name](setting)}


@pytest.mark.parametrize(("quick_ms", "held"), [(29_000.0, False), (34_000.0, True), (41_000.0, False)])
def test_a_quick_migration_is_held_to_both_ends_of_what_was_promised(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, quick_ms: float, held: bool
) -> None:
    def run(options: Options, *_: Any) -> SimpleNamespace:
        one = migration(quick_ms, **LUN_MS) if options.mode == "quick" else migration(10.0)
        return run_of(options, *[one] * options.migrations)

    monkeypatch.setattr(bench, "run_options", run)
    figures = by_name("quick", setting)
    assert (figures["blackout"].holds and figures["  no less"].holds) is held
    assert figures["quick's over live's"].value == quick_ms / 10
    assert figures["share of the LUN's way"].value == pytest.approx(34_000 / quick_ms)


def test_a_blackout_that_the_lun_does_not_explain_is_told(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_thaw = migration(34_000.0, **LUN_MS | {"mount": 0.0, "thaw": 6800.0})
    def run(options: Options, *_: Any) -> SimpleNamespace:
        return run_of(options, *[slow_thaw] * options.migrations)

    monkeypatch.setattr(bench, "run_options", run)
    assert not by_name("quick", setting)["share of the LUN's way"].holds


@pytest.mark.parametrize("count", ["writes_lost", "writes_phantom", "ledgers_unsettled", "broken"])
def test_the_durable_bench_is_held_to_every_write(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, count: str
) -> None:
    def run(options: Options, *_: Any) -> SimpleNamespace:
        assert (options.program, options.disk_bytes > 0) == ("kv-durable", True)
        assert options.migrations == bench.DURABLE_MIGRATIONS
        return run_of(options, *[migration(3.0)] * options.migrations, acknowledged=7, **damage)

    monkeypatch.setattr(bench, "run_options", run)
    damage: dict[str, int] = {}
    figures = by_name("durable", setting)
    assert figures["writes acknowledged"].value == 7
    assert all(one.holds for one in figures.values())
    damage = {count: 1}
    again = setting.folder / "again"
    again.mkdir()
    assert not all(one.holds for one in BENCHES["durable"](replace(setting, folder=again)))


def test_a_durable_bench_in_which_nothing_was_acknowledged_has_shown_nothing(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        bench, "run_options", lambda options, *_: run_of(options, *[migration(3.0)] * options.migrations)
    )
    assert not by_name("durable", setting)["writes acknowledged"].holds


@pytest.mark.parametrize(("theirs", "held"), [([100.0], True), ([1000.0], False), ([], True)])
def test_the_target_is_held_to_half_of_what_nbdkit_reaches_where_there_is_one(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, theirs: list[float], held: bool
) -> None:
    monkeypatch.setattr(storage_bench, "standing", lambda *_: nullcontext())
    monkeypatch.setattr(storage_bench, "copies", lambda *_: Rates([100.0], theirs, [100.0], theirs))
    monkeypatch.setattr(storage_bench, "claims", lambda *_: [250.0])
    monkeypatch.setattr(shutil, "which", lambda name: name)
    figures = list(BENCHES["storage"](setting))
    assert all(one.holds for one in figures) is held
    assert sum("ratio" in one.name for one in figures) == 2 * len(theirs)
    assert figures[-1].value == 0.25
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert [one.name for one in BENCHES["storage"](setting)] == ["claim of a disk"]


def test_a_bench_without_room_is_refused_by_name_and_left_out_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "NEEDS_BYTES", NEEDS_BYTES | {"quick": 1 << 60})
    named = CliRunner().invoke(cli.app, ["bench", "quick"])
    assert named.exit_code == CANNOT
    assert "bench quick: needs" in named.stderr
    ran: list[str] = []
    monkeypatch.setattr(command, "inside_universe", lambda _runs, _name, inside: ran.append("run") or 0)
    every = CliRunner().invoke(cli.app, ["bench"])
    assert every.exit_code == PASSED
    assert ran == ["run"]
    assert "bench quick is left out" in every.stderr


def test_the_command_names_every_bench() -> None:
    told = CliRunner().invoke(cli.app, ["bench", "--help"], env={"COLUMNS": "200"}).stdout
    assert [name for name in BENCHES if name not in told] == []


def test_figures_are_json(setting: Setting) -> None:
    one = Figure("copy", "ratio", 0.8, "", 0.7, 0.9, 0.7, at_most=False)
    assert json.loads(json.dumps(one.as_dict()))["holds"] is True


@pytest.mark.parametrize(("beside", "holds"), [(960.0, True), (940.0, False)])
def test_a_probe_is_held_to_what_it_may_cost(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, beside: float, holds: bool
) -> None:
    cost = probing.Cost(probing.Load(1000.0, 20.0), probing.Load(beside, 25.0))
    monkeypatch.setattr("testbed.experiment.bench.shutil.which", lambda _: "/usr/bin/redis-benchmark")
    monkeypatch.setattr(probing, "measure", lambda _folder: cost)
    figures = by_name("probing", setting)
    assert figures["  throughput left"].value == beside / 1000
    assert figures["  throughput left"].holds is holds
    assert figures["  guest's work left"].value == 0.8
