"""A run's migrations foretold, and held against what became of them. Pure.

From what the guest's host saw of it while it ran, or, where that is not to be had, from the options alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from testbed.lab.plan import MIGRATION_MTU
from testbed.measure import result as model
from testbed.memory.dirty_curve import DirtyCurve
from testbed.memory.pages import PAGE_BYTES
from testbed.migration.overheads import Overheads
from testbed.migration.prediction import Guest, Prediction, Way, error_ratio, predict
from testbed.migration.spans import Span
from testbed.scenario.options import Options

FRAME_HEADERS_BYTES, SEGMENT_HEADERS_BYTES = 14, 52
"""Ethernet, which a token bucket counts too; IPv4 and TCP with timestamps, which the MTU counts."""
GOODPUT = (MIGRATION_MTU - SEGMENT_HEADERS_BYTES) / (MIGRATION_MTU + FRAME_HEADERS_BYTES)
"""The share of a wire's rate that is page data."""


@dataclass(frozen=True)
class Foresight:
    """`guest` is the one of the first migration; `why` says why its writes were not sampled, None where they
    were."""

    options: Options
    guest: Guest
    overheads: Overheads
    why: str | None

    @classmethod
    def of(cls, options: Options, watched: Mapping[str, Any] | None, overheads: Overheads) -> Foresight:
        """`watched` is what :func:`testbed.host.watching.watch` tells; None where nobody asked."""
        if watched is None:
            return cls(options, _asked_for(options, overheads), overheads, "the guest was not watched")
        most = options.ram_bytes // PAGE_BYTES
        samples = [(ns, pages) for ns, pages in watched["samples"]]
        curve = DirtyCurve.measured(samples, most, in_use=watched["touched_pages"])
        if watched["refused"] is not None:
            curve = _asked_for(options, overheads).curve
        guest = Guest(
            ram_pages=most,
            touched_pages=watched["touched_pages"],
            zero_pages=watched["zero_pages"],
            curve=curve,
            connections=_connections(options),
            exact=watched["exact"],
        )
        return cls(options, guest, overheads, watched["refused"])

    def prediction(self, number: int = 0) -> Prediction:
        """Of the migration of this number, from 0. A guest that has moved has all of its RAM touched: the
        target puts memory behind every page, and what was never written is zero there.
        """
        guest = self.guest
        if number:
            data = guest.touched_pages - guest.zero_pages
            guest = replace(guest, touched_pages=guest.ram_pages, zero_pages=guest.ram_pages - data)
        return predict(guest, way(self.options), self.overheads)

    @property
    def doubt(self) -> str | None:
        """What a person is to know before it begins: that it will not converge. None where it will."""
        made = self.prediction()
        return made.sentence if made.converges is False else None

    def beside(self, number: int, measured: model.Migration) -> model.Migration:
        """The migration of that number with what was foretold of it, and by how much that was wrong."""
        made = self.prediction(number)
        error = _errors(made, measured) if measured.outcome == "completed" else None
        return measured.model_copy(update={"predicted": self.told(made, error)})

    def told(self, made: Prediction, error: model.Errors | None = None) -> model.Predicted:
        """A prediction as a result carries it."""
        return model.Predicted(
            basis="sampled" if self.why is None else "options",
            why=self.why,
            rounds=_span(made.rounds),
            transferred_bytes=_span(made.transferred_bytes),
            total_ms=_span(made.total_ns, 1e6),
            blackout_ms=_span(made.blackout_ns, 1e6),
            converges=made.converges,
            sentence=made.sentence,
            dirty_pages=[(round(ns / 1e6, 3), round(pages, 1)) for ns, pages in self.guest.curve.points],
            error=error,
        )


def way(options: Options) -> Way:
    """How the options ask the guest to move."""
    wire, storage = options.bandwidth_bits_per_s, options.storage_rate_bits_per_s
    cap = options.max_bandwidth_bits_per_s
    return Way(
        mode=options.mode,
        policy=options.policy,
        wire_bytes_per_s=None if wire is None else wire / 8 * GOODPUT,
        cap_bytes_per_s=None if cap is None else cap / 8,
        storage_bytes_per_s=None if storage is None else storage / 8 * GOODPUT,
    )


def _asked_for(options: Options, overheads: Overheads) -> Guest:
    """The guest that the options ask for, freshly booted: its fill and its load."""
    pages = options.ram_bytes // PAGE_BYTES
    rate, working_set = options.dirty_rate_pages_per_s, options.working_set_bytes // PAGE_BYTES
    curve = DirtyCurve.of_load(rate, working_set, options.pattern, pages)
    touched = min(max(int(pages * options.fill), working_set if rate else 0), pages)
    return Guest(
        ram_pages=pages,
        touched_pages=max(touched, 1),
        zero_pages=0,
        curve=curve.besides(round(overheads.program_pages.likely)),
        connections=_connections(options),
        exact=options.tracker != "digest",
    )


def _connections(options: Options) -> int:
    streams = options.clients if options.program == "echo" and options.stream_rate_per_s else 0
    return options.connections + streams


def _span(span: Span, unit: float = 1.0) -> model.Span:
    return model.Span(
        low=round(span.low / unit, 3), likely=round(span.likely / unit, 3), high=round(span.high / unit, 3)
    )


def _errors(made: Prediction, measured: model.Migration) -> model.Errors:
    def of(predicted: float, found: float | None) -> float | None:
        ratio = error_ratio(predicted, found)
        return None if ratio is None else round(ratio, 4)

    return model.Errors(
        rounds=round(made.rounds.likely) - len(measured.rounds),
        transferred_bytes=of(made.transferred_bytes.likely, measured.ram.transferred_bytes),
        total_ms=of(made.total_ns.likely / 1e6, measured.total_ms),
        blackout_ms=of(made.blackout_ns.likely / 1e6, measured.blackout_ms),
    )
