"""The stream checker: what was done to a stream is what it says was done."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from testbed.clients.integrity import Integrity, StreamChecker
from testbed.measure.pattern import PERIOD, pattern

BLOCK = st.integers(8, 20_000)
CUTS = st.lists(st.integers(1, 70_000), max_size=12)


def fed(data: bytes, cuts: list[int], offset: int = 0, end: int | None = None) -> StreamChecker:
    """`data` in pieces of the lengths `cuts`, and the rest."""
    checker = StreamChecker(offset)
    for cut in cuts:
        checker.feed(data[:cut], end)
        data = data[cut:]
    checker.feed(data, end)
    return checker


@given(st.integers(0, 1 << 40), st.integers(0, 200_000), CUTS)
def test_the_right_stream_is_whole(offset: int, length: int, cuts: list[int]) -> None:
    checker = fed(pattern(offset, length), cuts, offset)
    checker.finish(offset + length)
    assert checker.integrity.whole()
    assert checker.position == offset + length


@given(BLOCK, BLOCK, BLOCK, CUTS)
def test_a_block_left_out_is_lost(before: int, missing: int, after: int, cuts: list[int]) -> None:
    data = pattern(0, before) + pattern(before + missing, after)
    checker = fed(data, cuts)
    checker.finish()
    assert checker.integrity == Integrity(lost=missing)
    assert checker.position == before + missing + after


@given(BLOCK, BLOCK, BLOCK, CUTS)
def test_a_block_that_comes_again_is_duplicated(before: int, again: int, after: int, cuts: list[int]) -> None:
    data = pattern(0, before + again) + pattern(before, again + after)
    checker = fed(data, cuts)
    checker.finish()
    assert checker.integrity == Integrity(duplicated=again)


@given(st.integers(0, 50_000), st.integers(1, 255), CUTS)
def test_an_altered_byte_is_corrupted(at: int, flip: int, cuts: list[int]) -> None:
    data = bytearray(pattern(0, 50_001))
    data[at] ^= flip
    checker = fed(bytes(data), cuts)
    checker.finish(50_001)
    assert checker.integrity == Integrity(corrupted=1)


def test_what_is_missing_at_the_end_is_lost() -> None:
    checker = fed(pattern(0, 90), [])
    checker.finish(100)
    assert checker.integrity == Integrity(lost=10)
    checker.finish(100)
    assert checker.integrity == Integrity(lost=10), "counted once"


def test_an_odd_tail_waits_for_more_unless_the_stream_ends_there() -> None:
    data = pattern(0, 60) + bytes(byte ^ 0xFF for byte in pattern(60, 4))
    waiting = StreamChecker()
    waiting.feed(data)
    assert waiting.integrity.whole()
    assert waiting.position == 60
    ending = StreamChecker()
    ending.feed(data, 64)
    assert ending.integrity == Integrity(corrupted=4)
    assert ending.position == 64


@given(st.binary(max_size=500), CUTS)
def test_no_bytes_whatever_upset_the_checker(data: bytes, cuts: list[int]) -> None:
    checker = fed(data, cuts, PERIOD - 3)
    checker.finish()
