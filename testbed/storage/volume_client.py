"""A client of a host's volume service: one method a command (:mod:`testbed.storage.service` says what each
does)."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from testbed.storage import stream
from testbed.storage.lines import LineBroken, Lines
from testbed.storage.stream import Address


class VolumeRefused(Exception):
    """The service could not do what it was told. `kind` says why, `detail` what the caller needs to go on: of
    "Lost" the lease as it is, {"holder", "epoch"}."""

    def __init__(self, text: str, kind: str, detail: dict[str, Any]) -> None:
        super().__init__(text)
        self.kind = kind
        self.detail = detail


class VolumeLost(Exception):
    """The service cannot be reached, ended, or was silent past the deadline. Whether it has done what it was
    told is not known; a claim may be repeated."""


class VolumeClient:
    """A connection to the control socket. Not for use by two threads at once. Every command raises
    VolumeRefused or VolumeLost."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines

    @classmethod
    def connect(cls, address: Address, deadline_s: float) -> VolumeClient:
        """`deadline_s` is the longest that the service may be silent, now and later. Raises VolumeLost."""
        try:
            return cls(Lines(stream.connect(address, deadline_s)))
        except stream.StreamLost as error:
            raise VolumeLost(str(error)) from error

    def format(self, size_bytes: int | None = None, extent_bytes: int | None = None) -> int:
        """Make an empty volume of the LUN; how many bytes of disks it has room for."""
        return int(self.ask("format", bytes=size_bytes, extent_bytes=extent_bytes)["bytes"])

    def mount(self, mode: str = "shared", *, preempt: bool = False) -> dict[str, Any]:
        """The state, as :meth:`state` tells it."""
        return self.ask("mount", mode=mode, preempt=preempt)

    def dismount(self) -> None:
        self.ask("dismount")

    def create(self, disk: str, size_bytes: int) -> int:
        """The epoch of the new disk's lease, which is this host's."""
        return int(self.ask("create", disk=disk, bytes=size_bytes)["epoch"])

    def grow(self, disk: str, size_bytes: int) -> None:
        self.ask("grow", disk=disk, bytes=size_bytes)

    def delete(self, disk: str) -> None:
        self.ask("delete", disk=disk)

    def disks(self) -> dict[str, dict[str, Any]]:
        """{name: {"bytes", "holder": host, "epoch"}}."""
        return self.ask("disks")

    def lease(self, disk: str) -> dict[str, Any]:
        """{"holder": host, "epoch"}."""
        return self.ask("lease", disk=disk)

    def claim(self, disk: str, expect: int) -> int:
        """Take a disk over if its epoch is `expect`; the epoch from now on. When this returns, no write of
        its owner before can land any more. VolumeRefused "Lost"."""
        return int(self.ask("claim", disk=disk, expect=expect)["epoch"])

    def prepare(self, disk: str, epoch: int) -> int:
        """Have connections ready for an epoch that may be still to come; the disk's size in bytes."""
        return int(self.ask("prepare", disk=disk, epoch=epoch)["bytes"])

    def coordinate(self) -> None:
        """Make this host the coordinator."""
        self.ask("coordinate")

    def maintenance(self, on: bool) -> None:
        """While it is on, I/O of this host's guests waits; none is under way when this returns."""
        self.ask("maintenance", on=on)

    def state(self) -> dict[str, Any]:
        """{"volume": "direct", "redirected", "maintenance" or "offline", "path", "mode": None, "shared" or
        "exclusive", "coordinator": host or None, "open": {disk: connections}}."""
        return self.ask("state")

    def ask(self, command: str, **fields: Any) -> dict[str, Any]:
        """Any command, with the fields that are not None."""
        request = {"do": command, **{name: value for name, value in fields.items() if value is not None}}
        try:
            self._lines.send(request)
            answer = self._lines.receive()
        except (stream.StreamLost, LineBroken) as error:
            raise VolumeLost(f"{command}: {error}") from error
        if answer is None:
            raise VolumeLost(f"{command}: the service closed the connection")
        if "error" in answer:
            detail = dict(answer.get("detail") or {})
            raise VolumeRefused(str(answer["error"]), str(answer.get("kind")), detail)
        return dict(answer.get("ok") or {})

    def be_patient(self, deadline_s: float) -> None:
        """From now on, how long the service may be silent."""
        stream.set_deadline(self._lines.socket, deadline_s)

    def close(self) -> None:
        self._lines.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()
