"""What can go wrong in a migration, by whose fault it is."""

from __future__ import annotations

from typing import ClassVar


class MigrationError(Exception):
    """Base of all: one line that names what is wrong. `fault` says whose it is."""

    fault: ClassVar[str] = "local"


class LocalError(MigrationError):
    """This side could not do its part."""


class ProtocolError(MigrationError):
    """The peer sent what the protocol does not allow: corrupt, truncated, oversized, alien or out of turn."""

    fault = "peer"


class PeerRefused(MigrationError):
    """The peer said that it cannot go on; the text is its reason."""

    fault = "peer"


class PeerLost(MigrationError):
    """The connection to the peer ended or stayed silent past its deadline."""

    fault = "network"


class NotVerified(MigrationError):
    """The two copies are not equal; `pages` are those that differ (the first few)."""

    fault = "integrity"

    def __init__(self, text: str, pages: tuple[int, ...] = ()) -> None:
        super().__init__(text)
        self.pages = pages


class NotConverging(MigrationError):
    """The guest dirties its memory faster than it can be copied, and the policy says to stay."""

    fault = "guest"


class Cancelled(MigrationError):
    """Somebody asked for the migration to end before its commit."""

    fault = "user"


class Undecided(MigrationError):
    """The storage that says whose the guest is cannot be asked now."""

    fault = "network"


class Overtaken(MigrationError):
    """The other side has claimed the guest: it runs there and is gone here. `audited`, on the source, as in
    :class:`~testbed.migration.source.SourceOutcome`.
    """

    fault = "peer"

    def __init__(self, text: str, audited: bool = False) -> None:
        super().__init__(text)
        self.audited = audited


class CommitInDoubt(MigrationError):
    """The commit was sent and no answer came: the source will not run again, the target may or may not.

    Without shared storage nobody can decide this; see the README's limits.
    """

    fault = "network"
