"""From the results of many runs to figures, to sentences, and to the table that a person reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import StringIO

import jsonschema
import pytest
from rich.console import Console

from testbed.commands.ending import CHECK_FAILED, PASSED, ROLLED_BACK, status_of_run, worst
from testbed.experiment.comparison import (
    MEASURES,
    Circumstances,
    Finished,
    comparison,
    contrast,
    figure,
    judged,
    method,
)
from testbed.measure import comparison as model
from testbed.measure.result import Check, Clients, Gap, Guest, Network, Outcome, Ram, Result
from testbed.report.comparison import merged, show_comparison
from testbed.scenario.from_options import scenario_of
from testbed.scenario.options import Options
from testbed.scenario.variants import Contender


def contender(label: str, options: Options, **levels: str) -> Contender:
    return Contender(label, options, scenario_of(options), levels)


CONTENDERS = (
    contender("live", Options()),
    contender("quick", Options(mode="quick", disk_bytes=1 << 20)),
)


def result(blackout_ms: float | None, outcome: Outcome = "completed", **clients: int) -> Result:
    """A run's result with what a comparison reads, and as little as can be of the rest."""
    gap = Gap(p50=1, p99=2, max=None if blackout_ms is None else blackout_ms + 1)
    counts = {name: 0 for name, field in Clients.model_fields.items() if field.annotation is int}
    ram = Ram(bytes=100, transferred_bytes=100, final_pages=1, verified=True)
    network = Network(
        announcements_sent=0, announcements_seen=0, frames_held=0, frames_released=0, frames_dropped=0,
        switch_relearned_ms=None,
    )  # fmt: skip
    checks = [Check(name="migrated", passed=outcome == "completed", detail="")]
    return Result(
        name="x", started_at="x", outcome=outcome, mode="live", total_ms=1000, blackout_ms=blackout_ms,
        blackout_parts_ms={} if blackout_ms is None else {"freeze": blackout_ms}, network_gap_ms=None,
        rounds=[], ram=ram, clients=Clients(**counts | clients, gap_ms=gap, baseline_gap_ms=gap, each=[]),
        network=network, checks=checks, migrations=[], options={}, environment={"kernel": "6.1"},
        guest=Guest(program="echo", steps=1, faults=[], dirty_rate_pages_per_s=None, program_stats={}),
    )  # fmt: skip


def runs(label: str, *results: Result) -> list[Finished]:
    return [Finished(label, number, f"{number:02}-{label}", one) for number, one in enumerate(results, 1)]


def compared(live: Sequence[Result], quick: Sequence[Result]) -> model.Comparison:
    finished = [*runs("live", *live), *runs("quick", *quick)]
    return comparison("x", "x", Circumstances(len(live)), CONTENDERS, finished)


def told(key: str, ours: Sequence[float], theirs: Sequence[float]) -> model.Difference:
    """How a figure of `live` and `quick` with these runs is told."""
    measure = next(one for one in MEASURES if one.key == key)
    sides = [
        model.Variant(label=label, options={}, figures={key: figure(values)}, blackout_parts_ms={})
        for label, values in (("live", ours), ("quick", theirs))
    ]
    found = contrast(measure, sides[0], sides[1], seed=1)
    assert found is not None
    return judged([found])[0]


def test_a_real_difference_is_told_from_the_smaller_side_with_its_error() -> None:
    there = told("blackout_ms", [7.0, 7.2, 7.1, 6.9, 7.0], [31_000, 29_000, 30_000, 30_500, 29_500])
    assert there.sentence.startswith("live's blackout is 4,290 times shorter than quick's (95 %: 4,")
    back = told("blackout_ms", [31_000, 29_000, 30_000, 30_500, 29_500], [7.0, 7.2, 7.1, 6.9, 7.0])
    assert back.sentence.startswith("quick's blackout is 4,290 times shorter than live's (95 %: 4,")
    for one in (there, back):
        assert one.real
        assert one.kind == "ratio"
    assert there.value == pytest.approx(1 / back.value)


def test_the_bounds_of_a_sentence_enclose_its_size_and_rise() -> None:
    found = told("blackout_ms", [1, 1.1, 0.9, 1.05, 1], [2, 2.4, 1.9, 2.2, 2])
    assert found.sentence == "live's blackout is 2.00 times shorter than quick's (95 %: 1.82 to 2.40)"
    assert found.interval is not None
    assert found.interval.low < found.value < found.interval.high < 1


