"""Source and target against each other over a channel in memory: whatever the guest writes, the two RAMs are
equal at the end."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from time import monotonic_ns

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.measure.trace import Trace
from testbed.memory import page_map
from testbed.memory.pages import PageSet
from testbed.memory.region import Region
from testbed.migration import strategy, wire
from testbed.migration.errors import Cancelled, CommitInDoubt, NotConverging, PeerLost, PeerRefused
from testbed.migration.source import LOST_PEER_DEADLINE_S, Plan
from testbed.migration.strategy import Policy
from tests.unit import fake_hosts
from tests.unit.fake_hosts import SECRET, FakeSource, FakeTarget, FakeTracker, Meeting, channel_pair, meet

PAGES = 96
REGISTERS = wire.Device("registers", 1, b"r")


def guest(
    pattern: Sequence[Sequence[int]] = (), blind: Sequence[int] = (), filled: int = PAGES // 2
) -> FakeSource:
    """A guest of PAGES pages, the first `filled` of them with data, the others zero or never touched."""
    ram = Region.create(PAGES * wire.PAGE)
    random = np.random.default_rng(7)
    ram.array[:filled] = random.integers(0, 256, (filled, wire.PAGE), np.uint8)
    ram.array[filled : filled + 4] = 0
    return FakeSource(ram, FakeTracker(ram, pattern, blind), [REGISTERS])


def same_ram(source: FakeSource, target: FakeTarget) -> bool:
    assert target.ram is not None
    return bool((source.ram.array == target.ram.array).all())


def assert_rolled_back(source: FakeSource, target: FakeTarget, meeting: Meeting) -> None:
    assert meeting.outcome is None
    assert source.state == "running"
    assert target.state in ("discarded", "empty")
    assert not source.tracker.running


@settings(max_examples=60)
@given(
    pattern=st.lists(st.lists(st.integers(0, PAGES - 1), max_size=PAGES), max_size=8),
    max_rounds=st.integers(1, 6),
    precopy=st.booleans(),
)
def test_ram_is_equal_whatever_the_guest_writes(
    pattern: list[list[int]], max_rounds: int, precopy: bool
) -> None:
    source, target = guest(pattern), FakeTarget()
    meeting = meet(source, target, Plan(SECRET, b"n" * 16, Policy(0, max_rounds), precopy=precopy))
    assert meeting.outcome is not None, (meeting.source_error, meeting.target_error)
    assert meeting.outcome.audited
    assert same_ram(source, target)
    assert (source.state, target.state) == ("deleted", "running")
    assert len(meeting.outcome.rounds) <= max_rounds + 1 if precopy else not meeting.outcome.rounds


def test_the_steps_come_in_the_order_of_the_design() -> None:
    source, target = guest([[1, 2], [1]]), FakeTarget()
    meet(source, target)
    switchover = ["devices", "silence", "late_devices", "exposed"]
    switchover += ["held_frames", "committing", "held_frames"]
    assert source.calls == ["hold_handshakes", "pause", *switchover]
    before, after = ["provision", "prepare", "load", "take_network", "ready"], ["owned", "announce", "start"]
    assert target.calls == [*before, *after]


@pytest.mark.parametrize("long", [False, True])
def test_where_the_last_copy_takes_long_both_give_way(long: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it: agents that nobody may interrupt would keep the clients from asking."""
    source, target = guest(), FakeTarget()
    source.tracker.collect = lambda: PageSet.from_indices([3, 4])  # type: ignore[method-assign]
    monkeypatch.setattr(strategy, "LONG_COPY_PAGES", 1 if long else 2)
    assert meet(source, target).outcome is not None
    given = ["give_way"] if long else []
    assert source.calls[:4] == ["hold_handshakes", "pause", *given, "devices", "silence"][:4]
    assert target.calls[:4] == ["provision", "prepare", *given, "load", "take_network"][:4]


