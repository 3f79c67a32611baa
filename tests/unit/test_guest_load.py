"""The memory load and the typed variables: what is written where, at what rate, and that it goes on
elsewhere.
"""

from __future__ import annotations

import numpy as np
import pytest

from testbed.guest.heap import HeapError
from testbed.guest.load import BACKLOG_NS, BURST_PAGES, PATTERNS, Load, LoadSpec, fill, pages_of
from testbed.guest.memory import Memory

SECOND_NS = 1_000_000_000
SPEC = LoadSpec(1000, 64 * 4096, "uniform", seed=7)


def memory(size: int = 1 << 20) -> Memory:
    return Memory(memoryview(bytearray(size)))


def moved(old: Memory) -> Memory:
    return Memory(memoryview(bytearray(old.view)))


def run_until(load: Load, start_ns: int, end_ns: int) -> None:
    now_ns = start_ns
    while now_ns <= end_ns:
        while load.run(now_ns):
            pass
        now_ns += max(1, load.wait_ns(now_ns))


@pytest.mark.parametrize("rate", [1, 30, 1000, 2000, 100_000])
def test_rate_is_met(rate: int) -> None:
    load = Load(memory(), LoadSpec(rate, 64 * 4096))
    load.resume(5 * SECOND_NS)
    run_until(load, 5 * SECOND_NS, 7 * SECOND_NS)
    assert 2 * rate - rate * 0.002 - 1 <= load.written <= 2 * rate
    assert load.given_up == 0


def test_nothing_is_owed_for_a_pause() -> None:
    load = Load(memory(), SPEC)
    load.resume(0)
    run_until(load, 0, SECOND_NS)
    written = load.written
    load.resume(100 * SECOND_NS)
    assert load.run(100 * SECOND_NS) == 0
    assert load.written == written


def test_backlog_is_given_up_and_counted() -> None:
    load = Load(memory(), LoadSpec(100_000, 64 * 4096))
    load.resume(0)
    while load.run(SECOND_NS):
        pass
    assert load.written == 100_000 * BACKLOG_NS // SECOND_NS + 1
    assert load.written + load.given_up == 100_000


def test_one_call_writes_one_burst_at_most() -> None:
    load = Load(memory(), LoadSpec(1e6, 64 * 4096))
    load.resume(0)
    assert load.run(SECOND_NS // 100) > 0
    assert load.written == BURST_PAGES


@pytest.mark.parametrize("pattern", PATTERNS)
def test_load_goes_on_where_it_was(pattern: str) -> None:
    spec = LoadSpec(1000, 64 * 4096, pattern, seed=3)
    whole, first = Load(memory(), spec), memory()
    whole.write(500)
    Load(first, spec).write(200)
    second = moved(first)
    there = Load(second, spec)
    there.write(300)
    assert np.array_equal(whole._pages, there._pages)
    assert there.written == 500


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("pages", [1, 5, 1000])
def test_pages_are_in_the_working_set(pattern: str, pages: int) -> None:
    found = pages_of(LoadSpec(1, pages * 4096, pattern), 10, 5000)
    assert found.min() >= 0
    assert found.max() < pages


def test_patterns_are_what_they_say() -> None:
    count = 100_000
    uniform = np.bincount(pages_of(LoadSpec(1, 1000 * 4096, "uniform"), 0, count), minlength=1000)
    assert uniform.min() > 50
    assert uniform.max() < 160
    hot = pages_of(LoadSpec(1, 1000 * 4096, "hot-cold"), 0, count)
    assert 0.88 < np.mean(hot < 100) < 0.92
    assert len(np.unique(hot)) > 990
    assert pages_of(LoadSpec(1, 3 * 4096, "sequential"), 4, 4).tolist() == [1, 2, 0, 1]


def test_every_write_changes_its_page() -> None:
    load = Load(memory(), SPEC)
    for _ in range(50):
        before = load._pages.copy()
        load.write(7)
        changed = np.flatnonzero((before != load._pages).any(axis=1))
        assert set(changed) == set(pages_of(SPEC, load.written - 7, 7).tolist())


@pytest.mark.parametrize(
    ("rate", "size", "pattern", "problem"),
    [
        (-1, 4096, "uniform", "negative"),
        (1, 0, "uniform", "not whole pages"),
        (1, 4097, "uniform", "not whole pages"),
        (1, 4096, "random", "one of uniform, hot-cold, sequential"),
    ],
)
def test_wrong_loads(rate: float, size: int, pattern: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        LoadSpec(rate, size, pattern)


def test_fill_is_incompressible_and_leaves_the_heap_whole() -> None:
    import zlib

    target = memory(4 << 20)
    size = fill(target, 0.5, seed=1)
    assert abs(size - (2 << 20)) < 4096
    target.heap.check()
    assert len(zlib.compress(bytes(target.view), 1)) > 0.99 * size
    assert len({bytes(page) for page in np.frombuffer(target.view, np.uint8).reshape(-1, 4096)[2:500]}) == 498
    everything = memory(1 << 20)
    assert fill(everything, 1.0, seed=1) > (1 << 20) - 8192
    everything.heap.check()
    assert everything.heap.alloc(900_000)
    assert fill(memory(), 0.0, seed=1) == 0
    with pytest.raises(ValueError, match="between 0 and 1"):
        fill(memory(), 1.5, seed=1)


def test_variables_are_found_again() -> None:
    first = memory()
    first.counter("hits").add(41)
    first.array("grid", np.float32, (3, 4))[1, 2] = 2.5
    first.words("words", 3)[2] = 9
    first.bytes("text", 5)[:] = b"hello"
    second = moved(first)
    assert second.counter("hits").add() == 42
    assert second.array("grid", np.float32, (3, 4))[1, 2] == 2.5
    assert second.words("words", 3).tolist() == [0, 0, 9]
    assert bytes(second.bytes("text", 5)) == b"hello"
    with pytest.raises(HeapError, match="'grid' is 48 bytes"):
        second.array("grid", np.float32, (3, 5))
    with pytest.raises(ValueError, match="live outside guest RAM"):
        second.array("objects", object, 3)
