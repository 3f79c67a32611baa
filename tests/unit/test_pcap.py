"""What `--pcap` asks for, and which moments of a run its files show."""

from __future__ import annotations

import pytest

from testbed.commands.asked import completed
from testbed.experiment.marks import marks
from testbed.lab.plan import links
from testbed.scenario.from_options import scenario_of
from testbed.scenario.options import OptionError, Options
from testbed.scenario.pcap import DEFAULT_LIMIT, HEADERS_BYTES, Pcap

LINKS = ("host-a", "client1", "migration", "host-a.storage", "storage")


def asked(names: str, snap: str | None = None, limit: str = DEFAULT_LIMIT) -> Pcap:
    found = Pcap.asked(names, snap, limit)
    assert found is not None
    return found


def test_links_are_named_after_the_node_that_they_plug_in() -> None:
    found = links(scenario_of(Options(clients=2, disk_bytes=1 << 20), "test"))
    assert list(found) == [
        "host-a", "host-b", "client1", "client2", "migration", "host-a.storage", "host-b.storage", "storage"
    ]  # fmt: skip
    assert found["client2"].node == ("client2", "eth0")
    assert found["client2"].far == ("switch", "client2")
    assert found["host-a.storage"].node == ("host-a", "stor0")


def test_all_links_or_those_that_are_named() -> None:
    assert asked("all").chosen(LINKS) == LINKS
    assert asked("client1, migration,client1").chosen(LINKS) == ("client1", "migration")
    assert Pcap.asked(None, None, DEFAULT_LIMIT) is None


def test_of_memory_and_disks_on_their_way_the_headers_are_kept() -> None:
    snaps = {link: asked("all").snap_of(link) for link in LINKS}
    assert snaps == {
        "host-a": None, "client1": None, "migration": HEADERS_BYTES, "host-a.storage": HEADERS_BYTES,
        "storage": HEADERS_BYTES,
    }  # fmt: skip
    assert {asked("all", "0").snap_of(link) for link in LINKS} == {None}
    assert {asked("all", "128B").snap_of(link) for link in LINKS} == {128}


@pytest.mark.parametrize(
    ("names", "snap", "limit", "told"),
    [
        ("client9", None, "1GiB", "no link 'client9'; there are host-a, client1, migration, host-a"),
        ("", None, "1GiB", "no link ''"),
        ("all", "10B", "1GiB", "--pcap-snap: '10B' is not 64 B to 256 KiB, or 0"),
        ("all", "x", "1GiB", "--pcap-snap: 'x' is not a size"),
        ("all", None, "1kB", "--pcap-limit: '1kB' is not 1 MiB"),
        (None, "64B", "1GiB", "--pcap-snap: nothing is captured without --pcap"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    names: str | None, snap: str | None, limit: str, told: str
) -> None:
    with pytest.raises(OptionError) as error:
        Pcap.asked(names, snap, limit).chosen(LINKS)  # type: ignore[union-attr]
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["demo", "--pcap"], ["demo", "--pcap=all"]),
        (["demo", "--pcap", "--quiet"], ["demo", "--pcap=all", "--quiet"]),
        (["demo", "--pcap", "client1", "-q"], ["demo", "--pcap", "client1", "-q"]),
        (["demo", "--pcap=client1"], ["demo", "--pcap=client1"]),
        (["demo", "--pcap-snap", "0"], ["demo", "--pcap-snap", "0"]),
        ([], []),
    ],
)
def test_pcap_alone_means_all(words: list[str], meant: list[str]) -> None:
    assert completed(words) == meant


def test_the_moments_at_which_the_story_turns_are_marked() -> None:
    events = [
        {"t_ns": 5, "source": "host-b", "event": "mark", "name": "resumed"},
        {"t_ns": 1, "source": "host-a", "event": "mark", "name": "paused"},
        {"t_ns": 2, "source": "host-a", "event": "begin", "phase": "switchover"},
        {"t_ns": 3, "source": "host-b", "event": "mark", "name": "announced"},
        {"t_ns": 4, "source": "host-a", "event": "mark", "name": "committed", "vm": "vm2"},
        {"t_ns": 6, "source": "host-b", "event": "announced"},
        {"t_ns": 7, "source": "host-a", "event": "rolled-back", "reason": "no room"},
        {"t_ns": 8, "source": "host-b", "event": "mark", "name": "frames-released", "frames": 3},
    ]
    found = marks(events)
    assert [(one.t_ns, one.text.split(":")[0]) for one in found] == [
        (1, "pause"), (3, "announcement"), (4, "vm2"), (5, "resume"), (6, "announcement"), (7, "rolled back"),
        (8, "release"),
    ]  # fmt: skip
    assert "the 3 frames" in found[-1].text
