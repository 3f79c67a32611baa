"""The figures that this testbed promises, each measured in a lab of its own. Runs inside a universe.

A figure is the median over the migrations of a run, with its spread; what is compared with a peer is a ratio
within one run. Nothing here is a test: on a loaded machine the figures are worse and the table says so.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from netns.conditions import Conditions
from testbed.experiment import probing as cost
from testbed.experiment import relay_bench, yardstick
from testbed.experiment.run import Witness, run_options
from testbed.lab import plan as planned
from testbed.lab.lab import Lab
from testbed.lab.migrations import Move
from testbed.measure.result import Migration, Result
from testbed.scenario.from_options import scenario_of
from testbed.scenario.options import Options
from testbed.storage import bench as storage_bench

SWITCHOVER = Options(clients=3, connections=8, stream_rate_per_s=0, churn_per_s=0)
CONNECTIONS = Options(clients=5, connections=500, interval_ns=100_000_000, stream_rate_per_s=0, churn_per_s=0)
CHURN = Options(clients=4, connections=4, stream_rate_per_s=0, churn_per_s=200)
COPY = Options(ram_bytes=1 << 30, fill=0.9, connections=0, clients=1, stream_rate_per_s=10, churn_per_s=0)
QUICK = Options(
    mode="quick",
    ram_bytes=2 << 30,
    fill=0.9,
    disk_bytes=16 << 20,
    storage_rate_bits_per_s=10**9,
    stream_rate_per_s=0,
    churn_per_s=0,
)
DURABLE = Options(program="kv-durable", disk_bytes=64 << 20)
ENDURANCE_MIGRATIONS, DURABLE_MIGRATIONS = 100, 200
FAR_MIGRATIONS = 50
FRAMES_PER_S = 21_000
QUICK_MIGRATIONS, LIVE_BESIDE_QUICK = 2, 5
LUN_PARTS = ("to the LUN", "flush", "dismount", "mount", "from the LUN")
NEEDS_BYTES = {"copy": 2 * COPY.ram_bytes, "quick": 3 * QUICK.ram_bytes}
"""Memory that a bench takes: the guest's RAM on two hosts, and once more where it is saved on the LUN."""
STORAGE_BYTES = 256 << 20
PROBING_REPEATS = 5
IPERF_S = 2
COPY_DEADLINE_S = 120


@dataclass(frozen=True)
class Figure:
    """`value` with its unit, from `low` to `high` over the repeats; `limit` is what was promised, `at_most`
    which way."""

    bench: str
    name: str
    value: float
    unit: str
    low: float
    high: float
    limit: float | None = None
    at_most: bool = True

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"holds": self.holds}

    @property
    def holds(self) -> bool:
        return self.limit is None or (self.value <= self.limit if self.at_most else self.value >= self.limit)


@dataclass(frozen=True)
class Setting:
    """Where a bench puts its runs, whom it tells, and how many migrations it makes."""

    folder: Path
    witness: Witness
    migrations: int


Bench = Callable[[Setting], Iterator[Figure]]


def _median(
    bench: str,
    name: str,
    values: Sequence[float],
    unit: str,
    limit: float | None = None,
    *,
    at_most: bool = True,
) -> Figure:
    return Figure(bench, name, statistics.median(values), unit, min(values), max(values), limit, at_most)


def _count(bench: str, name: str, value: int, limit: int | None = 0) -> Figure:
    return Figure(bench, name, value, "", value, value, limit)


def _run(setting: Setting, options: Options, name: str) -> Result:
    folder = setting.folder / name
    folder.mkdir()
    return run_options(options, name, folder, setting.witness)


class BenchFailed(Exception):
    """There is nothing to measure: one line says why."""


def _completed(result: Result) -> list[Migration]:
    """The migrations that completed. BenchFailed where there is none."""
    done = [one for one in result.migrations if one.outcome == "completed"]
    if not done:
        raise BenchFailed(f"no migration of {result.name} completed: {result.migrations[0].reason}")
    return done


def _damage(bench: str, result: Result) -> Iterator[Figure]:
    """What must be zero, whatever the load."""
    clients = result.clients
    completed = sum(one.outcome == "completed" for one in result.migrations)
    yield _count(bench, "migrations not completed", result.options["migrations"] - completed)
    broken = clients.broken + clients.resets + clients.failed_connects
    yield _count(bench, "broken, reset, failed connects", broken)
    damaged = clients.bytes_lost + clients.bytes_duplicated + clients.bytes_corrupted
    yield _count(bench, "bytes lost, doubled, corrupted", damaged)


