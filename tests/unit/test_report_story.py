"""From events to migrations, whatever order, hosts and guests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from testbed.memory import page_map
from testbed.memory.pages import PageSet
from testbed.report.page import packed, story
from testbed.report.page.sieve import MOST_OF_A_KIND, Sieve

Event = dict[str, Any]
HOUR_NS = 3600 * 10**9


def migration(begin: int, source: str, target: str, vm: str | None = None) -> list[Event]:
    """The events of one migration, 100 ns long, in the order of time."""
    named = {"vm": vm} if vm else {}

    def tell(at: int, host: str, event: str, **fields: Any) -> Event:
        return {
            "t_ns": begin + at,
            "source": f"{host}:{vm}" if vm else host,
            "event": event,
            **fields,
            **named,
        }

    found = []
    for number, phase in enumerate(("setup", "provision", "precopy", "pause", "delete")):
        for host in (source, target):
            found.append(tell(number * 20, host, "begin", phase=phase))
            found.append(tell(number * 20 + 19, host, "end", phase=phase))
    where = page_map.encode(PageSet.all(64), 64)
    sent = {"pages": 64, "zero_pages": 0, "bytes": 2**18, "dirty_pages": 3}
    found.append(tell(55, source, "round", number=1, **sent, duration_ns=10, begin_ns=begin + 44, map=where))
    found.append(tell(62, source, "mark", name="paused"))
    found.append(tell(65, source, "mark", name="pages-sent", pages=3))
    found.append(tell(70, target, "mark", name="resumed"))
    found.append(tell(75, source, "pages", number=2, begin_ns=begin + 63, map=where))
    return sorted(found, key=lambda one: one["t_ns"])


def test_there_and_back_are_two() -> None:
    events = [*migration(0, "host-a", "host-b"), *migration(1000, "host-b", "host-a")]
    found = story.moves(events, [])
    assert [(one.source, one.target, one.begin_ns) for one in found] == [
        ("host-a", "host-b", 0),
        ("host-b", "host-a", 1000),
    ]
    assert [(one.pause_ns, one.resume_ns, one.outcome) for one in found] == [
        (62, 70, "completed"),
        (1062, 1070, "completed"),
    ]


def test_a_third_host_begins_a_migration_of_its_own() -> None:
    events = [*migration(0, "host-a", "host-b"), *migration(1000, "host-c", "host-d")]
    assert [one.source for one in story.moves(events, [])] == ["host-a", "host-c"]


def test_an_attempt_that_met_nobody_is_a_migration_of_its_own() -> None:
    whole = migration(0, "host-a", "host-b")
    alone = [one for one in whole if one["source"] == "host-a" and one["t_ns"] < 10]
    found = story.moves([*alone, *migration(1000, "host-a", "host-b")], [])
    assert [one.begin_ns for one in found] == [0, 1000]
    assert [one.outcome for one in found] == ["unknown", "completed"]


def test_guests_that_move_at_once_are_told_apart() -> None:
    events = [*migration(0, "host-a", "host-b", "vm1"), *migration(3, "host-b", "host-a", "vm2")]
    events.sort(key=lambda one: one["t_ns"])
    told = [
        {"vm": "vm2", "source": "host-b", "target": "host-a", "outcome": "rolled-back"},
        {"vm": "vm1", "source": "host-a", "target": "host-b", "outcome": "completed"},
    ]
    found = story.moves(events, told)
    assert [(one.vm, one.source, one.outcome, one.pause_ns) for one in found] == [
        ("vm1", "host-a", "completed", 62),
        ("vm2", "host-b", "rolled-back", 65),
    ]


def test_the_result_of_a_lab_with_one_guest_may_name_it() -> None:
    told = [{"vm": "vm1", "source": "host-a", "target": "host-b", "outcome": "completed"}]
    (found,) = story.moves(migration(0, "host-a", "host-b"), told)
    assert found.told == told[0]


def test_a_phase_that_never_ended_has_no_end() -> None:
    events = [one for one in migration(0, "host-a", "host-b") if one["t_ns"] < 60]
    (move,) = story.moves(events, [])
    assert move.outcome == "unknown"
    assert move.pause_ns is None
    events.append({"t_ns": 61, "source": "host-a", "event": "begin", "phase": "pause"})
    (move,) = story.moves(events, [])
    assert [(one["host"], one["phase"]) for one in story.phases(move) if one["end_ns"] is None] == [
        ("host-a", "pause")
    ]


def test_rounds_end_with_the_last_pages() -> None:
    (move,) = story.moves(migration(0, "host-a", "host-b"), [])
    first, last = story.rounds(move)
    assert (first["number"], first["begin_ns"], first["end_ns"], first["last"]) == (1, 44, 54, False)
    assert (last["number"], last["begin_ns"], last["end_ns"], last["pages"]) == (2, 63, 65, 3)
    assert last["last"]


def test_an_old_run_without_maps_has_rounds_all_the_same() -> None:
    events = [one for one in migration(0, "host-a", "host-b") if one["event"] != "pages"]
    for one in events:
        one.pop("map", None)
        one.pop("begin_ns", None)
    (move,) = story.moves(events, [])
    first, last = story.rounds(move)
    assert (first["begin_ns"], first["end_ns"]) == (45, 55)
    assert (last["begin_ns"], last["end_ns"], last.get("map")) == (62, 65, None)
    (told,) = packed.moves([move], [], packed.Clock(0, 100))
    assert [one["map"] for one in told["rounds"]] == [None, None]


def test_what_the_switch_learned_goes_to_the_migration_in_which_it_did() -> None:
    def learned(t_ns: int, port: str, **more: Any) -> Event:
        return {"t_ns": t_ns, "source": "switch", "event": "forwarding", "mac": "m", "port": port, **more}

    events = [*migration(0, "host-a", "host-b"), *migration(1000, "host-b", "host-a")]
    found = story.moves(events, [])
    news = [learned(68, "host-b"), learned(69, "host-b", gone=True), learned(1069, "host-a")]
    news.append({**learned(67, "vm0"), "source": "host-a"})
    told = packed.moves(found, news, packed.Clock(0, 2000))
    assert [one["learned"] for one in told] == [[[0.1, "host-b"]], [[1.1, "host-a"]]]


@pytest.mark.parametrize("hours", [1, 2, 40])
def test_times_fit_into_the_numbers_of_a_browser(hours: int) -> None:
    begin = 7 * 10**15
    clock = packed.Clock(begin, begin + hours * HOUR_NS)
    assert hours * HOUR_NS // 1000 // clock.unit_us < 1 << 32
    assert clock.us(begin + 1500) == 1.5
    assert (clock.unit_us == 1) == (hours == 1)


def test_of_very_many_maps_the_cells_are_merged_and_none_vanishes() -> None:
    cells = np.zeros(4096, np.uint8)
    cells[1234] = 1
    few = packed.merge(cells, 16)
    assert len(few) == 256
    assert np.flatnonzero(few).tolist() == [1234 // 16]
    assert packed.Maps(["x" * 100] * 10).merged == 1
    assert packed.Maps(["x" * 6000] * 1000).merged > 1
    assert packed.Maps([]).packed("no map") is None


def test_the_crowd_is_counted_and_the_story_kept() -> None:
    sieve = Sieve()
    crowd = [{"t_ns": number, "source": "client1", "event": "seen"} for number in range(MOST_OF_A_KIND + 50)]
    for part in (crowd[:700], migration(10, "host-a", "host-b"), crowd[700:]):
        sieve.take(part)
    events = sieve.events()
    assert len(events.story) == len(migration(10, "host-a", "host-b"))
    assert events.story == sorted(events.story, key=lambda one: one["t_ns"])
    assert len(events.of("seen")) == MOST_OF_A_KIND
    assert len(events.kinds["seen"].times_ns) == MOST_OF_A_KIND + 50
    (seen,) = packed.others(events, packed.Clock(0, MOST_OF_A_KIND + 49))
    assert (seen["count"], sum(seen["columns"])) == (MOST_OF_A_KIND + 50, MOST_OF_A_KIND + 50)
