"""Being scheduled at once during the switchover, where the system lets us.

A switchover is a chain of some ten wake-ups on two hosts, and each waits for a processor. With more runnable
processes than processors (clients, guests, whatever else the machine does) the waiting is most of the
blackout. A real-time class, lowest priority, takes it away for these few milliseconds (sched(7)). It needs
CAP_SYS_NICE on the machine itself, so an ordinary user does without; so does a switchover that copies for
long, for two agents on two processors would keep the clients from running, who are what is measured. The
result says which.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

_URGENT = os.SCHED_RR | os.SCHED_RESET_ON_FORK
_ORDINARY = os.SCHED_OTHER | os.SCHED_RESET_ON_FORK
"""The flag stays: whom RLIMIT_RTPRIO alone allows to be urgent may set it and may not take it off."""


class Urgency:
    """Makes processes urgent and ordinary again; pid 0 is this one. `granted` says whether the system allowed
    it, `given_up` whether it was done without all the same."""

    def __init__(self) -> None:
        self._raised: list[int] = []
        self.granted = True
        self.given_up = False

    def raise_for(self, pids: Iterable[int]) -> None:
        """Make `pids` urgent. Where that is not allowed nothing changes but `granted`. ProcessLookupError if
        one is gone."""
        for pid in pids:
            try:
                os.sched_setscheduler(pid, _URGENT, os.sched_param(1))
            except PermissionError:
                self.granted = False
                return
            self._raised.append(pid)

    def give_way(self) -> None:
        """Be ordinary for what takes long."""
        self.given_up = True
        self.lower()

    def lower(self) -> None:
        """Make ordinary again what :meth:`raise_for` made urgent, if it still lives. May be called at any
        time."""
        while self._raised:
            try:
                os.sched_setscheduler(self._raised.pop(), _ORDINARY, os.sched_param(0))
            except ProcessLookupError:
                continue
