"""One run as the page shows it: sentences, tables, pictures, and the data of what moves. Pure: a run folder
that was read in, a :class:`View` out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from testbed.measure.continuity import Window
from testbed.report.page import charts, dots, packed, story, tables, words
from testbed.report.page.folder import RunFolder
from testbed.report.page.tables import Table
from testbed.scenario.units import format_ms, format_size


@dataclass(frozen=True)
class Figure:
    """One of the figures that matter, large: its name, its value, and what to hold it against."""

    name: str
    value: str
    beside: str
    good: bool | None = None


@dataclass(frozen=True)
class MoveView:
    """One migration's static pictures and tables."""

    label: str
    outcome: str
    reason: str
    blackout: str
    bar: str
    parts: list[tuple[str, str]]
    rounds: Table
    rounds_chart: str
    decision: str
    predicted: Table | None


@dataclass(frozen=True)
class View:
    """All that the page says of one run; `data` is the JSON for its scripts."""

    name: str
    title: str
    subtitle: str
    shows: tuple[str, str]
    verdict: str
    passed: bool | None
    figures: list[Figure]
    missing: list[str]
    moves: list[MoveView]
    strips: str
    clients: Table | None
    network: list[Table]
    checks: list[tuple[bool, str, str]]
    asked: Table | None
    environment: Table | None
    logs: dict[str, str]
    data: str
    summary: dict[str, str] = field(default_factory=dict)


def view(folder: RunFolder, most_dots: int = dots.MOST_DOTS) -> View:
    """What the page says of this run, as far as its folder tells; so many requests one by one."""
    result = folder.result
    told = [one for one in (result or {}).get("migrations") or [] if isinstance(one, dict)]
    moves = story.moves(folder.events.story, told)
    requests = dots.gather(folder.samples, _kinds(folder))
    clock = _clock(folder, requests)
    data = _data(folder, moves, requests, clock, most_dots)
    text, passed = words.verdict(result)
    scenario = (result or {}).get("scenario") or {}
    return View(
        name=folder.name,
        title=words.title(result, folder.name),
        subtitle=_subtitle(folder),
        shows=(str(scenario.get("shows") or ""), str(scenario.get("expect") or "")),
        verdict=text,
        passed=passed,
        figures=_figures(result),
        missing=folder.missing,
        moves=[_move(move, result or {}) for move in moves],
        strips=charts.wait_strips(_strips(result, requests, moves)),
        clients=tables.clients(result),
        network=tables.network(result),
        checks=[(bool(one.get("passed")), *words.check(one)) for one in (result or {}).get("checks") or []],
        asked=tables.asked(result),
        environment=tables.environment(result),
        logs=folder.logs,
        data=json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        summary=summary(result),
    )


def _clock(folder: RunFolder, requests: dots.Requests) -> packed.Clock:
    begins = [one for one in (folder.events.begin_ns, *requests.begin_ns[:1].tolist()) if one is not None]
    ends = [
        one for one in (folder.events.end_ns, int(requests.end_ns.max(initial=0)) or None) if one is not None
    ]
    return packed.Clock(min(begins, default=0), max(ends, default=1))


def _data(
    folder: RunFolder,
    moves: Sequence[story.Move],
    requests: dots.Requests,
    clock: packed.Clock,
    most_dots: int,
) -> dict[str, Any]:
    blackouts = [(one.pause_ns, one.resume_ns or one.pause_ns) for one in moves if one.pause_ns is not None]
    chosen, rest = dots.sort_out(requests, blackouts, (clock.begin_ns, clock.end_ns), most_dots)
    result = folder.result or {}
    told = packed.moves(moves, folder.events.of("forwarding"), clock)
    return {
        "name": folder.name,
        "span": clock.us(clock.end_ns),
        "unit_us": clock.unit_us,
        "mode": result.get("mode"),
        "normally": words.waits(result.get("clients") or {})[1],
        "topology": topology(folder, moves),
        "moves": told,
        "requests": packed.requests(requests, chosen, rest, clock),
        "flows": packed.flows(folder.samples, clock),
        "others": packed.others(folder.events, clock),
    }


