"""Captures: what passes over links, from before the first frame to the end, one pcapng file a link.

A link is tapped at both ends, and at each end only what arrives there is taken: every frame once, when it has
come out of the wire, whatever delays or drops it on its way (a packet socket does not see a frame that a
queueing discipline leads away from where it leaves). So *inbound* is what arrived at the first end,
*outbound* what arrived at the other.

Each link has a process of its own. It empties the kernel's rings into a spool, which is a file without a name
on the disk of the capture's folder: it is gone with its last user, however that ends. Nothing is understood,
summed or formatted before the end, when :mod:`netns.capture_file` makes files of the spools.

    links = {"client1": Tapped(("client1", "eth0"), ("switch", "client1"))}
    with Captures(topology, links, folder) as captures:                 # tapping once this returns
        ...
        captures.stop()                                                 # from here on nothing is taken
        files = captures.write([Mark(t_ns, "pause")])                   # folder/client1.pcapng

The conversation with such a process, on a SOCK_SEQPACKET socket: it is `ready()` when it taps; "stop" is
answered by one JSON object, the fields of :class:`Taken`, and the process ends.
"""

from __future__ import annotations

import json
import mmap
import os
import platform
import select
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from netns.apply import Topology
from netns.block_ring import BLOCK_BYTES, BlockRing, packets_in
from netns.capture_file import RECORD, Capture, Clocks, Mark, Reading, write
from netns.forkserver import NotReady, Process, ProcessDied, ready, spawn
from netns.namespace import Namespace

ENTRY = "netns.capture:main"
DEFAULT_LIMIT_BYTES = 1 << 30
RING_BYTES = 8 << 20
"""Of each end: some milliseconds of the fastest link, and seconds of a client's."""
LEAST_SNAP_BYTES = 64

_READY_DEADLINE_S = 20.0
_STOP_DEADLINE_S = 20.0
_DRAIN_DEADLINE_S = 2.0
_MOST_BYTES = 1 << 16


class CaptureError(Exception):
    """A link could not be tapped, or its file not be written. The text is one line."""


Place = tuple[str, str]
"""An interface: node, name."""


@dataclass(frozen=True)
class Tapped:
    """A link to be captured: the end at the node by which it is known, the other one, and how much of each
    frame is kept (None: all)."""

    near: Place
    far: Place
    snap_bytes: int | None = None


@dataclass(frozen=True)
class CaptureFile:
    """A finished file: frames and their bytes in it, frames that found no room (`dropped`), and why taking
    stopped early, None if it did not."""

    link: str
    file: Path
    frames: int
    bytes: int
    dropped: int
    stopped: str | None


@dataclass(frozen=True)
class Taken:
    """What a capturing process says in the end."""

    received: int
    dropped: int
    begun: Reading
    ended: Reading
    stopped: str | None

    def as_json(self) -> dict[str, Any]:
        readings = {"begun": list(vars(self.begun).values()), "ended": list(vars(self.ended).values())}
        return vars(self) | readings

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Self:
        return cls(**{**told, "begun": Reading(*told["begun"]), "ended": Reading(*told["ended"])})


class Captures:
    """Captures of some links of a topology, by name, on their way to `folder` (made if it is not there).

    At most `limit_bytes` of each are kept; `application` is named in the files as what wrote them. A context
    manager: left by an exception it still writes what was taken, without marks, for then one wants to see it;
    ended by Ctrl-C it leaves nothing.
    """

    def __init__(
        self,
        topology: Topology,
        links: Mapping[str, Tapped],
        folder: Path,
        *,
        limit_bytes: int = DEFAULT_LIMIT_BYTES,
        application: str = "",
    ) -> None:
        """Returns when every link is tapped. CaptureError; nothing runs then."""
        self._folder = folder
        self._application = application
        self._stopped = self._written = False
        with ExitStack() as stack:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._taps = [
                    stack.enter_context(_Tap(topology, name, link, folder, limit_bytes))
                    for name, link in links.items()
                ]
                for tap in self._taps:
                    tap.wait_ready()
            except OSError as error:
                raise CaptureError(f"capture in {folder}: {error.strerror or error}") from error
            self._stack = stack.pop_all()

    def stop(self) -> None:
        """Take nothing any more, and learn how much was taken. Does nothing the second time."""
        if self._stopped:
            return
        self._stopped = True
        for tap in self._taps:
            tap.ask_to_stop()
        for tap in self._taps:
            tap.take_answer()

    def write(
        self, marks: Iterable[Mark] = (), say: Callable[[str], None] = lambda _: None
    ) -> list[CaptureFile]:
        """The files, made one after the other; `say` is told of each. CaptureError where one cannot be
        written."""
        self.stop()
        self._written = True
        marks = list(marks)
        files = []
        for tap in self._taps:
            made = tap.write(self._folder / f"{tap.name}.pcapng", marks, self._application)
            say(_told(made))
            files.append(made)
        return files

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, Exception) and not self._written:
                self.write()
        finally:
            self.close()