def switchover(setting: Setting) -> Iterator[Figure]:
    """256 MiB, 8 connections asking every millisecond, 2,000 pages/s dirtied."""
    result = _run(setting, _with(SWITCHOVER, setting), "switchover")
    done = _completed(result)
    yield _median("switchover", "blackout", _blackouts_ms(result), "ms", 5)
    yield _median("switchover", "longest client gap", [one.gap_ms.max or 0 for one in done], "ms", 10)
    yield from _parts("switchover", done)
    heard = [one.network_gap_ms for one in done if one.network_gap_ms is not None]
    yield _median("switchover", "silence on the wire", heard, "ms")
    yield _count("switchover", "retransmits", result.clients.retransmits)
    yield from _damage("switchover", result)


def _parts(bench: str, done: Sequence[Migration]) -> Iterator[Figure]:
    """Where the blackout went."""
    for part in done[0].blackout_parts_ms:
        yield _median(bench, f"  of it {part}", [one.blackout_parts_ms.get(part, 0) for one in done], "ms")


def connections(setting: Setting) -> Iterator[Figure]:
    """500 connections."""
    result = _run(setting, _with(CONNECTIONS, setting), "connections")
    done = _completed(result)
    yield _median("connections", "blackout, 500 connections", _blackouts_ms(result), "ms", 50)
    yield _median("connections", "longest client gap", [one.gap_ms.max or 0 for one in done], "ms")
    yield _count("connections", "retransmits", result.clients.retransmits, None)
    yield from _damage("connections", result)


def churn(setting: Setting) -> Iterator[Figure]:
    """200 connections a second opened and closed through every migration."""
    result = _run(setting, _with(CHURN, setting), "churn")
    yield _median("churn", "blackout, 200 new connections/s", _blackouts_ms(result), "ms")
    yield _count("churn", "failed connects", result.clients.failed_connects)
    yield _count("churn", "resets", result.clients.resets)
    yield from _damage("churn", result)


def copy(setting: Setting) -> Iterator[Figure]:
    """The first round of 1 GiB of incompressible RAM, beside iperf3 on the same wire in the same minute."""
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(3):
        folder = setting.folder / f"copy-{number}"
        folder.mkdir()
        with Lab(scenario_of(COPY), folder, setting.witness.say) as lab:
            lab.boot()
            if shutil.which(yardstick.PROGRAM):
                theirs.append(_carried_mbit(lab))
            lab.start_clients()
            move = Move(lab.vm.name, lab.vm.next_host(), lab.scenario.manner())
            (moved,) = lab.migrate([move], setting.witness.event, COPY_DEADLINE_S)
            first = moved.source_answer["rounds"][0]
            ours.append(first["bytes"] * 8e3 / first["duration_ns"])
            lab.stop_clients([])
    yield _median("copy", "first round of 1 GiB", ours, "Mbit/s")
    if theirs:
        yield _median("copy", "iperf3, same wire", theirs, "Mbit/s")
        ratios = [our / their for our, their in zip(ours, theirs, strict=True)]
        yield _median("copy", "ratio to iperf3", ratios, "", 0.7, at_most=False)


def _carried_mbit(lab: Lab) -> float:
    """What one stream of iperf3 reaches over the migration wire, Mbit/s."""
    source, target = (lab.topology.namespace(host) for host in lab.scenario.hosts)
    address = planned.migration_address(lab.scenario, lab.scenario.hosts[1])
    return yardstick.bulk_mbit(source, target, address, IPERF_S)


def lab(setting: Setting) -> Iterator[Figure]:
    """How long a lab takes to come up and go, what its agents hold, and how soon the command answers."""
    ups: list[float] = []
    downs: list[float] = []
    memory: list[float] = []
    for number in range(5):
        folder = setting.folder / f"lab-{number}"
        folder.mkdir()
        begin = time.monotonic()
        with Lab(scenario_of(SWITCHOVER), folder) as standing:
            standing.boot()
            ups.append(time.monotonic() - begin)
            agents = [one for one in standing.usage() if one.name in standing.scenario.hosts]
            memory.append(max(one.private_bytes for one in agents) / 2**20)
            begin = time.monotonic()
        downs.append(time.monotonic() - begin)
    yield _median("lab", "up", ups, "s", 1.5)
    yield _median("lab", "down", downs, "s", 0.5)
    yield _median("lab", "agent's memory besides RAM", memory, "MiB", 100)
    yield _median("lab", "testbed --help", _help_s(), "s", 0.3)


