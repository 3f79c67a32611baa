"""From the results of many runs to what differs between their variants, in figures and in sentences. Pure.

Only runs that completed count in the figures: how long a migration takes that does not happen is no figure.
What went wrong in the others stands with the runs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from testbed.measure import comparison as model
from testbed.measure.result import Result
from testbed.measure.statistics import Interval, interval_of_difference, interval_of_ratio
from testbed.scenario.units import format_ms, format_size
from testbed.scenario.variants import Contender

Kind = Literal["ratio", "difference"]
_SAME: dict[Kind, float] = {"ratio": 1.0, "difference": 0.0}
"""What a comparison of equals comes to."""
TOLD_IN_TIMES = 1.5
"""From this ratio on one says how many times, below it how many percent."""


@dataclass(frozen=True)
class Measure:
    """What is compared: `of` takes it from a run's result, `show` writes it for people, `told` says by how
    much it is smaller. A count may be zero and is compared by difference, everything else by ratio.
    """

    key: str
    noun: str
    told: str
    show: Callable[[float], str]
    of: Callable[[Result], float | None]
    is_count: bool = False


def _count(value: float) -> str:
    return f"{value:,.10g}"


def _bytes(value: float) -> str:
    return format_size(round(value))


_SHORTER = "{smaller}'s %s is {by} shorter than {larger}'s"
_FEWER = "{smaller} has {by} fewer %s than {larger}"

MEASURES = (
    Measure(
        "blackout_ms", "blackout", _SHORTER % "blackout", format_ms,
        lambda run: run.blackout_ms,
    ),
    Measure(
        "longest_wait_ms", "longest wait", _SHORTER % "clients' longest wait", format_ms,
        lambda run: run.clients.gap_ms.max,
    ),
    Measure(
        "total_ms", "total time", _SHORTER % "total time", format_ms,
        lambda run: run.total_ms,
    ),
    Measure(
        "moved_bytes", "RAM moved", "{smaller} moves {by} less RAM than {larger}", _bytes,
        lambda run: run.ram.transferred_bytes,
    ),
    Measure(
        "retransmits", "retransmits", _FEWER % "retransmits", _count,
        lambda run: run.clients.retransmits, is_count=True,
    ),
    Measure(
        "broken", "broken connections", _FEWER % "broken connections", _count,
        lambda run: run.clients.broken + run.clients.resets + run.clients.failed_connects, is_count=True,
    ),
)  # fmt: skip
"""In the order in which a person wants to know. `broken` counts resets and failed connects too."""


@dataclass(frozen=True)
class Finished:
    """One run that is over: whose it was, which repeat (from 1), where it lies, and its result."""

    label: str
    repeat: int
    folder: str
    result: Result

    def figure(self, measure: Measure) -> float | None:
        return measure.of(self.result) if self.result.outcome == "completed" else None

    @property
    def blackout_parts_ms(self) -> dict[str, float]:
        return self.result.blackout_parts_ms if self.result.outcome == "completed" else {}


def comparison(
    name: str, started_at: str, repeats: int, contenders: Sequence[Contender], runs: Sequence[Finished]
) -> model.Comparison:
    """All that the runs tell."""
    seed = contenders[0].options.seed
    variants = [_variant(one, [run for run in runs if run.label == one.label]) for one in contenders]
    differences = [
        found
        for first, second in combinations(variants, 2)
        for measure in MEASURES
        if (found := difference(measure, first, second, seed)) is not None
    ]
    return model.Comparison(
        name=name,
        started_at=started_at,
        repeats=repeats,
        seed=seed,
        variants=variants,
        differences=differences,
        runs=[_run(run) for run in runs],
        environment=runs[0].result.environment,
    )


def _run(run: Finished) -> model.Run:
    return model.Run(
        variant=run.label,
        repeat=run.repeat,
        folder=run.folder,
        outcome=run.result.outcome,
        failed_checks=[check.name for check in run.result.checks if not check.passed],
    )


def _variant(contender: Contender, runs: Sequence[Finished]) -> model.Variant:
    parts = [run.blackout_parts_ms for run in runs]
    names = dict.fromkeys(name for of_run in parts for name in of_run)
    return model.Variant(
        label=contender.label,
        options=contender.options.as_dict(),
        figures={measure.key: figure([run.figure(measure) for run in runs]) for measure in MEASURES},
        blackout_parts_ms={name: figure([of_run.get(name) for of_run in parts]) for name in names},
    )


def figure(values: Sequence[float | None]) -> model.Figure:
    """The values, one a run, and what they amount to."""
    known = [value for value in values if value is not None]
    median, low, high = (statistics.median(known), min(known), max(known)) if known else (None, None, None)
    return model.Figure(values=list(values), median=median, low=low, high=high)


def difference(
    measure: Measure, first: model.Variant, second: model.Variant, seed: int
) -> model.Difference | None:
    """How two variants differ in one figure; None where one of them has no such figure."""
    ours, theirs = (
        [value for value in one.figures[measure.key].values if value is not None] for one in (first, second)
    )
    if not ours or not theirs:
        return None
    mine, other = statistics.median(ours), statistics.median(theirs)
    kind: Kind = "difference" if measure.is_count or min(*ours, *theirs) <= 0 else "ratio"
    if kind == "ratio":
        value, interval = mine / other, interval_of_ratio(ours, theirs, seed)
    else:
        value, interval = mine - other, interval_of_difference(ours, theirs, seed)
    labels = (first.label, second.label)
    return model.Difference(
        figure=measure.key,
        first=first.label,
        second=second.label,
        kind=kind,
        value=value,
        interval=None if interval is None else model.Interval(**vars(interval)),
        real=interval is not None and interval.excludes(_SAME[kind]),
        sentence=sentence(measure, labels, kind, value, interval, len(ours) + len(theirs)),
    )


def sentence(
    measure: Measure, labels: tuple[str, str], kind: Kind, value: float, interval: Interval | None, runs: int
) -> str:
    """In words how the first label's figure compares with the second's, told from the smaller one's side."""
    first, second = labels
    if value == _SAME[kind] or (interval is not None and not interval.excludes(_SAME[kind])):
        return f"{first} and {second}: no difference in {measure.noun} that these {runs} runs show"
    smaller, larger = (second, first) if value > _SAME[kind] else (first, second)
    size = _size(kind, value)
    shown: Callable[[float], str] = measure.show if kind == "difference" else _digits
    unit = " times" if kind == "ratio" else ""
    if kind == "ratio" and size < TOLD_IN_TIMES:
        shown, unit = _percent_less, ""
    error = "one run each, which tells no error"
    if interval is not None:
        low, high = sorted(_size(kind, bound) for bound in (interval.low, interval.high))
        error = f"{round(interval.level * 100)} %: {shown(low)} to {shown(high)}"
    return f"{measure.told.format(smaller=smaller, larger=larger, by=shown(size) + unit)} ({error})"


def _size(kind: Kind, value: float) -> float:
    """How far a ratio is from one, or a difference from zero, whichever way."""
    if kind == "ratio":
        return max(value, 1 / value)
    return abs(value)


def _percent_less(ratio: float) -> str:
    return f"{_digits(100 - 100 / ratio)} %"


def _digits(ratio: float) -> str:
    """Three digits that count, and a comma between thousands."""
    places = 2 - math.floor(math.log10(ratio))
    return f"{round(ratio, places):,.{max(places, 0)}f}"
