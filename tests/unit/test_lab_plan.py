"""A scenario's lab as data."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from netns.topology import plan as steps_of
from testbed.experiment.checks import judge
from testbed.handover.wiring import HOLD_PORTS, MOST_GUESTS, PortNames
from testbed.lab import plan
from testbed.lab.migrations import Move, Way, orders
from testbed.lab.storage import keys
from testbed.measure import result as model
from testbed.scenario.files import parse
from testbed.scenario.model import MOST_HOSTS, MOST_VMS, Scenario
from testbed.scenario.steps import STANDARD_CHECKS


def scenario(text: str = "") -> Scenario:
    return parse(text.encode(), "f.toml")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hosts = ['a', 'b', 'c', 'd']",
        "network.migration = 'shared'",
        "[[vm]]\ndisk = '1MiB'",
        "[[client]]\non = 'host-b'",
    ],
)
def test_every_network_can_be_built_and_has_the_links_and_nodes_that_the_scenario_names(text: str) -> None:
    made = scenario(text)
    spec = plan.network(made)
    assert steps_of(spec)
    assert sorted(plan.links(made)) == sorted(made.link_names)
    assert sorted(node.name for node in spec.nodes) == sorted(made.nodes)
    interfaces = {(end.node, end.ifname) for link in spec.links for end in (link.a, link.b)}
    for name, ends in plan.links(made).items():
        assert {ends.node, ends.far} <= interfaces
        assert ends.node[0] == name.split(".")[0] or name == "migration"


def test_two_hosts_have_a_wire_and_more_have_a_switch() -> None:
    ends = plan.links(scenario())["migration"]
    assert (ends.node, ends.far) == (("host-a", "mig0"), ("host-b", "mig0"))
    ends = plan.links(scenario("hosts = ['a', 'b', 'c']"))["c.migration"]
    assert (ends.node, ends.far) == (("c", "mig0"), ("migration-switch", "c"))


def test_a_migration_over_the_clients_network_goes_to_the_hosts_bridges() -> None:
    made = scenario("network.migration = 'shared'")
    bridges = {node.name: node.bridges[0].addresses for node in plan.network(made).nodes if node.bridges}
    assert bridges == {"switch": (), "host-a": ("10.6.0.1/24",), "host-b": ("10.6.0.2/24",)}


def test_a_client_on_a_host_is_plugged_into_its_bridge() -> None:
    assert plan.links(scenario("[[client]]\non = 'host-b'"))["client1"].far == ("host-b", "client1")


def test_a_guest_has_one_mac_address_everywhere_or_one_on_each_host() -> None:
    keep, each = scenario("[[vm]]\n[[vm]]\nmac = 'per-host'\n[[vm]]").vms[:2]
    made = scenario("hosts = ['a', 'b', 'c']\n[[vm]]\n[[vm]]\nmac = 'per-host'")
    assert (keep.mac, each.mac) == ("keep", "per-host")
    assert set(plan.guest(made, made.vms[0]).macs.values()) == {"02:00:00:00:00:42"}
    assert plan.guest(made, made.vms[1]).macs == {
        "a": "02:00:00:00:0a:43",
        "b": "02:00:00:00:0b:43",
        "c": "02:00:00:00:0c:43",
    }


def test_guests_do_not_draw_the_same_random_numbers() -> None:
    made = scenario("[[vm]]\n[[vm]]")
    assert len({plan.guest(made, vm).seed for vm in made.vms}) == 2


def test_a_guest_has_room_for_the_connections_of_its_own_clients() -> None:
    probe = "[[client]]\n[[client.probe]]\nkind = 'closed-loop'\nconnections = 1000\n"
    made = scenario("[[vm]]\n[[vm]]\n" + probe)
    asked, idle = (plan.guest(made, vm).max_connections for vm in made.vms)
    assert asked >= 2000 > idle


def test_what_belongs_to_a_guest_on_a_host_is_called_as_nothing_else() -> None:
    named = [PortNames.numbered(number) for number in range(MOST_VMS)]
    names = [name for one in named for name in (one.guest, one.hold, one.hold_end)]
    assert len(set(names)) == 3 * MOST_VMS
    assert {one.hold for one in named} <= HOLD_PORTS
    assert MOST_GUESTS >= MOST_VMS


def test_every_host_has_a_key_of_its_own() -> None:
    hosts = [f"h{number}" for number in range(MOST_HOSTS)]
    found = keys(scenario(f"hosts = {hosts}"))
    assert len(set(found.values())) == MOST_HOSTS
    assert [len(key) for key in found.values()] == [16] * MOST_HOSTS


def test_both_sides_of_a_migration_share_a_secret_that_no_other_has() -> None:
    made = scenario("[migration]\nmode = 'stop-and-copy'\nmax_bandwidth = '80mbit'")
    move, way = Move("vm1", "host-b", made.manner()), Way("10.6.0.2", 7901, 30.0)
    receiving, sending = orders(move, way, ["/here"])
    assert receiving["secret"] == sending["secret"]
    assert orders(move, way, ())[0]["secret"] != receiving["secret"]
    assert (receiving["do"], receiving["port"], receiving["import_path"]) == ("receive", 7901, ["/here"])
    assert (sending["do"], sending["address"]) == ("migrate", "10.6.0.2")
    assert (sending["plan"]["precopy"], sending["plan"]["whole"]) == (False, False)
    assert sending["plan"]["rate_limit"] == 10_000_000


def test_what_can_be_waived_is_what_is_checked() -> None:
    gap = model.Gap(p50=None, p99=None, max=None)
    ledger = model.Connection(
        client="c", probe="ledger", address="a", requests=1, longest_wait_ms=None, longest_wait_at_ms=None,
        baseline_wait_ms=None, retransmits=0, broken=None,
    )  # fmt: skip
    counts = dict.fromkeys(
        name for name, field in model.Clients.model_fields.items() if field.annotation is int
    )
    clients = model.Clients.model_validate(
        dict.fromkeys(counts, 0) | {"gap_ms": gap, "baseline_gap_ms": gap, "each": [ledger]}
    )
    moved = SimpleNamespace(
        outcome="completed", reason=None, deleted=True, vm="vm1",
        ram=SimpleNamespace(verified=True), network=SimpleNamespace(frames_dropped=0),
    )  # fmt: skip
    assert tuple(check.name for check in judge([moved], clients, ())) == STANDARD_CHECKS