def topology(folder: RunFolder, moves: Sequence[story.Move]) -> dict[str, Any]:
    """Who was there: hosts, clients with the host that they are plugged into (None: the switch), storage."""
    result = folder.result or {}
    scenario, options = result.get("scenario") or {}, result.get("options") or {}
    hosts = scenario.get("hosts") or [host for move in moves for host in (move.source, move.target)]
    named = {one.get("name"): one for one in words.dicts(scenario.get("client"))}
    rows = words.dicts((result.get("clients") or {}).get("each"))
    clients = {*folder.samples, *(str(one.get("client")) for one in rows)}
    on = {name: (named.get(name) or {}).get("on") for name in clients}
    vms = words.dicts(scenario.get("vm"))
    disks = [words.size_of(one.get("disk")) for one in vms] or [int(options.get("disk_bytes") or 0)]
    storage = result.get("mode") == "quick" or any(disks)
    return {
        "hosts": sorted(dict.fromkeys(str(host) for host in hosts)) or ["host-a", "host-b"],
        "clients": [
            [name, host if host in hosts else None] for name, host in sorted(on.items(), key=_natural)
        ],
        "storage": storage,
    }


def _natural(item: tuple[str, Any]) -> tuple[str, int]:
    return dots.natural(item[0])


def _kinds(folder: RunFolder) -> dict[str, list[str]]:
    """The kind of each probe of each client: as its samples tell, else (of an older run) by the result's
    rows, of which each connection has one in the order of probes."""
    return {
        client: [str(one) for one in arrays["kinds"]]
        if "kinds" in arrays
        else _kinds_by_rows(folder, client, arrays)
        for client, arrays in folder.samples.items()
    }


def _kinds_by_rows(folder: RunFolder, client: str, arrays: Mapping[str, Any]) -> list[str]:
    rows = [
        str(one.get("probe"))
        for one in words.dicts(((folder.result or {}).get("clients") or {}).get("each"))
        if one.get("client") == client
    ]
    numbers = arrays.get("probe", np.zeros(1, np.int64))
    kinds = []
    for number in range(int(numbers.max(initial=0)) + 1):
        kind = rows[0] if rows else ""
        connections = np.unique(arrays["connection"][numbers == number])
        del rows[: 1 if kind == "churn" else len(connections)]
        kinds.append(kind)
    return kinds


def _subtitle(folder: RunFolder) -> str:
    result = folder.result or {}
    clients = result.get("clients") or {}
    parts = [str(result.get("started_at") or "")[:16].replace("T", " ")]
    if clients.get("requests"):
        parts.append(
            f"{clients['requests']:,} requests over {clients['connections']:,} connections meanwhile"
        )
    parts.append(folder.name)
    return " · ".join(part for part in parts if part)


def _figures(result: Mapping[str, Any] | None) -> list[Figure]:
    """Blackout, the longest wait against its floor, and what broke or was lost."""
    if result is None:
        return []
    clients = result.get("clients") or {}
    longest, normally = words.waits(clients)
    blackout = result.get("blackout_ms")
    several = len(result.get("migrations") or []) > 1
    of = "the longest of all: " if several else ""
    lost = sum(
        int(clients.get(key) or 0)
        for key in (
            "broken",
            "resets",
            "failed_connects",
            "bytes_lost",
            "bytes_duplicated",
            "bytes_corrupted",
            "writes_lost",
        )
    )
    return [
        Figure("Blackout", "none" if blackout is None else format_ms(blackout), f"{of}the guest stood still"),
        Figure(
            "Longest wait of a client",
            "-" if longest is None else format_ms(longest),
            "without a migration not known"
            if normally is None
            else f"without a migration {format_ms(normally)}",
        ),
        Figure("Broken or lost", f"{lost:,}", "connections, connects, bytes, writes", lost == 0),
    ]


def _move(move: story.Move, result: Mapping[str, Any]) -> MoveView:
    told = move.told
    parts = {str(key): float(value) for key, value in (told.get("blackout_parts_ms") or {}).items()}
    blackout = told.get("blackout_ms")
    pause_ns, resume_ns = move.pause_ns, move.resume_ns
    if blackout is None and pause_ns is not None and resume_ns is not None:
        blackout = (resume_ns - pause_ns) / 1e6
    vm = f"{move.vm}: " if move.vm else ""
    decisions = [
        str(one.get("reason")) for one in move.events if one["event"] == "round" and one.get("reason")
    ]
    return MoveView(
        label=f"{vm}{move.source} → {move.target}",
        outcome=move.outcome,
        reason=str(told.get("reason") or ""),
        blackout="" if blackout is None else format_ms(blackout),
        bar=charts.blackout_bar(parts, float(blackout or 0.0)),
        parts=[(name, format_ms(ms)) for name, ms in parts.items()],
        rounds=tables.rounds(move),
        rounds_chart=charts.rounds_chart(_rates(move), _bandwidth(result)),
        decision=decisions[-1] if decisions else "",
        predicted=tables.predicted(told),
    )


