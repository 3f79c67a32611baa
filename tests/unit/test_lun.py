"""Who may write to a LUN: the rules one by one, and what must hold whatever is asked in whatever order."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from testbed.storage import lun_json
from testbed.storage.lun import (
    MOST_REGISTRATIONS,
    Kind,
    Lease,
    LunError,
    LunState,
    Nexus,
    ReservationType,
)

A, B, C = (digit * 16 for digit in "abc")
SIZE = 1 << 20
EXCLUSIVE, SHARED = ReservationType.EXCLUSIVE, ReservationType.SHARED


def registered(*keys: str) -> LunState:
    state = LunState(SIZE)
    for key in keys:
        state = state.register(key)
    return state


def leased(holder: str = A, epoch: int = 5) -> LunState:
    """A and B registered and sharing; A coordinates; the disk's lease covers [4096, 8192)."""
    state = registered(A, B).reserve(A, SHARED).guard(A, "metadata", ((0, 4096),))
    return state.guard(A, "disk", ((4096, 4096),), holder, epoch)


def refusal(state: LunState, **request: Any) -> LunError:
    with pytest.raises(LunError) as refused:
        lun_json.command(request)(state)
    return refused.value


def after(state: LunState, **request: Any) -> LunState:
    return lun_json.command(request)(state)


# ---- the reservation


def test_without_a_reservation_everyone_reads_and_writes() -> None:
    state = registered(A)
    for nexus in (Nexus(), Nexus(A)):
        assert state.may_read(nexus)
        assert state.may_write(nexus, 0, SIZE)


def test_a_key_that_is_not_registered_never_writes() -> None:
    assert not registered(A).may_write(Nexus(B), 0, 1)


def test_exclusive_lets_the_holder_alone_read_and_write() -> None:
    state = registered(A, B).reserve(A, EXCLUSIVE)
    assert state.may_read(Nexus(A))
    assert state.may_write(Nexus(A), 0, 1)
    for nexus in (Nexus(), Nexus(B)):
        assert not state.may_read(nexus)
        assert not state.may_write(nexus, 0, 1)


def test_shared_lets_registrants_write_and_everyone_read() -> None:
    state = registered(A, B).reserve(A, SHARED)
    assert state.may_write(Nexus(A), 0, 1)
    assert state.may_write(Nexus(B), 0, 1)
    assert state.may_read(Nexus())
    assert not state.may_write(Nexus(), 0, 1)


@pytest.mark.parametrize(
    ("held", "key", "asked", "conflict"),
    [
        (EXCLUSIVE, A, EXCLUSIVE, False),
        (EXCLUSIVE, B, EXCLUSIVE, True),
        (EXCLUSIVE, A, SHARED, True),
        (SHARED, B, SHARED, False),
        (SHARED, B, EXCLUSIVE, True),
    ],
)
def test_there_is_one_reservation(
    held: ReservationType, key: str, asked: ReservationType, conflict: bool
) -> None:
    state = registered(A, B).reserve(A, held)
    if conflict:
        error = refusal(state, do="reserve", key=key, type=str(asked))
        assert (error.kind, error.detail) == (Kind.CONFLICT, {"type": str(held), "holder": A})
    else:
        assert state.reserve(key, asked) == state


def test_release_ends_what_the_key_holds_and_nothing_else() -> None:
    exclusive = registered(A, B).reserve(A, EXCLUSIVE)
    assert exclusive.release(B) == exclusive
    assert exclusive.release(A).reservation is None
    assert registered(A, B).reserve(A, SHARED).release(B).reservation is None


def test_a_reservation_ends_with_those_who_hold_it() -> None:
    assert registered(A, B).reserve(A, EXCLUSIVE).unregister(A).reservation is None
    shared = registered(A, B).reserve(A, SHARED).unregister(A)
    assert shared.reservation is not None
    assert shared.reservation.holder == B
    assert shared.unregister(B).reservation is None


@pytest.mark.parametrize("kind", list(ReservationType))
def test_preempt_takes_registration_and_reservation(kind: ReservationType) -> None:
    state = registered(A, B).reserve(A, kind).preempt(B, A)
    assert state.registrations == {B}
    assert state.reservation is not None
    assert state.reservation.holder == B
    assert not state.may_write(Nexus(A), 0, 1)
    assert state.preempt(B, A) == state, "asked again, because the answer was lost"


def test_registrations_are_bounded() -> None:
    state = registered(*(f"{number:016x}" for number in range(MOST_REGISTRATIONS)))
    assert refusal(state, do="register", key=A).kind is Kind.FULL
    assert state.register(f"{0:016x}") == state


# ---- leases


