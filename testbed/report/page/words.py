"""What came out, in plain words. Pure: parts of a result in, sentences out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from testbed.report.waits import Asked, missed
from testbed.scenario.units import format_count, format_ms, format_rate, format_size, parse_size

Told = Mapping[str, Any]


def dicts(value: Any) -> list[dict[str, Any]]:
    """The dictionaries of a list; none where it is no list."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def size_of(text: Any) -> int:
    """A size of a scenario in bytes; 0 where it is none."""
    try:
        return parse_size(str(text))
    except ValueError:
        return 0


CHECKS = {
    "migrated": ("The guest moved.", "The guest did not move as asked."),
    "verified": (
        "The copy was proved equal to the original before it took over.",
        "The copy was not proved equal to the original.",
    ),
    "deleted": ("Nothing is left of it where it came from.", "Something is left of it where it came from."),
    "no connection broken": ("No connection broke.", "Connections broke."),
    "no reset": ("No connection was reset.", "Connections were reset."),
    "no connect failed": ("Everybody who wanted to connect could.", "Some could not connect."),
    "no byte lost, duplicated or corrupted": (
        "Every byte arrived, once and unaltered.",
        "Bytes were lost, duplicated or corrupted.",
    ),
    "no held frame dropped": (
        "No frame was dropped at the hosts' holds.",
        "Frames were dropped at the hosts' holds.",
    ),
    "no fault in the guest": ("The guest's program met no fault.", "The guest's program met a fault."),
    "no acknowledged write lost": ("No acknowledged write was lost.", "Acknowledged writes were lost."),
}
"""The checks of every run: how it reads when one held, and when not."""

DEFINITIONS = (
    (
        "Blackout",
        "From the last step of the guest at the source to its first at the target. Its parts follow one "
        "another and add up to it.",
    ),
    (
        "Longest wait",
        "Of a client that asks and waits: the longest time from just before a request was sent until "
        "the whole of its answer was read. Of a steady stream: the longest time between two deliveries, less "
        "the sending interval. What was never answered counts for as long as it was waited for.",
    ),
    (
        "Normally",
        "The longest wait of the same clients while nothing was migrated: the noise floor. A wait below "
        "it says nothing about the migration.",
    ),
    (
        "Silence on the wire",
        "From the last frame of the guest that left through the source to the first that left "
        "through the target.",
    ),
    (
        "Frames held",
        "Frames for the guest that came while it stood still, kept at the hosts and delivered in their "
        "order when it ran again.",
    ),
    (
        "Broken",
        "A connection that had been established and ended by a reset, an error or a silence that its client "
        "gave up on.",
    ),
    ("Resent", "Segments that the clients' TCP sent again."),
)


def title(result: Told | None, name: str) -> str:
    """What was moved whither, as a heading."""
    if result is None:
        return f"{name}: a run that was cut short"
    migrations = [one for one in result.get("migrations", []) if isinstance(one, dict)]
    ram = format_size(int((result.get("ram") or {}).get("bytes", 0)))
    vms = list(dict.fromkeys(one.get("vm") for one in migrations if one.get("vm")))
    guest = f"{len(vms)} guests" if len(vms) > 1 else f"a guest of {ram}"
    if not migrations:
        return f"{result.get('name', name)}: {guest}, nothing migrated"
    route = " → ".join(hosts_of(migrations)) if len(vms) < 2 and len(migrations) < 4 else ""
    how = {"live": "live", "quick": "by Quick Migration", "stop-and-copy": "by stop-and-copy"}
    count = f" in {len(migrations)} migrations" if len(migrations) > 1 else ""
    moved = "moved" if result.get("outcome") == "completed" else "was to move"
    words = f"{guest} {moved} {how.get(str(result.get('mode')), '')}".strip()
    return f"{words[0].upper()}{words[1:]}{', ' + route if route else ''}{count}"


def hosts_of(migrations: Sequence[Told]) -> list[str]:
    """The hosts that a guest was on, one after the other."""
    return [str(migrations[0].get("source")), *(str(one.get("target")) for one in migrations)]


def verdict(result: Told | None) -> tuple[str, bool | None]:
    """One or two sentences, and whether all held; None where that is not known, or where nothing moved and
    nothing was lost."""
    if result is None:
        return "The run did not come to its end. What it recorded until then is shown.", None
    clients = result.get("clients") or {}
    failed = [one for one in result.get("checks", []) if not one.get("passed")]
    outcome = result.get("outcome")
    if outcome == "rolled-back":
        first = "The migration was taken back, and the guest ran on where it was."
    elif outcome == "failed":
        first = "The migration failed, and the guest did not survive it."
    else:
        first = ""
    losses = _losses(clients)
    kept = f"{losses}." if losses else "No connection broke and no byte was lost."
    text = " ".join(one for one in (first, kept, _wait(clients), *_missed(clients)) if one)
    if outcome == "rolled-back" and {str(one.get("name")) for one in failed} <= {"migrated", "verified"}:
        return text, None
    return text, not failed and outcome == "completed"