class _Tap:
    """One link's process, its spool, and its last word."""

    def __init__(
        self,
        topology: Topology,
        name: str,
        link: Tapped,
        folder: Path,
        limit_bytes: int,
    ) -> None:
        self.name = name
        self._link = link
        self._taken: Taken | None = None
        argument = {
            "interfaces": [ifname for _, ifname in (link.near, link.far)],
            "blocks": RING_BYTES // BLOCK_BYTES,
            "snap_bytes": link.snap_bytes,
            "limit_bytes": limit_bytes,
        }
        with ExitStack() as stack:
            self._spool = stack.enter_context(tempfile.TemporaryFile(dir=folder))
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.callback(self._control.close)
            namespaces = [topology.namespace(node) for node, _ in (link.near, link.far)]
            with theirs:
                fds = [*(one.fd for one in namespaces), self._spool.fileno(), theirs.fileno()]
                self.process: Process = stack.enter_context(
                    spawn(ENTRY, argument, namespace=None, fds=fds, name=f"capture {name}")
                )
            self._stack = stack.pop_all()

    def wait_ready(self) -> None:
        try:
            self.process.wait_ready(_READY_DEADLINE_S)
        except ProcessDied as error:
            raise CaptureError(self._gone()) from error
        except NotReady as error:
            raise CaptureError(str(error)) from error

    def ask_to_stop(self) -> None:
        try:
            self._control.send(b"stop")
        except OSError as error:
            raise CaptureError(self._gone()) from error

    def take_answer(self) -> None:
        self._control.settimeout(_STOP_DEADLINE_S)
        try:
            message = self._control.recv(_MOST_BYTES)
        except OSError as error:
            raise CaptureError(f"capture of {self.name}: no answer: {error}") from error
        if not message:
            raise CaptureError(self._gone())
        self._taken = Taken.from_json(json.loads(message))

    def write(self, path: Path, marks: Sequence[Mark], application: str) -> CaptureFile:
        taken = self._taken
        assert taken is not None, "stop() comes first"
        near, far = ("/".join(place) for place in (self._link.near, self._link.far))
        system = platform.platform()
        capture = Capture(
            self.name, (near, far), Clocks(taken.begun, taken.ended), taken.received, taken.dropped,
            self._link.snap_bytes, taken.stopped, application, system,
        )  # fmt: skip
        partial = path.with_name(path.name + ".part")
        try:
            with partial.open("wb") as out:
                with _mapped(self._spool) as spool:
                    written = write(capture, spool, marks, out)
            partial.rename(path)
        except BaseException as error:
            partial.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise CaptureError(f"{path}: {error.strerror or error}") from error
            raise
        return CaptureFile(
            self.name, path, written.frames, written.bytes, taken.dropped, taken.stopped
        )

    def _gone(self) -> str:
        lines = self.process.stderr_tail().strip().splitlines()
        return f"capture of {self.name}: {lines[-1] if lines else 'its process has ended without a word'}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


@contextmanager
def _mapped(spool: BinaryIO) -> Iterator[memoryview]:
    """The spool's bytes."""
    if not os.fstat(spool.fileno()).st_size:
        yield memoryview(b"")  # nothing cannot be mapped
        return
    with mmap.mmap(spool.fileno(), 0, access=mmap.ACCESS_READ) as bytes_of_it:
        view = memoryview(bytes_of_it)
        try:
            yield view
        finally:
            view.release()