def test_the_commit_is_stamped_before_what_follows_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The target may have the guest before the source gets to say that it has given it away."""
    monkeypatch.setattr(fake_hosts, "FakeClock", lambda: monotonic_ns)
    ours: list[int] = []
    is_ours = threading.Event()

    class Owner(FakeTarget):
        def owned(self) -> None:
            ours.append(monotonic_ns())
            is_ours.set()
            super().owned()

    source_channel, target_channel = channel_pair()
    send = source_channel.send

    def send_and_lose_the_processor(*messages: wire.Message) -> int:
        sent = send(*messages)
        if isinstance(messages[-1], wire.Commit):
            assert is_ours.wait(15)
        return sent

    monkeypatch.setattr(source_channel, "send", send_and_lose_the_processor)
    meeting = meet(guest(), Owner(), channels=(source_channel, target_channel))
    (committed,) = [one for one in meeting.events if one.get("name") == "committed"]
    assert committed["t_ns"] <= ours[0]


def test_untouched_and_zero_pages_are_not_sent_as_data() -> None:
    source, target = guest(filled=8), FakeTarget()
    meeting = meet(source, target)
    assert meeting.outcome is not None
    first = meeting.outcome.rounds[0]
    assert (first.pages, first.zero_pages) == (12, 4)
    assert first.bytes == 8 * wire.PAGE


def test_where_the_pages_of_a_round_lay_is_told() -> None:
    pattern = [[1, 2], [40], [], [5]]
    meeting = meet(guest(pattern, filled=8), FakeTarget())
    assert meeting.outcome is not None
    told = [one for one in meeting.events if one["event"] in ("round", "pages")]
    sent = [np.flatnonzero(page_map.decode(one["map"])).tolist() for one in told]
    assert sent[0] == list(range(12))
    assert [len(pages) for pages in sent] == [
        *(one.pages for one in meeting.outcome.rounds),
        *([meeting.outcome.final_pages] if meeting.outcome.final_pages else []),
    ]
    assert {page for pages in sent[1:] for page in pages} <= {1, 2, 5, 40}
    assert [one["begin_ns"] for one in told] == sorted(one["begin_ns"] for one in told)


@pytest.mark.parametrize("precopy", [True, False])
def test_that_a_switchover_comes_is_told_while_the_guest_runs(precopy: bool) -> None:
    """And sent: what is only noted would be heard when all is over."""
    source, told = guest([[1]]), []

    def flush() -> None:
        told.append((source.state, [event["event"] for event in trace.pending]))

    trace = Trace("source")
    trace.flush = flush  # type: ignore[method-assign]
    meet(source, FakeTarget(), Plan(SECRET, b"n" * 16, precopy=precopy), trace=trace)
    assert next(state for state, events in told if "switching-over" in events) == "running"
    assert not [state for state, _ in told if state == "paused"], "no event is sent in the blackout"


@pytest.mark.parametrize("fail_at", ["", "ready"])
def test_a_map_of_the_last_pages_is_made_when_the_guest_runs_again(
    fail_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never between the pause and the resume, nor before it runs on here."""
    source, target = guest(), FakeTarget(fail_at=fail_at)
    states: list[str] = []

    def watched(pages: PageSet, ram_pages: int) -> str:
        states.append(source.state)
        return encode(pages, ram_pages)

    encode = page_map.encode
    source.tracker.collect = lambda: PageSet.from_indices([3])  # type: ignore[method-assign]
    monkeypatch.setattr(page_map, "encode", watched)
    meeting = meet(source, target)
    assert (meeting.outcome is None) == bool(fail_at)
    assert [one["event"] for one in meeting.events].count("pages") == 1
    assert states[-1] == ("running" if fail_at else "given-up")
    assert "paused" not in states


def test_a_page_that_becomes_zero_is_zero_at_the_target() -> None:
    source, target = guest(), FakeTarget()
    collect = source.tracker.collect

    def wipe_once():  # type: ignore[no-untyped-def]
        source.ram.array[3] = 0
        source.tracker._pattern = []
        collect()
        return type(collect()).from_indices([3])

    source.tracker.collect = wipe_once  # type: ignore[method-assign]
    assert meet(source, target).outcome is not None
    assert same_ram(source, target)


def test_frames_are_released_in_order_the_sources_first_and_late_ones_last() -> None:
    source, target = guest(), FakeTarget(caught=[b"target"])
    source.frames = [[b"source-1", b"source-2"], [b"late"]]
    meeting = meet(source, target)
    assert meeting.outcome is not None
    assert target.released == [b"source-1", b"source-2", b"target", b"late"]
    assert meeting.outcome.late_frames == 1


