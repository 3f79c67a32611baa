"""Bytes by the millisecond, and the rates made of them."""

from __future__ import annotations

import numpy as np
import pytest

from testbed.clients.throughput import Throughput
from testbed.measure.continuity import Window

MS = 1_000_000
BEGIN = 5_000 * MS


def filled(counts: list[int], begin_ns: int = BEGIN) -> Throughput:
    made = Throughput()
    made.asking(begin_ns)
    for number, count in enumerate(counts):
        if count:
            made.add(begin_ns + number * MS + 10, count)
    return made


def test_each_byte_is_in_its_millisecond() -> None:
    made = filled([1000, 0, 0, 500])
    made.add(BEGIN + 4 * MS - 1, 7)
    made.add(BEGIN + 4 * MS, 1)
    assert list(made.bytes) == [1000, 0, 0, 507, 1]
    assert made.total == 1508
    saved = made.arrays()
    assert saved["bytes_per_ms"].tolist() == [1000, 0, 0, 507, 1]
    assert saved["bytes_per_ms_begin_ns"] == BEGIN


def test_rates_are_told_before_during_and_after() -> None:
    made = filled([1000] * 10 + [0] * 5 + [2000] * 10)
    window = Window(BEGIN + 10 * MS, BEGIN + 15 * MS)
    assert made.rates_mbit([window]) == {"before": 8.0, "during": 0.0, "after": 16.0, "median": 8.0}
    whole = made.rates_mbit([])
    assert (whole["before"], whole["during"], whole["after"]) == (9.6, None, None)


def test_of_two_migrations_what_lies_between_is_neither_before_nor_after() -> None:
    made = filled([1000] * 5 + [0] * 5 + [3000] * 5 + [0] * 5 + [2000] * 5)
    windows = [Window(BEGIN + start * MS, BEGIN + (start + 5) * MS) for start in (5, 15)]
    rates = made.rates_mbit(windows)
    assert (rates["before"], rates["during"], rates["after"]) == (8.0, 0.0, 16.0)


def test_what_comes_while_nothing_is_wanted_is_counted_and_tells_of_no_rate() -> None:
    made = filled([1000] * 4)
    made.rests(BEGIN + 4 * MS)
    made.add(BEGIN + 6 * MS, 9_000_000)
    made.asking(BEGIN + 10 * MS)
    for number in range(10, 14):
        made.add(BEGIN + number * MS + 1, 3000)
    assert made.total == 4000 + 9_000_000 + 12_000
    assert made.rates_mbit([])["before"] == 16.0
    made.rests(BEGIN + 14 * MS)
    made.forget()
    assert made.begin_ns == BEGIN + 14 * MS
    assert set(made.rates_mbit([]).values()) == {None}
    made.asking(BEGIN + 20 * MS)
    made.add(BEGIN + 20 * MS, 5)
    assert np.flatnonzero(made.arrays()["bytes_per_ms"]).tolist() == [6]
    assert made.total == 4000 + 9_000_000 + 12_000 + 5


def test_a_silence_at_the_end_is_not_seen_in_the_buckets_which_is_what_waits_are_for() -> None:
    made = filled([1000] * 3)
    assert len(made.bytes) == 3
    assert made.rates_mbit([Window(BEGIN + 50 * MS, BEGIN + 60 * MS)])["during"] is None


@pytest.mark.parametrize("counts", [[], [5]])
def test_of_little_there_is_little_to_say(counts: list[int]) -> None:
    assert filled(counts).rates_mbit([])["during"] is None
