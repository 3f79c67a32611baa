"""What a report costs, beside the benches of :mod:`testbed.experiment.bench`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

from testbed.experiment.bench import BENCHES as OF_EXPERIMENTS
from testbed.experiment.bench import Bench, Figure, Setting

EVENTS = 1_000_000
REPEATS = 3
MOST_SECONDS, MOST_BYTES = 5.0, 5_000_000


def report(setting: Setting) -> Iterator[Figure]:
    """The page of a run with a million requests and a million lines of events: how long it takes, how large
    it is."""
    from testbed.report.page.render import write_report
    from testbed.report.page.synthetic import write_run

    folder = setting.folder / "report"
    folder.mkdir()
    setting.witness.say(f"report: {EVENTS:,} requests, {EVENTS:,} events, {REPEATS} times")
    write_run(folder, EVENTS, EVENTS)
    seconds, sizes = [], []
    for _ in range(REPEATS):
        begin = time.monotonic()
        path = write_report([folder])
        seconds.append(time.monotonic() - begin)
        sizes.append(path.stat().st_size)
    for one in (*folder.glob("*.npz"), folder / "events.jsonl"):
        one.unlink()  # a hundred megabytes that follow from their seed
    took = statistics.median(seconds)
    yield from (
        Figure("report", "made in", took, "s", min(seconds), max(seconds), MOST_SECONDS),
        Figure(
            "report", "its size", sizes[0] / 1e6, "MB", min(sizes) / 1e6, max(sizes) / 1e6, MOST_BYTES / 1e6
        ),
    )


BENCHES: dict[str, Bench] = OF_EXPERIMENTS | {"report": report}