def test_a_write_that_the_tracker_does_not_see_is_found_before_the_commit() -> None:
    source, target = guest([[1]] * 3, blind=[20]), FakeTarget()
    meeting = meet(source, target)
    assert_rolled_back(source, target, meeting)
    assert "RAM" in str(meeting.source_error)


def test_a_write_unseen_after_the_last_digest_is_found_by_the_audit() -> None:
    source, target = guest([[1, 2]]), FakeTarget()
    pause = source.pause

    def write_behind_the_trackers_back() -> None:
        source.ram.array[20, 0] ^= 1
        pause()

    source.pause = write_behind_the_trackers_back  # type: ignore[method-assign]
    meeting = meet(source, target)
    assert meeting.outcome is not None
    assert not meeting.outcome.audited


@pytest.mark.parametrize("bit", [0, 7, 4095 * 8, 4096 * 8 * 17 + 5])
def test_one_flipped_bit_in_page_data_is_found(bit: int) -> None:
    source, target = guest(), FakeTarget(caught=[b"caught"])
    channels = channel_pair()

    def flip(data: bytes) -> bytes:
        if data[3 - 1] != wire.Pages.kind or len(data) < 20 * wire.PAGE:
            return data
        start = len(data) - 48 * wire.PAGE + bit // 8
        return data[:start] + bytes([data[start] ^ 1 << bit % 8]) + data[start + 1 :]

    channels[0].tap = flip
    meeting = meet(source, target, channels=channels)
    assert_rolled_back(source, target, meeting)
    assert isinstance(meeting.source_error, PeerRefused)
    assert "altered" in str(meeting.source_error)
    assert source.released == [b"caught"]


@pytest.mark.parametrize(
    "step", ["hold_handshakes", "pause", "devices", "silence", "late_devices", "held_frames"]
)
def test_a_failure_at_the_source_before_the_commit_lets_the_guest_run_on(step: str) -> None:
    source, target = guest(), FakeTarget()
    source.fail_at = step
    meeting = meet(source, target)
    assert_rolled_back(source, target, meeting)
    assert step in str(meeting.source_error)
    assert isinstance(meeting.target_error, PeerRefused)


@pytest.mark.parametrize("step", ["provision", "prepare", "take_network", "load", "ready"])
def test_a_failure_at_the_target_before_the_commit_lets_the_guest_run_on(step: str) -> None:
    source, target = guest(), FakeTarget(caught=[b"caught"])
    source.frames = [[b"held"]]
    target.fail_at = step
    meeting = meet(source, target)
    assert_rolled_back(source, target, meeting)
    assert isinstance(meeting.source_error, PeerRefused)
    assert step in str(meeting.source_error)
    assert source.released == [b"held", b"caught"]


def test_frames_come_back_where_both_sides_give_up_at_once() -> None:
    """The target's Abort is then the first that the source hears of it, not the last."""
    gave_up = threading.Event()

    class GivesUpLate(FakeSource):
        def devices(self) -> Iterator[wire.Device]:
            yield wire.Device("flux-capacitor", 1, b"")
            assert gave_up.wait(10)
            raise OSError("a socket cannot be read")

    class SaysWhen(FakeTarget):
        def give_back(self) -> list[bytes]:
            gave_up.set()
            return super().give_back()

    quiet = guest()
    source, target = GivesUpLate(quiet.ram, quiet.tracker), SaysWhen(caught=[b"caught"])
    meeting = meet(source, target)
    assert_rolled_back(source, target, meeting)
    assert "cannot be read" in str(meeting.source_error)
    assert source.released == [b"caught"]


def test_the_source_does_not_wait_until_the_targets_copy_is_gone() -> None:
    """That takes a sixth of a second, for which the guest would stand still."""
    runs_on = threading.Event()

    class RunsOn(FakeSource):
        def roll_back(self, returned: Sequence[bytes]) -> None:
            super().roll_back(returned)
            runs_on.set()

    class TakesItsTime(FakeTarget):
        def discard(self) -> None:
            assert runs_on.wait(15), "the guest waits"
            super().discard()

    quiet = guest()
    source, target = RunsOn(quiet.ram, quiet.tracker, [REGISTERS]), TakesItsTime(fail_at="ready")
    meeting = meet(source, target)
    assert_rolled_back(source, target, meeting)
    assert "ready failed" in str(meeting.target_error)


