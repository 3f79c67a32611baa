"""The heap against a model: what is allocated never overlaps, never changes by itself, and comes back
whole.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from testbed.guest.heap import SUPERBLOCK_BYTES, Heap, HeapError, OutOfMemory

RAM_BYTES = 16 * 4096
ALL_FREE = RAM_BYTES - SUPERBLOCK_BYTES - 16


def ram(size: int = RAM_BYTES, byte: int = 0) -> memoryview:
    """RAM whose superblock is zero and whose rest is `byte`: memory that was used before."""
    return memoryview(bytearray(SUPERBLOCK_BYTES) + bytearray([byte]) * (size - SUPERBLOCK_BYTES))


class HeapAgainstModel(RuleBasedStateMachine):
    """Allocates, frees and attaches anew in any order; the model is a dict of what was written where."""

    blocks: Bundle[int] = Bundle("blocks")

    @initialize(byte=st.sampled_from([0, 0xFF, 0xA5]))
    def boot(self, byte: int) -> None:
        self.ram = ram(byte=byte)
        self.heap = Heap(self.ram)
        self.model: dict[int, bytes] = {}
        self.stamp = 0

    @rule(
        target=blocks,
        size=st.one_of(st.integers(1, 200), st.integers(1, RAM_BYTES)),
        align=st.sampled_from([16, 16, 64, 4096]),
    )
    def alloc(self, size: int, align: int) -> int:
        self.stamp = (self.stamp + 1) % 256
        try:
            offset = self.heap.alloc(size, align)
        except OutOfMemory:
            return 0
        assert offset % align == 0
        assert self.heap.usable(offset) >= size
        for other, content in self.model.items():
            assert offset + size <= other or other + len(content) <= offset
        self.model[offset] = bytes([self.stamp]) * size
        self.ram[offset : offset + size] = self.model[offset]
        return offset

    @rule(offset=consumes(blocks))
    def free(self, offset: int) -> None:
        if offset:
            del self.model[offset]
            self.heap.free(offset)

    @rule()
    def move_elsewhere(self) -> None:
        old, self.ram = self.ram, memoryview(bytearray(self.ram))
        old[:] = b"\0" * len(old)
        self.heap = Heap(self.ram)

    @invariant()
    def consistent(self) -> None:
        self.heap.check()
        for offset, content in self.model.items():
            assert self.ram[offset : offset + len(content)] == content

    def teardown(self) -> None:
        for offset in getattr(self, "model", ()):
            self.heap.free(offset)
        if hasattr(self, "heap"):
            self.heap.check()
            assert self.heap.used_bytes == 0
            assert self.heap.free_bytes == ALL_FREE
            assert self.heap.alloc(ALL_FREE - 8) == SUPERBLOCK_BYTES + 16, "one whole block is left again"


TestHeapAgainstModel: Any = HeapAgainstModel.TestCase
TestHeapAgainstModel.settings = settings(max_examples=60, stateful_step_count=40)


def test_full_heap_says_so_and_works_on() -> None:
    heap = Heap(ram())
    blocks = [heap.alloc(4000) for _ in range(ALL_FREE // 4016)]
    with pytest.raises(OutOfMemory, match="no room for 4000 bytes"):
        heap.alloc(4000)
    heap.check()
    heap.free(blocks.pop())
    assert heap.alloc(4000)


def test_block_of_the_same_class_is_found_when_no_class_is_surely_large_enough() -> None:
    heap = Heap(ram())
    largest = ALL_FREE - 8
    heap.free(heap.alloc(largest))
    assert heap.alloc(largest)


@pytest.mark.parametrize("offset", [0, 8, 4095, SUPERBLOCK_BYTES + 16, RAM_BYTES, RAM_BYTES * 2, -16])
def test_free_of_what_was_never_allocated(offset: int) -> None:
    heap = Heap(ram())
    with pytest.raises(HeapError):
        heap.free(offset)
    heap.check()


def test_free_twice() -> None:
    heap = Heap(ram())
    offset = heap.alloc(100)
    heap.alloc(100)
    heap.free(offset)
    with pytest.raises(HeapError, match="not allocated"):
        heap.free(offset)
    heap.check()


def test_roots_are_found_again_and_zeroed_once() -> None:
    memory = ram(byte=0xEE)
    heap = Heap(memory)
    offset = heap.root("table", 1000)
    assert bytes(memory[offset : offset + 1000]) == bytes(1000)
    memory[offset] = 7
    heap.root("other", 50)
    again = Heap(memoryview(bytearray(memory)))
    assert again.root("table", 1000) == offset
    assert again.view[offset] == 7
    assert again.find("tabl") is None
    with pytest.raises(HeapError, match="'table' is 1000 bytes"):
        again.root("table", 1001)


def test_root_without_room_leaves_nothing() -> None:
    heap = Heap(ram())
    heap.alloc(ALL_FREE - 8 - 1024)
    used = heap.used_bytes
    with pytest.raises(OutOfMemory):
        heap.root("n" * 500, 900)
    assert heap.used_bytes == used
    heap.check()


@pytest.mark.parametrize("size", [0, 4096, 3 * 4096, RAM_BYTES + 8])
def test_ram_that_is_no_ram(size: int) -> None:
    with pytest.raises(HeapError, match="pages of 4096"):
        Heap(memoryview(bytearray(size)))


def test_ram_that_holds_something_else() -> None:
    memory = memoryview(bytearray(b"\xff" * RAM_BYTES))
    with pytest.raises(HeapError, match="no heap in RAM"):
        Heap(memory)
    half = memoryview(bytearray(ram()))
    Heap(half)
    with pytest.raises(HeapError, match="no heap in RAM"):
        Heap(half[: RAM_BYTES // 2])
