"""Which pages were written: the interface of all dirty trackers, and the choice among them.

A tracker's promise, which one contract suite holds every tracker to (tests/kernel/test_trackers.py): a page
that is written between ``start()`` and a ``collect()``, or between two collections, is in what the later one
returns, however the write falls, also while it is being collected. A page may be reported without having been
written (neighbours of a written page in a huge page, say); it is never missed.

Which tracker works is found by trying it (:func:`probe`), never by asking for the kernel's version: kernels
are built with options, and rights are given and taken by sysctls.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
from collections.abc import Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import NoReturn, Protocol

from testbed.memory.digest_tracker import DigestTracker
from testbed.memory.pages import PAGE_BYTES, PageSet
from testbed.memory.region import Region
from testbed.memory.soft_dirty import SoftDirtyTracker
from testbed.memory.userfaultfd import UserfaultfdTracker, open_for_tracking

__all__ = [
    "NAMES",
    "Capability",
    "Choice",
    "DirtyTracker",
    "Subject",
    "TrackerUnavailable",
    "choose",
    "open_for_tracking",
    "probe",
]

NAMES = ("userfaultfd", "soft-dirty", "digest")
"""The trackers, best first: the order in which "auto" takes them."""

PROBE_TIMEOUT_S = 10.0


class DirtyTracker(Protocol):
    """Says which pages of a guest were written. Every method raises OSError when the guest is gone (ESRCH) or
    its memory is no longer tracked (EPERM): a tracker never answers "nothing" because it cannot see.
    """

    @property
    def name(self) -> str:
        """One of NAMES."""

    @property
    def exact(self) -> bool:
        """A page that is not reported was not written. False: its bytes are as before, but it may have held
        others in between, and whoever copied it then must compare digests before relying on the copy.
        """

    def start(self) -> None:
        """Everything that is written after this returns will be reported. May be called again, to begin anew.
        """

    def collect(self) -> PageSet:
        """The pages written since start() or since the last collect(). RuntimeError before start()."""

    def stop(self) -> None:
        """Give up tracking; the guest runs at full speed again. start() begins anew. May be called at any
        time.
        """

    def close(self) -> None:
        """Stop, and let go of the descriptors."""


@dataclass(frozen=True)
class Subject:
    """What a tracker can need to know of the guest that it is to follow.

    `region` is this process's own mapping of the guest's RAM; `pid` and `address` say where the guest,
    another process, has mapped the same RAM; `userfaultfd` is the descriptor that the guest's
    :func:`open_for_tracking` returned, or None where that failed, and `refusal` then says why.
    """

    region: Region
    pid: int
    address: int
    userfaultfd: int | None
    refusal: str = ""


@dataclass(frozen=True)
class Capability:
    """Whether the tracker `name` works on this machine for this user, and if not, for what `reason`."""

    name: str
    available: bool
    reason: str = ""


@dataclass(frozen=True)
class Choice:
    """The tracker that was chosen, and those that would have come before it, each with its reason."""

    tracker: DirtyTracker
    passed_over: tuple[Capability, ...]


class TrackerUnavailable(Exception):
    """The tracker that was asked for does not work here: an error of the environment. The text names the
    reason.
    """


def choose(name: str, subject: Subject, capabilities: Iterable[Capability]) -> Choice:
    """The tracker `name` for `subject`, or for "auto" the best that `capabilities`, from :func:`probe`, show
    to work.

    The userfaultfd of the subject, if there is one, belongs to the choice from here on: to the tracker, or
    else it is closed. Raises ValueError for an unknown name, and TrackerUnavailable where nothing that may be
    chosen works; the descriptor is the caller's then.
    """
    if name not in ("auto", *NAMES):
        raise ValueError(f"unknown dirty tracker {name!r}: use auto, {', '.join(NAMES)}")
    known = {capability.name: capability for capability in capabilities}
    if subject.userfaultfd is None:
        refusal = subject.refusal or "the guest opened no userfaultfd"
        known["userfaultfd"] = Capability("userfaultfd", False, refusal)
    passed_over: list[Capability] = []
    for candidate in NAMES if name == "auto" else (name,):
        capability = known.get(candidate, Capability(candidate, False, "not probed"))
        if capability.available:
            tracker = _make(candidate, subject)
            if candidate != "userfaultfd" and subject.userfaultfd is not None:
                os.close(subject.userfaultfd)
            return Choice(tracker, tuple(passed_over))
        passed_over.append(capability)
    reasons = "; ".join(f"{capability.name}: {capability.reason}" for capability in passed_over)
    raise TrackerUnavailable(f"no dirty tracker that works here ({reasons})")


def probe(names: Iterable[str] = NAMES) -> list[Capability]:
    """Try each tracker on a small guest, a child process which is forked for it, and see whether it tells the
    truth.

    Takes some milliseconds for each. Call it while this process has no other threads, and not in the
    blackout.
    """
    return [_probe(name) for name in names]


def _make(name: str, subject: Subject) -> DirtyTracker:
    region = subject.region
    if name == "digest":
        return DigestTracker(region)
    if name == "soft-dirty":
        return SoftDirtyTracker(subject.pid, subject.address, region.size)
    if subject.userfaultfd is None:
        raise TrackerUnavailable(f"userfaultfd: {subject.refusal}")
    return UserfaultfdTracker(subject.userfaultfd, subject.pid, subject.address, region.size)


# What the probe's guest has written before tracking starts, and what it writes then.
_BEFORE, _AFTER = 1, 5
_PROBE_PAGES = 8
_HELLO = struct.Struct("=Qi")  # address of the mapping, errno of open_for_tracking or 0


def _probe(name: str) -> Capability:
    try:
        seen = _written_by_a_child(name)
    except OSError as error:
        return Capability(name, False, _explain(name, error))
    if seen != (PageSet.from_indices([_AFTER]), PageSet.empty()):
        return Capability(name, False, _blind(name, *seen))
    return Capability(name, True)


def _written_by_a_child(name: str) -> tuple[PageSet, PageSet]:
    """What the tracker sees of a child that writes page _AFTER: the first and the second collection."""
    with ExitStack() as stack:
        region = stack.enter_context(Region.create(_PROBE_PAGES * PAGE_BYTES))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.enter_context(ours)
        with theirs:
            child = os.fork()
            if child == 0:
                _be_the_guest(theirs, region.fd, want_userfaultfd=name == "userfaultfd")
        stack.callback(os.waitpid, child, 0)
        stack.callback(os.kill, child, signal.SIGKILL)
        ours.settimeout(PROBE_TIMEOUT_S)
        hello, fds, _, _ = socket.recv_fds(ours, _HELLO.size, 1)
        if not hello:
            raise ConnectionResetError("the probe's guest has ended")
        address, refused = _HELLO.unpack(hello)
        if refused:
            raise OSError(refused, os.strerror(refused))
        tracker = stack.enter_context(
            closing(_make(name, Subject(region, child, address, fds[0] if fds else None)))
        )
        tracker.start()
        ours.send(b"write")
        if not ours.recv(1):
            raise ConnectionResetError("the probe's guest has ended")
        return tracker.collect(), tracker.collect()


def _be_the_guest(control: socket.socket, ram: int, *, want_userfaultfd: bool) -> NoReturn:
    """The child: map RAM, write a page, offer the mapping to the tracker, write a page when told. Never
    returns.
    """
    try:
        region = Region.from_fd(ram)
        region.array[_BEFORE] = 1
        fds: list[int] = []
        refused = 0
        if want_userfaultfd:
            try:
                fds.append(open_for_tracking(region.address, region.size))
            except OSError as error:
                refused = error.errno or errno.EIO
        socket.send_fds(control, [_HELLO.pack(region.address, refused)], fds)
        if control.recv(16):
            region.array[_AFTER] = 1
            control.send(b"!")
            control.recv(1)  # the mapping must stay until the parent has looked
    finally:
        os._exit(0)


_REASONS = {
    ("userfaultfd", errno.ENOSYS): "the kernel is built without CONFIG_USERFAULTFD",
    ("userfaultfd", errno.EINVAL): "the kernel has no asynchronous write protection (Linux 6.7 has)",
    ("userfaultfd", errno.ENOTTY): "the kernel has no PAGEMAP_SCAN (Linux 6.7 has)",
    ("userfaultfd", errno.EPERM): "userfaultfd or tracing the guest is not allowed to this user",
    ("soft-dirty", errno.EPERM): "tracing the guest is not allowed to this user (kernel.yama.ptrace_scope)",
}


def _explain(name: str, error: OSError) -> str:
    return _REASONS.get((name, error.errno or 0), str(error))


def _blind(name: str, first: PageSet, second: PageSet) -> str:
    if name == "soft-dirty" and not first:
        return "the kernel keeps no soft-dirty bits (CONFIG_MEM_SOFT_DIRTY), though it accepts to clear them"
    return f"page {_AFTER} was written and {first} reported, then nothing was and {second} reported"
