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

from testbed.experiment import effects
from testbed.experiment.measures import MEASURES, Measure
from testbed.measure import comparison as model
from testbed.measure.result import Result
from testbed.measure.significance import FALSE_DISCOVERIES, Stratum, adjusted, chance, least_chance
from testbed.measure.statistics import Interval, interval_of_difference, interval_of_ratio
from testbed.scenario.variants import Contender

__all__ = [
    "MEASURES",
    "Circumstances",
    "Finished",
    "Measure",
    "comparison",
    "contrast",
    "figure",
    "judged",
    "method",
]

Kind = Literal["ratio", "difference"]
_SAME: dict[Kind, float] = {"ratio": 1.0, "difference": 0.0}
"""What a comparison of equals comes to."""
TOLD_IN_TIMES = 1.5
"""From this ratio on one says how many times, below it how many percent."""


@dataclass(frozen=True)
class Finished:
    """One run that is over: whose it was, which repeat (from 1), where it lies, and its result, or the
    `error` that brought its lab down."""

    label: str
    repeat: int
    folder: str
    result: Result | None
    error: str | None = None

    def figure(self, measure: Measure) -> float | None:
        completed = self.result is not None and self.result.outcome == "completed"
        return measure.of(self.result) if self.result is not None and completed else None

    @property
    def blackout_parts_ms(self) -> dict[str, float]:
        if self.result is None or self.result.outcome != "completed":
            return {}
        return self.result.blackout_parts_ms


@dataclass(frozen=True)
class Contrast:
    """How two variants, by their labels, differ in one figure, before it is judged; `runs` had it."""

    measure: Measure
    labels: tuple[str, str]
    kind: Kind
    value: float
    interval: Interval | None
    chance: float | None
    runs: int


@dataclass(frozen=True)
class Circumstances:
    """How the runs were made."""

    repeats: int
    complete: bool = True
    workers: int = 1

    @property
    def spoiled(self) -> bool:
        """Whether labs ran beside each other, so that no time is only the variant's."""
        return self.workers > 1


def comparison(
    name: str,
    started_at: str,
    made: Circumstances,
    contenders: Sequence[Contender],
    runs: Sequence[Finished],
) -> model.Comparison:
    """All that the runs tell."""
    seed = contenders[0].seed
    variants = [_variant(one, [run for run in runs if run.label == one.label]) for one in contenders]
    measures = [one for one in MEASURES if not (made.spoiled and one.is_time)]
    contrasts = [
        found
        for first, second in combinations(variants, 2)
        for measure in measures
        if (found := contrast(measure, first, second, seed)) is not None
    ]
    results = [run.result for run in runs if run.result is not None]
    return model.Comparison(
        name=name,
        started_at=started_at,
        repeats=made.repeats,
        seed=seed,
        complete=made.complete,
        workers=made.workers,
        method=method(made),
        factors=effects.factors(variants),
        variants=variants,
        effects=effects.effects(variants, measures, seed),
        differences=judged(contrasts),
        runs=[_run(run) for run in runs],
        environment=results[0].environment if results else {},
    )


def method(made: Circumstances) -> str:
    """How differences are judged, in a sentence or two."""
    told = (
        f"Medians, with bootstrapped intervals. A difference is called real where a permutation test of "
        f"ranks holds after Benjamini and Hochberg's correction for all that is judged here: of what is "
        f"called real, at most {FALSE_DISCOVERIES:.0%} is chance."
    )
    if least_chance([(made.repeats, made.repeats)]) > FALSE_DISCOVERIES:
        told += f" With {made.repeats} runs each nothing can be shown between two variants."
    if made.spoiled:
        told += (
            f" {made.workers} labs ran beside each other: all that was measured of time is spoiled, and is "
            f"not compared."
        )
    return told


def _run(run: Finished) -> model.Run:
    result = run.result
    return model.Run(
        variant=run.label,
        repeat=run.repeat,
        folder=run.folder,
        outcome="failed" if result is None else result.outcome,
        failed_checks=[] if result is None else [check.name for check in result.checks if not check.passed],
        error=run.error,
    )


def _variant(contender: Contender, runs: Sequence[Finished]) -> model.Variant:
    parts = [run.blackout_parts_ms for run in runs]
    names = dict.fromkeys(name for of_run in parts for name in of_run)
    return model.Variant(
        label=contender.label,
        levels=dict(contender.levels),
        options={} if contender.options is None else contender.options.as_dict(),
        figures={measure.key: figure([run.figure(measure) for run in runs]) for measure in MEASURES},
        blackout_parts_ms={name: figure([of_run.get(name) for of_run in parts]) for name in names},
    )


def figure(values: Sequence[float | None]) -> model.Figure:
    """The values, one a run, and what they amount to."""
    known = [value for value in values if value is not None]
    median, low, high = (statistics.median(known), min(known), max(known)) if known else (None, None, None)
    return model.Figure(values=list(values), median=median, low=low, high=high)


def contrast(measure: Measure, first: model.Variant, second: model.Variant, seed: int) -> Contrast | None:
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
    by_chance = None if interval is None else chance([Stratum(ours, theirs)], seed)
    labels, runs = (first.label, second.label), len(ours) + len(theirs)
    return Contrast(measure, labels, kind, value, interval, by_chance, runs)


def judged(contrasts: Sequence[Contrast]) -> list[model.Difference]:
    """What can be said of each, now that it is known how many are looked at."""
    chances = adjusted([one.chance for one in contrasts])
    return [_judged(one, true) for one, true in zip(contrasts, chances, strict=True)]


def _judged(one: Contrast, adjusted_chance: float | None) -> model.Difference:
    real = (
        one.interval is not None
        and one.interval.excludes(_SAME[one.kind])
        and adjusted_chance is not None
        and adjusted_chance <= FALSE_DISCOVERIES
    )
    return model.Difference(
        figure=one.measure.key,
        first=one.labels[0],
        second=one.labels[1],
        kind=one.kind,
        value=one.value,
        interval=None if one.interval is None else model.Interval(**vars(one.interval)),
        chance=one.chance,
        adjusted_chance=adjusted_chance,
        real=real,
        sentence=sentence(one, adjusted_chance, real=real),
    )


def sentence(one: Contrast, adjusted_chance: float | None, *, real: bool) -> str:
    """In words how the first label's figure compares with the second's, told from the smaller one's side.
    What the runs only hint at is told as a hint."""
    (first, second), measure, kind, interval = one.labels, one.measure, one.kind, one.interval
    if one.value == _SAME[kind] or (interval is not None and not interval.excludes(_SAME[kind])):
        return f"{first} and {second}: no difference in {measure.noun} that these {one.runs} runs show"
    smaller, larger = (second, first) if one.value > _SAME[kind] else (first, second)
    size = _size(kind, one.value)
    shown: Callable[[float], str] = measure.show if kind == "difference" else _digits
    unit = " times" if kind == "ratio" else ""
    if kind == "ratio" and size < TOLD_IN_TIMES:
        shown, unit = _percent_less, ""
    error = "one run each, which tells no error"
    if interval is not None:
        low, high = sorted(_size(kind, bound) for bound in (interval.low, interval.high))
        error = f"{round(interval.level * 100)} %: {shown(low)} to {shown(high)}"
        if not real and adjusted_chance is not None:
            error += f"; not shown by these {one.runs} runs: chance does so in {adjusted_chance:.2g} of cases"
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
