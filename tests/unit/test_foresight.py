"""From options and what a host saw to a prediction, and from what migrations took to the table."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.experiment.fitting import Basis, TooFewMigrations, fit
from testbed.experiment.foresight import GOODPUT, Foresight, Foretold, way
from testbed.experiment.prediction_bench import GRID_RATES, grid
from testbed.migration.overheads import Overheads
from testbed.scenario.from_options import scenario_of
from testbed.scenario.options import Options

OPTIONS = Options(ram_bytes=64 << 20, fill=0.5, bandwidth_bits_per_s=10**9)
PAGES = (64 << 20) // 4096
TABLE = Overheads.shipped()
WATCHED: dict[str, Any] = {
    "samples": [[1_000_000, 10], [2_000_000, 15]],
    "touched_pages": 9000,
    "zero_pages": 1000,
    "tracker": "userfaultfd",
    "exact": True,
    "refused": None,
}


def foresight(watched: dict[str, Any] | None, **changes: Any) -> Foresight:
    scenario = scenario_of(replace(OPTIONS, **changes))
    return Foresight.of(scenario, scenario.vms[0], watched, TABLE)


def foretold(seen: Foresight, before: int = 0) -> Foretold:
    return seen.foretold(before, seen.scenario.manner())


def test_what_was_seen_goes_before_what_was_asked_for() -> None:
    seen = foresight(WATCHED)
    assert (seen.guest.touched_pages, seen.guest.zero_pages, seen.why) == (9000, 1000, None)
    assert seen.guest.curve.pages(2_000_000) == 15
    assert foretold(seen).told().basis == "sampled"


def test_where_nothing_was_seen_the_options_are_what_there_is() -> None:
    refused = WATCHED | {"samples": [], "refused": "too dear", "exact": False}
    for watched, why in ((refused, "too dear"), (None, "the guest was not watched")):
        seen = foresight(watched)
        assert seen.why == why
        assert seen.guest.curve.pages(10**9) > 1000
        assert foretold(seen).told().basis == "options"
    assert foresight(None).guest.touched_pages == PAGES // 2


def test_connections_that_stay_open_are_those_of_the_probes() -> None:
    assert foresight(None, connections=8, clients=3, stream_rate_per_s=10).guest.connections == 11
    assert foresight(None, connections=8, clients=3, stream_rate_per_s=0).guest.connections == 8


def test_a_guest_that_has_moved_has_all_of_its_ram_touched_and_no_more_data() -> None:
    seen = foresight(WATCHED)
    first, second = (foretold(seen, before).prediction.course.rounds[0] for before in (0, 1))
    assert (first.pages, first.zero_pages) == (9000, 1000)
    assert (second.pages, second.zero_pages) == (PAGES, PAGES - 8000)
    assert first.bytes == second.bytes


def test_headers_take_their_share_of_a_wires_rate() -> None:
    scenario = scenario_of(replace(OPTIONS, max_bandwidth_bits_per_s=8 * 10**6))
    asked = way(scenario, scenario.manner())
    assert asked.wire_bytes_per_s == 125e6 * GOODPUT
    assert 0.98 < GOODPUT < 1
    assert asked.cap_bytes_per_s == 1e6
    free = scenario_of(Options())
    assert way(free, free.manner()).wire_bytes_per_s is None


def test_only_doubt_is_told_beforehand() -> None:
    assert foretold(foresight(None, dirty_rate_pages_per_s=0)).doubt is None
    doubt = foretold(foresight(None, bandwidth_bits_per_s=10**7, dirty_rate_pages_per_s=9000)).doubt
    assert doubt is not None
    assert doubt.startswith("will not converge: dirties ")


def measured(outcome: str, transferred_bytes: int, total_ms: float, blackout_ms: float | None) -> Any:
    return SimpleNamespace(
        outcome=outcome, rounds=[1, 2, 3], total_ms=total_ms, blackout_ms=blackout_ms,
        ram=SimpleNamespace(transferred_bytes=transferred_bytes),
        model_copy=lambda update: SimpleNamespace(**update),
    )  # fmt: skip


def test_the_error_is_what_was_foretold_against_what_was_measured() -> None:
    said = foretold(foresight(WATCHED))
    made = said.prediction.course
    half = measured("completed", made.transferred_bytes * 2, made.total_ns / 2e6, None)
    error = said.beside(half).predicted.error  # type: ignore[union-attr]
    assert error is not None
    assert (error.transferred_bytes, error.total_ms, error.blackout_ms) == (-0.5, 1.0, None)
    assert error.rounds == len(made.rounds) - 3
    rolled_back = measured("rolled-back", 1, 1.0, 1.0)
    assert said.beside(rolled_back).predicted.error is None  # type: ignore[union-attr]


# ---- the table


def run_of(ram_bytes: int, connections: int, *, program_pages: float = 4.0) -> Any:
    """A result of a machine with 1e9 bytes/s, 1 us a page digested, 100 ms before, 50 ms after, 2 ms of
    blackout and 0.1 ms more for each connection."""
    pages = ram_bytes // 4096
    rounds = [
        SimpleNamespace(pages=pages, zero_pages=0, bytes=ram_bytes, duration_ms=ram_bytes / 1e6),
        SimpleNamespace(pages=100, zero_pages=0, bytes=409_600, duration_ms=9.0),
        SimpleNamespace(pages=10, zero_pages=0, bytes=40_960, duration_ms=1.04096),
    ]
    back = [SimpleNamespace(**vars(rounds[0]) | {"zero_pages": pages}), *rounds[1:]]
    back[0].duration_ms += pages * 2e-3
    blackout_ms = 2 + 0.1 * connections

    def migration(rounds: list[Any]) -> Any:
        precopy_ms = sum(one.duration_ms for one in rounds) + pages * 1e-3 + 4 * 3.0
        phases = {"setup": 10.0, "provision": 90.0 + pages * 1e-3, "precopy": precopy_ms, "pause": 3.0}
        total_ms = sum(phases.values()) + blackout_ms + 50
        return SimpleNamespace(
            outcome="completed", rounds=rounds, phases_ms=phases, total_ms=total_ms, blackout_ms=blackout_ms,
            ram=SimpleNamespace(bytes=ram_bytes, final_pages=0),
            predicted=SimpleNamespace(basis="sampled", dirty_pages=[(1, 1), (100, program_pages), (300, 9)]),
        )  # fmt: skip

    return SimpleNamespace(
        migrations=[migration(rounds), migration(back)], clients=SimpleNamespace(connections=connections)
    )


def test_the_table_is_what_the_machine_was_made_of() -> None:
    large, small, crowded = run_of(64 << 20, 10), run_of(16 << 20, 10), run_of(64 << 20, 210)
    table = fit(Basis([large], [small], [crowded], [large], digest_page_ns=[1000.0]))
    expected = {
        "bandwidth_bytes_per_s": 1e9, "before_ns": 100e6, "before_page_ns": 1000,
        "round_ns": 1e6, "gap_ns": 3e6, "digest_page_ns": 1000, "zero_page_ns": 2000,
        "pause_ns": 3e6, "blackout_ns": 2e6,
        "blackout_connection_ns": 1e5, "after_ns": 50e6, "after_page_ns": 0, "program_pages": 4,
    }  # fmt: skip
    found = {name: span.likely for name, span in vars(table).items()}
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-3)


def test_runs_that_tell_nothing_are_no_table() -> None:
    empty = run_of(16 << 20, 1)
    for one in empty.migrations:
        one.outcome = "failed"
    with pytest.raises(TooFewMigrations, match="no migration"):
        fit(Basis([empty], [], [], [], digest_page_ns=[1.0]))


def test_the_grid_is_over_wires_rates_and_patterns_each_once() -> None:
    asked = grid()
    assert len(asked) == 28
    assert {one.bandwidth_bits_per_s for one in asked} == set(GRID_RATES)
    assert len({repr(one) for one in asked}) == len(asked)
