"""A port that forwards only some time after it has been opened, as under a spanning tree."""

from __future__ import annotations

import threading

from testbed.kernel.netlink import Request, RouteSocket


class SlowPort:
    """Has a port forward `delay_s` after it was first opened, and not before.

    Until then it is in state *learning* (IEEE 802.1D, 8.4: it learns who speaks and passes nothing). The end
    of the delay is a timer's thread's business, so nobody needs to wait for it. A port that has had its delay
    is an ordinary one; one that is shut before begins anew.
    """

    def __init__(self, route: RouteSocket, forward: Request, delay_s: float) -> None:
        """`forward` opens the port when the time has come. `route` belongs to this object now."""
        self._route = route
        self._forward = forward
        self._delay_s = delay_s
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._forwards = False

    def open(self, at_once: Request, slowly: Request) -> None:
        """Do `slowly`, which puts the port to learning; `at_once` where it has had its delay. OSError as the
        request."""
        with self._lock:
            self._route.request(at_once if self._forwards else slowly)
            if self._timer is None and not self._forwards:
                self._timer = threading.Timer(self._delay_s, self._open)
                self._timer.daemon = True
                self._timer.start()

    def shut(self) -> None:
        """The port is about to be disabled. The timer does nothing any more when this returns."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _open(self) -> None:
        with self._lock:
            if self._timer is threading.current_thread():
                self._timer = None
                self._forwards = True
                self._route.request(self._forward)

    def close(self) -> None:
        """No late opening any more."""
        with self._lock:
            self._forget()
            self._route.close()
