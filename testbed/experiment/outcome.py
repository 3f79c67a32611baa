"""From what agents, clients and events tell to the result. Pure: values in, a :class:`Result` out."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from testbed.experiment import tables
from testbed.experiment.foresight import Foretold
from testbed.measure import result as model
from testbed.migration.phases import Phase

Event = dict[str, Any]

PARTS = {
    "cut": "cut off",
    "pages-sent": "last pages",
    "devices-sent": "freeze",
    "devices-loaded": "thaw",
    "verified": "verify",
    "committed": "commit",
    "claimed": "claim",
    "frames-released": "release",
    "resumed": "resume",
}
"""The marks that part the blackout, in their order, and what the time up to each of them was spent on."""


QUICK_PARTS = {
    "cut": "cut off",
    "pages-sent": "to the LUN",
    "devices-sent": "freeze",
    "state-saved": "flush",
    "dismounted": "dismount",
    "mounted": "mount",
    "pages-received": "from the LUN",
    **{mark: part for mark, part in PARTS.items() if mark not in ("cut", "pages-sent", "devices-sent")},
}
"""The same of a Quick Migration."""


@dataclass(frozen=True)
class Told:
    """All that is known of one migration: who moved whither, when it was ordered and over (CLOCK_MONOTONIC,
    ns), what both agents answered, and the events in between. `sightings` and `relearned_ns` are what clients
    and switch saw. `vm` is the guest; events of others are not its. `owner` is the host on which the guest
    ran afterwards, None where it did not. `fault` was made on purpose. `foretold` was said before.
    """

    source: str
    target: str
    ordered_ns: int
    ended_ns: int
    source_answer: Mapping[str, Any]
    target_answer: Mapping[str, Any]
    events: Sequence[Event]
    sightings: int
    relearned_ns: int | None
    owner: str | None = None
    fault: str | None = None
    vm: str = "vm1"
    mode: str = "live"
    foretold: Foretold | None = None

    @property
    def own_events(self) -> list[Event]:
        """Those that are not another guest's: with one guest in a lab they do not name it."""
        return [event for event in self.events if event.get("vm", self.vm) == self.vm]


def migration(
    told: Told, ram_bytes: int, gap_ms: model.Gap, first_ordered_ns: int | None = None
) -> model.Migration:
    """One migration's entry in the result; `gap_ms` is what the guest's clients waited during it, and
    `first_ordered_ns` when the first migration of the run was ordered."""
    events = told.own_events
    marks = {event["name"]: event["t_ns"] for event in events if event["event"] == "mark"}
    answer = told.source_answer
    outcome = _outcome(told)
    paused_ns, resumed_ns = marks.get("paused"), marks.get("resumed")
    blackout_ns = None
    if paused_ns is not None and outcome == "completed" and resumed_ns is not None:
        blackout_ns = resumed_ns - paused_ns
    elif paused_ns is not None and "running-again" in marks:
        blackout_ns = marks["running-again"] - paused_ns
    rounds = [_round(one) for one in events if one["event"] == "round"]
    heard, first = answer.get("last_heard_ns"), told.target_answer.get("first_heard_ns")
    relearned = None
    if told.relearned_ns is not None and paused_ns is not None:
        relearned = (told.relearned_ns - paused_ns) / 1e6
    return model.Migration(
        outcome=outcome,
        reason=_reason(told),
        source=told.source,
        target=told.target,
        owner=told.owner,
        deleted=outcome == "completed" and not answer.get("left_behind"),
        fault=told.fault,
        total_ms=_ms(told.ended_ns - told.ordered_ns),
        blackout_ms=None if blackout_ns is None else _ms(blackout_ns),
        blackout_parts_ms=blackout_parts(marks) if outcome == "completed" else {},
        network_gap_ms=None if heard is None or first is None else _ms(first - heard),
        rounds=rounds,
        decision=answer.get("decision"),
        ram=model.Ram(
            bytes=ram_bytes,
            transferred_bytes=answer.get("transferred_bytes", sum(one.bytes for one in rounds)),
            final_pages=answer.get("final_pages", 0),
            verified=bool(answer.get("audited", "error" in answer and "verified" in marks)),
        ),
        network=_network(told, relearned),
        gap_ms=gap_ms,
        phases_ms=_phases(events),
        tables=[] if paused_ns is None else tables.changes(events, paused_ns),
        vm=told.vm,
        mode=told.mode,
        begun_ms=_ms(told.ordered_ns - (first_ordered_ns or told.ordered_ns)),
    )


