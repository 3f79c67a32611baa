"""The saved state of a Quick Migration on the LUN, and the LUN's way from host to host.

The LUN is one host's at a time. The source writes the state as a file of the volume, lets go of the guest's
disk and dismounts; the target mounts, and reads. Large pieces, because each costs a round trip.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from testbed.host.hosted import HostedGuest
from testbed.host.shared_storage import SharedStorage
from testbed.migration.errors import LocalError
from testbed.migration.source import TraceLike
from testbed.migration.wire import Saved
from testbed.storage.client import NbdClient, NbdLost, NbdRefused
from testbed.storage.volume_client import VolumeClient, VolumeLost, VolumeRefused

PIECE_BYTES = 4 << 20
SECTOR_BYTES = 512
LANES = 2
TELL_S = 1.0
IO_DEADLINE_S = 30.0
_FAILURES = (VolumeLost, VolumeRefused, NbdLost, NbdRefused)


def largest_state_bytes(ram_bytes: int) -> int:
    """Room for RAM, its messages and the state of thousands of connections."""
    return ram_bytes + ram_bytes // 64 + (4 << 20)


def remove(client: VolumeClient, name: str) -> None:
    """Delete the file `name`, if there is one, whosever it was. VolumeRefused, VolumeLost."""
    disk = client.disks().get(name)
    if disk is not None:
        client.claim(name, disk["epoch"])
        client.delete(name)


class Progress:
    """Tells about once a second how far it is. An event and its flush cost 50 us: nothing beside a piece."""

    def __init__(self, trace: TraceLike, way: str, of_bytes: int) -> None:
        self._trace = trace
        self._way = way
        self._of_bytes = of_bytes
        self._next_s = time.monotonic() + TELL_S

    def told(self, size_bytes: int) -> None:
        if (now_s := time.monotonic()) >= self._next_s:
            self._next_s = now_s + TELL_S
            self._trace.event("lun", way=self._way, bytes=size_bytes, of_bytes=self._of_bytes)
            self._trace.flush()


class _Lane:
    """A connection with a buffer and a thread of its own: one lane's piece is on its way to the service while
    the other's goes on to the storage.
    """

    def __init__(self, nbd: Path, export: str) -> None:
        self.file = NbdClient.connect(nbd, export, deadline_s=IO_DEADLINE_S)
        self.buffer = bytearray(PIECE_BYTES)
        self._thread = ThreadPoolExecutor(1)
        self._busy: Future[None] | None = None

    def put(self, offset: int, length: int) -> None:
        """Begin to write `length` bytes of the buffer, filled up to whole sectors with zeroes."""
        whole = -(-length // SECTOR_BYTES) * SECTOR_BYTES
        self.buffer[length:whole] = bytes(whole - length)
        self._busy = self._thread.submit(self.file.write, offset, memoryview(self.buffer)[:whole])

    def wait(self) -> None:
        """Until what was begun is written. NbdRefused, NbdLost."""
        busy, self._busy = self._busy, None
        if busy is not None:
            busy.result()

    def close(self) -> None:
        self._thread.shutdown()
        self.file.close()


class LunWriter:
    """Implements :class:`testbed.migration.saved_state.StateWriter` for the guest that departs."""

    def __init__(
        self,
        guest: HostedGuest,
        storage: SharedStorage,
        trace: TraceLike,
        between: Callable[[], None] = lambda: None,
    ) -> None:
        """Make the file; `between` is called after each piece of it. LocalError: no room on the LUN, or it
        cannot be reached; nothing is left then.
        """
        self._guest = guest
        self._storage = storage
        self._trace = trace
        self._name = f"{guest.description.disk}.saved"
        self._between = between
        self._progress = Progress(trace, "out", guest.description.ram_bytes)
        self._filled = 0
        self._written = 0
        self._finished = False
        try:
            with storage.client() as client:
                remove(client, self._name)
                epoch = client.create(self._name, largest_state_bytes(guest.description.ram_bytes))
            export = f"{self._name}?epoch={epoch}"
            self._lanes = [_Lane(storage.nbd, export) for _ in range(LANES)]
        except _FAILURES as error:
            raise LocalError(f"the guest's state cannot be saved: {error}") from error

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            part = view[: PIECE_BYTES - self._filled]
            self._lanes[0].buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            view = view[len(part) :]
            if self._filled == PIECE_BYTES:
                self._put()

    def _put(self) -> None:
        """Write what the first lane's buffer holds, and go on with the lane that has been busy longest."""
        lane = self._lanes.pop(0)
        lane.put(self._written, self._filled)
        self._lanes.append(lane)
        self._written += self._filled
        self._filled = 0
        self._wait_for(self._lanes[0])
        self._progress.told(self._written)
        self._between()

    def _wait_for(self, lane: _Lane) -> None:
        try:
            lane.wait()
        except _FAILURES as error:
            raise LocalError(f"the guest's state cannot be saved: {error}") from error

    def finish(self) -> Saved:
        try:
            self._put()
            for lane in self._lanes:
                self._wait_for(lane)
            self._lanes[0].file.flush()  # of all lanes: NBD_FLAG_CAN_MULTI_CONN
            for lane in self._lanes:
                lane.close()
            self._trace.event("mark", name="state-saved", bytes=self._written)
            self._finished = True
            self._guest.process.ask({"do": "disk"})
        except _FAILURES as error:
            raise LocalError(f"the guest's state cannot be saved: {error}") from error
        self._storage.let_go()
        self._trace.event("mark", name="dismounted")
        self._trace.flush()
        return Saved(self._name, self._written)

    def give_up(self) -> None:
        if self._finished:
            return
        self._finished = True
        try:
            for lane in self._lanes:
                lane.close()
            with self._storage.client() as client:
                client.delete(self._name)
        except _FAILURES as error:
            self._trace.event("left-behind", reason=f"saved state: {error}")


