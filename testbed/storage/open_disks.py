"""A volume's disks as NBD exports: for guests, and for whoever keeps a file on the volume."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from testbed.storage import nbd
from testbed.storage.layout import Disk
from testbed.storage.nbd import TransmissionFlags
from testbed.storage.nexus import Nexus
from testbed.storage.paths import Offline
from testbed.storage.volume import Volume

MOST_PREPARED = 16
_LOOK_S = 1.0


class Gate:
    """What every request of a guest passes, and what maintenance closes."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._closed = False
        self._passing = 0

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self, deadline_s: float) -> bool:
        """Let nobody in any more, and wait until those who were in are out; whether they are. Where they are
        not within `deadline_s` the gate is open as before."""
        with self._changed:
            self._closed = True
            empty = self._changed.wait_for(lambda: not self._passing, deadline_s)
            self._closed = empty
            self._changed.notify_all()
            return empty

    def open(self) -> None:
        with self._changed:
            self._closed = False
            self._changed.notify_all()

    @contextmanager
    def passing(self, given_up: Callable[[], bool]) -> Iterator[None]:
        """The block is let through. While the gate is closed this waits, until `given_up` says that nobody
        wants it any more: Offline."""
        with self._changed:
            while self._closed:
                if given_up():
                    raise Offline("the volume is in maintenance")
                self._changed.wait(_LOOK_S)
            self._passing += 1
        try:
            yield
        finally:
            with self._changed:
                self._passing -= 1
                self._changed.notify_all()


class OpenDisk:
    """A disk that one client has open: an export for :func:`testbed.storage.server.serve`.

    Each request goes to the places on the LUN where its bytes are. A request that could not be answered is
    made again as a whole, so of a write that is refused some pieces may have landed, as on any disk.
    """

    flags = nbd.WRITABLE | TransmissionFlags.NBD_FLAG_CAN_MULTI_CONN

    def __init__(self, volume: Volume, disk: Disk, nexus: Nexus, gate: Gate) -> None:
        self.disk = disk
        self.nexus = nexus
        self._volume = volume
        self._gate = gate
        self._given_up: Callable[[], bool] = lambda: False
        self._closing = ExitStack()
        self._closing.callback(nexus.close)

    def at_its_end(self, undo: ExitStack) -> None:
        """Have `undo` closed with the disk."""
        self._closing.push(undo)

    def close(self) -> None:
        self._closing.close()

    def wait_until(self, given_up: Callable[[], bool]) -> None:
        """From now on a request waits as long as it must, or until `given_up` says that nobody waits any
        more."""
        self._given_up = given_up
        self.nexus.wait_until(given_up)

    @property
    def size_bytes(self) -> int:
        return self.disk.size_bytes

    def read_into(self, offset: int, view: memoryview) -> None:
        with self._gate.passing(self._given_up):
            for at, start, length in self._pieces(offset, len(view)):
                self.nexus.read_into(at, view[start : start + length])

    def write(self, offset: int, view: memoryview) -> None:
        with self._gate.passing(self._given_up):
            for at, start, length in self._pieces(offset, len(view)):
                self.nexus.write(at, view[start : start + length])

    def trim(self, offset: int, length: int) -> None:
        with self._gate.passing(self._given_up):
            for at, _, part in self._pieces(offset, length):
                self.nexus.trim(at, part)

    def write_zeroes(self, offset: int, length: int, no_hole: bool) -> None:
        with self._gate.passing(self._given_up):
            for at, _, part in self._pieces(offset, length):
                self.nexus.write_zeroes(at, part, no_hole=no_hole)

    def flush(self) -> None:
        with self._gate.passing(self._given_up):
            self.nexus.flush()

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """(place on the LUN, start in the request, length) of each piece."""
        start = 0
        for at, part in self._volume.segments(self.disk, offset, length):
            yield at, start, part
            start += part


class OpenDisks:
    """Which disks clients have open, and which are prepared for one that will come. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: Counter[str] = Counter()
        self._prepared: dict[tuple[str, int], OpenDisk] = {}

    def counts(self) -> dict[str, int]:
        """How many connections each open disk has."""
        with self._lock:
            return {name: count for name, count in self._open.items() if count}

    @contextmanager
    def holding(self, name: str) -> Iterator[None]:
        """The disk is open for the length of the block."""
        with self._lock:
            self._open[name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._open[name] -= 1

    def prepare(self, epoch: int, disk: OpenDisk) -> None:
        """Keep `disk` for the client that will ask for it at that epoch. The oldest go when there are
        many."""
        with self._lock:
            replaced = self._prepared.pop((disk.disk.name, epoch), None)
            self._prepared[disk.disk.name, epoch] = disk
            gone = [replaced] if replaced is not None else []
            while len(self._prepared) > MOST_PREPARED:
                gone.append(self._prepared.pop(next(iter(self._prepared))))
        for one in gone:
            one.close()

    def take_prepared(self, name: str, epoch: int) -> OpenDisk | None:
        with self._lock:
            return self._prepared.pop((name, epoch), None)

    def forget_prepared(self, name: str | None) -> None:
        """Close what is prepared of the disk `name` (None: of all)."""
        with self._lock:
            keys = [key for key in self._prepared if name in (None, key[0])]
            gone = [self._prepared.pop(key) for key in keys]
        for one in gone:
            one.close()
