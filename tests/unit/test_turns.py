"""Turns: whatever comes late, and in whatever order, nothing older is let through after something newer."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from testbed.storage.lun import Nexus
from testbed.storage.turns import TurnOver, Turns

A, B = "a" * 16, "b" * 16
S = "5" * 16


def turn(number: int, session: str = S, key: str = A) -> Nexus:
    return Nexus(key, session=session, turn=number)


def test_a_later_turn_ends_the_earlier_ones() -> None:
    turns = Turns()
    turns.open(turn(1))
    turns.open(turn(1))
    assert turns.current(turn(1))
    turns.open(turn(5))
    assert turns.current(turn(5))
    assert not turns.current(turn(1))
    with pytest.raises(TurnOver, match=f"turn 4 of session {S} is over: it is at 5"):
        turns.open(turn(4))


def test_what_names_no_session_is_never_over() -> None:
    turns = Turns()
    turns.open(turn(9))
    for nexus in (Nexus(), Nexus(A), Nexus(A, "disk", 3)):
        turns.open(nexus)
        assert turns.current(nexus)
        turns.close(nexus)
        assert turns.current(nexus)
    assert len(turns) == 1


def test_a_session_is_its_keys_own() -> None:
    turns = Turns()
    turns.open(turn(1))
    turns.open(turn(2, key=B))
    assert turns.current(turn(1))
    assert not turn(2, key=B).ends(turn(1))


def test_a_session_is_forgotten_with_its_last_connection_and_not_before() -> None:
    turns = Turns()
    turns.open(turn(1))
    turns.open(turn(2))
    turns.close(turn(2))
    assert not turns.current(turn(1)), "the connection that it came on is still open"
    turns.close(turn(1))
    assert len(turns) == 0
    turns.open(turn(1))
    assert turns.current(turn(1))


def test_a_connection_that_is_not_open_is_not_current() -> None:
    assert not Turns().current(turn(1))


@pytest.mark.parametrize(
    ("later", "earlier", "ends"),
    [
        (turn(2), turn(1), True),
        (turn(1), turn(1), False),
        (turn(1), turn(2), False),
        (turn(2), turn(1, "6" * 16), False),
        (turn(2), Nexus(A), False),
        (Nexus(A, turn=2), Nexus(A, turn=1), False),
    ],
)
def test_which_ends_which(later: Nexus, earlier: Nexus, ends: bool) -> None:
    assert later.ends(earlier) is ends


# ---- clients that go other ways, over networks that keep things back


@dataclass
class Connection:
    """One, as the target has it. What its client has sent, and what is not carried out yet, lies in
    `held`."""

    nexus: Nexus
    held: list[int] = field(default_factory=list)


class Late(RuleBasedStateMachine):
    """Clients of two sessions number their writes. Each sends on its newest connection alone, and not before
    that is open (NBD's handshake); what has been sent on any that the target still has may arrive at any
    time, or never."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = Turns()
        self.open: list[Connection] = []
        self.next_turn = {"5" * 16: 1, "6" * 16: 1}
        self.newest: dict[str, Connection] = {}
        self.written = 0
        self.landed: dict[str, int] = {}

    @rule(session=st.sampled_from(["5" * 16, "6" * 16]))
    def reconnect(self, session: str) -> None:
        """The client leaves its connection, if it has one, and makes another. The old one's end is not heard
        of. Its last write it makes again, with a new number."""
        made = Connection(turn(self.next_turn[session], session))
        self.next_turn[session] += 1
        self.turns.open(made.nexus)
        self.open.append(made)
        self.newest[session] = made

    @precondition(lambda self: self.newest)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        self.written += 1
        session = data.draw(st.sampled_from(sorted(self.newest)))
        self.newest[session].held.append(self.written)

    @precondition(lambda self: any(one.held for one in self.open))
    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        """One write is carried out if its connection's turn lets it."""
        connection = data.draw(st.sampled_from([one for one in self.open if one.held]))
        number, session = connection.held.pop(0), str(connection.nexus.session)
        if self.turns.current(connection.nexus):
            assert number > self.landed.get(session, 0), "an old write has landed over a newer one"
            self.landed[session] = number

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        """The target hears of a connection's end; what has not arrived by then never will."""
        gone = data.draw(st.sampled_from(self.open))
        self.open.remove(gone)
        self.turns.close(gone.nexus)
        self.newest = {session: one for session, one in self.newest.items() if one is not gone}

    @rule(session=st.sampled_from(["5" * 16, "6" * 16]), back=st.integers(1, 3))
    def knock_late(self, session: str, back: int) -> None:
        """A connection that its client has given up while it was being made: nothing is ever sent on it."""
        stale = turn(max(0, self.next_turn[session] - back), session)
        try:
            self.turns.open(stale)
        except TurnOver:
            assert any(one.nexus.session == session for one in self.open)
        else:
            self.open.append(Connection(stale))
            assert self.turns.current(stale)

    @invariant()
    def no_more_is_remembered_than_is_open(self) -> None:
        assert len(self.turns) == len({one.nexus.session for one in self.open})

    @invariant()
    def of_a_session_one_turn_at_most_is_current(self) -> None:
        current = {one.nexus for one in self.open if self.turns.current(one.nexus)}
        assert len(current) == len({nexus.session for nexus in current})


Late.TestCase.settings = settings(max_examples=100, stateful_step_count=50)
TestLate = Late.TestCase
