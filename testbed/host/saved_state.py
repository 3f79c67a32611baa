"""The saved state of a Quick Migration on the LUN, and the LUN's way from host to host.

The LUN is one host's at a time. The source writes the state as a file of the volume, lets go of the guest's
disk and dismounts; the target mounts, and reads. Large pieces, because each costs a round trip.
"""

from __future__ import annotations

from testbed.host.hosted import HostedGuest
from testbed.host.shared_storage import SharedStorage
from testbed.migration.errors import LocalError
from testbed.migration.source import TraceLike
from testbed.migration.wire import Saved
from testbed.storage.client import NbdClient, NbdLost, NbdRefused
from testbed.storage.volume_client import VolumeClient, VolumeLost, VolumeRefused

PIECE_BYTES = 4 << 20
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


class LunWriter:
    """Implements :class:`testbed.migration.saved_state.StateWriter` for the guest that departs."""

    def __init__(self, guest: HostedGuest, storage: SharedStorage, trace: TraceLike) -> None:
        """Make the file. LocalError: no room on the LUN, or it cannot be reached; nothing is left then."""
        self._guest = guest
        self._storage = storage
        self._trace = trace
        self._name = f"{guest.description.disk}.saved"
        self._buffer = bytearray(PIECE_BYTES)
        self._filled = 0
        self._written = 0
        self._finished = False
        try:
            with storage.client() as client:
                remove(client, self._name)
                epoch = client.create(self._name, largest_state_bytes(guest.description.ram_bytes))
            export = f"{self._name}?epoch={epoch}"
            self._file = NbdClient.connect(storage.nbd, export, deadline_s=IO_DEADLINE_S)
        except _FAILURES as error:
            raise LocalError(f"the guest's state cannot be saved: {error}") from error

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            part = view[: PIECE_BYTES - self._filled]
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            view = view[len(part) :]
            if self._filled == PIECE_BYTES:
                self._put()

    def _put(self) -> None:
        whole = -(-self._filled // 512) * 512  # sectors
        self._buffer[self._filled : whole] = bytes(whole - self._filled)
        try:
            self._file.write(self._written, memoryview(self._buffer)[:whole])
        except _FAILURES as error:
            raise LocalError(f"the guest's state cannot be saved: {error}") from error
        self._written += self._filled
        self._filled = 0

    def finish(self) -> Saved:
        try:
            self._put()
            self._file.flush()
            self._file.close()
            self._trace.event("mark", name="state-saved", bytes=self._written)
            self._finished = True
            self._guest.process.ask({"do": "disk"})
        except _FAILURES as error:
            raise LocalError(f"the guest's state cannot be saved: {error}") from error
        self._storage.let_go()
        self._trace.event("mark", name="dismounted")
        return Saved(self._name, self._written)

    def give_up(self) -> None:
        if self._finished:
            return
        self._finished = True
        try:
            self._file.close()
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
