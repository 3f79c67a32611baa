"""From what a conditioned link tells to its entry in the result. Pure."""

from __future__ import annotations

from netns.conditions import Conditions
from netns.link_figures import DirectionFigures, LinkFigures
from netns.sounding import Sounded, Sounding
from testbed.measure import result as model


def link(
    name: str, figures: LinkFigures, sounding: Sounding | None = None, sounded: LinkFigures | None = None
) -> model.LinkFigures:
    """The entry of the link `name`: `figures` as :meth:`netns.impairment.ConditionedLink.figures` gives them
    at the end of a run, `sounding` as :meth:`~netns.impairment.ConditionedLink.sound` gave it before,
    and `sounded` the figures of that moment: what was measured then is held against what was asked then.
    """
    then = figures if sounded is None else sounded
    forward = _direction(figures.forward, None if sounding is None else sounding.forward, then.forward)
    backward = _direction(figures.backward, None if sounding is None else sounding.backward, then.backward)
    return model.LinkFigures(
        name=name,
        backend=figures.backend,
        why=figures.why,
        asked_round_trip_ms=_asked_ms((then.forward, then.backward)),
        round_trip_ms=None if sounding is None else _ms(sounding.round_trip_p50_ns),
        forward=forward,
        backward=backward,
    )


def _asked_ms(directions: tuple[DirectionFigures, DirectionFigures]) -> float:
    return sum(one.asked.delay_ns for one in directions) / 1e6


def _direction(
    told: DirectionFigures, measured: Sounded | None, then: DirectionFigures
) -> model.LinkDirection:
    return model.LinkDirection(
        asked=_asked(told.asked),
        measured=None if measured is None else _measured(measured, then.asked),
        wire_frames=told.wire_frames,
        received_frames=told.received_frames,
        passed_frames=told.passed_frames,
        passed_bytes=told.passed_bytes,
        lost=told.lost,
        announcements_lost=told.announcements_lost,
        queue_dropped=told.queue_dropped,
        overrun=told.overrun,
        duplicated=told.duplicated,
        reordered=told.reordered,
        delay_p50_ms=_ms(told.delay_p50_ns),
        delay_p99_ms=_ms(told.delay_p99_ns),
        late_p50_ms=_ms(told.late_p50_ns),
        late_p99_ms=_ms(told.late_p99_ns),
        loss=told.loss,
        throughput_mbit=_mbit(told.throughput_bits_per_s),
    )


def _asked(conditions: Conditions) -> model.LinkConditions:
    return model.LinkConditions(
        rate_mbit=_mbit(conditions.rate_bits_per_s),
        delay_ms=conditions.delay_ns / 1e6,
        jitter_ms=conditions.jitter_ns / 1e6,
        distribution=conditions.distribution,
        loss=conditions.loss,
        duplicate=conditions.duplication,
        reorder=conditions.reordering,
        queue_frames=conditions.queue_frames,
        queue_bytes=conditions.queue_bytes,
        lost_announcements=conditions.lost_announcements,
    )


def _measured(sounded: Sounded, asked: Conditions) -> model.LinkSounding:
    return model.LinkSounding(
        asked=_asked(asked),
        sent=sounded.sent,
        arrived=sounded.arrived,
        delay_p50_ms=_ms(sounded.delay_p50_ns),
        delay_p99_ms=_ms(sounded.delay_p99_ns),
        loss=sounded.loss,
        throughput_mbit=_mbit(sounded.throughput_bits_per_s),
    )


def _ms(time_ns: int | None) -> float | None:
    return None if time_ns is None else round(time_ns / 1e6, 6)


def _mbit(bits_per_s: float | None) -> float | None:
    return None if bits_per_s is None else bits_per_s / 1e6