def test_a_small_ratio_is_told_in_percent() -> None:
    found = told("moved_bytes", [100, 100, 101, 100], [104, 103, 105, 104])
    assert found.sentence == "live moves 3.85 % less RAM than quick (95 %: 1.94 % to 4.76 %)"
    assert told("total_ms", [2, 2], [3, 3]).sentence.startswith("live's total time is 1.50 times shorter")


def test_three_runs_hint_and_do_not_show() -> None:
    """Two times three equal runs lie wholly apart in one of ten comparisons."""
    found = told("longest_wait_ms", [10, 11, 12], [210, 205, 220])
    assert (found.real, found.chance) == (False, pytest.approx(0.1))
    assert "clients' longest wait is 19.1 times shorter" in found.sentence
    assert "(90 %: 17.1 to 22.0; not shown by these 6 runs: chance does so in 0.1 of cases)" in found.sentence


def test_what_holds_alone_may_not_hold_among_many() -> None:
    """The same runs: real where nothing else is looked at, and not among forty figures."""
    measure = MEASURES[0]
    sides = [
        model.Variant(label=label, options={}, figures={measure.key: figure(values)}, blackout_parts_ms={})
        for label, values in (("a", [1, 2, 3, 4]), ("b", [5, 6, 7, 8]), ("c", [2, 3, 4, 5.5]))
    ]
    clear, dull = contrast(measure, sides[0], sides[1], 1), contrast(measure, sides[0], sides[2], 1)
    assert clear is not None
    assert dull is not None
    (alone,) = judged([clear])
    among = judged([clear, *[dull] * 39])[0]
    assert (alone.real, among.real) == (True, False)
    assert alone.chance == among.chance
    assert "not shown" in among.sentence


def test_what_the_runs_do_not_show_is_no_difference() -> None:
    found = told("blackout_ms", [5, 6, 7], [6.5, 7, 8])
    assert not found.real
    assert found.sentence == "live and quick: no difference in blackout that these 6 runs show"


def test_counts_may_be_zero_and_are_told_by_difference() -> None:
    found = told("retransmits", [0, 0, 0, 0], [5, 3, 4, 4])
    assert (found.kind, found.value, found.real) == ("difference", -4, True)
    assert found.sentence == "live has 4 fewer retransmits than quick (95 %: 3 to 5)"
    many = told("retransmits", [0, 1], [1_234_567, 1_234_567])
    assert many.sentence.startswith("live has 1,234,566.5 fewer retransmits than quick")
    none = told("broken", [0, 0, 0], [0, 0, 0])
    assert not none.real
    assert none.sentence == "live and quick: no difference in broken connections that these 6 runs show"


def test_a_size_of_zero_is_told_by_difference_with_its_unit() -> None:
    found = told("moved_bytes", [0] * 4, [1 << 20] * 4)
    assert found.sentence == "live moves 1 MiB less RAM than quick (95 %: 1 MiB to 1 MiB)"


def test_one_run_of_each_has_no_error_and_shows_nothing() -> None:
    found = told("blackout_ms", [5], [50])
    assert (found.interval, found.real) == (None, False)
    expected = "live's blackout is 10.0 times shorter than quick's (one run each, which tells no error)"
    assert found.sentence == expected


def test_runs_that_did_not_complete_have_no_figures_and_stand_with_what_failed() -> None:
    live = [result(5), result(9, "rolled-back", broken=3), result(7)]
    found = compared(live, [result(5), result(6), result(7)])
    assert found.variants[0].figures["blackout_ms"] == model.Figure(
        values=[5, None, 7], median=6, low=5, high=7
    )
    assert found.variants[0].figures["broken"].values == [0, None, 0]
    assert found.variants[0].blackout_parts_ms["freeze"].values == [5, None, 7]
    assert [(run.outcome, run.failed_checks) for run in found.runs[:2]] == [
        ("completed", []),
        ("rolled-back", ["migrated"]),
    ]


def test_a_variant_that_never_completed_is_not_compared() -> None:
    found = compared([result(None, "failed")] * 2, [result(5), result(6)])
    assert found.variants[0].figures["blackout_ms"].median is None
    assert found.differences == []


def test_resets_and_failed_connects_count_as_broken() -> None:
    found = compared([result(5, broken=1, resets=2, failed_connects=4)], [result(5)])
    assert found.variants[0].figures["broken"].values == [7]