def test_a_tracker_that_fails_to_stop_does_not_keep_the_guest_paused() -> None:
    source, target = guest(), FakeTarget()
    source.fail_at = "silence"

    def stop() -> None:
        raise OSError("no such process")

    source.tracker.stop = stop  # type: ignore[method-assign]
    meeting = meet(source, target)
    assert isinstance(meeting.source_error, OSError)
    assert source.state == "running"


@pytest.mark.parametrize("step", ["audit", "tracker", "delete"])
def test_a_failure_while_the_source_is_deleted_hides_no_success_and_keeps_nothing(step: str) -> None:
    """The guest runs at the target by then."""
    source, target = guest(), FakeTarget()

    def fail() -> None:
        if source.state == "given-up":
            raise OSError(f"{step} failed")

    def delete() -> None:
        FakeSource.delete(source)
        if step == "delete":
            raise OSError("delete failed")

    source.delete = delete  # type: ignore[method-assign]
    if step == "tracker":
        source.tracker.stop = fail  # type: ignore[method-assign]
    if step == "audit":
        touched = source.ram.touched
        source.ram.touched = lambda: fail() or touched()  # type: ignore[func-returns-value, method-assign]
    meeting = meet(source, target)
    assert meeting.outcome is not None, meeting.source_error
    assert (source.state, target.state) == ("deleted", "running")
    assert meeting.outcome.left_behind == f"OSError: {step} failed"
    assert meeting.outcome.audited == (step != "audit")


def test_a_peer_that_was_silent_is_not_waited_for_as_long_again() -> None:
    """The guest stands still meanwhile."""
    source, target = guest(), FakeTarget()
    channels = channel_pair()
    channels[0].tap = lambda data: None if source.state == "paused" else data
    meeting = meet(source, target, channels=channels)
    assert isinstance(meeting.source_error, PeerLost)
    assert channels[0].deadlines[-1] == LOST_PEER_DEADLINE_S


@pytest.mark.parametrize("step", ["give_up_ownership", "late frames"])
def test_what_fails_after_the_commit_does_not_keep_the_source_from_being_deleted(step: str) -> None:
    source, target = guest(), FakeTarget()

    def fails() -> None:
        raise OSError("no such device")

    if step == "give_up_ownership":
        source.give_up_ownership = fails  # type: ignore[method-assign]
    else:
        source.fail_after_commit = True
    meeting = meet(source, target)
    assert meeting.outcome is not None
    assert (source.state, target.state) == ("deleted", "running")


def test_a_device_that_nobody_takes_ends_the_migration() -> None:
    source, target = guest(), FakeTarget()
    source.device_list.append(wire.Device("flux-capacitor", 1, b""))
    meeting = meet(source, target)
    assert_rolled_back(source, target, meeting)
    assert "flux-capacitor" in str(meeting.source_error)


def test_a_peer_without_the_secret_is_refused_and_learns_nothing() -> None:
    source, target = guest(), FakeTarget()
    meeting = meet(source, target, target_secret=b"x" * 32)
    assert_rolled_back(source, target, meeting)
    assert "secret" in str(meeting.target_error)
    assert target.calls == []


def test_a_lost_connection_before_the_commit_rolls_back_and_after_it_leaves_the_source_stopped() -> None:
    sent: list[int] = []

    def count(data: bytes) -> bytes:
        sent.append(data[2])
        return data

    channels = channel_pair()
    channels[0].tap = count
    meet(guest([[1, 2]]), FakeTarget(), channels=channels)
    for position, kind in enumerate(sent):
        source, target, channels = guest([[1, 2]]), FakeTarget(), channel_pair()
        countdown = iter(range(position, -1, -1))
        channels[0].tap = lambda data, left=countdown: data if next(left, 0) else None
        meeting = meet(source, target, channels=channels)
        if kind == wire.Commit.kind:
            assert isinstance(meeting.source_error, CommitInDoubt)
            assert source.state == "paused"
        elif kind == wire.Finished.kind:
            assert meeting.outcome is not None
            assert target.state == "running"
        else:
            assert_rolled_back(source, target, meeting)
            assert isinstance(meeting.source_error, PeerLost)


