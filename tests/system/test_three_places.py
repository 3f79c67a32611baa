"""Clients on a third machine, on the source host and on the target host: every kind of probe works there, and
each relearns in its own way."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.experiment.run import run
from testbed.measure.result import Result
from testbed.scenario.files import read
from tests.system.labs import PRELOAD, Witness, failed_checks

pytestmark = pytest.mark.universe(preload=PRELOAD)

PLACES = {"third": "switch", "near": "host-a", "far": "host-b"}
PROBES = (
    *({"kind": kind, "family": family} for kind in ("udp", "icmp") for family in ("ipv4", "ipv6")),
    {"kind": "closed-loop"},
)
ADDRESSES = ("10.7.0.10", "fd07::10")


def run_there(folder: Path, mac: str) -> Result:
    scenario = read(
        {
            "name": "three-places",
            "baseline": "300ms",
            "aftermath": "2s",
            "vm": [{"program": "echo", "ram": "64MiB", "mac": mac}],
            "client": [{"name": name, "on": place, "probe": list(PROBES)} for name, place in PLACES.items()],
            "step": [{"migrate": "vm1"}],
        },
        "test",
    )
    return run(scenario, folder, Witness())


def test_each_place_relearns_where_the_mac_address_changes(tmp_path: Path) -> None:
    result = run_there(tmp_path, "per-host")
    assert failed_checks(result) == []
    for name in PLACES:
        rows = [row for row in result.clients.each if row.client == name]
        assert sorted(row.probe for row in rows) == ["closed-loop", "icmp", "icmp", "udp", "udp"]
        assert [(row.lost, row.duplicated) for row in rows if row.lost is not None] == [(0, 0)] * 4
        assert all(row.requests > 50 for row in rows)
    (migration,) = result.migrations
    turned = {(change.node, change.key) for change in migration.tables if change.table == "neighbour"}
    assert turned == {(name, address) for name in PLACES for address in ADDRESSES}
    assert migration.network.announcements_seen == migration.network.announcements_sent > 0


@pytest.mark.slow
def test_each_bridge_relearns_where_the_mac_address_moves(tmp_path: Path) -> None:
    result = run_there(tmp_path, "keep")
    assert failed_checks(result) == []
    (migration,) = result.migrations
    last = {change.node: change.now for change in migration.tables if change.table == "forwarding"}
    assert last["switch"] == "host-b"
    assert last["host-a"] == "uplink", "behind the switch, where it was the guest's own port"
    assert last["host-b"] not in (None, "uplink")
    assert not [change for change in migration.tables if change.table == "neighbour"]
    assert [row.lost for row in result.clients.each if row.lost is not None] == [0] * 12