def test_every_pair_is_compared_in_every_figure() -> None:
    found = compared([result(5), result(6)], [result(50), result(60)])
    assert [one.figure for one in found.differences] == [one.key for one in MEASURES]
    assert {(one.first, one.second) for one in found.differences} == {("live", "quick")}


def test_a_comparison_keeps_to_the_schema_that_ships() -> None:
    shipped = json.loads(model.SCHEMA_FILE.read_text())
    assert shipped == model.schema(), "run: python -m testbed.measure.comparison"
    found = compared([result(5), result(None, "failed")], [result(50), result(60)])
    jsonschema.validate(json.loads(found.model_dump_json()), shipped)
    assert model.Comparison.model_validate_json(found.model_dump_json()) == found


# ---- what went wrong, and what was spoiled


def test_a_lab_that_failed_is_a_run_without_figures() -> None:
    failed = Finished("live", 2, "02-live", None, "ProcessDied: host-a")
    finished = [*runs("live", result(5)), failed, *runs("quick", result(50), result(51))]
    found = comparison("x", "x", Circumstances(2, complete=False), CONTENDERS, finished)
    assert found.variants[0].figures["blackout_ms"].values == [5, None]
    assert (found.runs[1].outcome, found.runs[1].error) == ("failed", "ProcessDied: host-a")
    assert (found.complete, found.environment) == (False, {"kernel": "6.1"})
    nothing = comparison("x", "x", Circumstances(2), CONTENDERS, [failed])
    assert (nothing.differences, nothing.environment) == ([], {})


def test_labs_beside_each_other_are_compared_in_what_is_no_time() -> None:
    finished = [*runs("live", *[result(5)] * 5), *runs("quick", *[result(50)] * 5)]
    found = comparison("x", "x", Circumstances(5, workers=2), CONTENDERS, finished)
    assert [one.figure for one in found.differences] == ["moved_bytes", "retransmits", "broken"]
    assert found.variants[0].figures["blackout_ms"].median == 5
    assert "2 labs ran beside each other" in found.method
    assert "spoiled" not in method(Circumstances(5))


def test_too_few_runs_are_told_beforehand() -> None:
    assert "With 3 runs each nothing can be shown" in method(Circumstances(3))
    assert "nothing can be shown" not in method(Circumstances(5))


# ---- grids


def grid_of(**blackouts_ms: Sequence[float]) -> model.Comparison:
    """Two factors of two levels; a keyword for each cell, as yes_keep."""
    cells = [name.split("_") for name in blackouts_ms]
    contenders = [contender(f"{hold},{mac}", Options(), hold=hold, mac=mac) for hold, mac in cells]
    finished = [
        run
        for one, values in zip(contenders, blackouts_ms.values(), strict=True)
        for run in runs(one.label, *[result(value) for value in values])
    ]
    return comparison("x", "x", Circumstances(5), contenders, finished)


def effect(found: model.Comparison, factor: str, key: str = "blackout_ms") -> model.Effect:
    return next(one for one in found.effects if (one.factor, one.figure) == (factor, key))


NEAR, FAR = [10, 11, 12, 13, 14.0], [210, 211, 212, 213, 214.0]


def test_a_factor_is_told_whatever_the_other_is() -> None:
    found = grid_of(yes_keep=NEAR, yes_moves=NEAR, no_keep=FAR, no_moves=FAR)
    assert found.factors == {"hold": ["yes", "no"], "mac": ["keep", "moves"]}
    hold = effect(found, "hold")
    assert (hold.level, hold.than, hold.value, hold.real, hold.everywhere) == ("no", "yes", 200, True, True)
    assert hold.by == {"mac=keep": 200, "mac=moves": 200}
    assert hold.sentence.startswith(
        "hold=no makes the blackout 200 ms longer than hold=yes, whatever mac is (95 %: "
    )
    mac = effect(found, "mac")
    assert not mac.real
    assert mac.sentence == "mac=moves and mac=keep: no difference in blackout that these runs show"


def test_a_factor_that_depends_on_the_other_is_told_so() -> None:
    near, far = NEAR * 2, FAR * 2
    found = effect(grid_of(yes_keep=near, yes_moves=near, no_keep=near, no_moves=far), "hold")
    assert (found.real, found.everywhere) == (True, False)
    assert "100 ms longer than hold=yes on average, and it depends: " in found.sentence
    assert "+0 ms with mac=keep; +200 ms with mac=moves" in found.sentence