def _help_s() -> list[float]:
    command = shutil.which("testbed")
    times: list[float] = []
    for _ in range(5):
        begin = time.monotonic()
        subprocess.run([*_command(command), "--help"], stdout=subprocess.DEVNULL, check=True)
        times.append(time.monotonic() - begin)
    return times


def _command(found: str | None) -> list[str]:
    beside = Path(sys.executable).with_name("testbed")
    return [str(beside)] if beside.exists() else [found] if found else [sys.executable, "-m", "testbed"]


def endurance(setting: Setting) -> Iterator[Figure]:
    """100 migrations there and back under load: nothing breaks, nothing grows."""
    options = replace(SWITCHOVER, migrations=max(ENDURANCE_MIGRATIONS, setting.migrations))
    result = _run(setting, options, "endurance")
    yield from _damage("endurance", result)
    yield _median("endurance", "blackout", _blackouts_ms(result), "ms")
    before, after = result.environment["usage_before"], result.environment["usage_after"]
    for host in ("host-a", "host-b"):
        grown = after[host]["descriptors"] - before[host]["descriptors"]
        yield _count("endurance", f"{host}: descriptors gained", grown)
        grown_mib = (after[host]["private_bytes"] - before[host]["private_bytes"]) / 2**20
        yield Figure(
            "endurance", f"{host}: memory gained", round(grown_mib, 2), "MiB", grown_mib, grown_mib, 8
        )


def storage(setting: Setting) -> Iterator[Figure]:
    """nbdcopy to the storage target and back, beside nbdkit on the same wire; and the claim of a disk."""
    with (
        tempfile.TemporaryDirectory(dir=setting.folder) as name,
        storage_bench.standing(Path(name), STORAGE_BYTES) as host,
    ):
        if shutil.which("nbdcopy"):
            yield from _copies(storage_bench.copies(Path(name), host, STORAGE_BYTES))
        yield _median("storage", "claim of a disk", [us / 1e3 for us in storage_bench.claims(host)], "ms")


def _copies(rates: storage_bench.Rates) -> Iterator[Figure]:
    to, back = rates.ratios()
    rows = (
        ("nbdcopy to the target", rates.to_target, "nbdcopy to nbdkit", rates.to_nbdkit, to),
        ("nbdcopy from the target", rates.from_target, "nbdcopy from nbdkit", rates.from_nbdkit, back),
    )
    for our_name, ours, their_name, theirs, ratios in rows:
        yield _median("storage", our_name, ours, "MiB/s")
        if theirs:
            yield _median("storage", their_name, theirs, "MiB/s")
            yield _median("storage", "  ratio to nbdkit", ratios, "", 0.5, at_most=False)


def durable(setting: Setting) -> Iterator[Figure]:
    """200 migrations there and back of a store on a disk: what it acknowledged is there, all of it."""
    options = replace(DURABLE, migrations=max(DURABLE_MIGRATIONS, setting.migrations))
    result = _run(setting, options, "durable")
    yield from _damage("durable", result)
    acknowledged = result.clients.acknowledged
    yield Figure("durable", "writes acknowledged", acknowledged, "", acknowledged, acknowledged, 1, False)
    yield _count("durable", "acknowledged writes lost", result.clients.writes_lost)
    yield _count("durable", "values that nobody wrote", result.clients.writes_phantom)
    yield _count("durable", "ledgers not read back", result.clients.ledgers_unsettled)
    yield _median("durable", "blackout", _blackouts_ms(result), "ms")


def quick(setting: Setting) -> Iterator[Figure]:
    """Quick Migration of 2 GiB over storage of 1 Gbit/s, and live migration of the same guest."""
    by_lun = _run(setting, replace(QUICK, migrations=QUICK_MIGRATIONS), "quick")
    live = _run(setting, replace(QUICK, mode="live", migrations=LIVE_BESIDE_QUICK), "quick-live")
    yield from _damage("quick", by_lun)
    done = _completed(by_lun)
    yield _median("quick", "blackout", [ms / 1e3 for ms in _blackouts_ms(by_lun)], "s", 40)
    yield _median("quick", "  no less", [ms / 1e3 for ms in _blackouts_ms(by_lun)], "s", 30, at_most=False)
    yield from _parts("quick", done)
    shares = [
        sum(one.blackout_parts_ms[part] for part in LUN_PARTS) / one.blackout_ms
        for one in done
        if one.blackout_ms
    ]
    yield _median("quick", "share of the LUN's way", shares, "", 0.9, at_most=False)
    yield _median("quick", "live's blackout", _blackouts_ms(live), "ms")
    live_ms = statistics.median(_blackouts_ms(live))
    ratios = [quick_ms / live_ms for quick_ms in _blackouts_ms(by_lun)]
    yield _median("quick", "quick's over live's", ratios, "", 1000, at_most=False)


