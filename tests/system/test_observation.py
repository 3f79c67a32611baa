"""The network's tables, watched: what each node came to believe, and when."""

from __future__ import annotations

import select
import time
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from netns.namespace import Namespace
from netns.observe import NeighbourWatch
from testbed.handover.announcement import Kind
from testbed.handover.announcer import Announcer
from testbed.handover.filters import Identity
from testbed.lab.observation import Observation
from testbed.lab.observer import start_observer
from testbed.measure.trace import Recorder
from tests.system import handover_stage as stage
from tests.system.test_port_handover import announcer

pytestmark = pytest.mark.universe(preload=("testbed.lab.observer",))

DEADLINE_S = 10.0
CLIENTS = ("client", "local")
BRIDGES = ("switch", "host-a", "host-b")
ADDRESS = str(stage.GUEST_4.ip)


def observation(guests: dict[str, Identity] | None = None) -> Observation:
    return Observation(
        clients={name: Namespace.open(name) for name in CLIENTS},
        bridges={name: Namespace.open(name) for name in BRIDGES},
        guests=guests or {"vm1": stage.EITHER_MAC},
    )


def news(watched: Observation, *wanted: tuple[str, str]) -> list[dict[str, Any]]:
    """The events until each of `wanted` (source, event) has come."""
    events: list[dict[str, Any]] = []
    end_s = time.monotonic() + DEADLINE_S
    while missing := set(wanted) - {(event["source"], event["event"]) for event in events}:
        ready = select.select([watched], [], [], max(0.0, end_s - time.monotonic()))[0]
        assert ready, f"no news of {missing}: {events}"
        events += watched.take()
    return events


def of(events: list[dict[str, Any]], source: str, event: str) -> list[dict[str, Any]]:
    return [one for one in events if (one["source"], one["event"]) == (source, event)]


def replace_entry(node: str, mac: bytes, state: str = "reachable") -> None:
    with Namespace.open(node).entered(), IPRoute() as route:
        stage.know(route, "eth0", ADDRESS, mac.hex(":"), state=state)


def test_an_announcement_is_seen_to_turn_each_table_that_it_turns() -> None:
    """The MAC address changes with the host: clients' entries turn, the switch learns, and all of it is told
    once."""
    stage.make_network()
    host = stage.make_host("host-b", stage.OTHER_MAC, stage.EITHER_MAC)  # not plugged: says nothing
    for name in CLIENTS:
        replace_entry(name, stage.MAC)
    with observation() as watched:
        before_ns = time.monotonic_ns()
        speaker: Announcer = announcer(host, Kind.GARP_REQUEST, stage.OTHER_MAC)
        speaker.announce()
        events = news(
            watched,
            *((name, "neighbour") for name in CLIENTS),
            *((name, "announcement-seen") for name in CLIENTS),
            *(("switch", "forwarding"), ("host-a", "forwarding")),
        )
    for name in CLIENTS:
        (seen, *_) = of(events, name, "announcement-seen")
        assert (seen["kind"], seen["mac"]) == (str(Kind.GARP_REQUEST), stage.OTHER_MAC.hex(":"))
        told = [one["mac"] for one in of(events, name, "neighbour") if one["address"] == ADDRESS]
        assert told[-1] == stage.OTHER_MAC.hex(":")
    (learned,) = of(events, "switch", "forwarding")
    assert (learned["mac"], learned["port"]) == (stage.OTHER_MAC.hex(":"), "to-b")
    assert (learned["was"], learned["gone"]) == (None, False)
    assert all(event["t_ns"] >= before_ns for event in events)
    assert not any("vm" in event for event in events), "there is one guest: nobody asks which"


def test_what_an_entry_was_before_is_told_with_what_it_is() -> None:
    stage.make_network()
    with observation() as watched:
        for mac in (stage.MAC, stage.OTHER_MAC):
            replace_entry("client", mac)
        stage.forget_guest("client")
        events: list[dict[str, Any]] = []
        while not any(one["gone"] for one in events if one["address"] == ADDRESS):
            events += news(watched, ("client", "neighbour"))
    mine = [one for one in events if one["address"] == ADDRESS and one["was"] != one["mac"]]
    told = [(one["was"], one["mac"]) for one in mine]
    first, second = stage.MAC.hex(":"), stage.OTHER_MAC.hex(":")
    assert told == [(None, first), (first, second), (second, None)]


