"""The two backends of a link's conditions held against each other: the same is asked of netem and of the
relay, and a sounding from the link's two ends, which knows of neither, says what came of it.

What chance decides is held to within five standard deviations of the binomial distribution (wrong once in two
million times); delays are never too short, and too long only by what a busy or an emulated machine adds.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from netns.apply import Topology, apply
from netns.conditions import Conditions, ConditionsError
from netns.detour import Place
from netns.impairment import ConditionedLink
from netns.kernel_queues import KernelQueues, has
from netns.link_figures import Wanted
from netns.sounding import Sounding, sound
from netns.topology import Bridge, End, Link, Node, Spec, plan
from testbed.experiment.run import run
from testbed.scenario.files import parse
from tests.conftest import require
from tests.system.labs import PRELOAD, Witness
from tests.system.offloaded import segments_that_arrive

pytestmark = pytest.mark.universe(preload=PRELOAD)

MS = 1_000_000
LATE_NS = 150 * MS
"""How much a busy machine may add to a delay of hundreds of milliseconds."""
NONE = Conditions.none()
A, SWITCH_PORT = ("a", "eth0"), ("switch", "to-a")
SPEC = Spec(
    nodes=(Node("switch", bridges=(Bridge("br0"),)), Node("a"), Node("b")),
    links=(
        Link(End("a", "eth0", addresses=("10.0.0.1/24",)), End("switch", "to-a", bridge="br0")),
        Link(End("b", "eth0", addresses=("10.0.0.2/24",)), End("switch", "to-b", bridge="br0")),
    ),
)
BACKENDS: tuple[Wanted, ...] = ("netem", "relay")

Both = dict[Wanted, Sounding]


@pytest.fixture
def topology() -> Iterator[Topology]:
    require("netem", lambda: has("netem"))
    with apply(plan(SPEC)) as made:
        yield made


def sounded(
    topology: Topology, forward: Conditions, backward: Conditions = NONE, *, count: int = 200
) -> Both:
    """What is measured of a link when one backend, and then the other, is asked for these conditions."""
    found: Both = {}
    for backend in BACKENDS:
        with ConditionedLink(topology, A, SWITCH_PORT, backend=backend) as link:
            link.set(forward, backward)
            found[backend] = link.sound(count, rate_probe_s=2.0)
            figures = link.figures()
        assert (figures.backend, figures.why) == (backend, "asked for by name")
        assert (figures.forward.asked, figures.backward.asked) == (forward, backward)
    return found


def by_chance(happened: int, of: int, probability: float) -> bool:
    """Whether so many of so many are what five standard deviations allow."""
    deviation = math.sqrt(of * probability * (1 - probability))
    return abs(happened - of * probability) <= 5 * deviation


def test_a_delay_is_the_same_by_both(topology: Topology) -> None:
    asked = (200 * MS, 500 * MS)
    both = sounded(topology, *(Conditions(delay_ns=delay_ns) for delay_ns in asked))
    for backend, sounding in both.items():
        for one, delay_ns in zip((sounding.forward, sounding.backward), asked, strict=True):
            assert (one.arrived, one.duplicated, one.overtaken) == (200, 0, 0), backend
            assert one.delay_least_ns is not None
            assert one.delay_p50_ns is not None
            assert delay_ns <= one.delay_least_ns <= one.delay_p50_ns < delay_ns + LATE_NS, backend
        assert sounding.round_trip_p50_ns is not None
        assert sum(asked) <= sounding.round_trip_p50_ns < sum(asked) + 2 * LATE_NS, backend


def test_jitter_spreads_the_delays_alike_and_frames_overtake(topology: Topology) -> None:
    """Between 100 and 900 ms, evenly."""
    asked = Conditions(delay_ns=500 * MS, jitter_ns=400 * MS, jitter_reorders=True, seed=5)
    for backend, sounding in sounded(topology, asked, count=400).items():
        one = sounding.forward
        assert (one.arrived, one.duplicated) == (400, 0), backend
        assert one.delay_least_ns is not None
        assert one.delay_p50_ns is not None
        assert one.delay_p99_ns is not None
        assert 100 * MS <= one.delay_least_ns < 150 * MS + LATE_NS, backend
        assert 400 * MS < one.delay_p50_ns < 600 * MS + LATE_NS, backend
        assert 850 * MS < one.delay_p99_ns < 900 * MS + LATE_NS, backend
        assert one.overtaken > 100, backend


def test_both_lose_what_chance_allows_in_each_direction(topology: Topology) -> None:
    forward, backward = Conditions(loss=0.2, seed=1), Conditions(loss=0.05, seed=2)
    for backend, sounding in sounded(topology, forward, backward, count=2000).items():
        for one, asked in ((sounding.forward, forward), (sounding.backward, backward)):
            assert by_chance(one.sent - one.arrived, one.sent, asked.loss), (backend, one)
        assert sounding.backward.sent == sounding.forward.arrived


def test_both_duplicate_what_chance_allows_and_lose_nothing(topology: Topology) -> None:
    asked = Conditions(duplication=0.3, seed=3)
    for backend, sounding in sounded(topology, asked, count=1000).items():
        one = sounding.forward
        assert (one.arrived, sounding.backward.duplicated) == (1000, 0), backend
        assert by_chance(one.duplicated, one.sent, asked.duplication), (backend, one)


def test_by_both_some_do_not_wait_for_their_delay(topology: Topology) -> None:
    asked = Conditions(delay_ns=1000 * MS, reordering=0.25, seed=4)
    for backend, sounding in sounded(topology, asked, count=400).items():
        one = sounding.forward
        assert one.arrived == 400, backend
        # Who is overtaken arrives after one that was sent later; the last second's frames are by nobody.
        assert 200 < one.overtaken <= 400, backend
        assert one.delay_least_ns is not None
        assert one.delay_p50_ns is not None
        assert one.delay_least_ns < 500 * MS < 1000 * MS <= one.delay_p50_ns, backend


@pytest.mark.parametrize("rate_bits_per_s", [2e6, 5e6])
def test_a_rate_is_the_same_by_both(topology: Topology, rate_bits_per_s: float) -> None:
    found: list[float] = []
    for backend, sounding in sounded(topology, Conditions(rate_bits_per_s=rate_bits_per_s)).items():
        rate = sounding.forward.throughput_bits_per_s
        assert rate is not None
        assert rate == pytest.approx(rate_bits_per_s, rel=0.04), backend
        assert sounding.backward.throughput_bits_per_s is None
        found.append(rate)
    assert found[0] == pytest.approx(found[1], rel=0.05)


# ---- why netem is not asked for everything


def by_netem_all_the_same(topology: Topology, asked: Conditions, count: int) -> Sounding:
    """What is measured where netem is made to do what it is otherwise not asked to."""
    with ConditionedLink(topology, A, SWITCH_PORT, backend="netem") as link:
        with pytest.raises(ConditionsError, match=r"^netem .*: take the relay$"):
            link.set(asked, NONE)
    places = [Place(topology.namespace(node), ifname) for node, ifname in (A, SWITCH_PORT)]
    queues = KernelQueues(*places)
    queues.set("netem", asked, NONE)
    try:
        return sound(*places, count=count, expected_delay_ns=asked.delay_ns + asked.jitter_ns)
    finally:
        queues.set("none", NONE, NONE)


def test_netem_does_not_lose_a_frame_that_it_doubles(topology: Topology) -> None:
    asked = Conditions(loss=0.5, duplication=0.5, seed=6)
    one = by_netem_all_the_same(topology, asked, 1000).forward
    assert by_chance(one.sent - one.arrived, one.sent, 0.25), one
    assert not by_chance(one.sent - one.arrived, one.sent, 0.5), one


def test_in_netem_no_frame_overtakes_by_jitter_where_there_is_a_rate(topology: Topology) -> None:
    asked = Conditions(
        delay_ns=200 * MS, jitter_ns=200 * MS, jitter_reorders=True, rate_bits_per_s=1e8, seed=7
    )
    one = by_netem_all_the_same(topology, asked, 200).forward
    assert (one.arrived, one.overtaken) == (200, 0)


def test_in_netem_who_does_not_wait_for_the_delay_does_not_wait_for_the_wire_either(
    topology: Topology,
) -> None:
    """A frame of 34 bytes takes 27 ms of this wire, and more are through than it can have carried."""
    asked = Conditions(delay_ns=MS, rate_bits_per_s=1e4, reordering=0.5, seed=8)
    began_ns = time.monotonic_ns()
    one = by_netem_all_the_same(topology, asked, 600).forward
    carried = (time.monotonic_ns() - began_ns) / 1e9 * 1e4 / (34 * 8)
    assert one.arrived > carried


def test_netem_loses_an_offloaded_frame_as_one_and_the_relay_each_frame_of_it(topology: Topology) -> None:
    asked = Conditions(loss=0.5, seed=9)
    arrived: dict[Wanted, set[int]] = {}
    for backend in BACKENDS:
        with ConditionedLink(topology, A, SWITCH_PORT, backend=backend) as link:
            link.set(asked, NONE)
            a, b = (topology.namespace(node) for node in ("a", "b"))
            arrived[backend] = set(segments_that_arrive(a, b, "10.0.0.2", frames=20, of=20))
    assert arrived["netem"] == {0, 20}
    assert len(arrived["relay"] - {0, 20}) > 2


# ---- in a whole run


def test_a_run_says_by_whom_its_links_were_conditioned_and_what_was_measured(tmp_path: Path) -> None:
    text = """
        baseline = "300ms"
        aftermath = "1s"
        [[vm]]
        ram = "32MiB"
        load.working_set = "2MiB"
        [[client]]
        [[client.probe]]
        kind = "closed-loop"
        connections = 2
        interval = "10ms"
        [[link]]
        name = "client1"
        delay = "20ms"
        [[step]]
        migrate = "vm1"
    """
    result = run(parse(text.encode(), "test.toml", "test"), tmp_path, Witness(), [])
    assert result.outcome == "completed"
    (told,) = json.loads((tmp_path / "result.json").read_text())["links"]
    by = ("netem", "the kernel has it") if has("netem") else ("relay", "netem is not in this kernel")
    assert (told["name"], told["backend"], told["why"]) == ("client1", *by)
    assert (told["asked_round_trip_ms"], told["forward"]["measured"]["loss"]) == (40, 0)
    assert 40 <= told["round_trip_ms"] < 40 + 2 * LATE_NS / MS
    assert result.clients.broken == 0
