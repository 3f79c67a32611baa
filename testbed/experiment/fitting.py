"""From what migrations took to the table that predictions are made with: medians and quartiles. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from testbed.measure.result import Migration, Result
from testbed.migration.overheads import Overheads
from testbed.migration.spans import Span
from testbed.migration.strategy import PAGE

SMALL_ROUND_BYTES = 1 << 20
"""A round below this says what a round takes besides its bytes."""
WARM_ROUNDS = 2
"""The first rounds of a migration: the second still waits for the target to have digested the first."""


class TooFewMigrations(Exception):
    """The runs do not tell one of the figures; says which."""


@dataclass(frozen=True)
class Basis:
    """The runs that a table is made of: two sizes of RAM, few and many connections, and a guest whose only
    writes are its program's. `digest_page_ns` is measured by itself."""

    large: Sequence[Result]
    small: Sequence[Result]
    crowded: Sequence[Result]
    idle: Sequence[Result]
    digest_page_ns: Sequence[float]


def fit(basis: Basis) -> Overheads:
    """The table. Raises TooFewMigrations."""
    everyday = [*basis.large, *basis.small]
    digest = Span.of(basis.digest_page_ns)
    firsts = [one.rounds[0] for one in map(_first, everyday) if one.rounds]
    bandwidth = _span("bandwidth", [one.bytes * 1e3 / one.duration_ms for one in firsts])
    rate = bandwidth.likely
    before, before_page = _line([(_before_ns(one), float(_ram_pages(one))) for one in _done(everyday)])
    after, after_page = _line([(_after_ns(one), float(one.rounds[0].pages)) for one in _done(everyday)])
    blackout, connection = _line(
        [
            (_blackout_rest_ns(one, rate, digest.likely), float(run.clients.connections))
            for run in (*basis.large, *basis.crowded)
            for one in _done([run])
        ]
    )
    return Overheads(
        bandwidth_bytes_per_s=bandwidth,
        before_ns=before,
        before_page_ns=before_page,
        round_ns=_span("round", list(_round_rests_ns(everyday, rate))),
        gap_ns=_span("gap", [_gap_ns(one, digest.likely) for one in _done(everyday)]),
        digest_page_ns=digest,
        zero_page_ns=_span("zero page", list(_zero_page_ns(everyday, rate))),
        pause_ns=_span("pause", [one.phases_ms["pause"] * 1e6 for one in _done(everyday)]),
        blackout_ns=blackout,
        blackout_connection_ns=connection,
        after_ns=after,
        after_page_ns=after_page,
        program_pages=_span("program's pages", list(_program_pages(basis.idle))),
    )


def _done(runs: Sequence[Result]) -> list[Migration]:
    return [one for run in runs for one in run.migrations if one.outcome == "completed" and one.rounds]


def _first(run: Result) -> Migration:
    return run.migrations[0]


def _ram_pages(one: Migration) -> int:
    return one.ram.bytes // PAGE


def _before_ns(one: Migration) -> float:
    return (one.phases_ms["setup"] + one.phases_ms["provision"]) * 1e6


def _after_ns(one: Migration) -> float:
    """What the total leaves: so all parts together are what was measured."""
    told = one.phases_ms["precopy"] + one.phases_ms["pause"] + (one.blackout_ms or 0.0)
    return (one.total_ms - told) * 1e6 - _before_ns(one)


def _blackout_rest_ns(one: Migration, rate: float, digest_ns: float) -> float:
    pages = one.ram.final_pages
    return (one.blackout_ms or 0.0) * 1e6 - pages * PAGE * 1e9 / rate - pages * digest_ns


def _gap_ns(one: Migration, digest_ns: float) -> float:
    rounds_ns = sum(each.duration_ms for each in one.rounds) * 1e6
    rest_ns = one.phases_ms["precopy"] * 1e6 - rounds_ns - one.rounds[0].pages * digest_ns
    return max(rest_ns, 0.0) / (len(one.rounds) + 1)


def _round_rests_ns(runs: Sequence[Result], rate: float) -> Iterator[float]:
    for one in _done(runs):
        for each in one.rounds[WARM_ROUNDS:]:
            if each.bytes < SMALL_ROUND_BYTES:
                yield max(each.duration_ms * 1e6 - each.bytes * 1e9 / rate, 0.0)


def _zero_page_ns(runs: Sequence[Result], rate: float) -> Iterator[float]:
    for one in _done(runs):
        first = one.rounds[0]
        if first.zero_pages > first.pages / 4:
            yield max(first.duration_ms * 1e6 - first.bytes * 1e9 / rate, 0.0) / first.zero_pages


def _program_pages(runs: Sequence[Result]) -> Iterator[float]:
    """What a guest without a load was seen to write within a tenth of a second or so."""
    for run in runs:
        foretold = run.migrations[0].predicted
        if foretold is not None and foretold.basis == "sampled":
            yield min((abs(ms - 100), pages) for ms, pages in foretold.dirty_pages)[1]


def _span(what: str, values: Sequence[float]) -> Span:
    if not values:
        raise TooFewMigrations(f"no migration tells the {what}")
    return Span.of(values)


def _line(points: Sequence[tuple[float, float]]) -> tuple[Span, Span]:
    """y = fixed + slope x through the medians of the smallest and of the largest x; `fixed` with what the
    points scatter about the line."""
    if not points:
        raise TooFewMigrations("no migration completed")
    least, most = min(x for _, x in points), max(x for _, x in points)
    low, high = (median(y for y, x in points if x == end) for end in (least, most))
    slope = max((high - low) / (most - least), 0.0) if most > least else 0.0
    return Span.of([y - slope * x for y, x in points]), Span.exactly(slope)
