"""Where a universe keeps its things. All of it lies on the universe's own tmpfs on /run, so none of it
outlives it.
"""

from __future__ import annotations

from pathlib import Path

RUN = Path("/run")
"""The mount point of the universe's tmpfs."""

HOME = RUN / "universe"
"""Present in a universe and nowhere else: `inside()` looks for it."""

FORK_SERVER = HOME / "fork-server"
"""The fork server's socket. A path name is found from every network namespace; an abstract name would not
be.
"""

NAMED_NAMESPACES = RUN / "netns"
"""Where iproute2 looks for named network namespaces."""


class NotInUniverse(Exception):
    """Something was asked for that is done inside a universe only, lest it touch what is the machine's
    own.
    """

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}: only inside a universe (see netns.universe.run)")


def inside() -> bool:
    """Whether this process lives in a universe."""
    return HOME.is_dir()


def demand_universe(what: str) -> None:
    """Raise NotInUniverse, naming `what` was tried, unless this process lives in a universe."""
    if not inside():
        raise NotInUniverse(what)