def _outcome(told: Told) -> model.Outcome:
    """Where the guest runs afterwards says it, whatever either side could tell of it."""
    if told.owner is None:
        return "failed"
    return "completed" if told.owner == told.target else "rolled-back"


def _reason(told: Told) -> str | None:
    answers = {told.source: told.source_answer, told.target: told.target_answer}
    reasons = [f"{host}: {one['error']}" for host, one in answers.items() if "error" in one]
    if left_behind := told.source_answer.get("left_behind"):
        reasons.append(f"{told.source}: its copy is not wholly removed: {left_behind}")
    if told.owner is None:
        reasons.append("the guest does not run any more")
    return "; ".join(reasons) or None


def blackout_parts(marks: Mapping[str, int]) -> dict[str, float]:
    """The blackout cut at its marks (ns), in ms. The parts add up to the whole, for each begins where the
    last ended.

    A mark that came before the one in front of it (both hosts work at once) leaves a part of zero; so does
    one that came after the guest had resumed (the source sends its commit, and then waits for a processor).
    """
    cuts: list[tuple[str, int]] = [("paused", marks["paused"])]
    parts = QUICK_PARTS if "state-saved" in marks else PARTS
    for mark in parts:
        if mark in marks:
            cuts.append((mark, max(min(marks[mark], marks["resumed"]), cuts[-1][1])))
    return {parts[name]: _ms(end - begin) for (_, begin), (name, end) in pairwise(cuts)}


def _round(event: Event) -> model.Round:
    return model.Round(
        number=event["number"],
        pages=event["pages"],
        zero_pages=event["zero_pages"],
        bytes=event["bytes"],
        duration_ms=_ms(event["duration_ns"]),
        rate_mbit=round(event["bytes"] * 8e3 / max(event["duration_ns"], 1), 3),
        dirty_pages=event["dirty_pages"],
    )


def _network(told: Told, relearned_ms: float | None) -> model.Network:
    counts = [one.get("counts") or {} for one in (told.source_answer, told.target_answer)]

    def both(name: str) -> int:
        return sum(count.get(name, 0) for count in counts)

    return model.Network(
        announcements_sent=both("announcements_sent"),
        announcements_seen=told.sightings,
        frames_held=both("frames_held"),
        frames_released=both("frames_released"),
        frames_dropped=both("frames_dropped"),
        switch_relearned_ms=None if relearned_ms is None else round(relearned_ms, 3),
    )


def summed(networks: Sequence[model.Network], worst: model.Network | None) -> model.Network:
    """The counts of several migrations together; when the switch relearned is that of `worst`, None without a
    migration."""
    names = [name for name in model.Network.model_fields if name != "switch_relearned_ms"]
    counts = {name: sum(getattr(one, name) for one in networks) for name in names}
    return model.Network(**counts, switch_relearned_ms=worst.switch_relearned_ms if worst else None)


def _phases(events: Sequence[Event]) -> dict[str, float]:
    """How long each phase took, from the first process that began it to the last that ended it."""
    phases: dict[str, float] = {}
    for phase in Phase:
        times = [event["t_ns"] for event in events if event.get("phase") == phase.value]
        if times:
            phases[phase.value] = _ms(max(times) - min(times))
    return phases


def clients(summaries: Mapping[str, Mapping[str, Any]], vm_of: Mapping[str, str]) -> model.Clients:
    """All clients' figures; `gap_ms` of the waits during migrations, `baseline_gap_ms` of the quiet rest.
    `vm_of` says whose an address is."""
    probes = [(name, probe) for name, summary in summaries.items() for probe in summary["probes"]]
    each = [row for name, probe in probes for row in _rows(name, probe, vm_of)]

    def total(key: str) -> int:
        return sum(int(probe.get(key) or 0) for _, probe in probes)

    return model.Clients(
        connections=sum(int(probe.get("connections") or 0) for _, probe in probes),
        requests=total("requests"),
        broken=total("broken"),
        resets=total("resets"),
        failed_connects=total("failed_connects"),
        bytes_lost=total("bytes_lost"),
        bytes_duplicated=total("bytes_duplicated"),
        bytes_corrupted=total("bytes_corrupted"),
        retransmits=total("retransmits"),
        retransmits_needless=total("retransmits_needless"),
        acknowledged=total("acknowledged"),
        writes_lost=total("writes_lost"),
        writes_phantom=total("writes_phantom"),
        ledgers_unsettled=total("unsettled"),
        packets_lost=total("lost"),
        packets_duplicated=total("duplicated"),
        packets_reordered=total("reordered"),
        gap_ms=gap(row.longest_wait_ms for row in each),
        baseline_gap_ms=gap(row.baseline_wait_ms for row in each),
        each=each,
    )


