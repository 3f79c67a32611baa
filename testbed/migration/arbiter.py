"""Asking shared storage whose the guest is."""

from __future__ import annotations

from typing import Any, Protocol

from testbed.migration.errors import Undecided
from testbed.migration.ownership import Event, Lease


class Arbiter(Protocol):
    """One host's way to the lease of the guest, for one migration. See :mod:`testbed.migration.ownership`."""

    @property
    def lease(self) -> Lease:
        """The lease as it was when the migration began."""
        ...

    def claim(self) -> bool:
        """Take the guest for this host if nobody has since the migration began: True if it is this host's
        now, False if the other took it first; the same answer however often it is asked. Undecided where the
        storage gives none: what was asked may yet be carried out.
        """
        ...

    def look(self) -> Lease:
        """The lease as it is. Undecided where the storage gives no answer."""
        ...


class Tells(Protocol):
    """The part of a trace that is needed here."""

    def event(self, event: str, **fields: Any) -> int: ...
    def flush(self) -> bool: ...


def ask(arbiter: Arbiter, trace: Tells) -> Event:
    """Claim once: what came of it, for the table."""
    try:
        won = arbiter.claim()
    except Undecided as undecided:
        trace.event("undecided", reason=str(undecided))
        trace.flush()
        return Event.UNANSWERED
    return Event.CLAIM_WON if won else Event.CLAIM_LOST
