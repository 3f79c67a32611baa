"""Guest RAM as a program sees it: a heap, and typed variables that are found again by name.

A variable is a *view* of RAM, so that to assign to it is to write RAM. Made in `boot` or found in `attach`,
by the same call::

    self.hits = memory.counter("hits")                       # self.hits.value, self.hits.add(1)
    self.table = memory.words("table", 1024)                 # unsigned 64-bit words: self.table[7] = 3
    self.grid = memory.array("grid", np.float32, (64, 64))   # a numpy array; write with self.grid[...] = ...
    self.page = memory.bytes("page", 4096)                   # a writable memoryview
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from testbed.guest.heap import Heap


class Counter:
    """One unsigned 64-bit number in RAM."""

    __slots__ = ("_words",)

    def __init__(self, words: memoryview) -> None:
        self._words = words

    @property
    def value(self) -> int:
        return int(self._words[0])

    @value.setter
    def value(self, value: int) -> None:
        self._words[0] = value

    def add(self, amount: int = 1) -> int:
        """Add `amount` and return the sum."""
        value: int = self._words[0] + amount
        self._words[0] = value
        return value


class Memory:
    """Guest RAM: `view` (all of it as bytes) and `heap`.

    Constructed over RAM that is all zero it formats it; over RAM of a running guest it finds what is there.
    Raises HeapError when RAM holds neither; each variable raises HeapError when RAM holds it with another
    size.
    """

    def __init__(self, view: memoryview) -> None:
        self.view = view.cast("B")
        self.heap = Heap(self.view)

    def bytes(self, name: str, size: int, *, align: int = 16, zero: bool = True) -> memoryview:
        """`size` bytes called `name`, zero at first unless `zero` is False."""
        offset = self.heap.root(name, size, align=align, zero=zero)
        return self.view[offset : offset + size]

    def words(self, name: str, count: int) -> memoryview:
        """`count` unsigned 64-bit words called `name`, zero at first: the quickest thing to index from
        Python."""
        return self.bytes(name, count * 8).cast("Q")

    def counter(self, name: str) -> Counter:
        """The number called `name`, zero at first."""
        return Counter(self.words(name, 1))

    def array(self, name: str, dtype: npt.DTypeLike, shape: int | tuple[int, ...]) -> npt.NDArray[Any]:
        """A numpy array of `shape` called `name`, zero at first. Its dtype must hold no Python objects."""
        kind = np.dtype(dtype)
        if kind.hasobject:
            raise ValueError(f"array {name!r}: objects of Python live outside guest RAM")
        count = int(np.prod(shape))
        return np.frombuffer(self.bytes(name, count * kind.itemsize, align=64), kind, count).reshape(shape)
