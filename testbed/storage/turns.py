"""Which connections of a session are over: the latest turn ends those before it. Decisions only."""

from __future__ import annotations

from dataclasses import dataclass

from testbed.storage.lun import Nexus


class TurnOver(Exception):
    """A later turn of the session has been opened: this one is of no use any more."""


@dataclass(slots=True)
class _Session:
    highest: int
    connections: int = 0


class Turns:
    """The sessions of a LUN's open connections. A client that may have to make a connection anew takes a
    session for its life, and a higher turn for each connection.

    Why: a request whose answer does not come is made again on the next connection, and newer ones follow. The
    old one may still lie, whole, in a receive buffer of the target, or in a relay that stands still and has
    not heard that its peer is gone. Carried out now, it would land over the newer ones; and key, lease and
    epoch do not tell them apart, for they are the same. So from when a turn is opened, none before it writes.

    A session is remembered while one of its connections is open, be it of a turn that is over, and no longer.
    That is bounded, by the connections that a target takes. And it is enough: a client sends its first
    request when it has been told of its export, and before that its connection counts here. So while a write
    of an old turn can still come, the connection that it comes on is open, and the session remembered. A
    target that ends takes its connections with it, and what they would have brought: nothing of this has to
    survive it.
    """

    def __init__(self) -> None:
        self._sessions: dict[tuple[str | None, str], _Session] = {}

    def __len__(self) -> int:
        """How many sessions are remembered."""
        return len(self._sessions)

    def open(self, nexus: Nexus) -> None:
        """Count a connection; earlier turns of its session are over from now on. TurnOver if a later one has
        been opened: nothing is counted then. One turn may have several connections."""
        if nexus.session is None:
            return
        known = self._sessions.get((nexus.key, nexus.session), _Session(nexus.turn))
        if nexus.turn < known.highest:
            raise TurnOver(f"turn {nexus.turn} of session {nexus.session} is over: it is at {known.highest}")
        known.highest = nexus.turn
        known.connections += 1
        self._sessions[nexus.key, nexus.session] = known

    def close(self, nexus: Nexus) -> None:
        """Undo :meth:`open`: the connection has ended, and nothing of it is under way."""
        if nexus.session is None:
            return
        known = self._sessions[nexus.key, nexus.session]
        known.connections -= 1
        if not known.connections:
            del self._sessions[nexus.key, nexus.session]

    def current(self, nexus: Nexus) -> bool:
        """Whether no later turn has been opened than that of this connection, which is open. True of one that
        names no session."""
        if nexus.session is None:
            return True
        known = self._sessions.get((nexus.key, nexus.session))
        return known is not None and known.highest == nexus.turn
