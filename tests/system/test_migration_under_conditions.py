"""Whole migrations over links under conditions: holding, port handover and announcements work all the same,
and an announcement that the network loses is one that the client does not hear.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from netns.conditions import Conditions
from netns.impairment import ConditionedLink
from netns.link_figures import LinkFigures
from testbed.experiment import outcome
from testbed.handover.announcement import SCHEDULE_MS
from testbed.lab.lab import Lab
from testbed.measure.result import Clients
from testbed.scenario.options import Options
from tests.system.labs import PRELOAD, SMALL, ignored, lab_of
from tests.system.labs import move as move_guest

pytestmark = pytest.mark.universe(preload=PRELOAD)

MS = 1_000_000
NONE = Conditions.none()
HOST_A, HOST_B = "host-a", "host-b"
VM_OF = {"10.7.0.10": "vm1", "fd07::10": "vm1"}
AFTERMATH_S = 1.0
ANNOUNCED = 2 * len(SCHEDULE_MS)
"""In all: rounds of ARP for IPv4 and a neighbour advertisement for IPv6."""


@contextmanager
def conditioned(
    lab: Lab, asked: Mapping[str, tuple[Conditions, Conditions]]
) -> Iterator[dict[str, ConditionedLink]]:
    with ExitStack() as stack:
        links = {
            name: stack.enter_context(ConditionedLink(lab.topology, ends.node, ends.far, backend="relay"))
            for name, ends in lab.links.items()
            if name in asked
        }
        for name, link in links.items():
            link.set(*asked[name])
        yield links


@dataclass(frozen=True)
class Moved:
    """What a migration came to: what the clients saw, each one's requests in the aftermath, and what the
    links did."""

    clients: Clients
    summaries: dict[str, dict[str, Any]]
    announced: int
    heard: Counter[str]
    """Announcements, by client."""
    links: dict[str, LinkFigures]


def move(
    folder: Path,
    options: Options,
    asked: Mapping[str, tuple[Conditions, Conditions]],
    listener: str,
    announcements: int,
) -> Moved:
    """The guest moves; it is over when client `listener` has heard so many announcements, too."""
    with lab_of(options, folder) as lab:
        lab.boot()
        with conditioned(lab, asked) as links:
            lab.start_clients()
            lab.watch(0.3, ignored)
            events_before = len(lab.recorder.events)
            begun_ns = time.monotonic_ns()
            for answer in move_guest(lab):
                assert "error" not in answer
            lab.watch(AFTERMATH_S, ignored)
            heard = partial(heard_since, lab, events_before)
            assert lab.watch_until(lambda: heard()[listener] >= announcements, 10, ignored), heard()
            stats = lab.vm.stats()
            assert stats is not None
            figures = {name: link.figures() for name, link in links.items()}
            summaries = lab.stop_clients([(begun_ns, time.monotonic_ns())])
    announced = stats["counts"]["announcements_sent"]
    return Moved(outcome.clients(summaries, VM_OF), summaries, announced, heard(), figures)


def heard_since(lab: Lab, place: int) -> Counter[str]:
    """Announcements, by client, among the events from `place` on."""
    events = lab.recorder.events[place:]
    return Counter(one["source"] for one in events if one["event"] == "announcement-seen")


def test_clients_stay_unbroken_with_delays_on_every_link_of_the_way(tmp_path: Path) -> None:
    uplink = Conditions(delay_ns=2 * MS)
    access = Conditions(delay_ns=5 * MS, jitter_ns=2 * MS, seed=1)
    asked = {
        HOST_A: (uplink, uplink),
        HOST_B: (uplink, uplink),
        "migration": (Conditions(delay_ns=MS), Conditions(delay_ns=MS)),
        "client1": (access, replace(access, lost_announcements=2)),
        "client2": (access, replace(access, loss=0.01)),
    }
    # What is sent at once must find room in the relay, whenever that comes to take it.
    gentle = replace(
        SMALL, ram_bytes=32 << 20, dirty_rate_pages_per_s=500, max_bandwidth_bits_per_s=100_000_000
    )
    moved = move(tmp_path, gentle, asked, "client1", ANNOUNCED - 2)
    clients = moved.clients
    assert clients.requests > 0
    assert (clients.broken, clients.resets, clients.failed_connects) == (0, 0, 0)
    assert (clients.bytes_lost, clients.bytes_duplicated, clients.bytes_corrupted) == (0, 0, 0)
    assert (moved.announced, moved.heard["client1"]) == (ANNOUNCED, ANNOUNCED - 2)
    assert moved.links["client1"].backward.announcements_lost == 2
    for name, (forward, backward) in asked.items():
        link = moved.links[name]
        for direction, conditions in ((link.forward, forward), (link.backward, backward)):
            assert direction.passed_frames, name
            assert not direction.overrun, name
            assert direction.delay_p50_ns is not None
            assert direction.delay_p50_ns >= conditions.delay_ns - conditions.jitter_ns, name
    sent_over_wire = moved.links["migration"].forward.passed_bytes
    assert sent_over_wire is not None
    assert sent_over_wire > 8 << 20


@pytest.mark.slow  # whoever is cut off is waited for in the end
def test_a_client_from_which_the_network_keeps_every_announcement_is_cut_off(tmp_path: Path) -> None:
    """With a MAC address for each host only an announcement tells a client where the guest is."""
    options = replace(SMALL, mac="per-host", churn_per_s=0)
    deaf = Conditions(lost_announcements=1_000_000)
    moved = move(tmp_path, options, {"client1": (NONE, deaf), "client2": (NONE, NONE)}, "client2", ANNOUNCED)
    lost = moved.links["client1"].backward.announcements_lost
    assert lost is not None
    assert lost >= moved.announced == ANNOUNCED
    assert (moved.heard["client1"], moved.heard["client2"]) == (0, ANNOUNCED)
    waits_ms = {name: _longest_wait_ms(moved.summaries, name) for name in ("client1", "client2")}
    assert waits_ms["client1"] > AFTERMATH_S * 1000 / 2
    assert waits_ms["client2"] < AFTERMATH_S * 1000 / 2


def _longest_wait_ms(summaries: Mapping[str, Mapping[str, Any]], client: str) -> float:
    longest = outcome.gap_during({client: summaries[client]}, 0, VM_OF).max
    assert longest is not None
    return longest
