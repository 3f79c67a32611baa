"""A client of the target's LUN control service: one method a command.

The conversation, JSON lines over TCP, one answer a request: {"do", ...} is answered by {"ok": {...}} or
{"error", "kind", "detail"}; the kinds are those of :class:`testbed.storage.lun.Kind`.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from netns.namespace import Namespace
from testbed.storage import stream
from testbed.storage.lines import LineBroken, Lines
from testbed.storage.stream import Address


class LunRefused(Exception):
    """The target refused; nothing has changed. `kind` as in :class:`testbed.storage.lun.Kind`; `detail` of
    Lost and Conflict says who is first: holder, epoch or type."""

    def __init__(self, text: str, kind: str, detail: dict[str, Any]) -> None:
        super().__init__(text)
        self.kind = kind
        self.detail = detail


class LunLost(Exception):
    """The target cannot be reached, ended, or was silent past the deadline. Whether a command that was under
    way has been carried out is not known. Every command may be repeated on a new connection: what is done
    already is answered as done."""


class LunClient:
    """A connection to the control service. Not for use by two threads at once. Every command raises
    LunRefused or LunLost."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self.socket = lines.socket

    @classmethod
    def connect(
        cls, address: Address, *, deadline_s: float, namespace: Namespace | None = None
    ) -> LunClient:
        """Connect from `namespace` (None: the thread's); `deadline_s` is the longest that the target may be
        silent, now and later. Raises LunLost."""
        try:
            return cls(Lines(stream.connect(address, deadline_s, namespace)))
        except stream.StreamLost as error:
            raise LunLost(str(error)) from error

    def luns(self) -> dict[str, dict[str, Any]]:
        """Every LUN by its name: {"csv": {"bytes": N}}."""
        return self._ask(do="luns")

    def status(self, lun: str) -> dict[str, Any]:
        """{"bytes", "registrations", "reservation": None or {"type", "holder"}, "leases": {name: {"holder",
        "epoch", "ranges"}}}."""
        return self._ask(do="status", lun=lun)

    def register(self, lun: str, key: str) -> None:
        self._ask(do="register", lun=lun, key=key)

    def unregister(self, lun: str, key: str) -> None:
        self._ask(do="unregister", lun=lun, key=key)

    def reserve(self, lun: str, key: str, kind: str) -> None:
        """`kind` is "exclusive" or "shared"."""
        self._ask(do="reserve", lun=lun, key=key, type=kind)

    def release(self, lun: str, key: str) -> None:
        self._ask(do="release", lun=lun, key=key)

    def preempt(self, lun: str, key: str, victim: str, *, abort: bool = True) -> None:
        """When this returns no write of the victim's can land any more; with `abort` its connections are
        cut."""
        self._ask(do="preempt", lun=lun, key=key, victim=victim, abort=abort)

    def guard(
        self,
        lun: str,
        key: str,
        lease: str,
        ranges: Sequence[Sequence[int]],
        *,
        holder: str | None = None,
        epoch: int | None = None,
    ) -> dict[str, Any]:
        """Make a lease or change its ranges; the lease as it is then: {"holder", "epoch", "ranges"}.

        A new one begins at `epoch` (None: 1) or higher, where leases that were removed have been there.
        """
        listed = [list(one) for one in ranges]
        wanted = {"lease": lease, "ranges": listed, "holder": holder, "epoch": epoch}
        return self._ask(do="guard", lun=lun, key=key, **wanted)

    def unguard(self, lun: str, key: str, lease: str) -> None:
        self._ask(do="unguard", lun=lun, key=key, lease=lease)

    def claim(self, lun: str, key: str, lease: str, expect: int) -> int:
        """Take the lease over if its epoch is `expect`; the epoch from now on, one more. When this returns
        no write of the holder before can land any more. LunRefused "Lost" with the detail {"epoch",
        "holder"}."""
        return int(self._ask(do="claim", lun=lun, key=key, lease=lease, expect=expect)["epoch"])

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def _ask(self, **request: Any) -> dict[str, Any]:
        try:
            self._lines.send(request)
            answer = self._lines.receive()
        except (stream.StreamLost, LineBroken) as error:
            raise LunLost(f"{request['do']}: {error}") from error
        if answer is None:
            raise LunLost(f"{request['do']}: the target closed the connection")
        if "error" in answer:
            raise LunRefused(str(answer["error"]), str(answer.get("kind")), dict(answer.get("detail") or {}))
        return dict(answer.get("ok") or {})
