"""From what agents and clients tell to the figures of the result, and to the verdicts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from testbed.experiment import outcome
from testbed.experiment.checks import judge
from testbed.measure import result as model

MARKS = {
    "paused": 100,
    "cut": 300,
    "pages-sent": 1_300,
    "devices-sent": 2_300,
    "devices-loaded": 2_200,
    "verified": 2_400,
    "committed": 3_000,
    "frames-released": 2_900,
    "resumed": 4_100,
}
EVENTS: list[dict[str, Any]] = [
    {"event": "begin", "phase": "precopy", "source": "host-a", "t_ns": 10},
    {"event": "begin", "phase": "precopy", "source": "host-b", "t_ns": 5},
    {"event": "end", "phase": "precopy", "source": "host-a", "t_ns": 2_000_010},
    {
        "event": "round", "source": "host-a", "t_ns": 50, "number": 1, "pages": 10, "zero_pages": 2,
        "bytes": 1_000_000, "duration_ns": 8_000_000, "dirty_pages": 3,
    },
    *({"event": "mark", "name": name, "t_ns": t_us * 1000} for name, t_us in MARKS.items()),
]  # fmt: skip
SOURCE = {
    "transferred_bytes": 5, "final_pages": 7, "audited": True, "last_heard_ns": 90_000, "decision": "fits",
    "counts": {"frames_held": 3, "frames_released": 0, "frames_dropped": 1, "announcements_sent": 0},
}  # fmt: skip
TARGET = {
    "first_heard_ns": 4_190_000,
    "counts": {"frames_held": 2, "frames_released": 4, "frames_dropped": 0, "announcements_sent": 10},
}
TOLD = outcome.Told("host-a", "host-b", 0, 10_000_000, SOURCE, TARGET, EVENTS, 9, 600_000, "host-b")
VM_OF = {"10.7.0.10": "vm1"}
NO_GAP = model.Gap(p50=None, p99=None, max=None)


def made(told: outcome.Told = TOLD) -> model.Migration:
    return outcome.migration(told, 4096 * 100, NO_GAP)


def test_the_parts_of_the_blackout_add_up_to_it() -> None:
    one = made()
    assert one.blackout_ms == 4.0
    assert sum(one.blackout_parts_ms.values()) == pytest.approx(4.0)


def test_a_mark_of_the_other_host_that_came_early_leaves_a_part_of_zero() -> None:
    parts = made().blackout_parts_ms
    assert parts["thaw"] == 0
    assert parts["release"] == 0
    assert parts["freeze"] == 1.0


def test_a_mark_that_came_after_the_guest_had_resumed_adds_nothing_to_the_blackout() -> None:
    late = [e | {"t_ns": 5_000_000} if e.get("name") == "committed" else e for e in EVENTS]
    one = made(replace(TOLD, events=late))
    assert one.blackout_ms == 4.0
    assert sum(one.blackout_parts_ms.values()) == pytest.approx(4.0)
    assert one.blackout_parts_ms["resume"] == 0


def test_the_silence_on_the_wire_spans_both_hosts() -> None:
    assert made().network_gap_ms == pytest.approx(4.1)


def test_counts_of_both_hosts_are_joined() -> None:
    network = made().network
    assert (network.frames_held, network.frames_released, network.frames_dropped) == (5, 4, 1)
    assert (network.announcements_sent, network.announcements_seen) == (10, 9)
    assert network.switch_relearned_ms == 0.5


def test_what_both_hosts_held_and_announced_before_a_rollback_is_told() -> None:
    """The target announced and held for a moment, then the source did both again."""
    back = {"frames_held": 3, "frames_released": 5, "frames_dropped": 0, "announcements_sent": 10}
    there = {"frames_held": 2, "frames_released": 0, "frames_dropped": 0, "announcements_sent": 2}
    source, target = {"error": "RAM altered", "counts": back}, {"error": "told so", "counts": there}
    network = made(replace(TOLD, source_answer=source, target_answer=target)).network
    assert (network.frames_held, network.frames_released, network.frames_dropped) == (5, 5, 0)
    assert network.announcements_sent == 12


def test_a_round_has_its_rate() -> None:
    (one,) = made().rounds
    assert (one.duration_ms, one.rate_mbit, one.dirty_pages) == (8.0, 1000.0, 3)


def test_a_phase_lasts_from_the_first_begin_to_the_last_end_of_any_host() -> None:
    assert made().phases_ms == {"precopy": 2.0}


def test_an_error_before_the_commit_is_a_rollback_and_its_blackout_ends_at_the_source() -> None:
    events = [
        {"event": "mark", "name": "paused", "t_ns": 1_000_000},
        {"event": "mark", "name": "running-again", "t_ns": 3_500_000},
        {"event": "rolled-back", "t_ns": 3_600_000, "reason": "x"},
    ]
    one = made(
        replace(
            TOLD,
            source_answer={"error": "RAM altered"},
            target_answer={"error": "told so"},
            events=events,
            owner="host-a",
        )
    )
    assert (one.outcome, one.blackout_ms, one.ram.verified) == ("rolled-back", 2.5, False)
    assert one.reason == "host-a: RAM altered; host-b: told so"


def test_a_source_that_is_not_wholly_removed_is_told_and_the_migration_completed() -> None:
    one = made(replace(TOLD, source_answer=SOURCE | {"left_behind": "OSError: busy", "counts": {}}))
    assert one.outcome == "completed"
    assert one.reason == "host-a: its copy is not wholly removed: OSError: busy"
    assert verdicts(one) == ["deleted"]


def test_a_guest_that_runs_nowhere_is_a_failure() -> None:
    one = made(replace(TOLD, target_answer={"error": "gone"}, owner=None))
    assert one.outcome == "failed"
    assert "does not run any more" in str(one.reason)


def test_where_the_guest_runs_says_what_came_of_it_whatever_an_agent_could_tell() -> None:
    """A source agent that died after the commit tells nothing; the guest is at the target all the same."""
    assert made(replace(TOLD, source_answer={"error": "the agent is gone"})).outcome == "completed"


def summary(during: list[int | None], quiet: list[int | None], **probe: Any) -> dict[str, Any]:
    member = {
        "requests": 5, "longest_at_ns": 1, "during_ns": during, "quiet_ns": quiet, "retransmits": 0,
        "broken": None,
    }  # fmt: skip
    counts = {"requests": 5, "connections": 1, "latest_ns": 0, "kind": "closed-loop", "address": "10.7.0.10"}
    return {"probes": [counts | {"per_connection": [member], "during": [], "quiet": []} | probe]}


def test_the_gap_is_the_longest_wait_of_each_connection() -> None:
    summaries = {
        "client1": summary([4_000_000, 9_000_000], [1_000_000, None]),
        "client2": summary([6_000_000, None], [2_000_000, 3_000_000]),
    }
    clients = outcome.clients(summaries, VM_OF)
    assert clients.gap_ms == model.Gap(p50=6.0, p99=9.0, max=9.0)
    assert clients.baseline_gap_ms == model.Gap(p50=1.0, p99=3.0, max=3.0)
    assert outcome.gap_during(summaries, 0, VM_OF).max == 6.0
    assert outcome.gap_during(summaries, 1, VM_OF).max == 9.0


def verdicts(
    migration: model.Migration, *, hold: bool = True, faults: tuple[str, ...] = (), **counts: Any
) -> list[str]:
    clients = outcome.clients({"client1": summary([1], [1], **counts)}, VM_OF)
    checks = judge([migration], clients, faults, () if hold else ("vm1",))
    return [check.name for check in checks if not check.passed]


GOOD = made(replace(TOLD, source_answer=SOURCE | {"counts": {}}))


def test_nothing_is_wrong_with_a_good_run() -> None:
    assert verdicts(GOOD) == []


@pytest.mark.parametrize(
    ("count", "check"),
    [
        ("broken", "no connection broken"),
        ("resets", "no reset"),
        ("failed_connects", "no connect failed"),
        ("bytes_lost", "no byte lost, duplicated or corrupted"),
        ("bytes_duplicated", "no byte lost, duplicated or corrupted"),
        ("bytes_corrupted", "no byte lost, duplicated or corrupted"),
    ],
)
def test_each_kind_of_damage_fails_its_check(count: str, check: str) -> None:
    assert verdicts(GOOD, **{count: 1}) == [check]


LEDGER = {"kind": "ledger", "acknowledged": 9}


def test_a_ledger_tells_what_was_acknowledged_and_holds_the_store_to_it() -> None:
    clients = outcome.clients({f"client{number}": summary([1], [1], **LEDGER) for number in (1, 2)}, VM_OF)
    assert clients.acknowledged == 18
    assert clients.writes_lost == clients.writes_phantom == clients.ledgers_unsettled == 0
    (check,) = [one for one in judge([GOOD], clients, ()) if "acknowledged" in one.name]
    assert check.passed
    assert "of 18 acknowledged" in check.detail


@pytest.mark.parametrize("count", ["writes_lost", "writes_phantom", "unsettled"])
def test_a_store_that_breaks_its_word_fails_the_run(count: str) -> None:
    assert verdicts(GOOD, **LEDGER, **{count: 1}) == ["no acknowledged write lost"]


def test_dropped_frames_fail_a_run_that_held_them_and_no_other() -> None:
    assert verdicts(made()) == ["no held frame dropped"]
    assert verdicts(made(), hold=False) == []


def test_a_fault_of_the_guest_and_an_audit_that_differs_fail_the_run() -> None:
    assert verdicts(GOOD, faults=("it raised",)) == ["no fault in the guest"]
    unaudited = made(replace(TOLD, source_answer=SOURCE | {"audited": False, "counts": {}}))
    assert verdicts(unaudited) == ["verified"]
