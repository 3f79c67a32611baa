"""The order in which held frames and new ones reach a guest that runs again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from testbed.handover.hold import FrameHold, FrameRelease
from testbed.handover.port import GuestPort

MOST_ROUNDS = 64


@dataclass(frozen=True)
class Delivered:
    """What a delivery came to: frames given to the guest before the port was plugged, and right after."""

    before_plug: int
    after_plug: int


class Delivery:
    """Everything held on the way to the guest, then the guest's port plugged in, then the stragglers.

    First what came first: the frames that the source host held, then those that this host holds. Each one
    released may be answered, and the answer may bring new frames, which are held in their turn; so the hold
    is emptied until it is found empty, and the port is plugged in that instant. What slipped in between (15
    us), or was on its way to the hold on another processor, is handed over after frames that went straight to
    the guest. That is the one place where order is not kept; count and content always are.

    So `late` is to be called whenever the hold's descriptors are readable, for as long as the hold is open.
    """

    def __init__(
        self,
        port: GuestPort,
        hold: FrameHold,
        release: FrameRelease,
        *,
        rewrite: tuple[bytes, bytes] | None = None,
    ) -> None:
        """`rewrite` as in `FrameRelease.release`."""
        self._port = port
        self._hold = hold
        self._release = release
        self._rewrite = rewrite

    def deliver(self, earlier: Sequence[bytes] = ()) -> Delivered:
        """Release `earlier`, then all that is held; plug. The guest's port is open and its sockets are live
        by then.

        At most 64 times is the hold emptied before the port is plugged in all the same: a stream that is
        faster than the release must not keep the guest on the detour for ever. OSError leaves frames
        undelivered.
        """
        before = self._release.release(earlier, rewrite=self._rewrite)
        for _ in range(MOST_ROUNDS):
            frames = self._hold.drain()
            if not frames:
                break
            before += self._release.release(frames, rewrite=self._rewrite)
        self._port.plug()
        return Delivered(before, self.late())

    def late(self, frames: Sequence[bytes] = ()) -> int:
        """Release `frames`, late ones of the source host, and what has come into the hold. How many there
        were.
        """
        count = self._release.release(frames, rewrite=self._rewrite)
        return count + self._release.release(self._hold.drain(), rewrite=self._rewrite)
