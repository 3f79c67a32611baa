"""Sizes, rates and durations in and out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.scenario.units import (
    format_ms,
    format_rate,
    format_size,
    parse_duration,
    parse_rate,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("256MiB", 256 << 20), ("1 gib", 1 << 30), ("1.5KiB", 1536), ("4096B", 4096), ("2GB", 2 * 10**9)],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "bits_per_s"), [("1gbit", 10**9), ("2.5 Gbit", 2_500_000_000), ("64kbit", 64_000)]
)
def test_rates(text: str, bits_per_s: int) -> None:
    assert parse_rate(text) == bits_per_s


@pytest.mark.parametrize(
    ("text", "ns"), [("300ms", 300_000_000), ("1s", 10**9), ("0.5us", 500), ("2min", 120 * 10**9)]
)
def test_durations(text: str, ns: int) -> None:
    assert parse_duration(text) == ns


@pytest.mark.parametrize("parser", [parse_size, parse_rate, parse_duration])
@pytest.mark.parametrize(
    "text", ["", "MiB", "-1MiB", "1", "1e9B", "1parsec", "0x10B", "1..5s", "١s", "9" * 20 + "B"]
)
def test_what_is_no_quantity_is_refused_with_the_units_that_are_known(parser: object, text: str) -> None:
    with pytest.raises(ValueError, match="one of"):
        parser(text)  # type: ignore[operator]


@given(st.integers(1, 1 << 45))
def test_a_formatted_size_is_the_size_to_four_digits(size_bytes: int) -> None:
    number, unit = format_size(size_bytes).split()
    factor = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}[unit]
    assert float(number) * factor == pytest.approx(size_bytes, rel=1e-3)


def test_rates_and_times_for_people() -> None:
    assert (format_rate(12.6e9), format_rate(468e6), format_rate(950)) == (
        "12.6 Gbit/s",
        "468 Mbit/s",
        "950 bit/s",
    )
    assert (format_ms(3.14159), format_ms(1500)) == ("3.14 ms", "1.5 s")
