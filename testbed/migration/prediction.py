"""What a migration will come to, before anything moves: the engine's own decisions on rounds that are only
reckoned. Pure.

The published models reckon the same way. Clark et al. (NSDI 2005) replay the pages that a guest wrote against
a bandwidth; Akoush et al. (MASCOTS 2010) reckon round after round until a stop condition holds, from a steady
dirty rate (their AVG) or from what each interval was seen to dirty (HIST), and bound what any migration of V
bytes can come to: V / B at least, and at most that for every round that the stop conditions allow
(:func:`bounds`); Nelson et al. (USENIX 2005) call a migration converging while each round is shorter than the
one before. Here the rounds come from the guest's curve of distinct pages (:class:`DirtyCurve`, AVG and HIST
alike), and the stop conditions are not a model of the engine's, they are the engine's:
:func:`testbed.migration.strategy.decide` judges the reckoned rounds.

What is not known for sure makes an interval, never a point alone: a curve beyond what was sampled, the
bandwidth of a wire without a rate, the time that everything besides the pages takes. The course is reckoned
with all of them at their likely values, at their best and at their worst.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from testbed.memory.dirty_curve import DirtyCurve, Side
from testbed.migration.overheads import Overheads
from testbed.migration.spans import Span
from testbed.migration.strategy import PAGE, Decision, Policy, RoundStatistics, Verdict, decide

Mode = Literal["live", "stop-and-copy", "quick"]
RUN_BYTES = 12
"""On the wire for each stretch of pages besides their data (testbed.migration.wire); pages that a guest wrote
lie apart."""
CONNECTION_BYTES = 400
"""Of device state for each connection, roughly."""
SHORTEST_LIMIT_NS = 1_000_000
"""A downtime limit below this is told as if it were this: no guest dirties pages within no time."""
SIDES: tuple[Side, ...] = ("likely", "low", "high")


@dataclass(frozen=True)
class Guest:
    """What is known of the guest: of its `ram_pages` those that have memory behind them, of those the zero
    ones, how it dirties them, and its connections. `exact` is its tracker's."""

    ram_pages: int
    touched_pages: int
    zero_pages: int
    curve: DirtyCurve
    connections: int = 0
    exact: bool = True


@dataclass(frozen=True)
class Way:
    """How it is to move. `wire_bytes_per_s` of page data, None where the wire has no rate of its own;
    `cap_bytes_per_s` holds for rounds only; `storage_bytes_per_s` is the way of a Quick Migration, there and
    back."""

    mode: Mode = "live"
    policy: Policy = field(default_factory=Policy)
    wire_bytes_per_s: float | None = None
    cap_bytes_per_s: float | None = None
    storage_bytes_per_s: float | None = None


@dataclass(frozen=True)
class Course:
    """One reckoned migration. `verdict` is None where there are no rounds to judge; where it is to give up,
    nothing is moved and there is no blackout."""

    rounds: tuple[RoundStatistics, ...]
    verdict: Verdict | None
    final_pages: int
    transferred_bytes: int
    total_ns: float
    blackout_ns: float

    @property
    def gives_up(self) -> bool:
        return self.verdict is not None and self.verdict.decision is Decision.GIVE_UP


@dataclass(frozen=True)
class Prediction:
    """`rounds` counts those of pre-copy, the last one after the decision included. `course` is the likely
    one. `converges` is None where there is no pre-copy that could."""

    rounds: Span
    transferred_bytes: Span
    total_ns: Span
    blackout_ns: Span
    course: Course
    converges: bool | None
    sentence: str


def predict(guest: Guest, way: Way, overheads: Overheads) -> Prediction:
    """Reckon the migration of `guest` on its `way`."""
    courses = [_course(_Conditions.of(guest, way, overheads, side)) for side in SIDES]
    likely = courses[0]
    converges = None if likely.verdict is None else _reaches_the_limit(likely, way.policy)
    return Prediction(
        rounds=Span.around([len(one.rounds) for one in courses]),
        transferred_bytes=Span.around([one.transferred_bytes for one in courses]),
        total_ns=Span.around([one.total_ns for one in courses]),
        blackout_ns=Span.around([one.blackout_ns for one in courses]),
        course=likely,
        converges=converges,
        sentence=_sentence(likely, converges, guest, way),
    )


