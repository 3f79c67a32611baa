"""UDP through a migration: what lies in a queue of the guest's kernel comes along, once and in order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from testbed.clients.control import ClientFailed
from testbed.lab import plan as planned
from testbed.measure.result import Connection, Result
from tests.system.labs import PRELOAD, failed_checks, migrate

pytestmark = pytest.mark.universe(preload=(*PRELOAD, "tests.system.lossy_agent"))

SLOW = "tests.system.guest_programs:SlowDatagrams"
ADDRESSES = ("10.7.0.10", "fd07::10")


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what the only client does."""

    def ask(*probes: dict[str, Any]) -> None:
        monkeypatch.setattr(planned, "probes", lambda _options: {"client1": list(probes)})

    return ask


def rows(result: Result, kind: str) -> list[Connection]:
    return [row for row in result.clients.each if row.probe == kind]


def flood(folder: Path, asking: Any) -> Result:
    """Twice the datagrams that the guest cares to handle: at the pause some wait, and never so many that a
    queue would be full."""
    asking(*({"kind": "udp", "rate_per_s": 100, "size": 200, "address": one} for one in ADDRESSES))
    return migrate(folder, program=SLOW, clients=1, connections=1)


def test_datagrams_that_wait_at_the_pause_are_neither_lost_nor_doubled(tmp_path: Path, asking: Any) -> None:
    result = flood(tmp_path, asking)
    assert failed_checks(result) == []
    for row in rows(result, "udp"):
        assert row.requests > 50
        assert (row.lost, row.duplicated, row.reordered) == (0, 0, 0)
        assert row.one_way_there_ms is not None
        assert row.one_way_there_ms.max is not None
        assert row.one_way_there_ms.max > 50, "they have to wait, or nothing is shown"


def test_without_their_being_moved_they_are_lost(
    tmp_path: Path, asking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("testbed.lab.supervisor.ENTRY", "tests.system.lossy_agent:main")
    result = flood(tmp_path, asking)
    assert result.outcome == "completed"
    assert all((row.lost or 0) > 0 for row in rows(result, "udp"))


def test_a_rollback_leaves_every_datagram_where_it_was(tmp_path: Path, asking: Any) -> None:
    asking({"kind": "udp", "rate_per_s": 200, "size": 200, "address": ADDRESSES[0]})
    fault = "switchover:target-out-of-memory"
    result = migrate(tmp_path, program=SLOW, clients=1, connections=1, fault=fault)
    assert result.outcome == "rolled-back"
    (row,) = rows(result, "udp")
    assert (row.lost, row.duplicated, row.reordered) == (0, 0, 0)


def test_pings_and_streams_go_on_there_and_back(tmp_path: Path, asking: Any) -> None:
    probes = [{"kind": kind, "address": one} for kind in ("udp", "icmp") for one in ADDRESSES]
    asking(*probes)
    result = migrate(tmp_path, clients=1, connections=1, migrations=2)
    assert failed_checks(result) == []
    assert [(row.probe, row.lost, row.duplicated) for row in result.clients.each] == [
        (kind, 0, 0) for kind in ("udp", "udp", "icmp", "icmp")
    ]
    assert result.clients.connections == 4


def test_a_program_without_udp_answers_nobody(tmp_path: Path, asking: Any) -> None:
    asking({"kind": "udp", "port": 7000, "address": ADDRESSES[0]})
    with pytest.raises(ClientFailed, match="1 of 1 connections not made: refused"):
        migrate(tmp_path, program="kv", clients=1, connections=1)