def _losses(clients: Told) -> str:
    """What clients lost; empty where they lost nothing."""
    damaged = sum(int(clients.get(key) or 0) for key in ("bytes_lost", "bytes_duplicated", "bytes_corrupted"))
    found = [
        (clients.get("broken"), "connection broke", "connections broke"),
        (clients.get("resets"), "reset", ""),
        (clients.get("failed_connects"), "failed connect", ""),
        (damaged, "byte lost, doubled or altered", "bytes lost, doubled or altered"),
        (clients.get("writes_lost"), "acknowledged write lost", "acknowledged writes lost"),
    ]
    return ", ".join(format_count(int(count), one, many) for count, one, many in found if count)


def _wait(clients: Told) -> str:
    longest, normally = waits(clients)
    if longest is None:
        return ""
    if normally is None:
        return f"The longest that a client waited was {format_ms(longest)}."
    if longest <= normally:
        return (
            f"The longest that a client waited during it was {format_ms(longest)}, which is not more than it "
            f"waits without a migration ({format_ms(normally)})."
        )
    return (
        f"The longest that a client waited was {format_ms(longest)}; without a migration it is "
        f"{format_ms(normally)}."
    )


def _missed(clients: Told) -> Iterator[str]:
    rows = (
        Asked(str(row.get("client")), row.get("longest_wait_ms"), row.get("asked_late_ms"))
        for row in dicts(clients.get("each"))
    )
    return (f"{line[0].upper()}{line[1:]}." for line in missed(rows))


def waits(clients: Told) -> tuple[float | None, float | None]:
    """The longest wait of any client during migrations, and without one (ms)."""
    return (clients.get("gap_ms") or {}).get("max"), (clients.get("baseline_gap_ms") or {}).get("max")


def check(told: Told) -> tuple[str, str]:
    """A check as a sentence, and its detail where that says more."""
    name, passed = str(told.get("name")), bool(told.get("passed"))
    held, not_held = CHECKS.get(name, (f"{name}: held.", f"{name}: did not hold."))
    detail = str(told.get("detail") or "")
    return (held if passed else not_held), ("" if detail in ("none", "") else detail)


def round_facts(one: Told, dirtied_after_s: float | None) -> dict[str, str]:
    """A round's figures for a table: what crossed, how fast, and how fast the guest dirtied meanwhile."""
    duration_ns = max(int(one.get("duration_ns") or one["end_ns"] - one["begin_ns"]), 1)
    dirty = one.get("dirty_pages")
    facts = {"pages": f"{int(one.get('pages') or 0):,}", "took": format_ms(duration_ns / 1e6)}
    facts["bytes"] = format_size(int(one["bytes"])) if "bytes" in one else "-"
    facts["rate"] = format_rate(int(one["bytes"]) * 8e9 / duration_ns) if "bytes" in one else "-"
    facts["zero"] = f"{int(one['zero_pages']):,}" if one.get("zero_pages") else "-"
    facts["dirtied"] = "-" if dirty is None else f"{dirty:,}"
    if dirty is not None and dirtied_after_s:
        facts["dirty_rate"] = format_rate(int(dirty) * 4096 * 8 / dirtied_after_s)
    return facts


_UNITS: dict[str, Callable[[float], str]] = {
    "_bits_per_s": format_rate,
    "_pages_per_s": lambda value: f"{value:,.6g} pages/s",
    "_per_s": lambda value: f"{value:,.6g} a second",
    "_mbit": lambda value: format_rate(value * 1e6),
    "_bytes": lambda value: format_size(int(value)),
    "_ns": lambda value: format_ms(value / 1e6),
    "_ms": format_ms,
}
"""The ends of keys that are units, and how their values read."""


def option(key: str, value: Any) -> tuple[str, str]:
    """What a key and its value mean to people: units are told by the end of the key."""
    suffix = next((one for one in _UNITS if key.endswith(one)), "")
    name = key.removesuffix(suffix).replace("_", " ")
    if value is None:
        return name, "-"
    if isinstance(value, bool):
        return name, "yes" if value else "no"
    if suffix and isinstance(value, int | float):
        return name, _UNITS[suffix](value)
    return name, str(value)