def relay(setting: Setting) -> Iterator[Figure]:
    """A link through a relay: frames, bytes, true delays; and 50 migrations under clients 50 ms away."""
    with relay_bench.standing() as (topology, link):
        medians_ms, tails_ms = relay_bench.delay_errors_ms(link)
        yield _median("relay", "10 ms asked: off by", medians_ms, "ms", 0.5)
        yield _median("relay", "  99th percentile", tails_ms, "ms")
        steady = relay_bench.flooded(topology, link, FRAMES_PER_S)
        passed = [one.passed_per_s for one in steady]
        yield _median("relay", f"of {FRAMES_PER_S:,} frames/s passed", passed, "/s", 20_000, at_most=False)
        yield _count("relay", "  not asked for and lost", sum(one.overrun for one in steady))
        yield _median("relay", "  processor, a frame", [one.processor_us for one in steady], "us")
        most = [one.passed_per_s for one in relay_bench.flooded(topology, link, None)]
        yield _median("relay", "most frames passed", most, "/s")
        one_ms = Conditions(delay_ns=relay_bench.MS)
        if bulk := relay_bench.bulk_mbit(topology, link, one_ms):
            yield _median("relay", "bulk TCP", bulk, "Mbit/s", 1000, at_most=False)
            single = relay_bench.bulk_mbit(topology, link, replace(one_ms, loss=1e-6))
            yield _median("relay", "  in frames of a wire", single, "Mbit/s")
    folder = setting.folder / "far"
    folder.mkdir()
    migrations = max(FAR_MIGRATIONS, setting.migrations)
    setting.witness.say(f"relay: {migrations} migrations under clients 50 ms away with 0.1 % loss")
    far = relay_bench.far_clients(SWITCHOVER, folder, setting.witness, migrations)
    clients = far.clients
    directions = [way for link in far.links for way in (link.forward, link.backward)]
    completed = sum(one.outcome == "completed" for one in far.migrations)
    round_trips = [link.round_trip_ms or 0 for link in far.links]
    yield _median("relay", "round trip of far clients", round_trips, "ms")
    yield _count("relay", "frames lost on the way", sum(way.lost or 0 for way in directions), None)
    yield _count("relay", "retransmits", clients.retransmits, None)
    yield _count("relay", "migrations not completed", migrations - completed)
    yield _count(
        "relay", "broken, reset, failed connects", clients.broken + clients.resets + clients.failed_connects
    )
    damaged = clients.bytes_lost + clients.bytes_duplicated + clients.bytes_corrupted
    yield _count("relay", "bytes lost, doubled, corrupted", damaged)


def prediction(setting: Setting) -> Iterator[Figure]:
    """Migrations foretold, over wires, dirty rates and patterns; leaves the table that they are told by."""
    from testbed.experiment.prediction_bench import errors  # late: it is made of what stands here

    yield from errors(setting)


def _blackouts_ms(result: Result) -> list[float]:
    return [one.blackout_ms or 0 for one in _completed(result)]


def _with(options: Options, setting: Setting) -> Options:
    return replace(options, migrations=setting.migrations)


def probing(setting: Setting) -> Iterator[Figure]:
    """redis-benchmark on a kv guest, alone and beside a probe of the default pace."""
    if not shutil.which("redis-benchmark"):
        raise BenchFailed("redis-benchmark is not installed (Debian's package redis-tools)")
    costs: list[cost.Cost] = []
    for number in range(PROBING_REPEATS):
        folder = setting.folder / f"probing-{number}"
        folder.mkdir()
        try:
            costs.append(cost.measure(folder))
        except cost.NothingMeasured as error:
            raise BenchFailed(str(error)) from error
    yield _median("probing", "redis-benchmark alone", [one.alone.requests_per_s for one in costs], "/s")
    yield _median("probing", "beside a probe", [one.beside.requests_per_s for one in costs], "/s")
    left = [one.throughput_left for one in costs]
    yield _median("probing", "  throughput left", left, "", 0.95, at_most=False)
    work = [one.work_left for one in costs]
    yield _median("probing", "  guest's work left", work, "")


BENCHES: dict[str, Bench] = {
    "switchover": switchover,
    "connections": connections,
    "churn": churn,
    "copy": copy,
    "lab": lab,
    "endurance": endurance,
    "storage": storage,
    "durable": durable,
    "quick": quick,
    "relay": relay,
    "probing": probing,
    "prediction": prediction,
}