def test_an_effect_of_one_sign_and_of_two_sizes_is_not_the_same_everywhere() -> None:
    some = [value + 50 for value in NEAR]
    found = effect(grid_of(yes_keep=NEAR, yes_moves=NEAR, no_keep=some, no_moves=FAR), "hold")
    assert (found.real, found.everywhere) == (True, False)
    assert "it depends: +50 ms with mac=keep; +200 ms with mac=moves" in found.sentence


def test_a_grid_shows_a_factor_with_fewer_runs_than_a_pair_does() -> None:
    """Every run says something of every factor."""
    few, many = [1, 2, 3.0], [7, 8, 9.0]
    found = grid_of(yes_keep=few, yes_moves=few, no_keep=many, no_moves=many)
    assert effect(found, "hold").real
    assert not any(one.real for one in found.differences)


def test_a_cell_without_a_run_leaves_what_the_others_tell() -> None:
    found = effect(grid_of(yes_keep=NEAR, yes_moves=NEAR, no_keep=FAR, no_moves=[]), "hold")
    assert found.by == {"mac=keep": 200}


def test_what_is_no_grid_has_no_effects() -> None:
    found = compared([result(5)], [result(6)])
    assert (found.factors, found.effects) == ({}, [])


# ---- for people


def shown(found: model.Comparison) -> str:
    console = Console(file=StringIO(), width=80, highlight=False)
    show_comparison(console, found, "runs/x")
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_the_table_has_the_median_the_range_and_the_parts() -> None:
    lines = [line.split() for line in shown(compared([result(5), result(7)], [result(900)] * 2)).splitlines()]
    assert ["of", "2", "runs", "live", "quick"] in lines
    assert ["blackout", "6", "ms", "900", "ms"] in lines
    assert ["from,", "to", "5-7", "ms"] in lines
    assert ["of", "it", "freeze", "6", "ms", "900", "ms"] in lines
    assert ["runs/x/comparison.json"] in lines


def test_a_part_that_one_mode_does_not_have_is_a_dash() -> None:
    quick = [result(900).model_copy(update={"blackout_parts_ms": {"memory to the LUN": 900.0}})]
    lines = [line.split() for line in shown(compared([result(5)], quick)).splitlines()]
    assert ["of", "it", "freeze", "5", "ms", "-"] in lines
    assert ["of", "it", "memory", "to", "the", "LUN", "-", "900", "ms"] in lines


def test_parts_of_several_modes_keep_their_order() -> None:
    live = ["cut off", "last pages", "freeze", "resume"]
    quick = ["cut off", "write", "freeze", "read", "resume"]
    together = ["cut off", "last pages", "write", "freeze", "read", "resume"]
    assert merged([live, quick]) == merged([quick, live]) == together
    assert merged([[], ["resume"]]) == ["resume"]


def test_real_differences_are_sentences_and_the_rest_is_one_line() -> None:
    text = " ".join(shown(compared([result(5)] * 5, [result(50)] * 5)).split())
    assert "live's blackout is 10.0 times shorter than quick's (95 %: 10.0 to 10.0)" in text
    alike = "total time, RAM moved, retransmits, broken connections"
    assert f"live and quick: no difference that these runs show in {alike}" in text


def test_what_went_wrong_in_a_run_is_told_beside_its_folder() -> None:
    text = shown(compared([result(5), result(6, "rolled-back")], [result(50), result(60)]))
    assert "✗ 02-live: rolled-back; failed: migrated" in text


# ---- how it ends


@pytest.mark.parametrize(
    ("outcome", "failed", "status"),
    [
        ("completed", [], PASSED),
        ("completed", ["no reset"], CHECK_FAILED),
        ("rolled-back", ["migrated", "verified"], ROLLED_BACK),
        ("rolled-back", ["migrated", "no reset"], CHECK_FAILED),
        ("failed", ["migrated"], CHECK_FAILED),
    ],
)
def test_the_status_that_a_run_earns(outcome: Outcome, failed: list[str], status: int) -> None:
    assert status_of_run(outcome, failed) == status


def test_the_worst_of_the_runs_counts() -> None:
    assert worst([PASSED, PASSED]) == PASSED
    assert worst([PASSED, ROLLED_BACK, PASSED]) == ROLLED_BACK
    assert worst([ROLLED_BACK, CHECK_FAILED, PASSED]) == CHECK_FAILED
