"""Quick Migration in memory: the engine, with the guest's state by way of a file."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from testbed.migration import wire
from testbed.migration.errors import LocalError, PeerRefused
from testbed.migration.saved_state import RestoringChannel, SavingChannel
from testbed.migration.source import Plan
from testbed.migration.wire import PAGE, Saved
from tests.unit.fake_hosts import SECRET, FakeSource, FakeTarget, Meeting, channel_pair, meet
from tests.unit.test_engine import guest, same_ram

QUICK = Plan(SECRET, b"s" * 16, precopy=False, whole=True)


class Lun:
    """One file, and who has it mounted. `spoil` alters what was written before it can be read; `room` is how
    many bytes there are.
    """

    def __init__(self, room: int = 1 << 30) -> None:
        self.data = b""
        self.mounted = "source"
        self.room = room
        self.given_up = False
        self.spoil: Callable[[bytes], bytes] = lambda data: data

    # -- the source's
    def begin(self) -> Lun:
        assert self.mounted == "source"
        return self

    def write(self, data: bytes | memoryview) -> None:
        if len(self.data) + len(data) > self.room:
            raise LocalError("no room on the LUN")
        self.data += bytes(data)

    def finish(self) -> Saved:
        self.mounted = ""
        self.data = self.spoil(self.data)
        return Saved("vm1.saved", len(self.data))

    def give_up(self) -> None:
        self.given_up = True
        self.data = b""

    # -- the target's
    def open(self, saved: Saved) -> Lun:
        assert self.mounted == ""
        assert saved.name == "vm1.saved"
        self.mounted = "target"
        self.at = 0
        return self

    def read_into(self, buffer: memoryview) -> int:
        part = self.data[self.at : self.at + len(buffer)]
        buffer[: len(part)] = part
        self.at += len(part)
        return len(part)

    def close(self) -> None:
        self.data = b""


def migrate(lun: Lun) -> tuple[FakeSource, FakeTarget, Meeting]:
    source, target = guest(), FakeTarget(caught=[b"caught"])
    source.frames = [[b"held"]]
    over_source, over_target = channel_pair()
    channels = (SavingChannel(over_source, lun.begin), RestoringChannel(over_target, lun.open))
    return source, target, meet(source, target, QUICK, channels)  # type: ignore[arg-type]


def assert_goes_on_at_the_source(source: FakeSource, target: FakeTarget, meeting: Meeting) -> None:
    assert meeting.outcome is None
    assert source.state == "running"
    assert target.state in ("discarded", "empty")
    assert source.released == [b"held", b"caught"]


def test_a_guest_moves_by_a_file_and_every_page_is_in_it() -> None:
    lun, seen = Lun(), []
    lun.spoil = lambda data: (seen.append(len(data)), data)[1]
    source, target, meeting = migrate(lun)
    assert meeting.outcome is not None
    assert meeting.outcome.audited
    assert same_ram(source, target)
    assert (source.state, target.state) == ("deleted", "running")
    assert lun.mounted == "target"
    assert seen[0] > source.ram.pages * PAGE  # untouched ones too, as a saved state of 2008


def test_pages_do_not_cross_the_network() -> None:
    sent: list[int] = []
    source, target = guest(), FakeTarget()
    over_source, over_target = channel_pair()
    over_source.tap = lambda data: (sent.append(len(data)), data)[1]
    lun = Lun()
    channels = (SavingChannel(over_source, lun.begin), RestoringChannel(over_target, lun.open))
    assert meet(source, target, QUICK, channels).outcome is not None  # type: ignore[arg-type]
    assert sum(sent) < PAGE


@pytest.mark.parametrize("kept", [0, 3, 40, 200, -1])
def test_a_file_that_was_cut_short_is_refused(kept: int) -> None:
    lun = Lun()
    lun.spoil = lambda data: data[:kept]
    source, target, meeting = migrate(lun)
    assert_goes_on_at_the_source(source, target, meeting)
    assert "too soon" in str(meeting.target_error)


@pytest.mark.parametrize("share", [0.0001, 0.2, 0.5, 0.9, 0.9999])
def test_one_flipped_bit_in_the_file_is_found(share: float) -> None:
    lun = Lun()

    def flip(data: bytes) -> bytes:
        at = int(len(data) * share)
        return data[:at] + bytes([data[at] ^ 8]) + data[at + 1 :]

    lun.spoil = flip
    source, target, meeting = migrate(lun)
    assert_goes_on_at_the_source(source, target, meeting)


def test_a_saved_state_of_another_version_is_refused() -> None:
    ours, theirs = (wire.encode(wire.Hello(version, bytes(16))) for version in (wire.VERSION, 1))
    lun = Lun()
    lun.spoil = lambda data: theirs + data[len(ours) :]
    source, target, meeting = migrate(lun)
    assert_goes_on_at_the_source(source, target, meeting)
    assert f"of version 1, this is {wire.VERSION}" in str(meeting.target_error)


def test_a_full_lun_leaves_the_guest_where_it_is_and_nothing_behind() -> None:
    lun = Lun(room=10 * PAGE)
    source, _target, meeting = migrate(lun)
    assert isinstance(meeting.source_error, LocalError)
    assert isinstance(meeting.target_error, PeerRefused)
    assert source.state == "running"
    assert lun.given_up
    assert lun.mounted == "source"
