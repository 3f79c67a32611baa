"""The ten phases of a migration, in the only order there is.

Everything before :attr:`Phase.COMMIT` can be undone: the guest then runs on at the source as if nothing had
happened. From the commit on there is one owner, the target, and only forward.
"""

from __future__ import annotations

from enum import Enum


class Phase(Enum):
    """A phase, named as in the trace and in ``result.json``."""

    SETUP = "setup"  # the two ends meet and prove that they share the run's secret
    PROVISION = "provision"  # the target has RAM, NIC and a process in place, silent
    PRECOPY = "precopy"  # RAM crosses in rounds while the guest runs
    PAUSE = "pause"  # handshakes held, guest stopped, ingress cut
    SWITCHOVER = "switchover"  # last pages, device state and held frames cross
    VERIFY = "verify"  # both sides hold the same RAM, every device was taken
    COMMIT = "commit"  # the point of no return
    ANNOUNCE = "announce"  # the network is told where the guest is
    RESUME = "resume"  # held frames released, the guest runs at the target
    DELETE = "delete"  # the source's copy is audited once more and removed


ORDER = tuple(Phase)


class OutOfOrder(Exception):
    """A phase was entered that does not follow the one before: a bug of ours, never the peer's."""


class Progress:
    """Where one side is. `enter` moves on by exactly one phase, anything else raises and changes nothing."""

    def __init__(self) -> None:
        self.phase: Phase | None = None

    def enter(self, phase: Phase) -> None:
        expected = ORDER[0] if self.phase is None else next_phase(self.phase)
        if phase is not expected:
            raise OutOfOrder(f"{phase.value} after {self.phase.value if self.phase else 'nothing'}")
        self.phase = phase

    @property
    def committed(self) -> bool:
        return self.phase is not None and ORDER.index(self.phase) >= ORDER.index(Phase.COMMIT)


def next_phase(phase: Phase) -> Phase | None:
    """The phase after `phase`, or None after the last."""
    following = ORDER.index(phase) + 1
    return ORDER[following] if following < len(ORDER) else None
