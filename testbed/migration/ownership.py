"""Who owns the guest: one word of the storage decides, and each side knows from its table if it may run it.

**Rules.** Shared storage keeps a lease for the VM: a holder and an epoch. ``claim(N, who)`` is a
compare-and-swap: if the epoch is N, it becomes N+1 with the holder `who`; if it is N+1 and `who` holds it
already, the answer is "won" once more (the first answer was lost); in every other case it is "lost". From
the instant at which a claim is carried out, writes under an older epoch fail. The guest runs at the source
under epoch N, and a migration ends with one claim of N, by the target or by the source. The claim is the
commit; the message of that name is only the permission.

- The source may run the guest without asking anyone until it hands StateEnd to the network, and no longer:
  ``STATE_SENT`` is noted *before* that. From there the target may be complete, though the source never
  hears of it.
- Past that point the guest runs at the source again only by the source's own claim or by the target's own
  word that it has discarded its copy (Abort, or Returned as the answer to Abort). Silence is no such word,
  nor is an Abort of the source's: it may be lost.
- The target runs nothing that it has not claimed. Once it may have asked, it never refuses and never
  forgets that it asked: only an answer of the storage ends a claim.
- An agent that restarts remembers nothing. It looks at the lease: :func:`after_restart`.

**Why that is enough.** Only two ever claim N, the source and the target of this one migration, and the
storage carries out one claim after the other. So exactly one of them wins, whatever was lost or cut and
whoever died, and the other learns it as soon as it can ask. It matters not who wins: the guest has stood
still since StateEnd and the copy was verified, so both hold the same state. That is why READY may claim
when the source falls silent: a dead source cannot ask for its guest back, a live one loses nothing. And it
is why the loser must never run: from the claim on, its copy is old.

The source claims N although it holds N already, because the claim uses N up: a claim of N by the target,
however late it arrives, is then lost. Conversely a source that runs on under N is certain that nobody can
have asked for N. This is also why a refusal that arrives in DOUBT changes nothing: the source's own claim
may be under way, and to run under N while N+1 comes true would fence off the guest.

**What can be late.** A claim may be carried out long after its sender died: it waits in a service or behind
a cut link. So a target that restarts and sees the lease unchanged cannot conclude that it lost. It looks
again (LOOKING) until the epoch has moved; then N can no longer be won. If its own late claim moved it, the
VM is its, and it must run it: nobody else will.

**What a host runs.** RAM belongs to an epoch: the guest's to the one that it ran under, a verified copy to
the one that the source had. It is still the newest state if the same host holds that epoch or the one after
(:func:`ram_is_good`); otherwise somebody else has run since, and the VM boots from its disk. A lease
without RAM is still the VM.

**Without shared storage** nobody can be asked. Commit is then the point of no return: the source lets go
when it sends it, and the target waits for it and for nothing else. A source that has sent Commit and hears
nothing is IN_DOUBT for ever: either Commit was lost and nobody runs, or Resumed was and the target runs.
Both look the same from here, and no further message helps, as the last one may be lost as well (the two
generals: Gray, "Notes on Data Base Operating Systems", 1978). Only the target's word still ends it.

**The tables** are :data:`SOURCE` and :data:`TARGET`, and :data:`SOURCE_ALONE` and :data:`TARGET_ALONE` for
a migration without shared storage. What is not in the table raises and changes nothing.
``tests/unit/test_ownership_model.py`` searches every state that two hosts, the storage and the network can
reach by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from testbed.migration.phases import OutOfOrder


class SourceOwnership(Enum):
    """What the host from which the guest goes may do with it."""

    OWNER = "owner"  # may run it; nothing that the target has is complete, or it has discarded it
    EXPOSED = "exposed"  # StateEnd may have arrived: the target can be complete
    DOUBT = "doubt"  # exposed, and something failed: it must win a claim before the guest may run here
    COMMITTED = "committed"  # without shared storage: Commit was sent, the target's word is awaited
    IN_DOUBT = "in-doubt"  # without shared storage: that word did not come, and nobody can be asked
    YIELDED = "yielded"  # the guest is the target's: it never runs here again

    @property
    def may_run(self) -> bool:
        return self is SourceOwnership.OWNER

    @property
    def must_claim(self) -> bool:
        return self is SourceOwnership.DOUBT

    @property
    def may_delete(self) -> bool:
        """This host's copy is of no use to anyone. Not so in doubt: it may be the only one."""
        return self is SourceOwnership.YIELDED


class TargetOwnership(Enum):
    """What the host to which the guest comes may do with it."""

    COPYING = "copying"  # the copy is not complete or not verified
    READY = "ready"  # verified; noted before Ready is sent
    CLAIMING = "claiming"  # a claim may be under way: only the storage's answer counts
    LOOKING = "looking"  # restarted, the lease another's: an earlier claim may be under way
    OWNER = "owner"  # the guest is this host's, with RAM or without
    DISCARDED = "discarded"  # the copy never runs, and no claim of this epoch can be won here any more

    @property
    def may_run(self) -> bool:
        return self is TargetOwnership.OWNER

    @property
    def must_claim(self) -> bool:
        return self is TargetOwnership.CLAIMING

    @property
    def may_delete(self) -> bool:
        """This host's copy is of no use to anyone."""
        return self is TargetOwnership.DISCARDED


