"""A run that never was, of any size: what a page of a million events costs, and what it must not lose.

Everything in it follows from its seed. Its clients ask ten times a millisecond between them; the guest stands
still once, for BLACKOUT_NS, and whoever asked before waits until it is over.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from testbed.memory import page_map
from testbed.memory.pages import PageSet

CLIENTS = 10
CONNECTIONS = 4
RAM_PAGES = 1 << 18
APART_NS = 100_000
BEGIN_NS = 7_000_000_000_000_000
"""Long after the machine's start: such a time does not fit into the numbers of a browser."""
BLACKOUT_NS = 5_000_000
LONGEST_NS = 123_456_789
"""One request, far from the migration, waited for so long: no summary may lose it."""
ROUNDS = 6


def write_run(folder: Path, requests: int, events: int, seed: int = 1) -> None:
    """Leave samples of `requests` requests and `events` lines of events in `folder`, and a result that tells
    of them."""
    random = np.random.default_rng(seed)
    span_ns = requests * APART_NS
    pause_ns = BEGIN_NS + span_ns // 2
    _write_samples(folder, random, requests, pause_ns)
    story = _story(random, pause_ns)
    crowd = max(events - len(story), 0)
    times = np.sort(random.integers(BEGIN_NS, BEGIN_NS + span_ns, crowd))
    with (folder / "events.jsonl").open("w") as file:
        for event in story:
            file.write(json.dumps(event, separators=(",", ":")) + "\n")
        for number, t_ns in enumerate(times.tolist()):
            file.write(
                f'{{"t_ns":{t_ns},"source":"client{number % CLIENTS + 1}",'
                f'"event":"seen","number":{number}}}\n'
            )
    (folder / "result.json").write_text(json.dumps(_result(requests)))


def _write_samples(folder: Path, random: np.random.Generator, requests: int, pause_ns: int) -> None:
    each = requests // CLIENTS
    for client in range(CLIENTS):
        count = each if client else requests - each * (CLIENTS - 1)
        sent = BEGIN_NS + np.arange(count) * APART_NS * CLIENTS + client * APART_NS
        took = random.lognormal(11.5, 0.6, count).astype(np.int64)
        received = sent + took
        waits = (received > pause_ns) & (sent < pause_ns + BLACKOUT_NS)
        received[waits] = pause_ns + BLACKOUT_NS + took[waits]
        if client == CLIENTS - 1:
            received[count // 7] = sent[count // 7] + LONGEST_NS
        np.savez(
            folder / f"client{client + 1}.npz",
            sent_ns=sent,
            received_ns=received,
            connection=(np.arange(count) % CONNECTIONS).astype(np.int32),
            answered=np.ones(count, np.bool_),
            probe=np.zeros(count, np.int64),
            kinds=np.array(["closed-loop"]),
            intervals_ns=np.array([APART_NS * CLIENTS], np.int64),
        )


def _story(random: np.random.Generator, pause_ns: int) -> list[dict[str, Any]]:
    """The events of one migration, in the order of time."""
    found: list[dict[str, Any]] = []

    def tell(at_ms: float, source: str, event: str, **fields: Any) -> None:
        found.append({"t_ns": pause_ns + int(at_ms * 1e6), "source": source, "event": event, **fields})

    plan = (("setup", -900, -890), ("provision", -890, -600), ("precopy", -600, -5), ("pause", -5, 0.3),
            ("switchover", 0.3, 3), ("verify", 3, 4), ("commit", 4, 4.2), ("announce", 4.2, 4.4),
            ("resume", 4.4, 5.5), ("delete", 5.5, 300))  # fmt: skip
    for phase, begin, end in plan:
        for host in ("host-a", "host-b"):
            tell(begin, host, "begin", phase=phase)
            tell(end, host, "end", phase=phase)
    pages, begin = RAM_PAGES, -590.0
    for number in range(1, ROUNDS + 1):
        took = 400.0 / number**2
        sent = (
            PageSet.all(RAM_PAGES)
            if number == 1
            else PageSet.from_indices(random.integers(0, RAM_PAGES, pages))
        )
        pages = max(len(sent) // 8, 40)
        tell(begin + took, "host-a", "round", number=number, pages=len(sent), zero_pages=0,
             bytes=len(sent) * 4096, duration_ns=int(took * 1e6), dirty_pages=pages,
             begin_ns=pause_ns + int(begin * 1e6),
             map=page_map.encode(sent, RAM_PAGES))  # fmt: skip
        begin += took + 2
    marks = (("paused", 0, "host-a"), ("cut", 0.3, "host-a"), ("pages-sent", 1.2, "host-a"),
             ("devices-sent", 2, "host-a"), ("connections-thawed", 2.6, "host-b"),
             ("announced", 2.8, "host-b"),
             ("verified", 3.6, "host-b"), ("committed", 4.2, "host-a"), ("frames-released", 4.8, "host-b"),
             ("resumed", 5, "host-b"))  # fmt: skip
    counts = {"connections-thawed": {"connections": CLIENTS * CONNECTIONS}, "frames-released": {"frames": 9}}
    for name, at, host in marks:
        tell(at, host, "mark", name=name, **counts.get(name, {}))
    last = PageSet.from_indices(random.integers(0, RAM_PAGES, 60))
    tell(
        6,
        "host-a",
        "pages",
        number=ROUNDS + 1,
        begin_ns=pause_ns + 400_000,
        map=page_map.encode(last, RAM_PAGES),
    )
    return sorted(found, key=lambda one: one["t_ns"])


def _result(requests: int) -> dict[str, Any]:
    """As much of a result as the page reads."""
    gap = {"p50": 5.1, "p99": 5.2, "max": LONGEST_NS / 1e6}
    migration = {
        "outcome": "completed", "source": "host-a", "target": "host-b", "deleted": True, "blackout_ms": 5.0,
        "ram": {"bytes": RAM_PAGES * 4096},
        "blackout_parts_ms": {"cut off": 0.3, "last pages": 0.9, "freeze": 0.8, "thaw": 1.6, "commit": 0.6,
                              "resume": 0.8},
        "network": {"frames_held": 9, "frames_released": 9, "frames_dropped": 0, "switch_relearned_ms": 2.9},
    }  # fmt: skip
    return {
        "name": "synthetic", "started_at": "", "outcome": "completed", "mode": "live", "total_ms": 1200.0,
        "blackout_ms": 5.0, "rounds": [{}] * ROUNDS, "ram": {"bytes": RAM_PAGES * 4096},
        "migrations": [migration],
        "clients": {"connections": CLIENTS * CONNECTIONS, "requests": requests, "broken": 0, "gap_ms": gap,
                    "baseline_gap_ms": {"max": 1.9}, "each": []},
        "network": migration["network"], "checks": [], "options": {}, "environment": {},
    }  # fmt: skip
