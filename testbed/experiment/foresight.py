"""A guest's migrations foretold, and held against what became of them. Pure.

From what the guest's host saw of it while it ran, or, where that is not to be had, from the load that the
scenario asks for.
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
from testbed.scenario.model import Manner, Scenario
from testbed.scenario.parts import Vm

FRAME_HEADERS_BYTES, SEGMENT_HEADERS_BYTES = 14, 52
"""Ethernet, which a token bucket counts too; IPv4 and TCP with timestamps, which the MTU counts."""
GOODPUT = (MIGRATION_MTU - SEGMENT_HEADERS_BYTES) / (MIGRATION_MTU + FRAME_HEADERS_BYTES)
"""The share of a wire's rate that is page data."""
NOT_WATCHED = "the guest was not watched"


@dataclass(frozen=True)
class Foretold:
    """What is to come of one migration. `why` says why the guest's writes were not sampled, None where they
    were."""

    prediction: Prediction
    curve: DirtyCurve
    why: str | None

    @property
    def doubt(self) -> str | None:
        """What a person is to know before it begins: that it will not converge. None where it will."""
        return self.prediction.sentence if self.prediction.converges is False else None

    def beside(self, measured: model.Migration) -> model.Migration:
        """The migration with what was foretold of it, and by how much that was wrong if it completed."""
        error = _errors(self.prediction, measured) if measured.outcome == "completed" else None
        return measured.model_copy(update={"predicted": self.told(error)})

    def told(self, error: model.Errors | None = None) -> model.Predicted:
        """As a result carries it."""
        made = self.prediction
        return model.Predicted(
            basis="sampled" if self.why is None else "options",
            why=self.why,
            rounds=_span(made.rounds),
            transferred_bytes=_span(made.transferred_bytes),
            total_ms=_span(made.total_ns, 1e6),
            blackout_ms=_span(made.blackout_ns, 1e6),
            converges=made.converges,
            sentence=made.sentence,
            dirty_pages=[(round(ns / 1e6, 3), round(pages, 1)) for ns, pages in self.curve.points],
            error=error,
        )


@dataclass(frozen=True)
class Foresight:
    """Of one guest. `guest` is what it is before its first migration."""

    scenario: Scenario
    guest: Guest
    overheads: Overheads
    why: str | None

    @classmethod
    def of(
        cls, scenario: Scenario, vm: Vm, watched: Mapping[str, Any] | None, overheads: Overheads
    ) -> Foresight:
        """`watched` is what :func:`testbed.host.watching.watch` tells; None where nobody asked."""
        asked_for = _asked_for(scenario, vm, overheads)
        if watched is None:
            return cls(scenario, asked_for, overheads, NOT_WATCHED)
        curve = asked_for.curve
        if watched["refused"] is None:
            samples = [(ns, pages) for ns, pages in watched["samples"]]
            curve = DirtyCurve.measured(samples, asked_for.ram_pages, in_use=watched["touched_pages"])
        guest = replace(
            asked_for,
            touched_pages=watched["touched_pages"],
            zero_pages=watched["zero_pages"],
            curve=curve,
            exact=watched["exact"],
        )
        return cls(scenario, guest, overheads, watched["refused"])

    def foretold(self, before: int, manner: Manner) -> Foretold:
        """Of the migration that has so many `before` it. A guest that has moved has all of its RAM touched:
        the target puts memory behind every page, and what was never written is zero there.
        """
        guest = self.guest
        if before:
            data = guest.touched_pages - guest.zero_pages
            guest = replace(guest, touched_pages=guest.ram_pages, zero_pages=guest.ram_pages - data)
        prediction = predict(guest, way(self.scenario, manner), self.overheads)
        return Foretold(prediction, guest.curve, self.why)


def way(scenario: Scenario, manner: Manner) -> Way:
    """How a guest moves that has the wire for itself."""
    rates = [scenario.network.bandwidth_bits_per_s if scenario.own_wire else None]
    rates += [link.rate_bits_per_s for link in scenario.links if link.name.endswith("migration")]
    known = [rate for rate in rates if rate is not None]
    storage, cap = scenario.storage.rate_bits_per_s, manner.max_bandwidth_bits_per_s
    return Way(
        mode=manner.mode,
        policy=manner.policy,
        wire_bytes_per_s=min(known) / 8 * GOODPUT if known else None,
        cap_bytes_per_s=None if cap is None else cap / 8,
        storage_bytes_per_s=None if storage is None else storage / 8 * GOODPUT,
    )


def _asked_for(scenario: Scenario, vm: Vm, overheads: Overheads) -> Guest:
    """The guest that the scenario asks for, freshly booted: its fill and its load."""
    pages = vm.ram_bytes // PAGE_BYTES
    rate, working_set = vm.load.dirty_rate_pages_per_s, vm.load.working_set_bytes // PAGE_BYTES
    curve = DirtyCurve.of_load(rate, working_set, vm.load.pattern, pages)
    touched = min(max(int(pages * vm.fill), working_set if rate else 0), pages)
    return Guest(
        ram_pages=pages,
        touched_pages=max(touched, 1),
        zero_pages=0,
        curve=curve.besides(round(overheads.program_pages.likely)),
        connections=_connections(scenario, vm),
        exact=vm.tracker != "digest",
    )


def _connections(scenario: Scenario, vm: Vm) -> int:
    """Those that its clients keep open; what is opened and closed all the time is not foreseen."""
    probes = [probe for client in scenario.clients for probe in client.probes]
    asking = [probe for probe in probes if scenario.asked(probe).name == vm.name and probe.kind != "churn"]
    return sum(int(probe.of_its_kind().get("connections", 1)) for probe in asking)


def _span(span: Span, unit: float = 1.0) -> model.Span:
    low, likely, high = (round(value / unit, 3) for value in (span.low, span.likely, span.high))
    return model.Span(low=low, likely=likely, high=high)


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
