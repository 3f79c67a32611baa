"""Whole migrations in a lab, and what happens when a mechanism is taken out."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import jsonschema
import pytest

from testbed.handover.announcement import SCHEDULE_MS
from testbed.host.urgency import Urgency
from testbed.measure.result import SCHEMA_FILE, Result
from testbed.memory.tracking import NAMES
from testbed.migration.phases import ORDER
from testbed.scenario.options import Mode
from tests.kernel.features import has, require_tracker
from tests.system.labs import PRELOAD, SMALL, Witness, failed_checks, lab_of, migrate, move

pytestmark = pytest.mark.universe(preload=PRELOAD)

ROUND_FRAMES = 2  # of one announcement: ARP for IPv4, a neighbour advertisement for IPv6
ALL_HEARD_NS = 2_000_000_000
"""An aftermath after which the last announcement, sent in its first half second, has been told of too."""
RTO_FLOOR_MS = 200  # TCP_RTO_MIN, include/net/tcp.h
LONG_BLACKOUT = {
    "mode": "stop-and-copy",
    "ram_bytes": 16 << 20,
    "bandwidth_bits_per_s": 1_000_000_000,
    "fill": 0.8,
    "connections": 8,
    "interval_ns": 100_000_000,
    "stream_rate_per_s": 0,
    "churn_per_s": 0,
}
"""A blackout that is longer than half the clients' interval, and they take two turns in each: some ask within
it, and then have nothing else on the way that would tell them of a loss. (With a short interval all have
asked before the cut, as the guest is slow to answer then, and their requests move along unread in their
sockets. In emulation the guest is slow for 30 ms.) A slow wire makes it long, and not much RAM: the agents
are urgent, and while they copy clients have no processor to ask on.
"""


SLOW_ROUNDS = {"ram_bytes": 32 << 20, "max_bandwidth_bits_per_s": 100_000_000}
"""More than a second for the first, and tenths of one for those after it: the guest writes in each."""


def assert_unbroken(result: Result) -> None:
    assert result.outcome == "completed", [one.reason for one in result.migrations]
    assert not failed_checks(result)
    assert result.clients.requests > 0
    assert result.ram.verified


def test_a_live_migration_leaves_every_client_unbroken_and_a_result_that_fits_its_schema(
    tmp_path: Path,
) -> None:
    witness = Witness()
    result = migrate(tmp_path, witness, aftermath_ns=ALL_HEARD_NS)
    assert_unbroken(result)
    stored = json.loads((tmp_path / "result.json").read_text())
    jsonschema.validate(stored, json.loads(SCHEMA_FILE.read_text()))
    assert sum(result.blackout_parts_ms.values()) == pytest.approx(result.blackout_ms, abs=0.01)
    assert result.network.frames_released == result.network.frames_held
    assert result.network.announcements_seen == result.network.announcements_sent > 0
    assert result.network.switch_relearned_ms is not None
    assert result.network_gap_ms is not None
    assert result.network_gap_ms > 0
    assert {row.address for row in result.clients.each} == {"10.7.0.10", "fd07::10"}
    assert {row.probe for row in result.clients.each} == {"closed-loop", "open-loop", "churn"}
    assert all(row.asked_late_ms is not None for row in result.clients.each)


def test_both_hosts_tell_the_begin_and_the_end_of_every_phase_in_order(tmp_path: Path) -> None:
    migrate(tmp_path)
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [event["t_ns"] for event in events] == sorted(event["t_ns"] for event in events)
    for host in ("host-a", "host-b"):
        told = [(e["event"], e["phase"]) for e in events if e["source"] == host and "phase" in e]
        assert told == [(what, phase.value) for phase in ORDER for what in ("begin", "end")]


@pytest.mark.parametrize("program", ["kv", "http", "ramp", "bulk"])
def test_every_program_survives_a_journey_there_and_back(tmp_path: Path, program: str) -> None:
    result = migrate(tmp_path, program=program, migrations=2)
    assert_unbroken(result)
    assert [(one.source, one.target) for one in result.migrations] == [
        ("host-a", "host-b"),
        ("host-b", "host-a"),
    ]


def test_pre_copy_sends_what_is_dirtied_again_and_skips_what_is_zero(tmp_path: Path) -> None:
    result = migrate(tmp_path, fill=0.25, dirty_rate_pages_per_s=5000)
    assert_unbroken(result)
    first, *later = result.rounds
    pages = result.ram.bytes // 4096
    assert pages / 4 < first.pages < pages / 2
    assert first.bytes < (first.pages - first.zero_pages) * 4200
    assert later
    assert sum(one.pages for one in later) < first.pages


def test_stop_and_copy_moves_the_guest_without_a_round(tmp_path: Path) -> None:
    result = migrate(tmp_path, mode="stop-and-copy")
    assert_unbroken(result)
    assert not result.rounds
    assert result.ram.final_pages > 1000


@pytest.mark.parametrize("announce", ["garp-request", "garp-reply", "rarp"])
def test_any_announcement_makes_the_switch_relearn(tmp_path: Path, announce: str) -> None:
    result = migrate(tmp_path, announce=announce, aftermath_ns=ALL_HEARD_NS)
    assert_unbroken(result)
    assert result.network.announcements_seen == result.network.announcements_sent > 0
    assert result.network.switch_relearned_ms is not None
    (moved,) = [change for change in result.migrations[0].tables if change.node == "switch"]
    assert (moved.was, moved.now, moved.at_ms) == ("host-a", "host-b", result.network.switch_relearned_ms)
    assert not [change for change in result.migrations[0].tables if change.table == "neighbour"]


@pytest.mark.parametrize("announce", ["garp-request", "garp-reply"])
def test_a_mac_address_for_each_host_works_with_an_announcement(tmp_path: Path, announce: str) -> None:
    result = migrate(tmp_path, mac="per-host", announce=announce)
    assert_unbroken(result)
    turned = {
        (change.node, change.was, change.now)
        for change in result.migrations[0].tables
        if change.key == "10.7.0.10"
    }
    before, after = ("02:00:00:00:0a:42", "02:00:00:00:0b:42")
    assert turned == {("client1", before, after), ("client2", before, after)}


@pytest.mark.slow
def test_without_an_announcement_clients_of_another_mac_address_are_cut_off(tmp_path: Path) -> None:
    result = migrate(tmp_path, mac="per-host", announce="none", churn_per_s=0, stream_rate_per_s=0)
    assert result.outcome == "completed"
    assert result.clients.gap_ms.max is not None
    assert result.clients.gap_ms.max > 1000
    assert result.network.announcements_seen == 0


def test_without_holding_frames_a_client_waits_for_its_retransmission(tmp_path: Path) -> None:
    result = migrate(tmp_path, hold=False, **LONG_BLACKOUT)
    assert result.clients.broken == 0
    assert result.network.frames_dropped > 0
    assert result.clients.retransmits > result.clients.retransmits_needless
    assert result.clients.gap_ms.max is not None
    assert result.clients.gap_ms.max >= RTO_FLOOR_MS


def test_with_holding_frames_no_client_has_to_retransmit(tmp_path: Path) -> None:
    """One that has to wait longer than the RTO floor, as in emulation, sends again what is merely held."""
    result = migrate(tmp_path, hold=True, **LONG_BLACKOUT)
    assert_unbroken(result)
    assert result.network.frames_held > 0
    assert result.clients.retransmits == result.clients.retransmits_needless
    assert result.clients.gap_ms.max is not None
    if result.clients.gap_ms.max < RTO_FLOOR_MS:
        assert result.clients.retransmits == 0


@pytest.mark.parametrize("tracker", NAMES)
def test_each_tracker_carries_a_guest_that_writes(tmp_path: Path, tracker: str) -> None:
    require_tracker(tracker)
    result = migrate(tmp_path, tracker=tracker, **SLOW_ROUNDS)
    assert_unbroken(result)
    assert result.environment["tracker"] == tracker
    assert sum(one.pages for one in result.rounds[1:]) > 0, "nothing was written: this was no test"


def test_auto_takes_the_best_tracker_of_this_kernel(tmp_path: Path) -> None:
    better = list(itertools.takewhile(lambda name: not works(name), NAMES))
    result = migrate(tmp_path, tracker="auto")
    assert_unbroken(result)
    assert result.environment["tracker"] == NAMES[len(better)]
    assert [one["name"] for one in result.environment["trackers_passed_over"]] == better


def works(tracker: str) -> bool:
    try:
        return has(tracker)
    except OSError:
        return False


@pytest.mark.parametrize("tracker", ["userfaultfd", "soft-dirty"])
def test_a_guest_that_writes_behind_the_trackers_back_is_rolled_back_and_lives(
    tmp_path: Path, tracker: str
) -> None:
    require_tracker(tracker)
    sneaky = "tests.system.programs:Sneaky"
    result = migrate(tmp_path, program=sneaky, tracker=tracker, aftermath_ns=ALL_HEARD_NS, **SLOW_ROUNDS)
    assert result.outcome == "rolled-back"
    assert result.migrations[0].reason is not None
    assert "RAM" in result.migrations[0].reason
    assert result.clients.broken == result.clients.resets == result.clients.bytes_lost == 0
    assert result.guest.steps > 0
    network = result.migrations[0].network
    assert network.frames_released == network.frames_held
    assert network.announcements_seen == network.announcements_sent == ROUND_FRAMES * (1 + len(SCHEDULE_MS))


def test_the_digest_tracker_sees_what_page_tables_do_not(tmp_path: Path) -> None:
    result = migrate(tmp_path, program="tests.system.programs:Sneaky", tracker="digest", **SLOW_ROUNDS)
    assert_unbroken(result)


def test_state_outside_ram_does_not_come_along(tmp_path: Path) -> None:
    result = migrate(tmp_path, program="tests.system.programs:Forgetful")
    assert_unbroken(result)
    program = result.guest.program_stats
    assert program["in_ram"] == result.clients.requests
    assert 0 < program["outside_ram"] < program["in_ram"]


def test_a_handler_that_raises_fails_the_run_and_is_named(tmp_path: Path) -> None:
    result = migrate(tmp_path, program="tests.system.programs:Faulty")
    assert any("ZeroDivisionError" in fault for fault in result.guest.faults)
    assert any(line.startswith("no fault in the guest: ") for line in failed_checks(result))


def test_a_guest_that_does_not_converge_stays_where_it_is_if_asked(tmp_path: Path) -> None:
    result = migrate(
        tmp_path,
        max_bandwidth_bits_per_s=400_000_000,
        dirty_rate_pages_per_s=50_000,
        working_set_bytes=16 << 20,
        max_rounds=2,
        downtime_limit_ns=1_000_000,
        on_stall="give-up",
    )
    assert result.outcome == "rolled-back"
    assert len(result.rounds) == 2
    assert result.clients.broken == 0
    assert [check.name for check in result.checks if not check.passed] == ["migrated"]


@pytest.mark.parametrize(("mode", "short"), [("live", True), ("stop-and-copy", False)])
def test_agents_are_urgent_in_a_switchover_unless_it_takes_long(
    tmp_path: Path, mode: Mode, short: bool
) -> None:
    """Two that copy for long on two processors would keep the clients from asking."""
    allowed = Urgency()
    allowed.raise_for([0])
    allowed.lower()
    result = migrate(tmp_path, mode=mode)
    assert result.environment["urgent_switchover"] is (short and allowed.granted)


def test_when_a_guest_was_first_heard_is_known_however_late_it_speaks(tmp_path: Path) -> None:
    """Nobody asks it anything until the migration is over and both agents have answered."""
    with lab_of(SMALL, tmp_path) as lab:
        lab.boot()
        _, answer = move(lab)
        lab.start_clients()
        stats = lab.vm.stats()
        assert stats is not None
        assert stats["first_heard_ns"] > answer["resumed_ns"]
        lab.stop_clients([])


def test_the_silence_on_the_wire_is_known_of_a_guest_that_is_seldom_asked(tmp_path: Path) -> None:
    """Its last word at the source may have been long before the pause: a tenth of a second."""
    seldom = {"clients": 1, "connections": 1, "interval_ns": 100_000_000}
    alone = {"stream_rate_per_s": 0, "churn_per_s": 0, "max_bandwidth_bits_per_s": 200_000_000}
    result = migrate(tmp_path, migrations=2, **seldom, **alone)
    assert_unbroken(result)
    assert None not in [one.network_gap_ms for one in result.migrations]
