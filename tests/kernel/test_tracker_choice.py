"""The probe tells the truth, and the choice follows it and says what it passed over."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import closing

import pytest

from netns import universe
from testbed.kernel import pagemap
from testbed.kernel import userfaultfd as uffd
from testbed.memory import tracking
from testbed.memory.pages import PAGE_BYTES, PageSet
from testbed.memory.region import Region
from testbed.memory.tracking import NAMES, Capability, Subject, TrackerUnavailable, choose, probe
from tests.conftest import require
from tests.kernel.features import has, require_tracker
from tests.kernel.guest_process import guest_process

ALL = [Capability(name, True) for name in NAMES]
NONE = [Capability(name, False, f"no {name} today") for name in NAMES]


@pytest.fixture
def region() -> Iterator[Region]:
    with Region.create(4 * PAGE_BYTES) as region:
        yield region


def itself(region: Region) -> Subject:
    """A subject that is good enough to choose for: this process."""
    return Subject(region, os.getpid(), region.address, None, "it was not asked")


def test_auto_takes_the_best_and_tells_what_it_passed_over(region: Region) -> None:
    choice = choose("auto", itself(region), ALL)
    with closing(choice.tracker):
        assert choice.tracker.name == "soft-dirty"
        assert choice.passed_over == (Capability("userfaultfd", False, "it was not asked"),)
    choice = choose("auto", itself(region), [*NONE[:2], ALL[2]])
    assert choice.tracker.name == "digest"
    assert [passed.reason for passed in choice.passed_over] == ["it was not asked", "no soft-dirty today"]


def test_the_userfaultfd_comes_first_and_is_closed_with_whatever_is_chosen() -> None:
    require_tracker("userfaultfd")
    for name, chosen in [("auto", "userfaultfd"), ("userfaultfd", "userfaultfd"), ("digest", "digest")]:
        with Region.create(PAGE_BYTES) as region, guest_process(region) as guest:
            fd = guest.take_userfaultfd()[0]
            choice = choose(name, guest.subject, ALL)
            assert choice.tracker.name == chosen
            assert choice.passed_over == ()
            choice.tracker.close()
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)


def test_what_is_asked_for_by_name_is_never_replaced(region: Region) -> None:
    with pytest.raises(TrackerUnavailable, match="userfaultfd: it was not asked"):
        choose("userfaultfd", itself(region), ALL)
    with pytest.raises(TrackerUnavailable, match="soft-dirty: no soft-dirty today"):
        choose("soft-dirty", itself(region), NONE)
    with pytest.raises(TrackerUnavailable, match="digest: not probed"):
        choose("digest", itself(region), [])
    with pytest.raises(TrackerUnavailable, match="no soft-dirty today; digest: no digest today"):
        choose("auto", itself(region), NONE)


def test_an_unknown_name(region: Region) -> None:
    with pytest.raises(ValueError, match="'magic': use auto, userfaultfd, soft-dirty, digest"):
        choose("magic", itself(region), ALL)


def test_the_probe_names_every_tracker_and_leaves_nothing() -> None:
    before = os.listdir("/proc/self/fd")  # noqa: PTH208 - a folder of the kernel
    capabilities = probe()
    assert [capability.name for capability in capabilities] == list(NAMES)
    assert all(bool(capability.reason) != capability.available for capability in capabilities)
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208 - the same
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.parametrize("name", NAMES)
def test_the_probe_finds_what_the_kernel_has(name: str) -> None:
    """Of what is not there it says so, and of what is there it does not say that it were missing."""
    try:
        there = has(name)
    except OSError:
        there = False
    (capability,) = probe([name])
    assert capability.available == there, capability.reason


def universe_is_there() -> bool:
    universe.check()
    return True


def test_the_probe_says_the_same_in_a_universe() -> None:
    """Where trackers are used: in namespaces of our own, with a /proc of our own, root in there if nowhere
    else.
    """

    def main() -> int:
        for capability in probe():
            os.write(told, f"{capability}\n".encode())
        return 0

    require("a universe", universe_is_there)
    told = os.memfd_create("told")
    try:
        assert universe.run(main) == 0
        inside = os.pread(told, 1 << 16, 0).decode().splitlines()
    finally:
        os.close(told)
    assert inside == [str(capability) for capability in probe()]


def test_the_probe_does_not_believe_a_kernel_that_only_says_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel without CONFIG_MEM_SOFT_DIRTY does: clearing succeeds and no bit is ever set."""
    monkeypatch.setattr(pagemap, "PM_SOFT_DIRTY", 0)
    (capability,) = probe(["soft-dirty"])
    assert not capability.available
    assert "CONFIG_MEM_SOFT_DIRTY" in capability.reason


def test_the_probe_does_not_believe_a_tracker_that_reports_all(monkeypatch: pytest.MonkeyPatch) -> None:
    class Everything:
        def start(self) -> None: ...
        def close(self) -> None: ...
        def collect(self) -> PageSet:
            return PageSet.all(8)

    monkeypatch.setattr(tracking, "DigestTracker", lambda _: Everything())
    (capability,) = probe(["digest"])
    assert not capability.available
    assert "page 5 was written" in capability.reason


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EPERM, "not allowed"),
        (errno.ENOSYS, "CONFIG_USERFAULTFD"),
        (errno.EINVAL, "asynchronous write protection"),
        (errno.EMFILE, "Too many open files"),
    ],
)
def test_the_probe_says_why_a_guest_got_no_userfaultfd(
    monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def refuse(*_: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(uffd, "userfaultfd", refuse)
    (capability,) = probe(["userfaultfd"])
    assert not capability.available
    assert words in capability.reason


def test_the_probe_says_what_old_kernels_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> tuple[int, int]:
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))

    require_tracker("userfaultfd")
    monkeypatch.setattr(pagemap, "scan", unknown)
    (capability,) = probe(["userfaultfd"])
    assert "PAGEMAP_SCAN" in capability.reason


def test_a_probe_whose_child_dies_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object, **__: object) -> None:
        os._exit(1)

    monkeypatch.setattr(tracking, "_be_the_guest", die)
    (capability,) = probe(["digest"])
    assert not capability.available
    assert "ended" in capability.reason