@pytest.mark.parametrize(
    ("nexus", "allowed"),
    [
        (Nexus(A, "disk", 5), True),
        (Nexus(A, "disk", 4), False),
        (Nexus(A, "disk", 6), False),
        (Nexus(B, "disk", 5), False),
        (Nexus(A, "metadata", 1), False),
        (Nexus(A), False),
        (Nexus(), False),
    ],
)
def test_leased_bytes_are_written_at_the_lease_and_epoch_alone(nexus: Nexus, allowed: bool) -> None:
    state = leased()
    assert state.may_write(nexus, 4096, 4096) is allowed
    assert state.may_write(nexus, 8191, 2) is allowed, "it ends where nobody's bytes are"
    assert not state.may_write(nexus, 4095, 2), "it begins in the metadata"
    assert state.may_read(nexus)


def test_a_bound_connection_writes_nothing_at_all_at_another_epoch() -> None:
    state = leased()
    assert state.may_write(Nexus(A, "disk", 5), 100_000, 1)
    assert not state.may_write(Nexus(A, "disk", 6), 100_000, 1)
    assert state.may_write(Nexus(B), 100_000, 1)


def test_leases_hold_without_a_reservation_too() -> None:
    state = leased().release(A)
    assert not state.may_write(Nexus(), 4096, 1)
    assert state.may_write(Nexus(), 100_000, 1)


def test_a_claim_moves_the_lease_at_that_instant() -> None:
    state = leased().claim(B, "disk", 5)
    assert state.leases["disk"] == Lease(B, 6, ((4096, 4096),))
    assert not state.may_write(Nexus(A, "disk", 5), 4096, 1)
    assert state.may_write(Nexus(B, "disk", 6), 4096, 1)


def test_a_claim_may_be_asked_again() -> None:
    state = leased().claim(B, "disk", 5)
    assert state.claim(B, "disk", 5) == state


def test_of_two_claims_of_one_epoch_one_is_lost() -> None:
    error = refusal(leased().claim(B, "disk", 5), do="claim", key=A, lease="disk", expect=5)
    assert (error.kind, error.detail) == (Kind.LOST, {"epoch": 6, "holder": B})


def test_only_a_claim_changes_holder_and_epoch() -> None:
    """A coordinator that grows a disk while it moves must not take it back."""
    state = leased().claim(B, "disk", 5)
    grown = state.guard(A, "disk", ((4096, 8192),))
    assert grown.leases["disk"] == Lease(B, 6, ((4096, 8192),))
    for stale in ({"holder": A}, {"epoch": 5}):
        error = refusal(state, do="guard", key=A, lease="disk", ranges=[[4096, 8192]], **stale)
        assert (error.kind, error.detail) == (Kind.LOST, {"epoch": 6, "holder": B})


def test_a_lease_made_anew_begins_above_the_one_that_was() -> None:
    """Or a connection of the old one would fit."""
    state = leased().unguard(A, "disk").guard(A, "disk", ((4096, 4096),), epoch=5)
    assert state.leases["disk"].epoch == 6
    assert not state.may_write(Nexus(A, "disk", 5), 4096, 1)


@pytest.mark.parametrize("do", ["guard", "unguard"])
def test_leases_are_the_coordinators_to_make(do: str) -> None:
    error = refusal(leased(), do=do, key=B, lease="disk", ranges=[])
    assert (error.kind, error.detail["holder"]) == (Kind.CONFLICT, A)
    taken_over = leased().claim(B, "metadata", 1)
    assert after(taken_over, do=do, key=B, lease="disk", ranges=[])


def test_ranges_of_leases_never_overlap() -> None:
    for ranges in ([[0, 1]], [[8000, 400]], [[100, 5000]]):
        error = refusal(leased(), do="guard", key=A, lease="next", ranges=ranges)
        assert error.kind is Kind.CONFLICT
    assert after(leased(), do="guard", key=A, lease="disk", ranges=[[4096, 100], [9000, 1]])


@pytest.mark.parametrize("do", ["unregister", "reserve", "release", "preempt", "guard", "unguard", "claim"])
def test_every_command_but_register_needs_a_registration(do: str) -> None:
    request = {"lease": "disk", "ranges": [], "expect": 5, "victim": A, "type": "shared"}
    assert refusal(leased(), do=do, key=C, **request).kind is Kind.NOT_REGISTERED


# ---- what comes from outside


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("csv", ("csv", Nexus())),
        (f"csv?key={A}", ("csv", Nexus(A))),
        (f"csv?key={A.upper()}&lease=d.1&epoch=12", ("csv", Nexus(A, "d.1", 12))),
        (f"csv?key={A}&session={B.upper()}&turn=1", ("csv", Nexus(A, session=B, turn=1))),
        (f"csv?key={A}&lease=d&epoch=3&session={B}&turn=44", ("csv", Nexus(A, "d", 3, B, 44))),
        ("", ("", Nexus())),
    ],
)
def test_an_exports_name_says_who_asks(name: str, expected: tuple[str, Nexus]) -> None:
    assert lun_json.parse_export_name(name) == expected


