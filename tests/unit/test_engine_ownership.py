"""The engine with shared storage: wherever the wire is cut, one side runs the guest, the other has none."""

from __future__ import annotations

import pytest

from testbed.migration import wire
from testbed.migration.errors import Overtaken, PeerLost
from tests.unit.fake_hosts import FakeSource, FakeTarget, Meeting, SharedStorage, channel_pair, meet
from tests.unit.test_engine import guest

Pair = tuple[FakeSource, FakeTarget, SharedStorage]


def pair() -> Pair:
    lease = SharedStorage()
    source, target = guest([[1, 2]]), FakeTarget(caught=[b"caught"])
    source.arbiter, target.arbiter = lease.of("source"), lease.of("target")
    source.frames = [[b"held"]]
    return source, target, lease


def assert_one_owner(source: FakeSource, target: FakeTarget) -> str:
    """Exactly one side runs the guest, and the other has nothing of it; returns which."""
    states = {"source": source.state, "target": target.state}
    running = [name for name, state in states.items() if state == "running"]
    assert len(running) == 1, states
    assert set(states.values()) <= {"running", "deleted", "discarded", "empty"}, states
    return running[0]


def conversation() -> list[list[int]]:
    """The kinds of the messages that each side sends, in order."""
    source, target, _ = pair()
    channels = channel_pair()
    kinds: list[list[int]] = [[], []]
    for channel, of_side in zip(channels, kinds, strict=True):
        channel.tap = lambda data, of_side=of_side: (of_side.append(data[2]), data)[1]
    meet(source, target, channels=channels)
    return kinds


SENT = conversation()
CUTS = [(side, at) for side in (0, 1) for at in range(len(SENT[side]))]


def cut(side: int, position: int, pair: Pair) -> Meeting:
    """Run a migration whose wire is cut when that side sends its message of that number (from 0)."""
    source, target, _ = pair
    channels = channel_pair()
    countdown = iter(range(position, -1, -1))

    def tap(data: bytes) -> bytes | None:
        if next(countdown, 0):
            return data
        channels[1 - side].tap = lambda _: None
        return None

    channels[side].tap = tap
    return meet(source, target, channels=channels)


def test_undisturbed_the_target_claims_once_and_says_so() -> None:
    source, target, lease = pair()
    meeting = meet(source, target)
    assert meeting.outcome is not None
    assert lease.asked == ["target"]
    assert wire.Owned.kind in SENT[1]
    assert assert_one_owner(source, target) == "target"
    assert target.released == [b"held", b"caught"]


@pytest.mark.parametrize(("side", "position"), CUTS)
def test_wherever_the_wire_is_cut_one_side_runs_the_guest(side: int, position: int) -> None:
    source, target, lease = pair()
    meeting = cut(side, position, (source, target, lease))
    owner = assert_one_owner(source, target)
    assert owner == (lease.holder or "source")
    if owner == "source":
        assert source.released[:1] == [b"held"]
        assert isinstance(meeting.source_error, PeerLost)
    elif meeting.outcome is None:
        assert isinstance(meeting.source_error, Overtaken)


@pytest.mark.parametrize(("side", "position"), CUTS)
def test_a_lost_answer_of_the_storage_is_asked_for_again(side: int, position: int) -> None:
    source, target, lease = pair()
    lease.deaf = {"source", "target"}
    cut(side, position, (source, target, lease))
    assert_one_owner(source, target)


def test_a_target_whose_source_dies_after_all_has_crossed_runs_the_guest() -> None:
    """The source is silent from the commit on and cannot reach the storage: the survivor decides."""
    source, target, lease = pair()
    asked = 0
    commit = SENT[0].index(wire.Commit.kind)
    lease.cut = {"source"}

    def mend() -> bool:
        nonlocal asked
        asked += 1
        if asked > 1 and target.state == "running":
            lease.cut.clear()
        return lease.of("source").claim()

    source.arbiter.claim = mend  # type: ignore[union-attr, method-assign]
    meeting = cut(0, commit, (source, target, lease))
    assert assert_one_owner(source, target) == "target"
    assert isinstance(meeting.source_error, Overtaken)
    assert asked > 1


def test_before_its_state_has_left_the_source_asks_nobody() -> None:
    source, target, lease = pair()
    source.fail_at = "silence"
    meet(source, target)
    assert lease.asked == []
    assert assert_one_owner(source, target) == "source"


def test_a_target_that_says_why_it_cannot_is_believed() -> None:
    """It has discarded its copy and will never claim: the guest runs on without a question to the storage."""
    source, target, lease = pair()
    target.fail_at = "ready"
    lease.cut = {"source", "target"}
    meet(source, target)
    assert lease.asked == []
    assert assert_one_owner(source, target) == "source"


def test_the_guest_stands_still_while_nobody_can_say_whose_it_is() -> None:
    source, target, lease = pair()
    lease.cut = {"source"}
    states: list[str] = []
    real = lease.of("source")

    def claim() -> bool:
        states.append(source.state)
        if len(states) == 3:
            lease.cut.clear()
        return real.claim()

    source.arbiter.claim = claim  # type: ignore[union-attr, method-assign]
    source.fail_at = "committing"
    target.give_back = lambda: (_ for _ in ()).throw(OSError("cannot tell"))  # type: ignore[method-assign]
    meet(source, target)
    assert states == ["paused"] * 3
    assert assert_one_owner(source, target) == "source"
