"""What each factor of a grid does, whatever the others are: main effects. Pure.

A grid asks more of its runs than a row of pairs does: every run says something of every factor. So a factor's
levels are compared within each combination of the others (a stratum, in which nothing else differs), and what
was found there is put together: as many runs tell twice as much of each factor.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from testbed.experiment.measures import Measure
from testbed.measure import comparison as model
from testbed.measure.significance import FALSE_DISCOVERIES, Stratum, adjusted, chance
from testbed.measure.statistics import Interval, Sides, interval_of_effect


@dataclass(frozen=True)
class _Found:
    """A contrast between two levels of a factor in one figure, before it is judged."""

    measure: Measure
    factor: str
    level: str
    than: str
    strata: Mapping[str, Sides]
    others: Sequence[str]
    value: float
    interval: Interval | None
    chance: float | None


def factors(variants: Sequence[model.Variant]) -> dict[str, list[str]]:
    """Of a grid: each factor that has several levels, with them. None where the variants are no grid."""
    found: dict[str, dict[str, None]] = {}
    for variant in variants:
        for factor, level in variant.levels.items():
            found.setdefault(factor, {})[level] = None
    return {factor: list(levels) for factor, levels in found.items() if len(levels) > 1}


def effects(variants: Sequence[model.Variant], measures: Sequence[Measure], seed: int) -> list[model.Effect]:
    """Each pair of levels of each factor, in each figure; judged together."""
    of_grid = factors(variants)
    found = [
        one
        for factor, levels in of_grid.items()
        for than, level in combinations(levels, 2)
        for measure in measures
        if (one := _contrast(variants, list(of_grid), measure, (factor, than, level), seed)) is not None
    ]
    chances = adjusted([one.chance for one in found])
    return [_judged(one, true) for one, true in zip(found, chances, strict=True)]


def _contrast(
    variants: Sequence[model.Variant],
    grid: Sequence[str],
    measure: Measure,
    asked: tuple[str, str, str],
    seed: int,
) -> _Found | None:
    factor, than, level = asked
    others = [name for name in grid if name != factor]
    strata: dict[str, Sides] = {}
    for variant in variants:
        if variant.levels[factor] != than:
            continue
        rest = {name: variant.levels[name] for name in others}
        twin = next(
            one
            for one in variants
            if one.levels[factor] == level and {n: one.levels[n] for n in others} == rest
        )
        sides = _known(variant, measure), _known(twin, measure)
        if all(sides):
            strata[",".join(map("=".join, rest.items()))] = sides
    if not strata:
        return None
    return _Found(
        measure,
        factor,
        level,
        than,
        strata,
        others,
        statistics.fmean(_exceeds(sides) for sides in strata.values()),
        interval_of_effect(list(strata.values()), seed),
        chance([Stratum(*sides) for sides in strata.values()], seed),
    )


def _known(variant: model.Variant, measure: Measure) -> list[float]:
    return [value for value in variant.figures[measure.key].values if value is not None]


def _exceeds(sides: Sides) -> float:
    first, second = sides
    return statistics.median(second) - statistics.median(first)


def _judged(one: _Found, adjusted_chance: float | None) -> model.Effect:
    real = (
        one.interval is not None
        and one.interval.excludes(0.0)
        and adjusted_chance is not None
        and adjusted_chance <= FALSE_DISCOVERIES
    )
    by = {where: _exceeds(sides) for where, sides in one.strata.items()}
    everywhere = _everywhere(one, by)
    return model.Effect(
        figure=one.measure.key,
        factor=one.factor,
        level=one.level,
        than=one.than,
        value=one.value,
        interval=None if one.interval is None else model.Interval(**vars(one.interval)),
        by=by,
        everywhere=everywhere,
        chance=one.chance,
        adjusted_chance=adjusted_chance,
        real=real,
        sentence=_sentence(one, by, everywhere=everywhere, real=real),
    )


def _everywhere(one: _Found, by: Mapping[str, float]) -> bool:
    """Whether the effect is the same in each stratum, as far as the runs show: of one sign, and within what
    is known of each by itself."""
    if len(by) < 2:
        return True
    if len({value > 0 for value in by.values()}) > 1:
        return False
    intervals = [interval_of_effect([sides], 0) for sides in one.strata.values()]
    return all(known is None or known.low <= one.value <= known.high for known in intervals)


def _sentence(one: _Found, by: Mapping[str, float], *, everywhere: bool, real: bool) -> str:
    level, than = f"{one.factor}={one.level}", f"{one.factor}={one.than}"
    if not real:
        return f"{level} and {than}: no difference in {one.measure.noun} that these runs show"
    show = one.measure.show
    phrase = one.measure.more if one.value > 0 else one.measure.less
    told = f"{level} {phrase.format(by=show(abs(one.value)))} than {than}"
    assert one.interval is not None
    low, high = sorted(abs(bound) for bound in (one.interval.low, one.interval.high))
    error = f"{round(one.interval.level * 100)} %: {show(low)} to {show(high)}"
    if not one.others:
        return f"{told} ({error})"
    if everywhere:
        return (
            f"{told}, whatever {' and '.join(one.others)} {'is' if len(one.others) == 1 else 'are'} ({error})"
        )
    each = "; ".join(f"{_signed(value, one.measure)} with {where}" for where, value in by.items())
    return f"{told} on average, and it depends: {each} ({error})"


def _signed(value: float, measure: Measure) -> str:
    return f"{'+' if value >= 0 else '-'}{measure.show(abs(value))}"
