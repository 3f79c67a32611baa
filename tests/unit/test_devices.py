"""Device state and descriptions: what crosses comes out as it went in, and nothing else is taken."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.host import devices
from testbed.host.description import DescriptionError, GuestDescription
from testbed.lab import plan
from testbed.migration.errors import ProtocolError
from testbed.scenario.from_options import scenario_of
from testbed.scenario.options import Options
from testbed.tcp.state import INET, Endpoint, ListenerState, SocketOptions
from tests.unit.test_tcp_state import EXAMPLE

LISTENER = ListenerState(
    INET,
    Endpoint(bytes(4), 7000),
    128,
    False,
    0,
    0,
    0,
    SocketOptions(*([0] * len(SocketOptions._fields))),
    "cubic",
)


@given(st.lists(st.integers(0, 2**32 - 1), max_size=5))
def test_sockets_cross_with_their_slots(slots: list[int]) -> None:
    sockets = [(slot, replace(LISTENER, backlog=number)) for number, slot in enumerate(slots)]
    assert devices.decode_sockets(devices.encode_sockets(sockets)) == sockets


def test_a_device_ends_with_the_connection_that_fills_it() -> None:
    """Few may have megabytes in their queues: 32 of those would be no message any more."""
    full = replace(EXAMPLE, unsent=bytes(devices.BATCH_BYTES))
    states = [EXAMPLE] * 40 + [full, full] + [EXAMPLE] * 3
    batches = list(devices.batches(enumerate(states)))
    assert [len(batch) for batch in batches] == [32, 9, 1, 3]
    assert [pair for batch in batches for pair in batch] == list(enumerate(states))


@given(st.binary(max_size=200))
def test_what_is_no_socket_is_refused_with_the_protocols_error(data: bytes) -> None:
    try:
        devices.decode_sockets(data)
    except ProtocolError:
        return
    assert data == b""


def guest_of(options: Options) -> GuestDescription:
    scenario = scenario_of(options, "test")
    return plan.guest(scenario, scenario.vms[0])


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_registers_are_an_object(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        devices.decode_registers(data)


def test_a_description_survives_json() -> None:
    for options in (Options(), Options(mac="per-host", announce="rarp", hold=False)):
        description = guest_of(options)
        assert GuestDescription.from_json(description.as_json()) == description


@pytest.mark.parametrize(
    "change",
    [
        {"ipv4": "10.7.0.300/24"},
        {"ipv6": "10.7.0.1/24"},
        {"macs": {"host-a": "02:00"}},
        {"macs": 7},
        {"unknown": 1},
    ],
)
def test_a_description_that_is_none_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(DescriptionError):
        GuestDescription.from_json(guest_of(Options()).as_json() | change)


def test_with_one_mac_for_each_host_the_guest_answers_to_both() -> None:
    description = guest_of(Options(mac="per-host"))
    assert description.mac("host-a") != description.mac("host-b")
    assert set(description.identity.macs) == {description.mac("host-a"), description.mac("host-b")}
    with pytest.raises(DescriptionError, match="host-z"):
        description.mac("host-z")


def test_connections_are_dealt_out_to_clients_and_families_in_turn() -> None:
    options = Options(clients=3, connections=8, stream_rate_per_s=0, churn_per_s=0)
    probes = plan.probes(scenario_of(options, "test"))
    dealt = {
        (client, probe["address"]): probe["connections"]
        for client, of_client in probes.items()
        for probe in of_client
    }
    assert sum(dealt.values()) == 8
    assert {client for client, _ in dealt} == {"client1", "client2", "client3"}
    assert sum(count for (_, address), count in dealt.items() if ":" in address) == 3
