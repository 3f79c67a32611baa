"""The releases of Debian that we test on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Release:
    """A release of Debian: its `name` here and in the Vagrantfile, its `suite` in the archive, and what its
    kernel `lacks`, in the words of ``testbed doctor``."""

    name: str
    suite: str
    lacks: frozenset[str] = frozenset()


RELEASES = {
    release.name: release
    for release in (
        Release("debian12", suite="bookworm", lacks=frozenset({"userfaultfd"})),
        Release("debian13", suite="trixie"),
    )
}
