"""A disk in memory for the storage tests: it counts what is done to it, and can be made to wait or fail."""

from __future__ import annotations

import threading
from collections.abc import Callable

DEADLINE_S = 10.0


class FakeStore:
    """Bytes, and in `done` each thing that was done, in order: ("write", offset, length), ("sync",), ...

    With `hold` each write waits, after it has been let through and before it lands, until `go` is set;
    `begun` says that one does. `fail` is raised by whatever writes.
    """

    def __init__(self, size_bytes: int = 1 << 20) -> None:
        self.content = bytearray(size_bytes)
        self.done: list[tuple[object, ...]] = []
        self.hold: Callable[[int], bool] = lambda offset: False
        self.begun, self.go = threading.Event(), threading.Event()
        self.fail: OSError | None = None

    @property
    def size_bytes(self) -> int:
        return len(self.content)

    def read_into(self, offset: int, view: memoryview) -> None:
        if self.fail is not None:
            raise self.fail
        view[:] = self.content[offset : offset + len(view)]

    def write(self, offset: int, view: memoryview) -> None:
        self._land("write", offset, bytes(view))

    def trim(self, offset: int, length: int) -> None:
        self._land("trim", offset, bytes(length))

    def write_zeroes(self, offset: int, length: int, no_hole: bool) -> None:
        self._land("no hole" if no_hole else "zeroes", offset, bytes(length))

    def sync(self) -> None:
        self.done.append(("sync",))

    def _land(self, what: str, offset: int, data: bytes) -> None:
        if self.fail is not None:
            raise self.fail
        if self.hold(offset):
            self.begun.set()
            assert self.go.wait(DEADLINE_S)
        self.content[offset : offset + len(data)] = data
        self.done.append((what, offset, len(data)))