@pytest.mark.parametrize(
    "query",
    [
        "", "key=", "key=12", f"key={A}&lease=d", f"key={A}&epoch=1", f"key={A}&lease=d&epoch=x",
        f"key={A}&lease=d&epoch=-1", f"key={A}&key={B}", "lease=d&epoch=1", f"key={A}&lease=/&epoch=1",
        f"key={A}&more=1", f"key={A}&", f"key={A}&lease=d&epoch=1{'0' * 20}", f"session={B}&turn=1",
        f"key={A}&session={B}", f"key={A}&turn=1", f"key={A}&session=b&turn=1",
        f"key={A}&session={B}&turn=-1", f"key={A}&session={B}&turn=1{'0' * 20}",
        f"key={A}&session={B}&turn=1&turn=2", f"key={A}&session={B}&turn=1&lease=d&epoch=1",
    ],
)  # fmt: skip
def test_an_exports_name_that_says_something_else_is_refused(query: str) -> None:
    with pytest.raises(LunError, match=r"export 'csv.*: must be like NAME\?key=HEX16") as refused:
        lun_json.parse_export_name(f"csv?{query}")
    assert refused.value.kind is Kind.BAD_REQUEST


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"do": "fly"}, "unknown command 'fly'; known are: register"),
        ({"do": ["register"]}, "unknown command"),
        ({"key": "xyz"}, "16 hexadecimal digits"),
        ({"key": 7}, "16 hexadecimal digits"),
        ({"do": "reserve", "type": "all"}, "one of exclusive, shared"),
        ({"do": "preempt", "victim": "me"}, "16 hexadecimal digits"),
        ({"do": "preempt", "victim": A}, "preempts itself"),
        ({"do": "claim", "lease": "disk", "expect": "5"}, "whole number"),
        ({"do": "claim", "lease": "disk", "expect": True}, "whole number"),
        ({"do": "claim", "lease": "disk", "expect": -1}, "whole number"),
        ({"do": "guard", "lease": "a b", "ranges": []}, "a name is"),
        ({"do": "guard", "lease": "d", "ranges": [[1]]}, "list of"),
        ({"do": "guard", "lease": "d", "ranges": [[-1, 2]]}, "list of"),
        ({"do": "guard", "lease": "d", "ranges": [[0.5, 2]]}, "list of"),
        ({"do": "guard", "lease": "d", "ranges": [[100_000, 0]]}, "inside"),
        ({"do": "guard", "lease": "d", "ranges": [[SIZE - 1, 2]]}, "inside"),
        ({"do": "guard", "lease": "d", "ranges": [[9000, 9], [9005, 9]]}, "disjoint"),
        ({"do": "guard", "lease": "d", "ranges": [], "holder": "x"}, "16 hexadecimal digits"),
        ({"do": "guard", "lease": "d", "ranges": [], "epoch": 1 << 70}, "whole number"),
    ],
)
def test_a_bad_request_is_named(wrong: dict[str, Any], why: str) -> None:
    error = refusal(leased(), **{"do": "register", "key": A, **wrong})
    assert error.kind is Kind.BAD_REQUEST
    assert why in str(error)
    assert "\n" not in str(error)


def test_ranges_that_touch_are_one() -> None:
    assert lun_json.parse_ranges([[10, 5], [0, 10], [20, 1]]) == ((0, 15), (20, 1))