class LunReader:
    """Implements :class:`testbed.migration.saved_state.StateReader`."""

    def __init__(self, saved: Saved, storage: SharedStorage, trace: TraceLike) -> None:
        """Mount the LUN and open the file. LocalError."""
        self._name = saved.name
        self._storage = storage
        self._trace = trace
        self._left = saved.size_bytes
        self._at = 0
        self._progress = Progress(trace, "back", saved.size_bytes)
        try:
            with storage.client() as client:
                client.mount("exclusive")
                trace.event("mark", name="mounted")
                epoch = client.claim(saved.name, client.lease(saved.name)["epoch"])
            export = f"{saved.name}?epoch={epoch}"
            self._file = NbdClient.connect(storage.nbd, export, deadline_s=IO_DEADLINE_S)
        except _FAILURES as error:
            raise LocalError(f"the saved state cannot be read: {error}") from error
        self._piece = memoryview(bytearray(PIECE_BYTES))
        self._have = self._piece[:0]

    def read_into(self, buffer: memoryview) -> int:
        done = 0
        while done < len(buffer):
            if not self._have and not self._read_on():
                break
            part = self._have[: len(buffer) - done]
            buffer[done : done + len(part)] = part
            self._have = self._have[len(part) :]
            done += len(part)
        return done

    def _read_on(self) -> bool:
        length = min(PIECE_BYTES, self._left, self._file.size - self._at)
        if length <= 0:
            return False
        try:
            self._file.read_into(self._at, self._piece[:length])
        except _FAILURES as error:
            raise LocalError(f"the saved state cannot be read: {error}") from error
        self._at, self._left = self._at + length, self._left - length
        self._progress.told(self._at)
        self._have = self._piece[:length]
        return True

    def close(self) -> None:
        """The file is of no use any more: the guest that it holds is in RAM, or at the source."""
        self._file.close()
        try:
            with self._storage.client() as client:
                remove(client, self._name)
        except _FAILURES as error:
            self._trace.event("left-behind", reason=f"saved state: {error}")
