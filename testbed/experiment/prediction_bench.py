"""How well migrations are foretold: the table of overheads measured anew, then a grid held against it."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median

from testbed.experiment.bench import BenchFailed, Figure, Setting
from testbed.experiment.fitting import Basis, TooFewMigrations, fit
from testbed.experiment.run import run_options
from testbed.measure.result import Errors, Result
from testbed.memory.digests import PageDigests
from testbed.memory.pages import PageSet
from testbed.memory.region import Region
from testbed.migration.overheads import Overheads
from testbed.scenario.options import Options, Pattern

EVERYDAY = Options(migrations=4, stream_rate_per_s=0, churn_per_s=0)
SMALL_RAM_BYTES = 64 << 20
CROWD = 200
LABS = 3
DIGEST_BYTES = 64 << 20
GRID_RATES = (None, 2 * 10**9, 10**9, 500 * 10**6)
GRID_DIRTY = (0, 2000, 20_000)
GRID_WORKING_SET_BYTES = 64 << 20
GRID_PATTERNS: tuple[Pattern, ...] = ("uniform", "hot-cold", "sequential")
FIGURES = (("transferred_bytes", "bytes"), ("total_ms", "total time"), ("blackout_ms", "blackout"))


def errors(setting: Setting) -> Iterator[Figure]:
    """Measure the table, leave it in the folder as ``overheads.json``, and hold a grid against it."""
    table = measured_overheads(setting)
    (setting.folder / "overheads.json").write_text(table.as_json(machine()))
    found: list[Errors] = []
    for number, options in enumerate(grid()):
        result = _run(setting, options, f"prediction-grid-{number:02}", table)
        found += [one.predicted.error for one in result.migrations if one.predicted and one.predicted.error]
    if not found:
        raise BenchFailed("no migration of the grid completed")
    yield from _figures(found)


def _figures(found: Sequence[Errors]) -> Iterator[Figure]:
    off = [abs(one.rounds) for one in found if one.rounds is not None]
    yield Figure("prediction", "rounds, off by", median(off), "", min(off), max(off), 1)
    for key, name in FIGURES:
        shares = [abs(value) * 100 for one in found if (value := getattr(one, key)) is not None]
        yield Figure("prediction", f"{name}, off by", median(shares), "%", min(shares), max(shares))


def grid() -> list[Options]:
    """Wires, dirty rates and patterns; a pattern makes no difference where nothing is written."""
    base = replace(EVERYDAY, migrations=1, working_set_bytes=GRID_WORKING_SET_BYTES)
    return [
        replace(base, bandwidth_bits_per_s=rate, dirty_rate_pages_per_s=dirty, pattern=pattern)
        for rate in GRID_RATES
        for dirty in GRID_DIRTY
        for pattern in (GRID_PATTERNS if dirty else GRID_PATTERNS[:1])
    ]


def measured_overheads(setting: Setting) -> Overheads:
    """Run what the table is made of. BenchFailed where too few migrations complete."""
    kinds = {
        "large": EVERYDAY,
        "small": replace(EVERYDAY, ram_bytes=SMALL_RAM_BYTES),
        "crowded": replace(EVERYDAY, migrations=2, connections=CROWD, interval_ns=100_000_000),
        "idle": replace(EVERYDAY, migrations=1, dirty_rate_pages_per_s=0),
    }
    table = Overheads.shipped()
    runs = {
        kind: [_run(setting, options, f"prediction-{kind}-{number}", table) for number in range(LABS)]
        for kind, options in kinds.items()
    }
    try:
        return fit(Basis(**runs, digest_page_ns=digest_page_ns()))
    except TooFewMigrations as error:
        raise BenchFailed(str(error)) from error


def _run(setting: Setting, options: Options, name: str, table: Overheads) -> Result:
    folder = setting.folder / name
    folder.mkdir()
    return run_options(options, name, folder, setting.witness, overheads=table)


def digest_page_ns() -> list[float]:
    """What digesting one page takes, page after page, some times over."""
    with Region.create(DIGEST_BYTES) as region:
        region.array[:] = 1
        digests = PageDigests(region.pages)
        found = []
        for _ in range(5):
            begin_ns = time.perf_counter_ns()
            digests.update(region, PageSet.all(region.pages))
            found.append((time.perf_counter_ns() - begin_ns) / region.pages)
    return found


def machine() -> str:
    """What a table was measured on."""
    return (
        f"{platform.system()} {platform.release()}, {platform.machine()}, Python {platform.python_version()}"
    )
