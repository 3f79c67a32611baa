"""The page's tables: rows of a result, as people read them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.report.page import dots, story, words
from testbed.scenario.units import format_ms, format_rate

Rows = list[list[str]]
Told = Mapping[str, Any]
MOST_ROWS = 60


@dataclass(frozen=True)
class Table:
    """`title`, names of the columns, rows; `note` stands below. The first column is text, the others figures
    where `figures` says so."""

    title: str
    columns: list[str]
    rows: Rows
    note: str = ""
    figures: bool = True


def rounds(move: story.Move) -> Table:
    rows = []
    for one in story.rounds(move):
        facts = words.round_facts(one, None)
        name = "last pages" if one["last"] else str(one.get("number"))
        rows.append([name, *(facts[key] for key in ("pages", "zero", "bytes", "took", "rate", "dirtied"))])
    columns = ["round", "pages", "of them zero", "on the wire", "took", "rate", "dirtied meanwhile"]
    return Table("Rounds", columns, rows)


def predicted(told: Told) -> Table | None:
    """What was predicted before anything moved, from its lowest to its highest, beside what was measured."""
    prediction = told.get("predicted")
    if not isinstance(prediction, Mapping):
        return None
    measured = {
        "rounds": len(told.get("rounds") or []),
        "transferred_bytes": (told.get("ram") or {}).get("transferred_bytes"),
        "total_ms": told.get("total_ms"),
        "blackout_ms": told.get("blackout_ms"),
    }
    rows = []
    for key, found in measured.items():
        span = prediction.get(key)
        if isinstance(span, Mapping) and found is not None:
            low, likely, high = (_figure(key, span.get(part)) for part in ("low", "likely", "high"))
            shown = likely if low == high else f"{likely} ({low} to {high})"
            rows.append([words.option(key, 0)[0], shown, _figure(key, found)])
    columns = ["", "predicted", "measured"]
    return (
        Table("Predicted and measured", columns, rows, str(prediction.get("sentence") or ""))
        if rows
        else None
    )


def _figure(key: str, value: Any) -> str:
    """A figure as people read it; a likely count need not be whole."""
    if "_" not in key and isinstance(value, int | float):
        return f"{value:.3g}"
    return words.option(key, value)[1]


MORE_OF_CLIENTS = {
    "round_trip_ms": "round trip",
    "one_way_there_ms": "one way there",
    "one_way_back_ms": "one way back",
    "lost": "lost",
    "reordered": "reordered",
    "duplicated": "duplicated",
    "rate_mbit": "rate before, during, after",
    "stalled_ms": "stalled",
    "statuses": "statuses",
}
"""What some kinds of probe know besides: a column each, where any does."""


def clients(result: Told | None) -> Table | None:
    """A row for each client and kind of probe."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in words.dicts(((result or {}).get("clients") or {}).get("each")):
        groups.setdefault((str(row.get("client")), str(row.get("probe"))), []).append(row)
    if not groups:
        return None
    more = [
        key
        for key in MORE_OF_CLIENTS
        if any(row.get(key) is not None for rows in groups.values() for row in rows)
    ]
    columns = ["client and probe", "connections", "requests", "longest wait", "normally", "resent", "broken"]
    found = [
        [
            f"{client} {probe}",
            str(len(rows)) if probe != "churn" else "-",
            f"{_sum(rows, 'requests'):,}",
            _most(rows, "longest_wait_ms"),
            _most(rows, "baseline_wait_ms"),
            str(_sum(rows, "retransmits")),
            str(sum(row.get("broken") is not None for row in rows)),
            *(_more(rows, key) for key in more),
        ]
        for (client, probe), rows in sorted(
            groups.items(), key=lambda one: (dots.natural(one[0][0]), one[0][1])
        )
    ]
    return Table("Every client", [*columns, *(MORE_OF_CLIENTS[key] for key in more)], found)


def _more(rows: Sequence[Told], key: str) -> str:
    """One of MORE_OF_CLIENTS over the connections of a probe: of a distribution the median and the longest,
    of rates the sums, of the rest the longest or the sum."""
    known = [row[key] for row in rows if row.get(key) is not None]
    parts = [one for one in known if isinstance(one, Mapping)]
    if not parts:
        return _most(rows, key) if key.endswith("_ms") else str(_sum(rows, key)) if known else "-"
    if key == "rate_mbit":
        spans = [[float(one[span]) for one in parts if one.get(span) is not None] for span in RATE_SPANS]
        return ", ".join(format_rate(sum(span) * 1e6) if span else "-" for span in spans)
    if key == "statuses":
        codes = sorted({str(code) for one in parts for code in one})
        return ", ".join(f"{code}: {sum(int(one.get(code) or 0) for one in parts):,}" for code in codes)
    most = [
        max((float(one[part]) for one in parts if one.get(part) is not None), default=0.0)
        for part in ("p50", "max")
    ]
    return f"{format_ms(most[0])} (at most {format_ms(most[1])})"


