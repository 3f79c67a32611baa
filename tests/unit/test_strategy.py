"""The decision after a round, from statistics alone."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from testbed.migration.strategy import (
    FIRST_MESSAGE_PAGES,
    MESSAGE_NS,
    MOST_MESSAGE_PAGES,
    PAGE,
    Decision,
    Policy,
    RoundStatistics,
    bandwidth,
    decide,
    message_pages,
)
from testbed.migration.wire import MAX_PAGES_A_MESSAGE

# 10,000 pages in 0.1 s: 409.6 MB/s, 10 us a page
FIRST = RoundStatistics(1, 10_000, 0, 40_960_000, 100_000_000, 0)


def test_it_switches_when_the_rest_fits_and_no_longer_halves() -> None:
    second = replace(FIRST, number=2, pages=100, bytes=409_600, dirty_pages=80)
    verdict = decide([FIRST, second], Policy(downtime_limit_ns=1_000_000))
    assert verdict.decision is Decision.SWITCH
    assert verdict.expected_ns == 800_000


def test_it_goes_on_while_the_rest_halves_even_within_the_limit() -> None:
    assert decide([replace(FIRST, dirty_pages=100)], Policy()).decision is Decision.CONTINUE


def test_it_goes_on_while_the_rest_does_not_fit() -> None:
    hot = replace(FIRST, dirty_pages=9_000)
    assert decide([hot], Policy(downtime_limit_ns=80_000_000)).decision is Decision.CONTINUE
    assert decide([hot], Policy(downtime_limit_ns=100_000_000)).decision is Decision.SWITCH


def test_a_stall_ends_as_chosen() -> None:
    hot = [replace(FIRST, number=n, dirty_pages=10_000) for n in range(1, 4)]
    limit = Policy(downtime_limit_ns=1, max_rounds=3)
    assert decide(hot, limit).decision is Decision.SWITCH
    assert decide(hot, replace(limit, on_stall="give-up")).decision is Decision.GIVE_UP
    assert decide(hot[:2], limit).decision is Decision.CONTINUE


def test_bandwidth_comes_from_the_latest_round_that_is_large_enough() -> None:
    tiny = replace(FIRST, number=2, bytes=4096, duration_ns=50_000_000)
    assert bandwidth([FIRST, tiny]) == 409_600_000


@given(
    st.lists(
        st.builds(
            RoundStatistics,
            st.just(1),
            *(st.integers(0, 10**6) for _ in range(3)),
            st.integers(0, 10**10),
            st.integers(0, 10**6),
        ),
        min_size=1,
        max_size=30,
    ),
    st.builds(Policy, st.integers(0, 10**9), st.integers(1, 30), st.sampled_from(["switch", "give-up"])),
)
def test_it_always_ends_and_never_promises_more_than_the_limit(
    history: list[RoundStatistics], policy: Policy
) -> None:
    verdict = decide(history, policy)
    if len(history) >= policy.max_rounds:
        assert verdict.decision is not Decision.CONTINUE
    if verdict.decision is Decision.SWITCH and len(history) < policy.max_rounds:
        assert verdict.expected_ns <= policy.downtime_limit_ns


@given(rate_mbit=st.integers(1, 100_000))
def test_messages_are_as_large_as_the_wire_lets_them_be_and_still_be_cancelled_soon(rate_mbit: int) -> None:
    pages = FIRST_MESSAGE_PAGES
    for _ in range(20):
        duration_ns = pages * PAGE * 8000 // rate_mbit
        pages = message_pages(pages, duration_ns)
    duration_ns = pages * PAGE * 8000 // rate_mbit
    assert duration_ns <= MESSAGE_NS or pages * PAGE == 1 << 16
    assert duration_ns >= MESSAGE_NS // 4 or pages == MOST_MESSAGE_PAGES == MAX_PAGES_A_MESSAGE
