"""The neighbour table as device state: what is encoded comes back, and nothing else is taken for one."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.handover.neighbours import (
    MOST_NEIGHBOURS,
    Neighbour,
    NeighboursError,
    Policy,
    arrived,
    decode,
    encode,
)

STATES = st.sampled_from([0x02, 0x04, 0x80])
NEIGHBOURS = st.builds(Neighbour, st.ip_addresses(), st.binary(min_size=6, max_size=6), STATES)
ONE = Neighbour(IPv4Address("10.7.0.1"), bytes.fromhex("020000000001"), 0x02)
OTHER = Neighbour(IPv6Address("fd07::1"), bytes.fromhex("020000000002"), 0x80)


@given(st.lists(NEIGHBOURS, max_size=20))
def test_a_table_comes_back_as_it_was(table: list[Neighbour]) -> None:
    assert decode(encode(table)) == table


@given(st.binary(max_size=200))
def test_any_bytes_are_a_table_or_an_error_of_ours(data: bytes) -> None:
    try:
        table = decode(data)
    except NeighboursError:
        return
    assert encode(table) == data


@pytest.mark.parametrize("cut", range(1, 50))
def test_a_table_cut_short_is_refused(cut: int) -> None:
    data = encode([ONE, OTHER])
    with pytest.raises(NeighboursError):
        decode(data[:-cut])


@pytest.mark.parametrize("offset", [2, 3])
def test_an_ip_version_or_state_that_is_none_is_refused(offset: int) -> None:
    data = bytearray(encode([ONE]))
    data[offset] = 5
    with pytest.raises(NeighboursError):
        decode(bytes(data))


def test_more_than_the_count_can_say_is_the_callers_fault() -> None:
    with pytest.raises(ValueError, match="at most 65535"):
        encode([ONE] * (MOST_NEIGHBOURS + 1))


def test_what_a_guest_knows_at_its_new_host_is_what_its_policy_says() -> None:
    table = [ONE, OTHER]
    assert arrived(table, Policy.MOVE) == table
    assert arrived(table, Policy.FORGET) == []
    stale = arrived(table, Policy.STALE)
    assert [(one.address, one.state) for one in stale] == [(one.address, one.state) for one in table]
    macs = {one.mac for one in table}
    assert not macs & {one.mac for one in stale}, "nobody may have them"
    assert all(one.mac[0] & 0x03 == 0x02 for one in stale), "no multicast address, and a local one"
    assert len({one.mac for one in stale}) == len(table)