RATE_SPANS = ("before", "during", "after")


def _sum(rows: Sequence[Told], key: str) -> int:
    return sum(int(row.get(key) or 0) for row in rows)


def _most(rows: Sequence[Told], key: str) -> str:
    known = [float(row[key]) for row in rows if isinstance(row.get(key), int | float)]
    return format_ms(max(known)) if known else "-"


def network(result: Told | None) -> list[Table]:
    """What the network saw and believed, how its links were, and what else ran in it."""
    found = result or {}
    made = [
        _counts(found),
        _beliefs(words.dicts(found.get("migrations"))),
        _links(words.dicts(found.get("links"))),
        _programs(words.dicts(found.get("programs"))),
        _captures(words.dicts(found.get("captures"))),
    ]
    return [one for one in made if one is not None]


def _counts(found: Told) -> Table | None:
    counts = found.get("network")
    if not isinstance(counts, Mapping):
        return None
    rows = (
        []
        if found.get("network_gap_ms") is None
        else [["silence on the wire", format_ms(float(found["network_gap_ms"]))]]
    )
    for key, value in counts.items():
        if key == "switch_relearned_ms":
            rows.append(
                [
                    "the switch relearned",
                    "-" if value is None else f"{format_ms(float(value))} after the pause",
                ]
            )
        elif isinstance(value, int | float):
            rows.append([key.replace("_", " "), f"{value:,}"])
    return Table("What the network saw", ["", ""], rows) if rows else None


def _beliefs(migrations: Sequence[Told]) -> Table | None:
    """Whom each node believed the guest to be at, and when it changed its mind."""
    several = len(migrations) > 1
    rows = []
    for number, one in enumerate(migrations, 1):
        for change in words.dicts(one.get("tables")):
            at_ms = change.get("at_ms")
            when = "-" if at_ms is None else f"{'+' if at_ms >= 0 else '−'}{format_ms(abs(float(at_ms)))}"
            before, now = (str(change.get(key) or "no entry") for key in ("was", "now"))
            told = [str(change.get(key) or "") for key in ("node", "table", "key")]
            rows.append([when, *told, before, now, *([str(number)] if several else [])])
    columns = ["from the pause", "node", "table", "of", "before", "then", *(["migration"] if several else [])]
    return _cut(Table("When the network's tables changed", columns, rows, figures=False)) if rows else None


def _links(links: Sequence[Told]) -> Table | None:
    """Each direction of each link: what was asked, what was measured of it before the run, what it did
    then."""
    rows = []
    for link in links:
        for direction in ("forward", "backward"):
            way = link.get(direction)
            if isinstance(way, Mapping):
                arrow = "from" if direction == "forward" else "to"
                asked, measured = way.get("asked") or {}, way.get("measured") or {}
                name = f"{arrow} {link.get('name')}"
                rows.append(
                    [
                        name,
                        _asked_over_time(asked, measured),
                        _sounded(measured),
                        _did(way),
                        str(link.get("backend") or "-"),
                    ]
                )
    columns = ["link", "asked", "measured before the run", "in the run", "by"]
    return (
        _cut(Table("Links: what was asked, what was measured", columns, rows, figures=False))
        if rows
        else None
    )


def _asked_over_time(last: Told, measured: Told) -> str:
    """What was asked when it was measured, and what in the end, where that is another thing."""
    first = measured.get("asked")
    if not isinstance(first, Mapping) or _asked(first) == _asked(last):
        return _asked(last)
    return f"{_asked(first)}; in the end {_asked(last)}"


def _asked(one: Told) -> str:
    words_ = []
    if one.get("delay_ms"):
        jitter = f" ± {format_ms(float(one['jitter_ms']))}" if one.get("jitter_ms") else ""
        words_.append(f"{format_ms(float(one['delay_ms']))}{jitter}")
    if one.get("rate_mbit"):
        words_.append(format_rate(float(one["rate_mbit"]) * 1e6))
    words_ += [
        f"{_share(one[key])} {noun}"
        for key, noun in (("loss", "lost"), ("duplicate", "doubled"), ("reorder", "reordered"))
        if one.get(key)
    ]
    if one.get("lost_announcements"):
        words_.append(f"the first {one['lost_announcements']} announcements lost")
    return ", ".join(words_) or "nothing"


def _sounded(one: Told) -> str:
    words_ = []
    if one.get("delay_p50_ms") is not None:
        words_.append(
            f"{format_ms(float(one['delay_p50_ms']))} "
            f"(99 %: {format_ms(float(one.get('delay_p99_ms') or 0))})"
        )
    if one.get("throughput_mbit"):
        words_.append(format_rate(float(one["throughput_mbit"]) * 1e6))
    if one.get("loss") is not None:
        words_.append(f"{_share(one['loss'])} lost of {int(one.get('sent') or 0):,}")
    return ", ".join(words_) or "-"