def gap(waits_ms: Iterable[float | None]) -> model.Gap:
    """The distribution over connections of the longest wait of each: nearest-rank p50 and p99, and the
    longest (ms)."""
    known = sorted(wait for wait in waits_ms if wait is not None)
    if not known:
        return model.Gap(p50=None, p99=None, max=None)
    p50, p99 = (known[math.ceil(share * len(known)) - 1] for share in (0.5, 0.99))
    return model.Gap(p50=p50, p99=p99, max=known[-1])


def gap_during(
    summaries: Mapping[str, Mapping[str, Any]], window: int, addresses: Collection[str]
) -> model.Gap:
    """What connections to `addresses` (a guest's) waited in window number `window` (from 0)."""
    waits: list[float | None] = []
    for summary in summaries.values():
        for probe in summary["probes"]:
            if probe["address"] not in addresses:
                continue
            members = probe.get("per_connection")
            found = [one["during_ns"] for one in members] if members else [_maxima(probe["during"])]
            waits += [_optional_ms(of_member[window]) for of_member in found]
    return gap(waits)


def _rows(client: str, probe: Mapping[str, Any], vm_of: Mapping[str, str]) -> list[model.Connection]:
    """One row a connection; churn, whose connections live for a request, has one for all of them."""
    kind = probe["kind"]
    members = probe.get("per_connection") or [None]
    return [
        model.Connection(
            client=client,
            probe=kind,
            address=probe["address"],
            requests=int((member or probe)["requests"]),
            longest_wait_ms=_longest(member["during_ns"] if member else _maxima(probe["during"])),
            longest_wait_at_ms=None if member is None else _optional_ms(member["longest_at_ns"]),
            baseline_wait_ms=_longest(member["quiet_ns"] if member else _maxima(probe["quiet"])),
            retransmits=int((member or probe).get("retransmits") or 0),
            broken=None if member is None else member.get("broken"),
            vm=vm_of[probe["address"]],
            asked_late_ms=_ms(probe["latest_ns"]),
            **_known(member if member is not None else probe),
        )
        for member in members
    ]


def _known(member: Mapping[str, Any]) -> dict[str, Any]:
    """What only some kinds of probe know of a connection."""
    known: dict[str, Any] = {name: member.get(name) for name in ("lost", "duplicated", "reordered")}
    known["statuses"] = member.get("statuses")
    known["round_trip_ms"] = _spread(member.get("round_trip"))
    ways = member.get("one_way") or {}
    known |= {f"one_way_{way}_ms": _spread(ways.get(way)) for way in ("there", "back")}
    if (rate := member.get("rate_mbit")) is not None:
        known["rate_mbit"] = model.Rate(**rate)
        known["stalled_ms"] = _optional_ms(member["stalled_ns"])
    return known


def _spread(delays: Mapping[str, int] | None) -> model.Gap | None:
    if delays is None:
        return None
    return model.Gap(p50=_ms(delays["p50_ns"]), p99=_ms(delays["p99_ns"]), max=_ms(delays["max_ns"]))


def _maxima(parts: Sequence[Mapping[str, Any]]) -> list[int | None]:
    return [part["longest_ns"] for part in parts]


def _longest(waits_ns: Sequence[int | None]) -> float | None:
    known = [wait for wait in waits_ns if wait is not None]
    return _ms(max(known)) if known else None


def _optional_ms(time_ns: int | None) -> float | None:
    return None if time_ns is None else _ms(time_ns)


def _ms(duration_ns: float) -> float:
    return round(duration_ns / 1e6, 3)
