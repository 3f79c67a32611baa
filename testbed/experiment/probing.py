"""What probing costs the guest: the same load on the same guest, with a probe asking and without.

A lab with a kv guest. redis-benchmark runs alone, then while one closed-loop probe of the default pace asks,
then alone again: what is compared lies between two of its kind, so that a machine that grows slower meanwhile
is not taken for the probe's cost. Throughput is what the guest's users feel, but on a machine whose
processors are wanted by others it says more of them than of us. So the guest's own processor time for each
request of the benchmark is told as well: what of it is more beside the probe, the probe has cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from testbed.clients.spec import ClosedLoopSpec
from testbed.lab.lab import Lab
from testbed.scenario.from_options import scenario_of
from testbed.scenario.options import Options

LOADED = Options(
    program="kv",
    ram_bytes=64 << 20,
    clients=1,
    connections=ClosedLoopSpec.connections,
    interval_ns=ClosedLoopSpec.interval_us * 1000,
    family="ipv4",
    dirty_rate_pages_per_s=0,
)
REQUESTS = 50_000
CONNECTIONS = 20
DEADLINE_S = 120.0
GUEST = "guest"
"""The name of a guest's process (testbed.host.guest_process)."""


class NothingMeasured(Exception):
    """redis-benchmark did not end well: one line."""


@dataclass(frozen=True)
class Load:
    """What redis-benchmark reached, and how much processor time the guest took for each of its requests."""

    requests_per_s: float
    guest_us: float


@dataclass(frozen=True)
class Cost:
    """A load without the probe (the mean of before and after), and with it."""

    alone: Load
    beside: Load

    @property
    def throughput_left(self) -> float:
        return self.beside.requests_per_s / self.alone.requests_per_s

    @property
    def work_left(self) -> float:
        """Which part of the guest's own work is still the benchmark's."""
        return self.alone.guest_us / self.beside.guest_us


def measure(folder: Path) -> Cost:
    """One lab; redis-benchmark three times. NothingMeasured, and FileNotFoundError where there is none."""
    with Lab(scenario_of(LOADED), folder) as lab:
        lab.boot()
        before = _load(lab)
        lab.start_clients()
        beside = _load(lab)
        lab.stop_clients([])
        after = _load(lab)
    alone = Load(
        (before.requests_per_s + after.requests_per_s) / 2, (before.guest_us + after.guest_us) / 2
    )
    return Cost(alone, beside)


def _load(lab: Lab) -> Load:
    address = lab.vm.description.ipv4.partition("/")[0]
    command = ["redis-benchmark", "-h", address, "-t", "get", "-n", str(REQUESTS), "-c", str(CONNECTIONS)]
    (guest,) = [process for process in psutil.process_iter(["name"]) if process.info["name"] == GUEST]
    before = guest.cpu_times()
    with lab.start_program("client1", [*command, "--csv"]) as benchmark:
        output, _ = benchmark.communicate(timeout=DEADLINE_S)
    after = guest.cpu_times()
    last = output.decode().splitlines()[-1:]
    if benchmark.returncode or not last:
        raise NothingMeasured(f"redis-benchmark ended with {benchmark.returncode}")
    spent_s = after.user + after.system - before.user - before.system
    return Load(float(last[0].split(",")[1].strip('"')), spent_s * 1e6 / REQUESTS)