def bounds(guest: Guest, policy: Policy) -> tuple[int, int]:
    """The least and the most bytes of page data that any pre-copy of the guest moves, whatever it dirties:
    all that holds data once, and at most all of RAM in each round that there can be, in the one after the
    decision and in the last, with the guest paused (Akoush et al. 2010, section III, with our stop
    conditions)."""
    return (guest.touched_pages - guest.zero_pages) * PAGE, guest.ram_pages * PAGE * (policy.max_rounds + 2)


@dataclass(frozen=True)
class _Conditions:
    """All that a course is reckoned with, each uncertain figure at the value of one side."""

    guest: Guest
    way: Way
    side: Side
    wire: float
    rounds_wire: float
    storage: float
    round_ns: float
    gap_ns: float
    digest_ns: float
    zero_ns: float
    pause_ns: float
    before_ns: float
    after_ns: float
    blackout_ns: float

    @classmethod
    def of(cls, guest: Guest, way: Way, overheads: Overheads, side: Side) -> _Conditions:
        """A side that is high has slow wires and long ways."""
        slow: Side = side
        fast: Side = {"low": "high", "high": "low", "likely": "likely"}[side]  # type: ignore[assignment]
        own = overheads.bandwidth_bytes_per_s.at(fast)
        wire = min(own, way.wire_bytes_per_s or own)
        return cls(
            guest, way, side,
            wire=wire,
            rounds_wire=min(wire, way.cap_bytes_per_s or wire),
            storage=min(own, way.storage_bytes_per_s or own),
            round_ns=overheads.round_ns.at(slow),
            gap_ns=overheads.gap_ns.at(slow),
            digest_ns=overheads.digest_page_ns.at(slow),
            zero_ns=overheads.zero_page_ns.at(slow),
            pause_ns=overheads.pause_ns.at(slow),
            before_ns=overheads.before_ns.at(slow) + overheads.before_page_ns.at(slow) * guest.ram_pages,
            after_ns=overheads.after_ns.at(slow) + overheads.after_page_ns.at(slow) * guest.touched_pages,
            blackout_ns=overheads.blackout_ns.at(slow)
            + overheads.blackout_connection_ns.at(slow) * guest.connections,
        )  # fmt: skip

    def dirtied(self, interval_ns: float) -> int:
        return round(self.guest.curve.pages(interval_ns, self.side))


def _course(has: _Conditions) -> Course:
    if has.way.mode == "live":
        return _live(has)
    return _stopped(has) if has.way.mode == "stop-and-copy" else _quick(has)


def _live(has: _Conditions) -> Course:
    """Rounds until the strategy decides, one more after all was digested, then what is left (the order is
    Source.run's, in testbed.migration.source).

    What the guest dirtied is collected at each round's end. So what a round sends was dirtied in the one
    before and in the gap behind that, and what the last round leaves grows until the pause.
    """
    guest, policy = has.guest, has.way.policy
    rounds: list[RoundStatistics] = []
    pages, zeros = guest.touched_pages, guest.zero_pages
    target_busy_ns = spent_ns = 0.0
    look_ns = has.gap_ns + (0 if guest.exact else guest.touched_pages * has.digest_ns)
    while True:
        done, data_ns = _round(has, len(rounds) + 1, pages, zeros, target_busy_ns, look_ns)
        rounds.append(done)
        spent_ns += data_ns + look_ns
        # The target digests a round while the next one is prepared and sent, and answers that one after.
        target_busy_ns = max(pages * has.digest_ns - look_ns, 0)
        verdict = decide(rounds, policy)
        pages, zeros = done.dirty_pages, 0
        if verdict.decision is not Decision.CONTINUE:
            break
    sent = sum(one.bytes for one in rounds)
    if verdict.decision is Decision.GIVE_UP:
        return Course(tuple(rounds), verdict, 0, sent, has.before_ns + spent_ns, 0.0)
    digest_ns = guest.touched_pages * has.digest_ns if guest.exact else 0.0
    settled_pages = has.dirtied(rounds[-1].duration_ns + look_ns + digest_ns)
    last, data_ns = _round(has, len(rounds) + 1, settled_pages, 0, 0.0, look_ns)
    final_pages = has.dirtied(data_ns + look_ns + has.pause_ns)
    blackout_ns = _blackout_ns(has, final_pages)
    before_ns = has.before_ns + spent_ns + digest_ns + data_ns + look_ns + has.pause_ns
    return Course(
        (*rounds, last),
        verdict,
        final_pages,
        sent + last.bytes + _bytes(final_pages) + guest.connections * CONNECTION_BYTES,
        before_ns + blackout_ns + has.after_ns,
        blackout_ns,
    )