def _bandwidth(result: Mapping[str, Any]) -> float | None:
    """What the wire between the hosts was limited to (bit/s); None for no limit."""
    options = result.get("options") or {}
    limits = [options.get("bandwidth_bits_per_s"), options.get("max_bandwidth_bits_per_s")]
    return min((float(one) for one in limits if one), default=None)


def _rates(move: story.Move) -> list[dict[str, float]]:
    """Of each round the rate at which it copied, and that at which pages were dirtied until the tracker was
    asked again (bit/s of page data)."""
    found = []
    for one in (one for one in story.rounds(move) if not one["last"]):
        seconds = max((one["end_ns"] - one["begin_ns"]) / 1e9, 1e-9)
        found.append(
            {
                "number": float(one.get("number") or 0),
                "ms": seconds * 1e3,
                "rate": float(one.get("bytes") or 0) * 8 / seconds,
                "dirty": float(one.get("dirty_pages") or 0) * 4096 * 8 / seconds,
            }
        )
    return found


def _strips(
    result: Mapping[str, Any] | None, requests: dots.Requests, moves: Sequence[story.Move]
) -> list[charts.Strip]:
    """A strip for each client and kind of probe. The percentiles are those of all its requests outside of
    migrations; without samples there is only the longest, as the result tells it."""
    quiet = _quiet(requests, moves)
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in words.dicts(((result or {}).get("clients") or {}).get("each")):
        groups.setdefault((str(row.get("client")), str(row.get("probe"))), []).append(row)
    strips = []
    names = list(requests.names) or sorted({client for client, _ in groups}, key=dots.natural)
    for (client, probe), rows in sorted(
        groups.items(), key=lambda item: (dots.natural(item[0][0]), item[0][1])
    ):
        during = [float(row["longest_wait_ms"]) for row in rows if row.get("longest_wait_ms") is not None]
        floors = [float(row["baseline_wait_ms"]) for row in rows if row.get("baseline_wait_ms") is not None]
        normal = {"max": max(floors)} if floors else {}
        if client in names:
            normal |= _percentiles(requests, quiet, names.index(client), probe)
        strips.append(
            charts.Strip(f"{client} {probe}", names.index(client) if client in names else 0, normal, during)
        )
    return strips


def _quiet(requests: dots.Requests, moves: Sequence[story.Move]) -> np.ndarray[Any, Any]:
    """Which requests overlap no migration."""
    quiet = np.ones(len(requests), np.bool_)
    for window in (Window(one.begin_ns, one.end_ns) for one in moves):
        quiet &= (requests.begin_ns >= window.end_ns) | (requests.end_ns <= window.begin_ns)
    return quiet


def _percentiles(requests: dots.Requests, quiet: Any, client: int, probe: str) -> dict[str, float]:
    if client >= len(requests.kinds):
        return {}
    numbers = [number for number, kind in enumerate(requests.kinds[client]) if kind == probe]
    chosen = requests.length_ns[quiet & (requests.client == client) & np.isin(requests.probe, numbers)]
    if not len(chosen):
        return {}
    p50, p99 = np.quantile(chosen, (0.5, 0.99), method="inverted_cdf") / 1e6
    return {"p50": max(float(p50), dots.SHORTEST_MS), "p99": max(float(p99), dots.SHORTEST_MS)}


def summary(result: Mapping[str, Any] | None) -> dict[str, str]:
    """A run's figures for the table of several runs side by side."""
    if result is None:
        return {"outcome": "cut short"}
    clients = result.get("clients") or {}
    longest, normally = words.waits(clients)

    def ms(value: float | None) -> str:
        return "-" if value is None else format_ms(value)

    ram = result.get("ram") or {}
    return {
        "outcome": str(result.get("outcome")),
        "mode": str(result.get("mode")),
        "RAM": format_size(int(ram.get("bytes") or 0)),
        "blackout": ms(result.get("blackout_ms")),
        "longest wait of a client": ms(longest),
        "without a migration": ms(normally),
        "silence on the wire": ms(result.get("network_gap_ms")),
        "total": ms(result.get("total_ms")),
        "rounds": str(len(result.get("rounds") or [])),
        "crossed the wire": format_size(int(ram.get("transferred_bytes") or 0)),
        "connections broken": str(clients.get("broken", "-")),
        "resent": str(clients.get("retransmits", "-")),
        "frames held": str((result.get("network") or {}).get("frames_held", "-")),
    }