def _did(one: Told) -> str:
    words_ = []
    if one.get("delay_p50_ms") is not None:
        words_.append(format_ms(float(one["delay_p50_ms"])))
    for key, noun in (
        ("lost", "lost"),
        ("queue_dropped", "dropped by the queue"),
        ("overrun", "lost by the relay"),
        ("announcements_lost", "announcements lost"),
    ):
        if one.get(key):
            words_.append(f"{int(one[key]):,} {noun}")
    return ", ".join(words_) or "-"


def _share(value: Any) -> str:
    return f"{float(value) * 100:.3g} %"


def _programs(programs: Sequence[Told]) -> Table | None:
    rows = []
    for one in programs:
        command = one.get("command")
        ended = (
            f"status {one['exit_status']}"
            if one.get("exit_status") is not None
            else str(one.get("signal") or "ran on")
        )
        took = "-" if one.get("duration_ms") is None else format_ms(float(one["duration_ms"]))
        text = " ".join(map(str, command)) if isinstance(command, list) else str(command or "")
        tail = str(one.get("output_tail") or "").strip().splitlines()
        rows.append([str(one.get("node")), text, ended, took, tail[-1][:120] if tail else ""])
    columns = ["node", "command", "ended with", "took", "its last line"]
    return _cut(Table("Programs of the clients", columns, rows, figures=False)) if rows else None


def _captures(captures: Sequence[Told]) -> Table | None:
    rows = []
    for one in captures:
        counts = [f"{int(one.get(key) or 0):,}" for key in ("frames", "dropped")]
        rows.append([str(one.get("link")), str(one.get("file")), *counts, str(one.get("stopped") or "")])
    columns = ["link", "file", "frames", "not in it", "stopped"]
    return Table("Captures", columns, rows, figures=False) if rows else None


def _cut(table: Table) -> Table:
    if len(table.rows) <= MOST_ROWS:
        return table
    note = f"The first {MOST_ROWS} of {len(table.rows)}; all are in result.json."
    return Table(table.title, table.columns, table.rows[:MOST_ROWS], note, table.figures)


def asked(result: Told | None) -> Table | None:
    """What was asked of the run: the options of the command, or the parts of a scenario."""
    options = (result or {}).get("options") or {}
    rows = [list(words.option(str(key), value)) for key, value in options.items()]
    if not rows:
        rows = _parts((result or {}).get("scenario") or {})
    return Table("What was asked", ["", ""], rows, figures=False) if rows else None


def _parts(scenario: Told) -> Rows:
    """A row for each part of a scenario: what stands in its file, without what is told elsewhere."""
    rows = []
    for key, value in scenario.items():
        if key in ("name", "shows", "expect"):
            continue
        several = words.dicts(value)
        for number, one in enumerate(several, 1):
            name = f"{key} {one.get('name') or (number if len(several) > 1 else '')}".strip()
            rows.append([name, _told({inner: of for inner, of in one.items() if inner != "name"})])
        if not several and value not in ([], {}, None):
            rows.append([key, _told(value)])
    return rows


def _told(value: Any) -> str:
    """Whatever a scenario's file may hold, in a line."""
    if isinstance(value, Mapping):
        given = {key: _told(one) for key, one in value.items() if one not in ("", None, [], {}, False)}
        return ", ".join(f"{key.replace('_', ' ')} {one}" for key, one in given.items())
    if isinstance(value, list):
        between = " " if all(isinstance(one, str) for one in value) else "; "
        return between.join(_told(one) for one in value)
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def environment(result: Told | None) -> Table | None:
    """Where it ran, and how exact the instrument is there."""
    told = (result or {}).get("environment") or {}
    flat = {key: value for key, value in _flat(told).items() if not key.startswith("usage")}
    rows = [list(words.option(key, value)) for key, value in flat.items()]
    instrument = (result or {}).get("instrument")
    if isinstance(instrument, Mapping) and instrument.get("gap_error_ms") is not None:
        p95 = format_ms(float(instrument.get("gap_error_p95_ms") or 0))
        error = f"{float(instrument['gap_error_ms']):+.3g} ms at the median, 95 % within {p95}"
        rows.append(["error of a wait, as calibrated", error])
    elif rows:
        rows.append(["error of a wait", "not calibrated on this machine (testbed calibrate)"])
    return Table("Where it ran", ["", ""], rows, figures=False) if rows else None


def _flat(entry: Told, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in entry.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key} ")
        else:
            found[prefix + key] = ", ".join(map(str, value)) or "none" if isinstance(value, list) else value
    return found