class Event(Enum):
    """What either side notes."""

    # the source's
    STATE_SENT = "state-sent"  # StateEnd is about to be handed to the network
    COMMIT_SENT = "commit-sent"  # Commit is about to be
    PEER_REFUSED = "peer-refused"  # Abort or Returned of the target arrived, on this migration's connection
    RESUMED_HEARD = "resumed-heard"  # Resumed arrived

    # the target's
    VERIFIED = "verified"  # the copy is complete and equal
    COMMIT_HEARD = "commit-heard"  # Commit arrived
    ABORT_HEARD = "abort-heard"  # Abort of the source arrived
    PEER_LOST = "peer-lost"  # the connection ended, or the source is silent past its deadline
    LEASE_OURS = "lease-ours"  # looked: the epoch has moved, and this host holds it
    LEASE_ELSEWHERE = "lease-elsewhere"  # looked: the epoch has moved, and another holds it
    LEASE_UNCHANGED = "lease-unchanged"  # looked: the epoch is what it was

    # either's
    FAILED = "failed"  # the source: anything else, silence and a lost connection too; the target: own error
    CLAIM_WON = "claim-won"
    CLAIM_LOST = "claim-lost"
    UNANSWERED = "unanswered"  # the storage did not answer in time; what was asked may yet be carried out


S = TypeVar("S", bound=Enum)
Table = Mapping[S, Mapping[Event, S]]

_S, _T = SourceOwnership, TargetOwnership

SOURCE: Table[SourceOwnership] = {
    _S.OWNER: {
        Event.STATE_SENT: _S.EXPOSED,
        Event.PEER_REFUSED: _S.OWNER,
        Event.FAILED: _S.OWNER,
    },
    _S.EXPOSED: {
        Event.COMMIT_SENT: _S.EXPOSED,  # a permission: the target can claim without it
        Event.PEER_REFUSED: _S.OWNER,
        Event.RESUMED_HEARD: _S.YIELDED,
        Event.FAILED: _S.DOUBT,
    },
    _S.DOUBT: {
        Event.CLAIM_WON: _S.OWNER,
        Event.CLAIM_LOST: _S.YIELDED,
        Event.UNANSWERED: _S.DOUBT,
        Event.RESUMED_HEARD: _S.YIELDED,
        Event.PEER_REFUSED: _S.DOUBT,  # the own claim may be under way
        Event.FAILED: _S.DOUBT,
    },
    _S.YIELDED: {
        Event.RESUMED_HEARD: _S.YIELDED,
        Event.FAILED: _S.YIELDED,
    },
}
"""The source's table where the VM has a lease."""

TARGET: Table[TargetOwnership] = {
    _T.COPYING: {
        Event.VERIFIED: _T.READY,
        Event.ABORT_HEARD: _T.DISCARDED,
        Event.PEER_LOST: _T.DISCARDED,
        Event.FAILED: _T.DISCARDED,  # and it says so: Abort
    },
    _T.READY: {
        Event.COMMIT_HEARD: _T.CLAIMING,
        Event.PEER_LOST: _T.CLAIMING,  # the survivor asks
        Event.ABORT_HEARD: _T.DISCARDED,  # and it says so: Returned
        Event.FAILED: _T.DISCARDED,  # and it says so: Abort
    },
    _T.CLAIMING: {
        Event.CLAIM_WON: _T.OWNER,
        Event.CLAIM_LOST: _T.DISCARDED,
        Event.UNANSWERED: _T.CLAIMING,
        Event.COMMIT_HEARD: _T.CLAIMING,
        Event.PEER_LOST: _T.CLAIMING,
        Event.ABORT_HEARD: _T.CLAIMING,  # too late: no Returned, no Abort
        Event.FAILED: _T.CLAIMING,  # the VM may be this host's already, if need be from its disk
    },
    _T.LOOKING: {
        Event.LEASE_OURS: _T.OWNER,
        Event.LEASE_ELSEWHERE: _T.DISCARDED,
        Event.LEASE_UNCHANGED: _T.LOOKING,
        Event.UNANSWERED: _T.LOOKING,
    },
    _T.OWNER: {
        Event.COMMIT_HEARD: _T.OWNER,
        Event.PEER_LOST: _T.OWNER,
        Event.ABORT_HEARD: _T.OWNER,
        Event.FAILED: _T.OWNER,
    },
    _T.DISCARDED: {
        Event.PEER_LOST: _T.DISCARDED,
        Event.ABORT_HEARD: _T.DISCARDED,
        Event.FAILED: _T.DISCARDED,
    },
}
"""The target's table where the VM has a lease."""