def test_a_guest_that_does_not_converge_stays_when_the_policy_says_so() -> None:
    hot = [list(range(40))] * 20
    source, target = guest(hot), FakeTarget()
    meeting = meet(source, target, Plan(SECRET, b"n" * 16, Policy(0, 3, "give-up")))
    assert_rolled_back(source, target, meeting)
    assert isinstance(meeting.source_error, NotConverging)


def test_cancelling_between_rounds_lets_the_guest_run_on() -> None:
    source, target = guest([[1]] * 9), FakeTarget()
    looks = iter([False, True])
    meeting = meet(source, target, Plan(SECRET, b"n" * 16, Policy(0)), cancelled=lambda: next(looks))
    assert_rolled_back(source, target, meeting)
    assert isinstance(meeting.source_error, Cancelled)


def test_cancelling_within_a_round_does_not_wait_for_its_end() -> None:
    """On a slow wire a round takes minutes."""
    source, target = guest(filled=PAGES - 4), FakeTarget()
    channels, sent = channel_pair(), []

    def remember(data: bytes) -> bytes:
        sent.append(data[2])
        return data

    channels[0].tap = remember
    plan = Plan(SECRET, b"n" * 16)
    meeting = meet(source, target, plan, channels, cancelled=lambda: wire.Pages.kind in sent)
    assert_rolled_back(source, target, meeting)
    assert isinstance(meeting.source_error, Cancelled)
    assert sent.count(wire.Pages.kind) == 1
    assert wire.RoundEnd.kind not in sent
    assert isinstance(meeting.target_error, PeerRefused)


def test_cancelling_in_the_blackout_lets_the_guest_run_on() -> None:
    """Without pre-copy all of RAM crosses in it."""
    source, target = guest(), FakeTarget()
    plan = Plan(SECRET, b"n" * 16, precopy=False)
    meeting = meet(source, target, plan, cancelled=lambda: source.state == "paused")
    assert_rolled_back(source, target, meeting)
    assert isinstance(meeting.source_error, Cancelled)
    assert "devices" not in source.calls


def test_the_rate_limit_is_taken_off_before_the_switchover() -> None:
    channels = channel_pair()
    meet(guest(), FakeTarget(), Plan(SECRET, b"n" * 16, rate_limit=1000), channels)
    assert channels[0].rate_limits == [1000, None]


def test_from_the_pause_on_the_target_must_answer_soon() -> None:
    channels = channel_pair()
    meet(guest(), FakeTarget(), Plan(SECRET, b"n" * 16, switchover_deadline_s=1.5), channels)
    assert channels[0].deadlines == [1.5]


@pytest.mark.parametrize("exact", [False, True])
def test_a_page_that_is_changed_sent_and_changed_back_is_sent_again(exact: bool) -> None:
    """What a tracker by digests cannot see. Taken for exact, it lets the verification fail."""
    source, target, channels = guest(), FakeTarget(), channel_pair()
    source.tracker.exact = exact
    zero, send_pages = source.ram.zero, channels[0].send_pages
    first = source.ram.array[1].copy()

    def change_before_sending(pages):  # type: ignore[no-untyped-def]
        if not source.calls:
            source.ram.array[1] = 77
        return zero(pages)

    def change_back_after_sending(message, ram):  # type: ignore[no-untyped-def]
        sent = send_pages(message, ram)
        source.ram.array[1] = first
        return sent

    source.ram.zero = change_before_sending  # type: ignore[method-assign]
    channels[0].send_pages = change_back_after_sending  # type: ignore[method-assign]
    meeting = meet(source, target, channels=channels)
    if exact:
        assert_rolled_back(source, target, meeting)
    else:
        assert meeting.outcome is not None, meeting.source_error
        assert meeting.outcome.audited
        assert same_ram(source, target)
