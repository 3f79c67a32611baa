"""What a migration did to the network's tables, from the events of those who watched them."""

from __future__ import annotations

from typing import Any

from testbed.experiment import tables

MAC, OTHER, ADDRESS = "02:00:00:00:00:42", "02:00:00:00:00:43", "10.7.0.10"


def forwarding(t_ns: int, node: str, port: str, was: str | None = None, **more: Any) -> dict[str, Any]:
    told = {"mac": MAC, "port": port, "was": was, "gone": False, **more}
    return {"t_ns": t_ns, "source": node, "event": "forwarding", **told}


def neighbour(t_ns: int, mac: str | None, was: str | None, **more: Any) -> dict[str, Any]:
    told = {"address": ADDRESS, "mac": mac, "was": was, "state": "stale", "gone": False, **more}
    return {"t_ns": t_ns, "source": "client1", "event": "neighbour", **told}


def heard(source: str, **more: Any) -> dict[str, Any]:
    return {"t_ns": 0, "source": source, "event": "announcement-seen", "kind": "rarp", "mac": MAC, **more}


def test_changes_are_in_the_order_of_time_and_count_from_the_pause() -> None:
    events = [
        forwarding(7_000_000, "switch", "host-b", "host-a"),
        {"t_ns": 6_000_000, "source": "host-a", "event": "mark", "name": "cut"},
        neighbour(4_500_000, OTHER, MAC),
        forwarding(8_000_000, "switch", "host-b", "host-b", gone=True),
    ]
    rows = tables.changes(events, 5_000_000)
    assert [(row.node, row.table, row.key, row.was, row.now, row.at_ms) for row in rows] == [
        ("client1", "neighbour", ADDRESS, MAC, OTHER, -0.5),
        ("switch", "forwarding", MAC, "host-a", "host-b", 2.0),
        ("switch", "forwarding", MAC, "host-b", None, 3.0),
    ]


def test_a_state_alone_is_no_change_and_an_entry_that_failed_is_one() -> None:
    assert tables.changes([neighbour(1, MAC, MAC, state="reachable")], 0) == []
    (row,) = tables.changes([neighbour(1, None, MAC, state="failed")], 0)
    assert row.now is None


def test_the_switch_has_relearned_at_the_first_word_of_the_port_and_of_that_guest() -> None:
    events = [
        forwarding(1, "host-b", "host-b"),
        forwarding(2, "switch", "host-a"),
        forwarding(3, "switch", "host-b", gone=True),
        forwarding(5, "switch", "host-b"),
        forwarding(4, "switch", "host-b"),
    ]
    assert tables.relearned_ns(events, "switch", "host-b") == 4
    assert tables.relearned_ns(events, "switch", "host-c") is None
    of_another = [forwarding(9, "switch", "host-b", vm="vm2")]
    assert tables.relearned_ns(of_another, "switch", "host-b", "vm1") is None
    assert tables.relearned_ns(of_another, "switch", "host-b", "vm2") == 9


def test_an_announcement_counts_as_seen_when_every_client_has() -> None:
    events = [heard("client1"), heard("client1"), heard("client2"), heard("host-a")]
    events.append(heard("client2", vm="vm2"))
    assert tables.seen_by_all(events, ["client1"]) == 2
    assert tables.seen_by_all(events, ["client1", "client2"]) == 1
    assert tables.seen_by_all(events, ["client1", "client2", "client3"]) == 0
    assert tables.seen_by_all(events, []) == 0
