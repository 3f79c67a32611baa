"""Predictions: the published bounds hold, more bandwidth and fewer writes are never worse, and the engine's
own strategy decides."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.memory.dirty_curve import DirtyCurve
from testbed.migration import prediction
from testbed.migration.overheads import Overheads, OverheadsError
from testbed.migration.prediction import Guest, Way, bounds, error_ratio, predict
from testbed.migration.spans import Span
from testbed.migration.strategy import PAGE, Decision, Policy, Verdict

PAGES = 1 << 15
NOTHING = Overheads(**{one.name: Span.exactly(0) for one in fields(Overheads)})
FREE = replace(NOTHING, bandwidth_bytes_per_s=Span.exactly(1e9))
"""A machine on which only the wire takes time."""
rates = st.sampled_from([0, 500, 5_000, 20_000, 60_000, 200_000])
wires = st.sampled_from([12e6, 50e6, 125e6, 600e6])


def guest(rate: float, pages: int = PAGES // 2) -> Guest:
    curve = DirtyCurve.of_load(rate, pages, "uniform", PAGES)
    return Guest(PAGES, PAGES // 2 + 100, 100, curve)


def way(wire: float = 125e6, **policy: int | str) -> Way:
    return Way(policy=Policy(**policy), wire_bytes_per_s=wire)  # type: ignore[arg-type]


@given(rates, wires, st.integers(1, 40))
def test_the_bounds_of_the_paper_hold(rate: int, wire: float, rounds: int) -> None:
    asked = way(wire, max_rounds=rounds)
    made = predict(guest(rate), asked, FREE)
    least, most = bounds(guest(rate), asked.policy)
    sent = made.course.transferred_bytes
    runs = sum(one.pages for one in made.course.rounds) * prediction.RUN_BYTES
    assert least <= sent <= most + runs + made.course.final_pages * prediction.RUN_BYTES
    assert made.course.total_ns >= least / wire * 1e9 - 1
    assert len(made.course.rounds) <= rounds + 1


@given(rates, wires)
def test_a_faster_wire_never_makes_the_blackout_longer(rate: int, wire: float) -> None:
    slow, fast = (
        predict(guest(rate), way(w, max_rounds=5, downtime_limit_ns=0), FREE) for w in (wire, 2 * wire)
    )
    assert fast.course.blackout_ns <= slow.course.blackout_ns + 2e6
    assert fast.course.total_ns <= slow.course.total_ns


@given(rates, wires)
def test_more_writes_never_make_it_converge(rate: int, wire: float) -> None:
    calm, busy = (
        predict(guest(r), way(wire, downtime_limit_ns=20_000_000), FREE) for r in (rate, 2 * rate + 1)
    )
    if busy.converges:
        assert calm.converges
    assert calm.course.rounds[0].dirty_pages <= busy.course.rounds[0].dirty_pages


def test_a_guest_that_writes_nothing_needs_one_round_and_the_one_after_the_decision() -> None:
    made = predict(guest(0), way(), FREE)
    assert made.rounds == Span.exactly(2)
    assert made.course.final_pages == 0
    assert made.course.transferred_bytes == PAGES // 2 * PAGE
    assert made.course.blackout_ns == 0


def test_rounds_shrink_as_the_wire_outruns_the_guest() -> None:
    """Reckoned by hand: 64 MiB at 125 MB/s take 537 ms; 1000 pages/s and no page twice."""
    curve = DirtyCurve.of_load(1000, PAGES, "sequential", PAGES)
    made = predict(Guest(PAGES, PAGES // 2, 0, curve), way(), FREE)
    assert [one.pages for one in made.course.rounds][:3] == [16384, 537, 18]
    assert made.sentence.startswith("will converge: ")


def test_a_guest_that_outruns_the_wire_is_told_in_one_line() -> None:
    made = predict(guest(60_000), way(50e6, max_rounds=4, downtime_limit_ns=30_000_000), FREE)
    assert made.converges is False
    assert made.sentence.startswith("will not converge: dirties 56,")
    assert "the wire moves 12," in made.sentence
    assert "after 4 rounds it switches anyway, with a blackout of " in made.sentence
    assert "\n" not in made.sentence


def test_too_few_rounds_are_told_as_what_they_are() -> None:
    made = predict(guest(5000), way(125e6, max_rounds=1, downtime_limit_ns=50_000_000), FREE)
    assert made.converges is False
    assert made.sentence.startswith("1 rounds are too few to converge: ")


def test_one_that_gives_up_has_no_blackout() -> None:
    made = predict(guest(60_000), way(50e6, max_rounds=4, downtime_limit_ns=0, on_stall="give-up"), FREE)
    assert made.course.gives_up
    assert (made.course.blackout_ns, made.course.final_pages, len(made.course.rounds)) == (0, 0, 4)
    assert made.sentence.endswith("it gives up")


def test_the_decisions_are_the_engines_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def at_once(history: object, policy: Policy) -> Verdict:
        return Verdict(Decision.SWITCH, 0, "said the test")

    assert len(predict(guest(20_000), way(), FREE).course.rounds) > 2
    monkeypatch.setattr(prediction, "decide", at_once)
    made = predict(guest(20_000), way(), FREE)
    assert len(made.course.rounds) == 2
    assert made.course.verdict == Verdict(Decision.SWITCH, 0, "said the test")


def test_what_is_uncertain_makes_a_span_and_what_is_not_makes_none() -> None:
    sure = predict(guest(1000), way(), FREE)
    assert sure.transferred_bytes.low == sure.transferred_bytes.high
    wide = replace(FREE, bandwidth_bytes_per_s=Span(5e8, 1e9, 2e9))
    unsure = predict(guest(1000), Way(), wide)
    assert unsure.total_ns.low < unsure.total_ns.likely < unsure.total_ns.high
    seen = DirtyCurve.measured([(50_000_000, 900), (100_000_000, 1600)], PAGES)
    beyond = predict(replace(guest(0), curve=seen), way(), FREE)
    assert beyond.transferred_bytes.low < beyond.transferred_bytes.likely < beyond.transferred_bytes.high


def test_overheads_are_added_where_they_belong() -> None:
    table = replace(
        FREE, before_ns=Span.exactly(1e9), after_ns=Span.exactly(2e9), blackout_ns=Span.exactly(3e6),
        blackout_connection_ns=Span.exactly(1e5),
    )  # fmt: skip
    made = predict(replace(guest(0), connections=10), way(), table)
    assert made.course.blackout_ns == 4e6
    bare = predict(guest(0), way(), FREE).course.total_ns
    assert made.course.total_ns - bare == pytest.approx(3e9 + 4e6)


def test_a_cap_slows_the_rounds_and_not_the_last_pages() -> None:
    capped = replace(way(), cap_bytes_per_s=12.5e6)
    busy = guest(3000)
    slow, fast = predict(busy, capped, FREE).course, predict(busy, way(), FREE).course
    assert slow.rounds[0].duration_ns == pytest.approx(10 * fast.rounds[0].duration_ns, rel=0.001)
    assert slow.blackout_ns < slow.final_pages * PAGE * 1e9 / 100e6


def test_a_tracker_that_is_not_exact_costs_a_pass_over_ram_in_the_blackout() -> None:
    table = replace(FREE, digest_page_ns=Span.exactly(1000))
    exact, digest = (predict(replace(guest(0), exact=exact), way(), table).course for exact in (True, False))
    assert digest.blackout_ns - exact.blackout_ns == guest(0).touched_pages * 1000


def test_without_pre_copy_all_of_it_is_blackout() -> None:
    stopped = predict(guest(60_000), replace(way(), mode="stop-and-copy"), FREE)
    assert (stopped.converges, stopped.course.rounds) == (None, ())
    assert stopped.course.blackout_ns == pytest.approx(PAGES // 2 * PAGE / 125e6 * 1e9)
    quick = predict(guest(0), Way(mode="quick", storage_bytes_per_s=125e6), FREE)
    assert quick.course.blackout_ns == pytest.approx(2 * PAGES * PAGE / 125e6 * 1e9)


def test_the_error_is_a_share_of_what_was_measured() -> None:
    assert error_ratio(110, 100) == pytest.approx(0.1)
    assert error_ratio(5, None) is error_ratio(5, 0) is None


# ---- the table


def test_the_table_that_ships_is_whole_and_says_where_it_was_measured() -> None:
    table = Overheads.shipped()
    for one in fields(Overheads):
        span: Span = getattr(table, one.name)
        assert span.low <= span.likely <= span.high
    assert table.bandwidth_bytes_per_s.low > 0
    assert Overheads.from_json(json.loads(table.as_json("here"))["overheads"]) == table


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"overheads": {}}', '{"overheads": {"round_ns": 1}}'])
def test_what_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(OverheadsError, match="is no table of overheads"):
        Overheads.read(path)


def test_a_span_is_the_median_and_the_quartiles() -> None:
    assert Span.of([5, 1, 3, 2, 4]) == Span(2, 3, 4)
    with pytest.raises(ValueError, match="no value"):
        Span.of([])
