"""Who may write to a LUN: registrations, one reservation, leases. Decisions only: a state, and the next one.

In the manner of SCSI-3 persistent reservations (SPC-4, 5.13), with leases on top of them, which SCSI lacks: a
lease covers ranges of bytes and has one holder at one epoch. A write passes if all of these say so:

 - a nexus that names a key: the key is registered;
 - the reservation: none, everyone; EXCLUSIVE (type 3), the holder's key alone, for reading too; SHARED (type
   7, write exclusive, all registrants), every registered key;
 - each lease whose ranges it touches: the nexus is bound to this lease, at its epoch, and its key is the
   holder's;
 - the lease to which the nexus is bound, even where the write touches nothing of it.

An epoch only grows. A claim is a compare-and-swap on it, so of two hosts that claim one epoch one alone gets
it; the one that has got it may ask again, because the answer may have been lost. A lease that is removed
leaves its epoch behind (`floor`): one made later begins above, so an old connection never fits a new lease.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

COORDINATOR = "metadata"
"""The lease whose holder may make, change and remove leases."""

MOST_REGISTRATIONS = 64
MOST_LEASES = 1024
MOST_RANGES = 16384
MOST_EPOCH = (1 << 63) - 1

Ranges = tuple[tuple[int, int], ...]
"""(start, length) of each, in bytes, ascending and disjoint."""


class Kind(StrEnum):
    """Why a command is refused."""

    NO_SUCH_LUN = "NoSuchLun"
    NO_SUCH_LEASE = "NoSuchLease"
    NOT_REGISTERED = "NotRegistered"
    CONFLICT = "Conflict"
    LOST = "Lost"
    BAD_REQUEST = "BadRequest"
    FULL = "Full"


class LunError(Exception):
    """A command that is refused, and why; nothing has changed. `detail` is what the caller needs to go on."""

    def __init__(self, kind: Kind, text: str, detail: Mapping[str, Any] | None = None) -> None:
        super().__init__(text)
        self.kind = kind
        self.detail = dict(detail or {})


class ReservationType(StrEnum):
    EXCLUSIVE = "exclusive"
    SHARED = "shared"


@dataclass(frozen=True, slots=True)
class Reservation:
    type: ReservationType
    holder: str


@dataclass(frozen=True, slots=True)
class Lease:
    holder: str
    epoch: int
    ranges: Ranges

    def as_dict(self) -> dict[str, Any]:
        return {"holder": self.holder, "epoch": self.epoch, "ranges": [list(one) for one in self.ranges]}


@dataclass(frozen=True, slots=True)
class Nexus:
    """What a connection says of itself: nothing, or a key. With a key perhaps a lease at an epoch, and
    perhaps a session and its turn (:class:`testbed.storage.turns.Turns`)."""

    key: str | None = None
    lease: str | None = None
    epoch: int | None = None
    session: str | None = None
    turn: int = 0

    def ends(self, other: Nexus) -> bool:
        """Whether the other is over from when this one is opened: it is an earlier turn of its session."""
        same = (self.key, self.session) == (other.key, other.session)
        return same and self.session is not None and other.turn < self.turn


@dataclass(frozen=True)
class LunState:
    """All that is remembered of a LUN's rights. Each command returns the next state or raises LunError."""

    bytes: int
    registrations: frozenset[str] = frozenset()
    reservation: Reservation | None = None
    leases: Mapping[str, Lease] = field(default_factory=dict)
    floor: int = 0

    # ---- may it?

    def may_read(self, nexus: Nexus) -> bool:
        """Whether the reservation lets this nexus read."""
        reserved = self.reservation
        if reserved is None or reserved.type is ReservationType.SHARED:
            return True
        return nexus.key == reserved.holder

    def may_write(self, nexus: Nexus, offset: int, length: int) -> bool:
        """Whether this nexus may write these bytes now."""
        if nexus.key is not None and nexus.key not in self.registrations:
            return False
        if self.reservation is not None:
            exclusive = self.reservation.type is ReservationType.EXCLUSIVE
            if nexus.key is None or (exclusive and nexus.key != self.reservation.holder):
                return False
        if nexus.lease is not None and not self._owns(nexus, nexus.lease):
            return False
        return all(self._owns(nexus, name) for name in self._touched(offset, length))

    def _owns(self, nexus: Nexus, name: str) -> bool:
        lease = self.leases.get(name)
        if lease is None or nexus.lease != name:
            return False
        return (nexus.key, nexus.epoch) == (lease.holder, lease.epoch)

    def _touched(self, offset: int, length: int) -> set[str]:
        """The leases of which some byte is in the range."""
        starts, covers = self._map
        found = set()
        at = max(0, bisect_right(starts, offset) - 1)
        while at < len(covers) and covers[at][0] < offset + length:
            start, size, name = covers[at]
            if start + size > offset:
                found.add(name)
            at += 1
        return found

    @cached_property
    def _map(self) -> tuple[list[int], list[tuple[int, int, str]]]:
        """Every leased range, by where it starts."""
        covers = sorted((*one, name) for name, lease in self.leases.items() for one in lease.ranges)
        return [start for start, _, _ in covers], covers

    # ---- registrations and the reservation

    def register(self, key: str) -> LunState:
        if key not in self.registrations and len(self.registrations) >= MOST_REGISTRATIONS:
            raise LunError(Kind.FULL, f"there are {MOST_REGISTRATIONS} registrations already, the most")
        return replace(self, registrations=self.registrations | {key})

    def unregister(self, key: str) -> LunState:
        """An exclusive reservation of the key's ends with it; a shared one with the last registration."""
        self._demand(key)
        left = self.registrations - {key}
        reserved = self.reservation
        if reserved is not None and reserved.holder == key:
            stays = reserved.type is ReservationType.SHARED and left
            reserved = replace(reserved, holder=min(left)) if stays else None
        return replace(self, registrations=left, reservation=reserved)

    def reserve(self, key: str, kind: ReservationType) -> LunState:
        """Conflict if there is another reservation. With a shared one every registered key has it already."""
        self._demand(key)
        held = self.reservation
        if held is None:
            return replace(self, reservation=Reservation(kind, key))
        if held.type is kind and (held.holder == key or kind is ReservationType.SHARED):
            return self
        detail = {"type": str(held.type), "holder": held.holder}
        raise LunError(Kind.CONFLICT, f"reserved {held.type} by {held.holder}", detail)

    def release(self, key: str) -> LunState:
        """End the reservation that the key holds, a shared one for all. Nothing happens if it holds none."""
        self._demand(key)
        held = self.reservation
        if held is None or (held.type is ReservationType.EXCLUSIVE and held.holder != key):
            return self
        return replace(self, reservation=None)

    def preempt(self, key: str, victim: str) -> LunState:
        """Take the victim's registration away and its reservation over. It may be gone already."""
        self._demand(key)
        if key == victim:
            raise LunError(Kind.BAD_REQUEST, f"{key} preempts itself: unregister ends one's own rights")
        held = self.reservation
        if held is not None and held.holder == victim:
            held = replace(held, holder=key)
        return replace(self, registrations=self.registrations - {victim}, reservation=held)

    # ---- leases

    def guard(
        self, key: str, name: str, ranges: Ranges, holder: str | None = None, epoch: int | None = None
    ) -> LunState:
        """Make a lease, or change the ranges of one: by the coordinator, or while there is none by any
        registrant.

        A new lease goes to `holder` (None: to `key`) at `epoch` (None: 1), or above the floor if that is
        higher. Holder and epoch of a lease that is there stay as they are: only a claim changes them. Lost
        where the caller believes otherwise.
        """
        self._demand_coordinator(key)
        self._check_ranges(name, ranges)
        held = self.leases.get(name)
        if held is None:
            if len(self.leases) >= MOST_LEASES:
                raise LunError(Kind.FULL, f"there are {MOST_LEASES} leases already, the most")
            first = max(1 if epoch is None else epoch, self.floor + 1)
            lease = Lease(holder if holder is not None else key, first, ranges)
        elif holder not in (None, held.holder) or epoch not in (None, held.epoch):
            raise _lost(name, held)
        else:
            lease = replace(held, ranges=ranges)
        return replace(self, leases={**self.leases, name: lease})

    def unguard(self, key: str, name: str) -> LunState:
        """Remove a lease: by the coordinator. Who is bound to it writes nothing any more."""
        self._demand_coordinator(key)
        gone = self._lease(name)
        left = {one: lease for one, lease in self.leases.items() if one != name}
        return replace(self, leases=left, floor=max(self.floor, gone.epoch))

    def claim(self, key: str, name: str, expect: int) -> LunState:
        """Take a lease over if its epoch is still `expect`; it is one more then. Lost if another was
        first."""
        self._demand(key)
        held = self._lease(name)
        if (held.holder, held.epoch) == (key, expect + 1):
            return self  # the answer to an earlier try was lost
        if held.epoch != expect or expect >= MOST_EPOCH:
            raise _lost(name, held)
        claimed = replace(held, holder=key, epoch=expect + 1)
        return replace(self, leases={**self.leases, name: claimed})

    def _lease(self, name: str) -> Lease:
        if name not in self.leases:
            raise LunError(Kind.NO_SUCH_LEASE, f"there is no lease {name!r}")
        return self.leases[name]

    def _demand(self, key: str) -> None:
        if key not in self.registrations:
            raise LunError(Kind.NOT_REGISTERED, f"key {key} is not registered")

    def _demand_coordinator(self, key: str) -> None:
        self._demand(key)
        coordinator = self.leases.get(COORDINATOR)
        if coordinator is not None and coordinator.holder != key:
            detail = {"holder": coordinator.holder, "epoch": coordinator.epoch}
            text = f"leases are the coordinator's to make, {coordinator.holder}'s"
            raise LunError(Kind.CONFLICT, text, detail)

    def _check_ranges(self, name: str, ranges: Ranges) -> None:
        if len(ranges) > MOST_RANGES:
            raise LunError(Kind.FULL, f"lease {name!r}: {len(ranges)} ranges, of at most {MOST_RANGES}")
        end = 0
        for start, length in ranges:
            if start < end or length <= 0 or start + length > self.bytes:
                where = f"[{start}, {length}] of {self.bytes} bytes"
                text = f"lease {name!r}: ranges must be disjoint and inside: {where}"
                raise LunError(Kind.BAD_REQUEST, text)
            end = start + length
            others = self._touched(start, length) - {name}
            if others:
                text = f"lease {name!r}: [{start}, {length}] is part of lease {min(others)!r}"
                raise LunError(Kind.CONFLICT, text)

    def as_dict(self) -> dict[str, Any]:
        """What the command `status` answers."""
        held = self.reservation
        return {
            "bytes": self.bytes,
            "registrations": sorted(self.registrations),
            "reservation": None if held is None else {"type": str(held.type), "holder": held.holder},
            "leases": {name: lease.as_dict() for name, lease in sorted(self.leases.items())},
        }


def _lost(name: str, held: Lease) -> LunError:
    detail = {"epoch": held.epoch, "holder": held.holder}
    return LunError(Kind.LOST, f"lease {name!r} is {held.holder}'s at epoch {held.epoch}", detail)