SOURCE_ALONE: Table[SourceOwnership] = {
    _S.OWNER: SOURCE[_S.OWNER],
    _S.EXPOSED: {
        Event.COMMIT_SENT: _S.COMMITTED,
        Event.PEER_REFUSED: _S.OWNER,
        Event.FAILED: _S.OWNER,  # the target waits for a Commit that will not come
    },
    _S.COMMITTED: {
        Event.RESUMED_HEARD: _S.YIELDED,
        Event.PEER_REFUSED: _S.OWNER,  # said before Commit arrived there, and never after
        Event.FAILED: _S.IN_DOUBT,
    },
    _S.IN_DOUBT: {
        Event.RESUMED_HEARD: _S.YIELDED,
        Event.PEER_REFUSED: _S.OWNER,
        Event.FAILED: _S.IN_DOUBT,
    },
    _S.YIELDED: {
        Event.FAILED: _S.YIELDED,
    },
}
"""The source's table without shared storage."""

TARGET_ALONE: Table[TargetOwnership] = {
    _T.COPYING: TARGET[_T.COPYING],
    _T.READY: {
        Event.COMMIT_HEARD: _T.OWNER,
        Event.PEER_LOST: _T.DISCARDED,  # without Commit the guest is the source's
        Event.ABORT_HEARD: _T.DISCARDED,
        Event.FAILED: _T.DISCARDED,
    },
    _T.OWNER: {
        Event.PEER_LOST: _T.OWNER,
        Event.FAILED: _T.OWNER,
    },
    _T.DISCARDED: TARGET[_T.DISCARDED],
}
"""The target's table without shared storage."""


@dataclass(frozen=True)
class Lease:
    """The storage's word on a VM: who holds it, under which epoch."""

    holder: str
    epoch: int


def step(table: Table[S], state: S, event: Event) -> S:
    """The state after `event`. Raises OutOfOrder, a bug of ours, for what is not in the table."""
    try:
        return table[state][event]
    except KeyError:
        raise OutOfOrder(f"{event.value} while {state.value}") from None


class Ownership(Generic[S]):
    """One side's say over one guest, in one migration.

    `state` says what this host may do (`may_run`, `must_claim`, `may_delete`). `epoch` is the one to claim
    while it must claim and the one to write under while it may run; a claim that was won moves it on by
    one. Without shared storage it stays 0.
    """

    def __init__(self, table: Table[S], state: S, epoch: int = 0) -> None:
        self._table = table
        self.state = state
        self.epoch = epoch

    def note(self, event: Event) -> S:
        """`event` happened: returns the new state, or raises OutOfOrder and changes nothing."""
        self.state = step(self._table, self.state, event)
        if event in (Event.CLAIM_WON, Event.LEASE_OURS):
            self.epoch += 1
        return self.state


def of_source(lease: Lease | None) -> Ownership[SourceOwnership]:
    """The source's say when a migration begins; `lease` is the VM's, None without shared storage."""
    table = SOURCE_ALONE if lease is None else SOURCE
    return Ownership(table, SourceOwnership.OWNER, lease.epoch if lease else 0)


def of_target(lease: Lease | None) -> Ownership[TargetOwnership]:
    """The target's say when a migration begins; `lease` is the VM's, None without shared storage."""
    table = TARGET_ALONE if lease is None else TARGET
    return Ownership(table, TargetOwnership.COPYING, lease.epoch if lease else 0)


def after_restart(lease: Lease, who: str) -> Ownership[SourceOwnership] | Ownership[TargetOwnership]:
    """The say of an agent that restarted and remembers nothing; `lease` as it saw it since.

    If `who` holds the lease, the VM may have been on its way elsewhere: DOUBT. A guest that was found
    running is paused until the claim is won, since the claim moves the epoch under its disk. If another
    holds it, the VM may have been on its way to here: LOOKING. A new migration to this host may begin then:
    a source that may run its guest is certain that nobody asked for its epoch.
    """
    if lease.holder == who:
        return Ownership(SOURCE, SourceOwnership.DOUBT, lease.epoch)
    return Ownership(TARGET, TargetOwnership.LOOKING, lease.epoch)


def seen(lease: Lease, who: str, epoch: int) -> Event:
    """What a look at the lease tells one who is LOOKING since `epoch`."""
    if lease.epoch == epoch:
        return Event.LEASE_UNCHANGED
    # From here to `epoch` + 1 leads its own claim only, and it makes no other.
    return Event.LEASE_OURS if lease.holder == who else Event.LEASE_ELSEWHERE


def ram_is_good(ram_epoch: int | None, epoch: int) -> bool:
    """Whether RAM found by a host that holds `epoch` is the guest's newest state; else the VM boots its disk.

    `ram_epoch` is stored with the RAM: the epoch that the guest ran under, or for a verified copy the epoch
    that the source had; None where there is no RAM or a copy that was not verified. RAM that is found good
    belongs to `epoch` from then on, and this is stored before the next claim is made.
    """
    return ram_epoch is not None and epoch - ram_epoch in (0, 1)
