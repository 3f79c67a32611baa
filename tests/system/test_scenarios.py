"""Runs of scenarios: several guests, hosts and kinds of networks, and everything that can happen in one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from testbed.experiment.run import run
from testbed.measure.result import SCHEMA_FILE, Result
from testbed.scenario.files import parse
from tests.system.labs import PRELOAD, REPOSITORY, Witness, failed_checks

pytestmark = pytest.mark.universe(preload=PRELOAD)

QUICK = 'baseline = "300ms"\n'
ALL_HEARD = "2s"
"""An aftermath after which the last announcement, sent in its first half second, has been told of too."""
GUEST = '[[vm]]\nram = "32MiB"\nload.working_set = "2MiB"\n'
PROBE = '[[client.probe]]\nkind = "closed-loop"\nconnections = 2\ninterval = "2ms"\n'
CLIENT = "[[client]]\n" + PROBE


def ran(folder: Path, text: str, aftermath: str = "1s") -> Result:
    text = f"{QUICK}aftermath = '{aftermath}'\n{text}"
    result = run(parse(text.encode(), "test.toml", "test"), folder, Witness(), [str(REPOSITORY)])
    stored = json.loads((folder / "result.json").read_text())
    jsonschema.validate(stored, json.loads(SCHEMA_FILE.read_text()))
    return result


def events_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def assert_unbroken(result: Result) -> None:
    assert result.outcome == "completed", [one.reason for one in result.migrations]
    assert failed_checks(result) == []
    assert all(one.requests > 0 for one in result.clients.each)


def test_guests_that_change_places_at_once_keep_their_clients_and_their_news_apart(tmp_path: Path) -> None:
    text = GUEST + GUEST + "host = 'host-b'\nprogram = 'kv'\n" + CLIENT + CLIENT + "vm = 'vm2'\n"
    result = ran(tmp_path, text + "[[step]]\nmigrate = ['vm1', 'vm2']\n", ALL_HEARD)
    assert_unbroken(result)
    moved = {one.vm: (one.source, one.target, one.owner) for one in result.migrations}
    assert moved == {"vm1": ("host-a", "host-b", "host-b"), "vm2": ("host-b", "host-a", "host-a")}
    first, second = result.migrations
    assert second.begun_ms < first.begun_ms + first.total_ms, "they were not under way at the same time"
    assert all(
        sum(one.blackout_parts_ms.values()) == pytest.approx(one.blackout_ms, abs=0.01)
        for one in (first, second)
    )
    assert {row.vm: row.address for row in result.clients.each} == {"vm1": "10.7.0.10", "vm2": "10.7.0.11"}
    assert [(one.vm, one.program, one.owner) for one in result.guests] == [
        ("vm1", "echo", "host-b"),
        ("vm2", "kv", "host-a"),
    ]
    for one in result.migrations:
        assert one.network.announcements_seen == one.network.announcements_sent > 0
        assert {change.key for change in one.tables if change.table == "forwarding"} == {
            {"vm1": "02:00:00:00:00:42", "vm2": "02:00:00:00:00:43"}[one.vm]
        }
    rounds = {(event["source"], event["vm"]) for event in events_of(tmp_path) if event["event"] == "round"}
    assert rounds == {("host-a:vm1", "vm1"), ("host-b:vm2", "vm2")}


def test_guests_with_disks_move_at_once_and_each_lease_is_its_own(tmp_path: Path) -> None:
    durable = "program = 'kv'\ndurable = true\ndisk = '8MiB'\n"
    ledger = "[[client.probe]]\nkind = 'ledger'\nconnections = 2\ninterval = '2ms'\n"
    text = (
        GUEST + durable + GUEST + durable + "host = 'host-b'\n[[client]]\n" + ledger + ledger + "vm = 'vm2'\n"
    )
    result = ran(tmp_path, text + "[[step]]\nmigrate = ['vm1', 'vm2']\ntimes = 2\n")
    assert_unbroken(result)
    assert [one.owner for one in result.migrations] == ["host-b", "host-a", "host-a", "host-b"]
    assert all("claim" in one.blackout_parts_ms for one in result.migrations)
    assert result.clients.acknowledged > 100
    assert all(guest.program_stats["log"]["commits"] > 0 for guest in result.guests)


def test_a_host_is_drained_over_the_clients_network_and_clients_on_hosts_follow(tmp_path: Path) -> None:
    clients = "".join(
        f"[[client]]\non = '{place}'\n{PROBE}{PROBE}vm = 'vm2'\n" for place in ("host-a", "host-b", "host-c")
    )
    text = "hosts = ['host-a', 'host-b', 'host-c']\nnetwork.migration = 'shared'\n" + GUEST + GUEST + clients
    result = ran(tmp_path, text + "[[step]]\ndrain = 'host-a'\n[[step]]\nmigrate = 'vm1'\nto = 'host-c'\n")
    assert_unbroken(result)
    assert [(one.vm, one.source, one.target) for one in result.migrations] == [
        ("vm1", "host-a", "host-b"),
        ("vm2", "host-a", "host-c"),
        ("vm1", "host-b", "host-c"),
    ]
    assert {row.client for row in result.clients.each} == {"client1", "client2", "client3"}


def test_links_programs_commands_and_checks_are_told_of(tmp_path: Path) -> None:
    link = "[[link]]\nname = 'client1'\ndelay = '5ms'\n"
    program = "[[client.program]]\ncommand = ['sh', '-c', 'echo $WHO; exit 3']\nenvironment.WHO = 'me'\n"
    steps = (
        "[[step]]\nrun = ['ip', '-br', 'link']\non = 'switch'\n"
        "[[step]]\nmigrate = 'vm1'\n"
        "[[step]]\nlink = 'client1'\nreset = true\n"
        "[[step]]\nwait = '200ms'\n"
    )
    checks = (
        "[[check]]\nfigure = 'clients.gap_ms.max'\nat_least = '10ms'\n"
        "[[check]]\nfigure = 'programs.*.exit_status'\nequals = 0\nwhy = 'Something ended badly.'\n"
    )
    result = ran(tmp_path, GUEST + CLIENT + program + link + steps + checks)
    assert result.outcome == "completed"
    assert failed_checks(result) == [
        "programs.*.exit_status = 0: programs.0.exit_status is 3; Something ended badly."
    ]
    hello, listing = result.programs
    assert (hello.node, hello.output_tail, hello.exit_status, hello.ended_by) == (
        "client1",
        "me\n",
        3,
        "itself",
    )
    assert (listing.node, listing.exit_status) == ("switch", 0)
    assert "host-a" in listing.output_tail
    (told,) = result.links
    assert (told.name, told.forward.asked.delay_ms) == ("client1", 0.0), "the conditions were taken off"
    assert told.round_trip_ms is not None
    assert told.round_trip_ms >= told.asked_round_trip_ms == 10, "measured while they were on, and told so"
    assert [event["conditions"] for event in events_of(tmp_path) if event["event"] == "link-conditions"] == [
        "none"
    ]


@pytest.mark.parametrize(
    ("network", "least_ms"),
    [("relearn = false\nswitch_ageing = '2s'", 1500), ("port_delay = '600ms'", 500), ("", 0)],
    ids=["no-relearning", "port-delay", "neither"],
)
def test_a_network_that_is_slow_to_follow_keeps_clients_waiting_and_they_stay_connected(
    tmp_path: Path, network: str, least_ms: float
) -> None:
    result = ran(tmp_path, f"waive = ['no held frame dropped']\n[network]\n{network}\n" + GUEST + CLIENT)
    assert_unbroken(result)
    longest_ms = result.clients.gap_ms.max
    assert longest_ms is not None
    assert longest_ms >= least_ms
    if not least_ms:
        assert longest_ms < 500, "nothing was slow here: it cannot be told what kept the clients waiting"
    (waived,) = [check for check in result.checks if check.waived]
    assert waived.passed
    assert waived.name == "no held frame dropped"


def test_the_first_announcements_are_lost_on_their_way_to_the_switch(tmp_path: Path) -> None:
    result = ran(tmp_path, "network.drop_announcements = 2\n" + GUEST + CLIENT, ALL_HEARD)
    assert_unbroken(result)
    network = result.migrations[0].network
    assert network.announcements_seen == network.announcements_sent - 2
    lost = {one.name: one.forward.announcements_lost for one in result.links}
    assert lost == {"host-a": 0, "host-b": 2}