@pytest.mark.parametrize(
    "damage",
    [
        {"version": 2},
        {"registrations": None},
        {"reservation": {"type": "x"}},
        {"leases": {"d": 1}},
        {"floor": None},
    ],
)
def test_a_damaged_state_is_not_taken_for_an_empty_one(damage: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        lun_json.from_json({**lun_json.as_json(leased()), **damage}, SIZE)
    with pytest.raises(ValueError, match="KeyError"):
        lun_json.from_json({}, SIZE)


# ---- whatever is asked, in whatever order

KEYS = st.sampled_from([A, B, C])
LEASES = st.sampled_from(["metadata", "disk1", "disk2"])
BLOCKS = st.lists(st.integers(0, 15), max_size=4, unique=True)
BLOCK = SIZE // 16


class Rights(RuleBasedStateMachine):
    """Commands of three hosts, and every nexus that was ever possible, looked at after each."""

    def __init__(self) -> None:
        super().__init__()
        self.state = LunState(SIZE)
        self.highest: dict[str, int] = {}
        self.fenced: set[Nexus] = set()

    def ask(self, **request: Any) -> bool:
        before = lun_json.as_json(self.state)
        try:
            self.state = lun_json.command(request)(self.state)
        except LunError:
            assert lun_json.as_json(self.state) == before
            return False
        return True

    @rule(key=KEYS)
    def register(self, key: str) -> None:
        assert self.ask(do="register", key=key)

    @rule(key=KEYS, do=st.sampled_from(["unregister", "release"]))
    def leave(self, key: str, do: str) -> None:
        self.ask(do=do, key=key)

    @rule(key=KEYS, kind=st.sampled_from(["exclusive", "shared"]))
    def reserve(self, key: str, kind: str) -> None:
        self.ask(do="reserve", key=key, type=kind)

    @rule(key=KEYS, victim=KEYS)
    def preempt(self, key: str, victim: str) -> None:
        if self.ask(do="preempt", key=key, victim=victim):
            theirs = [nexus for nexus in self.all() if nexus.key == victim]
            assert not any(self.state.may_write(nexus, 0, SIZE) for nexus in theirs)

    @rule(key=KEYS, lease=LEASES, blocks=BLOCKS, holder=KEYS | st.none(), epoch=st.integers(0, 3) | st.none())
    def guard(
        self, key: str, lease: str, blocks: list[int], holder: str | None, epoch: int | None
    ) -> None:
        ranges = [[block * BLOCK, BLOCK] for block in blocks]
        self.ask(do="guard", key=key, lease=lease, ranges=ranges, holder=holder, epoch=epoch)

    @rule(key=KEYS, lease=LEASES)
    def unguard(self, key: str, lease: str) -> None:
        self.ask(do="unguard", key=key, lease=lease)

    @rule(key=KEYS, lease=LEASES, back=st.integers(0, 1))
    def claim(self, key: str, lease: str, back: int) -> None:
        held = self.state.leases.get(lease)
        expect = held.epoch - back if held else 0
        if expect >= 0 and self.ask(do="claim", key=key, lease=lease, expect=expect):
            assert self.state.leases[lease].epoch == expect + 1
            assert self.state.leases[lease].holder == key

    def all(self) -> list[Nexus]:
        most = max([4, *self.highest.values()]) + 1
        bound = [
            Nexus(key, lease, epoch)
            for key in (A, B, C)
            for lease in ("metadata", "disk1", "disk2")
            for epoch in range(most)
        ]
        return [Nexus(), Nexus(A), Nexus(B), Nexus(C), *bound]

    @invariant()
    def leased_bytes_have_one_writer_at_most(self) -> None:
        for name, lease in self.state.leases.items():
            for start, length in lease.ranges:
                writers = [nexus for nexus in self.all() if self.state.may_write(nexus, start, length)]
                assert len(writers) <= 1
                assert all(one == Nexus(lease.holder, name, lease.epoch) for one in writers)

    @invariant()
    def who_has_lost_a_lease_never_writes_through_it_again(self) -> None:
        """Epochs only grow, through removal and making anew: what is past stays past."""
        for name in ("metadata", "disk1", "disk2"):
            held = self.state.leases.get(name)
            current = {Nexus(held.holder, name, held.epoch)} if held else set()
            assert not current & self.fenced
            if held:
                assert held.epoch >= self.highest.get(name, 0)
                self.highest[name] = held.epoch
            self.fenced |= {one for one in self.all() if one.lease == name and self.past(one)} - current

    def past(self, nexus: Nexus) -> bool:
        """Whether the epoch of `nexus` has been reached by its lease, so that it is another's or over."""
        highest = self.highest.get(nexus.lease or "", -1)
        return nexus.epoch is not None and nexus.epoch <= highest

    @invariant()
    def only_registered_keys_write(self) -> None:
        for nexus in (Nexus(A), Nexus(B), Nexus(C)):
            if nexus.key not in self.state.registrations:
                assert not any(self.state.may_write(nexus, block * BLOCK, 1) for block in range(16))

    @invariant()
    def an_exclusive_holder_is_alone(self) -> None:
        reserved = self.state.reservation
        if reserved is not None:
            assert reserved.holder in self.state.registrations
            if reserved.type is EXCLUSIVE:
                readers = [nexus for nexus in self.all() if self.state.may_read(nexus)]
                assert {nexus.key for nexus in readers} == {reserved.holder}

    @invariant()
    def it_survives_being_kept(self) -> None:
        kept = json.dumps(lun_json.as_json(self.state))
        assert lun_json.from_json(json.loads(kept), SIZE) == self.state


Rights.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestRights = Rights.TestCase
