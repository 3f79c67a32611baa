"""Dots and density: each request is told once, and no extreme is only a count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.measure.continuity import open_loop
from testbed.report.page import dots

SPAN = (0, 10**9)
MOST = 200


def requests(begin: list[int], length: list[int], client: list[int], answered: list[bool]) -> dots.Requests:
    """As gathered: in the order of their begin."""
    order = np.argsort(np.array(begin, np.int64), kind="stable")
    begin_ns, length_ns = np.array(begin, np.int64)[order], np.array(length, np.int64)[order]
    zeros = np.zeros(len(begin), np.uint16)
    return dots.Requests(
        ("client1", "client2", "client3"),
        ((), (), ()),
        begin_ns,
        begin_ns + length_ns,
        length_ns,
        np.array(client, np.uint16)[order],
        zeros,
        zeros.astype(np.uint32),
        np.array(answered, np.bool_)[order],
    )


@st.composite
def many(draw: st.DrawFn) -> dots.Requests:
    count = draw(st.integers(0, 1500))
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    return requests(
        random.integers(0, SPAN[1], count).tolist(),
        random.lognormal(12, 2, count).astype(np.int64).tolist(),
        random.integers(0, 3, count).tolist(),
        (random.random(count) > 0.01).tolist(),
    )


@settings(max_examples=40)
@given(many())
def test_each_request_is_a_dot_or_counted_and_never_both(all_: dots.Requests) -> None:
    chosen, rest = dots.sort_out(all_, [(4 * 10**8, 5 * 10**8)], SPAN, MOST)
    assert len(np.unique(chosen)) == len(chosen)
    assert len(chosen) + int(rest.count.sum()) == len(all_)
    if len(all_) <= MOST:
        assert len(chosen) == len(all_)
    for client in range(3):
        counted = int(rest.count[rest.client == client].sum())
        assert counted + int((all_.client[chosen] == client).sum()) == int((all_.client == client).sum())


@settings(max_examples=40)
@given(many())
def test_in_each_moment_each_clients_longest_and_shortest_are_dots(all_: dots.Requests) -> None:
    chosen, _ = dots.sort_out(all_, [], SPAN, MOST)
    told = set(chosen.tolist())
    columns = max(1, MOST // (4 * 3))
    column = all_.begin_ns * columns // SPAN[1]
    for client in range(3):
        for number in range(columns):
            here = np.flatnonzero((all_.client == client) & (column == number))
            if len(here):
                lengths = all_.length_ns[here]
                assert {int(lengths.max()), int(lengths.min())} <= {
                    int(all_.length_ns[one]) for one in here.tolist() if one in told
                }


def test_what_was_never_answered_and_what_lies_at_a_blackout_are_dots() -> None:
    count = 1500
    begin = (np.arange(count) * (SPAN[1] // count)).tolist()
    answered = [number not in (3, 700, 1400) for number in range(count)]
    length = [50_000 + number % 7 for number in range(count)]
    pause, resume = 5 * 10**8, 5 * 10**8 + 3_000_000
    all_ = requests(begin, length, [number % 3 for number in range(count)], answered)
    chosen, _ = dots.sort_out(all_, [(pause, resume)], SPAN, MOST)
    assert {3, 700, 1400} <= set(chosen.tolist())
    inside = np.flatnonzero((all_.end_ns > pause) & (all_.begin_ns < resume))
    assert len(inside)
    assert set(inside.tolist()) <= set(chosen.tolist())


def test_the_density_lies_where_the_requests_were() -> None:
    all_ = requests([0, 10, 5 * 10**8, 999_999_999], [1000, 1000, 10**6, 10**9], [0, 0, 1, 2], [True] * 4)
    grid = dots.density(all_, np.ones(4, np.bool_), SPAN)
    cells = list(zip(grid.client, grid.column, grid.row, grid.count, strict=True))
    assert cells == [(0, 0, 0, 2), (1, 500, 24, 1), (2, 999, 48, 1)]
    assert dots.rows(np.array([1, 10**18])).tolist() == [0, dots.ROWS - 1]


def test_a_steady_stream_waits_between_its_deliveries() -> None:
    sent = np.array([0, 0, 10, 10, 20, 20]) * 1000
    arrays = {
        "sent_ns": sent,
        "received_ns": sent + np.array([1, 1, 1, 9, 1, 9]) * 1000,
        "connection": np.array([0, 1] * 3, np.int32),
        "answered": np.array([True, True, True, False, True, True]),
        "probe": np.zeros(6, np.int64),
        "intervals_ns": np.array([10_000]),
    }
    (found,), (answered,), _ = dots.of_client(arrays, ["open-loop"])
    expected = open_loop(sent, arrays["received_ns"], arrays["connection"], 10_000)
    assert found.length_ns.tolist() == expected.length_ns.tolist()
    assert found.connection.tolist() == [0, 0, 1, 1]
    assert answered.tolist() == [True, True, False, True]
    (asked,), _, _ = dots.of_client(arrays, ["closed-loop"])
    assert asked.length_ns.tolist() == [1000, 1000, 1000, 9000, 1000, 9000]


def test_packets_that_are_lost_are_a_longer_wait() -> None:
    sent = np.arange(5) * 10_000
    arrays = {
        "sent_ns": sent,
        "received_ns": sent + 100,
        "connection": np.zeros(5, np.int32),
        "answered": np.array([True, True, False, False, True]),
        "intervals_ns": np.array([10_000]),
    }
    (found,), (answered,), _ = dots.of_client(arrays, ["udp"])
    assert int(found.length_ns.max()) == 20_000
    assert answered.all()
    assert len(found) == len(answered)


def test_gathered_requests_stand_in_order_with_their_client() -> None:
    def of(*sent: int) -> dict[str, object]:
        array = np.array(sent, np.int64)
        return {"sent_ns": array, "received_ns": array + 5, "connection": np.zeros(len(sent), np.int32)}

    all_ = dots.gather({"client10": of(30, 10), "client2": of(20)}, {})
    assert all_.names == ("client2", "client10")
    assert all_.begin_ns.tolist() == [10, 20, 30]
    assert all_.client.tolist() == [1, 0, 1]
    assert len(dots.gather({}, {})) == 0


@pytest.mark.parametrize("kinds", [["closed-loop"], ["churn"]])
def test_a_probe_of_an_old_run_needs_no_interval(kinds: list[str]) -> None:
    sent = np.arange(5, dtype=np.int64)
    arrays = {"sent_ns": sent, "received_ns": sent + 3, "connection": np.zeros(5, np.int32)}
    (found,), _, _ = dots.of_client(arrays, kinds)
    assert found.length_ns.tolist() == [3] * 5