def _round(
    has: _Conditions, number: int, pages: int, zeros: int, busy_ns: float, look_ns: float
) -> tuple[RoundStatistics, float]:
    """A round, and how long it takes (ns)."""
    sent = _bytes(pages - zeros, apart=number > 1)
    copied_ns = 0 if has.guest.exact else pages * has.digest_ns
    moving_ns = sent * 1e9 / has.rounds_wire
    duration_ns = max(moving_ns, busy_ns) + has.round_ns + zeros * has.zero_ns + copied_ns
    dirty = has.dirtied(duration_ns + (look_ns if number > 1 else 0))
    return RoundStatistics(number, pages, zeros, sent, max(round(duration_ns), 1), dirty), duration_ns


def _bytes(pages: int, *, apart: bool = True) -> int:
    return pages * (PAGE + (RUN_BYTES if apart else 0))


def _blackout_ns(has: _Conditions, pages: int) -> float:
    look_ns = 0 if has.guest.exact else has.guest.touched_pages * has.digest_ns
    return has.blackout_ns + _bytes(pages) * 1e9 / has.wire + pages * has.digest_ns + look_ns


def _stopped(has: _Conditions) -> Course:
    """All of it while the guest is paused: sent, digested, and found to be zero."""
    guest = has.guest
    data = guest.touched_pages - guest.zero_pages
    blackout_ns = has.blackout_ns + _bytes(data, apart=False) * 1e9 / has.wire
    blackout_ns += guest.touched_pages * has.digest_ns + guest.zero_pages * has.zero_ns
    total_ns = has.before_ns + has.pause_ns + blackout_ns + has.after_ns
    sent = _bytes(data, apart=False) + guest.connections * CONNECTION_BYTES
    return Course((), None, guest.touched_pages, sent, total_ns, blackout_ns)


def _quick(has: _Conditions) -> Course:
    """All of RAM, touched or not, to a file on shared storage and back."""
    pages = has.guest.ram_pages
    blackout_ns = has.blackout_ns + 2 * pages * PAGE * 1e9 / has.storage + pages * has.digest_ns
    total_ns = has.before_ns + has.pause_ns + blackout_ns + has.after_ns
    return Course((), None, pages, pages * PAGE, total_ns, blackout_ns)


def _reaches_the_limit(course: Course, policy: Policy) -> bool:
    assert course.verdict is not None
    return course.verdict.expected_ns <= policy.downtime_limit_ns


def _sentence(course: Course, converges: bool | None, guest: Guest, way: Way) -> str:
    """One line for a person: what to expect.

    Rounds shrink while a round's time is not enough to dirty what a round moves. Where they come to rest
    above the limit, the guest dirties more within the limit than the wire moves within it, for its curve is
    concave: that is the rate that is told.
    """
    blackout = f"a blackout of {course.blackout_ns / 1e6:,.3g} ms"
    if converges is None:
        return f"no pre-copy: {blackout}"
    if converges:
        return f"will converge: {len(course.rounds)} rounds, then {blackout}"
    last = course.rounds[-1] if course.gives_up else course.rounds[-2]
    limit_ns = max(way.policy.downtime_limit_ns, SHORTEST_LIMIT_NS)
    dirties = guest.curve.pages(limit_ns) * 1e9 / limit_ns
    moves = last.pages * 1e9 / last.duration_ns
    why = f"dirties {dirties:,.0f} pages/s, the wire moves {moves:,.0f}"
    end = "gives up" if course.gives_up else f"switches anyway, with {blackout}"
    if dirties <= moves:
        return f"{way.policy.max_rounds} rounds are too few to converge: {why}; it {end}"
    return f"will not converge: {why}; after {way.policy.max_rounds} rounds it {end}"


def error_ratio(predicted: float, measured: float | None) -> float | None:
    """How far the prediction is off, as a share of what was measured: 0.1 is 10 % too much. None where there
    is nothing to hold it against."""
    return None if not measured else predicted / measured - 1
