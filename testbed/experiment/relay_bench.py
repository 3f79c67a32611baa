"""What a relay in the middle of a link can do: how many frames, how many bytes, how true its delays are; and
whether clients behind such links stay unbroken.

Rates and delays are measured on a link of its own, two nodes and nothing else. Runs inside a universe.
"""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from netns.apply import Topology, apply
from netns.conditions import Conditions
from netns.forkserver import ready, spawn
from netns.impairment import ConditionedLink
from netns.topology import End, Link, Node, Spec, plan
from testbed.experiment import yardstick
from testbed.experiment.run import Witness, run
from testbed.measure.result import Result
from testbed.scenario.from_options import scenario_of
from testbed.scenario.options import Options
from testbed.scenario.parts import LinkPart

MS = 1_000_000
DELAY_NS = 10 * MS
REPEATS = 5
FLOOD_S = 1.0
BULK_S = 2
FAR_DELAY_NS, FAR_LOSS = 50 * MS, 0.001
_DEADLINE_S = 30.0
_NEAR, _FAR = ("near", "eth0"), ("far", "eth0")
_NEAR_ADDRESS, FAR_ADDRESS = "10.9.0.1", "10.9.0.2"
_PORT = 9000
_PAYLOAD_BYTES = 64


@contextmanager
def standing() -> Iterator[tuple[Topology, ConditionedLink]]:
    """A link between two nodes, by the relay."""
    near = End(*_NEAR, addresses=(f"{_NEAR_ADDRESS}/24",))
    far = End(*_FAR, addresses=(f"{FAR_ADDRESS}/24",))
    spec = Spec((Node("near"), Node("far")), (Link(near, far),))
    with (
        apply(plan(spec)) as topology,
        ConditionedLink(topology, _NEAR, _FAR, backend="relay") as link,
    ):
        yield topology, link


def delay_errors_ms(link: ConditionedLink) -> tuple[list[float], list[float]]:
    """By how much the median of a delay of 10 ms is off, and the 99th percentile, of each direction of each
    repeat: measured from the link's ends.
    """
    asked = Conditions(delay_ns=DELAY_NS)
    link.set(asked, asked)
    medians: list[float] = []
    tails: list[float] = []
    for _ in range(REPEATS):
        sounding = link.sound()
        for one in (sounding.forward, sounding.backward):
            medians.append(abs((one.delay_p50_ns or 0) - DELAY_NS) / MS)
            tails.append(abs((one.delay_p99_ns or 0) - DELAY_NS) / MS)
    return medians, tails


@dataclass(frozen=True)
class Flooded:
    """What became of small frames sent for a second: how many passed (a second), how many the relay could not
    take, and how long its processor time was for each (us)."""

    passed_per_s: float
    overrun: int
    processor_us: float


def flooded(topology: Topology, link: ConditionedLink, rate_per_s: int | None) -> list[Flooded]:
    """Small frames, each delayed by 1 ms: so many a second, or (None) as many as one sender can send."""
    results: list[Flooded] = []
    link.set(Conditions(delay_ns=MS), Conditions.none())
    with topology.namespace("far").socket(socket.AF_INET, socket.SOCK_DGRAM) as heard:
        heard.bind((FAR_ADDRESS, _PORT))
        for _ in range(REPEATS):
            link.restart()
            before_ns = link.figures().processor_ns or 0
            argument = {"address": FAR_ADDRESS, "port": _PORT, "rate_per_s": rate_per_s}
            entry = "testbed.experiment.relay_bench:flood"
            with spawn(entry, argument, namespace=topology.namespace("near"), name="flood") as sender:
                sender.wait(_DEADLINE_S)
            after = link.figures()
            passed, active_ns = after.forward.passed_frames or 1, after.forward.active_ns or 1
            took_us = ((after.processor_ns or 0) - before_ns) / 1e3
            results.append(Flooded(passed * 1e9 / active_ns, after.forward.overrun or 0, took_us / passed))
    return results


def flood(argument: dict[str, Any], _fds: Sequence[int]) -> int:
    """Entry for the fork server: datagrams for a second, `rate_per_s` of them or as fast as they go."""
    ready()
    payload = bytes(_PAYLOAD_BYTES)
    rate_per_s = argument["rate_per_s"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.connect((argument["address"], argument["port"]))
        begin_ns, sent = time.monotonic_ns(), 0
        while (elapsed_ns := time.monotonic_ns() - begin_ns) < FLOOD_S * 1e9:
            if rate_per_s is None or sent < elapsed_ns * rate_per_s / 1e9:
                out.send(payload)
                sent += 1
    return 0


def bulk_mbit(topology: Topology, link: ConditionedLink, asked: Conditions) -> list[float]:
    """What one TCP connection reaches, Mbit/s, by iperf3; nothing where there is no iperf3."""
    if not shutil.which(yardstick.PROGRAM):
        return []
    link.set(asked, asked)
    near, far = topology.namespace("near"), topology.namespace("far")
    return [yardstick.bulk_mbit(near, far, FAR_ADDRESS, BULK_S) for _ in range(REPEATS)]


def far_clients(options: Options, folder: Path, witness: Witness, migrations: int) -> Result:
    """Migrate so many times there and back under clients with 50 ms of delay and 0.1 % loss each way."""
    scenario = scenario_of(replace(options, migrations=migrations), "far")
    far = [
        LinkPart(name=client.name, delay_ns=FAR_DELAY_NS, loss=FAR_LOSS)
        for client in scenario.clients
    ]
    return run(scenario.model_copy(update={"links": tuple(far)}), folder, witness)
