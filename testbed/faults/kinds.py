"""Which faults there are. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from typing import Self

from testbed.migration.phases import ORDER, Phase


class FaultError(ValueError):
    """What was asked for is no fault; the text says what is."""


class Kind(Enum):
    """What goes wrong."""

    SOURCE_AGENT_KILLED = "source-agent-killed"
    TARGET_AGENT_KILLED = "target-agent-killed"
    GUEST_KILLED = "guest-killed"
    ORCHESTRATOR_KILLED = "orchestrator-killed"
    LINK_BLACK_HOLE = "link-black-hole"  # the migration link carries nothing, and nobody is told
    LINK_RESET = "link-reset"  # the migration's connection is reset
    LINK_SLOW = "link-slow"  # the migration link goes down to SLOW_BITS_PER_S
    STORAGE_CUT_SOURCE = "storage-cut-source"  # the source's way to the storage carries nothing
    STORAGE_CUT_TARGET = "storage-cut-target"
    STORAGE_CUT_BOTH = "storage-cut-both"
    MESSAGE_CORRUPTED = "message-corrupted"  # one bit of the next message that the side sends
    MESSAGE_DUPLICATED = "message-duplicated"
    MESSAGE_TRUNCATED = "message-truncated"  # half of it, and then the connection ends
    TARGET_OUT_OF_MEMORY = "target-out-of-memory"
    LUN_FULL = "lun-full"
    ANNOUNCEMENT_LOST = "announcement-lost"  # the first round of announcements, on the target
    TARGET_SPEAKS_EARLY = "target-speaks-early"  # the target announces the guest, once, before it is its

    @property
    def needs_storage(self) -> bool:
        return self in _OF_STORAGE


_OF_STORAGE = frozenset(
    {Kind.STORAGE_CUT_SOURCE, Kind.STORAGE_CUT_TARGET, Kind.STORAGE_CUT_BOTH, Kind.LUN_FULL}
)
_OF_TARGET = frozenset(
    {
        Kind.TARGET_AGENT_KILLED,
        Kind.TARGET_OUT_OF_MEMORY,
        Kind.ANNOUNCEMENT_LOST,
        Kind.TARGET_SPEAKS_EARLY,
        Kind.STORAGE_CUT_TARGET,
    }
)
_GUEST_MOVES = ORDER.index(Phase.ANNOUNCE)
SLOW_BITS_PER_S = 100_000_000


class Side(Enum):
    """Who makes a fault happen."""

    SOURCE = "source"
    TARGET = "target"


@dataclass(frozen=True)
class Fault:
    """`kind` happens when its side enters `phase`."""

    phase: Phase
    kind: Kind

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``PHASE:KIND``. FaultError names what is allowed."""
        phase, colon, kind = text.partition(":")
        phases, kinds = [one.value for one in Phase], [one.value for one in Kind]
        if not colon or phase not in phases:
            raise FaultError(f"{text!r} is not PHASE:KIND with a phase of {', '.join(phases)}")
        if kind not in kinds:
            raise FaultError(f"{kind!r} is none of {', '.join(kinds)}")
        return cls(Phase(phase), Kind(kind))

    def __str__(self) -> str:
        return f"{self.phase.value}:{self.kind.value}"

    @property
    def sides(self) -> frozenset[Side]:
        """Who makes it happen. The guest's death is made where the guest is."""
        if self.kind is Kind.STORAGE_CUT_BOTH:
            return frozenset({Side.SOURCE, Side.TARGET})
        moved = self.kind is Kind.GUEST_KILLED and ORDER.index(self.phase) >= _GUEST_MOVES
        return frozenset({Side.TARGET if moved or self.kind in _OF_TARGET else Side.SOURCE})


def matrix(*, storage: bool) -> list[Fault]:
    """Every fault that can be made with or without shared storage, phase by phase."""
    return [Fault(phase, kind) for phase in Phase for kind in Kind if storage or not kind.needs_storage]


def chosen(patterns: Iterable[str], *, storage: bool) -> list[Fault]:
    """The faults of the matrix that ``PHASE:KIND`` names, where ``*`` stands for anything: ``verify:*``,
    ``*:storage-*``. FaultError names what is allowed where a pattern names none.
    """
    found: dict[Fault, None] = {}
    for pattern in patterns:
        meant = [fault for fault in matrix(storage=True) if fnmatchcase(str(fault), pattern)]
        if not meant:
            Fault.parse(pattern)  # says what is wrong with it
        able = [fault for fault in meant if storage or not fault.kind.needs_storage]
        if not able:
            raise FaultError(f"{pattern!r} needs shared storage")
        found |= dict.fromkeys(able)
    return list(found)
