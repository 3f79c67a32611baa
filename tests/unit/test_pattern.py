"""The byte ramp: the same everywhere, and no loss or repetition of a block goes unseen."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.measure.pattern import PERIOD, WINDOW, displacement, pattern

OFFSETS = st.integers(0, 1 << 40)


def test_the_stream_never_changes_between_versions() -> None:
    assert hashlib.sha256(pattern(0, 2 * PERIOD)).hexdigest() == (
        "f561cef250f83d4a31c5fbe66d96c96d820ee40486d35df3b05c393c53fa0ab5"
    )


@given(OFFSETS, st.integers(0, 400_000), st.integers(0, 400_000))
def test_a_piece_is_the_same_however_it_is_cut(offset: int, first: int, second: int) -> None:
    assert pattern(offset, first) + pattern(offset + first, second) == pattern(offset, first + second)


@given(OFFSETS)
def test_the_period_is_what_it_says(offset: int) -> None:
    assert pattern(offset, 100) == pattern(offset + PERIOD, 100)


def test_every_window_occurs_once_so_every_position_is_told() -> None:
    stream = pattern(0, PERIOD + WINDOW - 1)
    assert len({stream[i : i + WINDOW] for i in range(PERIOD)}) == PERIOD


@pytest.mark.parametrize("block", [1, 7, 536, 1220, 1448, 4096, 8948, 16384, 65536, 1 << 20, 1 << 30])
def test_a_lost_block_of_any_usual_size_shows_at_the_first_bytes(block: int) -> None:
    for offset in (0, 1, 65520, 123_456_789):
        assert pattern(offset, WINDOW) != pattern(offset + block, WINDOW)


@given(OFFSETS, st.integers(-(PERIOD // 2), PERIOD // 2))
def test_displacement_tells_how_far_the_stream_jumped(offset: int, jump: int) -> None:
    received = pattern((offset + jump) % PERIOD, WINDOW)
    assert displacement(offset, received) == jump


def test_displacement_of_altered_or_short_bytes_is_unknown() -> None:
    altered = bytearray(pattern(1000, WINDOW))
    altered[3] ^= 1
    assert displacement(1000, bytes(altered)) is None
    assert displacement(1000, pattern(1000, WINDOW - 1)) is None


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, -1)])
def test_negative_positions_are_refused(offset: int, length: int) -> None:
    with pytest.raises(ValueError, match="negative"):
        pattern(offset, length)