def test_of_several_guests_each_event_says_whose_it_is_and_others_are_not_told() -> None:
    stage.make_network()
    guests = {
        "vm1": Identity((stage.MAC,), (stage.GUEST_4.ip,)),
        "vm2": Identity((stage.OTHER_MAC,), (), (stage.GUEST_6.ip,)),
    }
    with observation(guests) as watched:
        with Namespace.open("client").entered(), IPRoute() as route:
            stage.know(route, "eth0", "10.7.0.77", stage.MAC.hex(":"))
            stage.know(route, "eth0", str(stage.GUEST_6.ip), stage.OTHER_MAC.hex(":"), state="stale")
            stage.know(route, "eth0", ADDRESS, stage.MAC.hex(":"), state="stale")
        events = news(watched, ("client", "neighbour"))
        while len(events) < 2:
            events += news(watched, ("client", "neighbour"))
    assert [(one["vm"], one["address"]) for one in events] == [
        ("vm2", str(stage.GUEST_6.ip)),
        ("vm1", ADDRESS),
    ]


def test_news_that_were_lost_are_told_and_the_watch_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    stage.make_network()
    monkeypatch.setattr("netns.observe._NEWS_BUFFER_BYTES", 4096)
    with observation() as watched:
        for number in range(64):  # each of them a notification, and nobody reads
            replace_entry("client", bytes((2, 0, 0, 0, 1, number)))
        events = news(watched, ("client", "news-lost"))
        (lost, *_) = of(events, "client", "news-lost")
        assert lost["table"] == "neighbour"
        replace_entry("client", stage.OTHER_MAC)
        while not any(one["mac"] == stage.OTHER_MAC.hex(":") for one in of(events, "client", "neighbour")):
            events += news(watched, ("client", "neighbour"))


def test_an_interface_that_is_not_there_is_named_and_leaves_nothing_open() -> None:
    stage.make_network()
    with pytest.raises(OSError, match="No such device"):
        Observation(clients={"client": Namespace.open("client")}, bridges={}, guests={}, interface="eth7")


def test_a_neighbour_that_is_not_reached_any_more_has_no_mac_address() -> None:
    stage.make_network()
    with Namespace.open("client") as client, NeighbourWatch(client) as watch:
        with client.entered(), IPRoute() as route:
            route.neigh("replace", dst=ADDRESS, ifindex=stage.index(route, "eth0"), state="failed")
        (change,) = watch.read(DEADLINE_S)
    assert (change.entry.address, change.entry.mac, change.entry.state) == (ADDRESS, None, "failed")
    assert not change.gone


def test_the_observer_tells_the_recorder_what_it_reads(tmp_path: Path) -> None:
    stage.make_network()
    recorder = Recorder(tmp_path / "recorder")
    guests = {"vm1": stage.EITHER_MAC}
    observer = start_observer(
        clients=CLIENTS, bridges=BRIDGES, guests=guests, recorder=tmp_path / "recorder", log=tmp_path / "log"
    )
    with observer:
        observer.wait_ready(DEADLINE_S)
        replace_entry("client", stage.MAC)
        host = stage.make_host("host-b")
        host.port.plug()
        announcer(host).announce()
        wanted = {("client", "neighbour"), ("local", "announcement-seen"), ("switch", "forwarding")}
        end_s = time.monotonic() + DEADLINE_S
        while missing := wanted - {(one["source"], one["event"]) for one in recorder.events}:
            ready = select.select([recorder], [], [], max(0.0, end_s - time.monotonic()))[0]
            assert ready, f"nothing of {missing}: {recorder.events}\n{observer.stderr_tail()}"
            recorder.receive()
    assert recorder.events[0]["event"] == "observation-begins"
    recorder.close()


def test_an_observer_for_whom_nobody_records_any_more_ends_and_complains_of_nothing(tmp_path: Path) -> None:
    """As when whoever runs the lab is killed: what the log says then would be read as a fault of the run."""
    stage.make_network()
    recorder = Recorder(tmp_path / "recorder")
    observer = start_observer(
        clients=CLIENTS, bridges=BRIDGES, guests={"vm1": stage.EITHER_MAC}, recorder=tmp_path / "recorder",
        log=tmp_path / "log",
    )  # fmt: skip
    with observer:
        observer.wait_ready(DEADLINE_S)
        recorder.close()
        replace_entry("client", stage.MAC)
        assert observer.wait(DEADLINE_S) == 0
    assert (tmp_path / "log").read_text() == ""