def _told(made: CaptureFile) -> str:
    words = f"pcap: {made.file.name}: {made.frames} frames, {made.bytes / (1 << 20):.1f} MiB"
    if made.dropped:
        words += f"; {made.dropped} found no room and are missing"
    return f"{words}; {made.stopped}" if made.stopped else words


# ---- the process


def main(argument: Mapping[str, Any], fds: Sequence[int]) -> int:
    """Entry for the fork server. `fds`: the namespaces of both ends, the spool, the control connection."""
    spool = fds[2]
    with ExitStack() as stack:
        control = stack.enter_context(socket.socket(fileno=fds[3]))
        begun = read_clocks()
        rings = []
        for interface, namespace in zip(argument["interfaces"], fds[:2], strict=True):
            kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
            try:
                tap = Namespace(interface, namespace).socket(socket.AF_PACKET, kind)
                rings.append(BlockRing(tap, interface, argument["blocks"], argument["snap_bytes"]))
            except OSError as error:
                print(f"{interface}: {error.strerror}", file=sys.stderr)
                return 1
            stack.callback(rings[-1].close)
        emptying = _Emptying(rings, spool, argument["limit_bytes"])
        ready()
        poll = select.poll()
        for descriptor in (*(ring.fileno() for ring in rings), control.fileno()):
            poll.register(descriptor, select.POLLIN)
        while not any(descriptor == control.fileno() for descriptor, _ in poll.poll()):
            emptying.take()
        if control.recv(_MOST_BYTES):
            taken = emptying.end(begun)
            control.send(json.dumps(taken.as_json()).encode())
    return 0


class _Emptying:
    """From the rings into the spool, until there is no room or no more use."""

    def __init__(self, rings: Sequence[BlockRing], spool: int, limit_bytes: int) -> None:
        self._rings = rings
        self._spool = spool
        self._left_bytes = limit_bytes
        self._limit_bytes = limit_bytes
        self._packets = [0] * len(rings)
        self._stopped: str | None = None

    def take(self) -> None:
        """Every block that is there."""
        for number, ring in enumerate(self._rings):
            while (block := ring.peek()) is not None:
                self._packets[number] += packets_in(block)
                if self._stopped is None:
                    self._write(number, block)
                block.release()
                ring.pop()

    def _write(self, number: int, block: memoryview) -> None:
        size = RECORD.size + len(block)
        if size > self._left_bytes:
            self._stop(f"stopped at the limit of {self._limit_bytes >> 20} MiB")
            return
        try:
            done = os.writev(self._spool, [RECORD.pack(number, len(block)), block])
        except OSError as error:
            self._stop(f"stopped: {error.strerror}")
            return
        if done < size:  # what is left of it is no block: a reader would stumble over it
            os.ftruncate(self._spool, os.fstat(self._spool).st_size - done)
            self._stop("stopped: no space left for it")
            return
        self._left_bytes -= size

    def _stop(self, why: str) -> None:
        """From here on the link is not slowed for what nobody keeps."""
        self._stopped = why
        for ring in self._rings:
            ring.unhook()

    def end(self, begun: Reading) -> Taken:
        """Let go of the link, and take what the kernel has not handed over yet."""
        for ring in self._rings:
            ring.unhook()
            ring.count()
        end_s = time.monotonic() + _DRAIN_DEADLINE_S
        poll = select.poll()
        for ring in self._rings:
            poll.register(ring, select.POLLIN)
        self.take()
        while self._missing() and (left_s := end_s - time.monotonic()) > 0:
            poll.poll(left_s * 1000)
            self.take()
        dropped = sum(ring.dropped for ring in self._rings) + self._missing()
        received = sum(ring.received for ring in self._rings)
        return Taken(received, dropped, begun, read_clocks(), self._stopped)

    def _missing(self) -> int:
        """How many frames are in rings and not here: the kernel counts, and so do we."""
        due = sum(ring.received - ring.dropped for ring in self._rings)
        return due - sum(self._packets)


def read_clocks() -> Reading:
    """Both clocks as nearly at once as they can be read: the closest of a few tries."""
    tries = []
    for _ in range(20):
        before, realtime, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        tries.append(Reading((before + after) // 2, realtime, (after - before + 1) // 2))
    return min(tries, key=lambda one: one.error_ns)
