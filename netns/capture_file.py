"""From what a capture has laid aside to a file that Wireshark opens. Pure but for the file written to.

While frames come by, nothing is done but to copy blocks of the kernel's ring into a **spool**: a record for
each block, `end of the link, length` and the block's used bytes. What takes time is done afterwards, here:
frames of both ends are laid in the order of their times, checksums that a veth never had are completed,
**marks** become comments on the frames beside which they fall.

Frames are stamped with CLOCK_REALTIME, marks with CLOCK_MONOTONIC. The distance of the two is measured when
the capture begins and when it ends (**clocks**); in between it is taken to change evenly, as it does while
the system's clock is slewed.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import BinaryIO

from netns import pcapng
from netns.block_ring import Frame, frames_in, with_checksum

RECORD = struct.Struct("=II")  # which end, bytes of the block
_LATEST_NS = 10_000_000
"""How much a frame may be stamped earlier than one that stands before it: two processors stamp before they
queue."""
_DIRECTIONS = (pcapng.INBOUND, pcapng.OUTBOUND)
_STEP_NS = 1_000_000


@dataclass(frozen=True)
class Mark:
    """Something that happened at `t_ns` (CLOCK_MONOTONIC), in words of which the first are its name."""

    t_ns: int
    text: str


@dataclass(frozen=True)
class Reading:
    """Both clocks at the same moment, within `error_ns`."""

    monotonic_ns: int
    realtime_ns: int
    error_ns: int

    @property
    def apart_ns(self) -> int:
        return self.realtime_ns - self.monotonic_ns


@dataclass(frozen=True)
class Clocks:
    """The two clocks' distance when a capture began and when it ended."""

    begun: Reading
    ended: Reading

    def realtime_ns(self, monotonic_ns: int) -> int:
        """What CLOCK_REALTIME showed when CLOCK_MONOTONIC showed that."""
        whole = self.ended.monotonic_ns - self.begun.monotonic_ns
        change = self.ended.apart_ns - self.begun.apart_ns
        since = monotonic_ns - self.begun.monotonic_ns
        return monotonic_ns + self.begun.apart_ns + (change * since // whole if whole else 0)

    def told(self) -> str:
        """In words, for who lays this file beside others."""
        begun, ended = self.begun, self.ended
        change = ended.apart_ns - begun.apart_ns
        words = (
            f"Times are CLOCK_REALTIME. CLOCK_MONOTONIC, on which events.jsonl stands, is that less "
            f"{begun.apart_ns} ns at the beginning and {ended.apart_ns} ns at the end "
            f"(read within {max(begun.error_ns, ended.error_ns)} ns)."
        )
        if abs(change) >= _STEP_NS:
            changed = f"{change / 1e6:.3f} ms"
            words += f" THE SYSTEM'S CLOCK WAS CHANGED by {changed} meanwhile: times are that unsure."
        return words


@dataclass(frozen=True)
class Capture:
    """What one link's capture came to, apart from its frames.

    `ends` are "node/interface", the first that of the node by which the link is known: what arrives there is
    inbound. `received` and `dropped` count frames (`dropped` of them found no room in the ring), `stopped`
    says why nothing was taken any more before the end, None if nothing kept it.
    """

    link: str
    ends: tuple[str, str]
    clocks: Clocks
    received: int
    dropped: int
    snap_bytes: int | None = None
    stopped: str | None = None
    application: str = ""
    system: str = ""


@dataclass(frozen=True)
class Written:
    """What a file holds: frames, and their bytes (of a frame that was cut short: of what there is)."""

    frames: int
    bytes: int


def write(capture: Capture, spool: memoryview, marks: Iterable[Mark], out: BinaryIO) -> Written:
    """Write a whole file to `out`. `marks` in any order; all of them stand in the section's comment as
    well."""
    marks = sorted(marks, key=lambda mark: mark.t_ns)
    clocks = capture.clocks
    listed = [_listed(mark, clocks) for mark in marks]
    comment = "\n".join((f"Link {capture.link}, {_trouble(capture)}", clocks.told(), *listed))
    out.write(pcapng.section_header(comment, capture.application, capture.system))
    description = _description(capture)
    out.write(pcapng.interface_description(capture.ends[0], description, capture.snap_bytes or 0))
    frames = size = 0
    for packet in commented(packets(spool), marks, clocks):
        out.write(pcapng.enhanced_packet(packet))
        frames += 1
        size += len(packet.data)
    begun, ended = clocks.begun.realtime_ns, clocks.ended.realtime_ns
    statistics = pcapng.Statistics(begun, ended, capture.received, capture.dropped)
    out.write(pcapng.interface_statistics(statistics))
    return Written(frames, size)


def packets(spool: memoryview) -> Iterator[pcapng.Packet]:
    """Every frame of a spool, oldest first, whole."""
    ends: list[list[memoryview]] = [[] for _ in _DIRECTIONS]
    at = 0
    while at + RECORD.size <= len(spool):
        end, length = RECORD.unpack_from(spool, at)
        at += RECORD.size
        ends[end].append(spool[at : at + length])
        at += length
    streams = [_arrived(blocks, direction) for blocks, direction in zip(ends, _DIRECTIONS, strict=True)]
    yield from heapq.merge(*streams, key=lambda packet: packet.t_ns)


def _arrived(blocks: Iterable[memoryview], direction: int) -> Iterator[pcapng.Packet]:
    for frame in in_order(frames_in(block) for block in blocks):
        yield pcapng.Packet(frame.t_ns, direction, frame.length, with_checksum(frame))


def in_order(blocks: Iterable[Iterable[Frame]]) -> Iterator[Frame]:
    """The frames of one ring by their times; they come nearly so, block after block."""
    waiting: list[Frame] = []
    for block in blocks:
        waiting += block
        waiting.sort(key=lambda frame: frame.t_ns)
        settled = waiting[-1].t_ns - _LATEST_NS if waiting else 0
        count = next((n for n, frame in enumerate(waiting) if frame.t_ns > settled), len(waiting))
        yield from waiting[:count]
        del waiting[:count]
    yield from waiting


def commented(
    frames: Iterable[pcapng.Packet], marks: Sequence[Mark], clocks: Clocks
) -> Iterator[pcapng.Packet]:
    """The frames, with each mark as a comment on the first frame that is not earlier; on the last frame where
    all are."""
    due = [(clocks.realtime_ns(mark.t_ns), mark) for mark in marks]
    held: pcapng.Packet | None = None
    for frame in frames:
        if held is not None:
            yield held
        passed = 0
        while passed < len(due) and due[passed][0] <= frame.t_ns:
            passed += 1
        comments = tuple(_comment(mark, t_ns, frame.t_ns) for t_ns, mark in due[:passed])
        del due[:passed]
        held = _with_comments(frame, comments) if comments else frame
    if held is not None:
        yield _with_comments(held, tuple(_comment(mark, t_ns, held.t_ns) for t_ns, mark in due))


def _with_comments(frame: pcapng.Packet, comments: tuple[str, ...]) -> pcapng.Packet:
    every = frame.comments + comments
    return pcapng.Packet(frame.t_ns, frame.direction, frame.length, frame.data, every)


def _comment(mark: Mark, mark_ns: int, frame_ns: int) -> str:
    distance = frame_ns - mark_ns
    side = "before" if distance >= 0 else "after"
    return f"{mark.text} [{mark.t_ns} ns CLOCK_MONOTONIC, {abs(distance) / 1e6:.6f} ms {side} this frame]"


def _listed(mark: Mark, clocks: Clocks) -> str:
    """A mark with its time of day, to the nanosecond, which datetime does not know."""
    seconds, nanoseconds = divmod(clocks.realtime_ns(mark.t_ns), 1_000_000_000)
    clock = datetime.fromtimestamp(seconds, tz=UTC).strftime("%H:%M:%S")
    return f"{clock}.{nanoseconds:09} UTC  {mark.text} [{mark.t_ns} ns CLOCK_MONOTONIC]"


def _trouble(capture: Capture) -> str:
    lost = f"{capture.dropped} of {capture.received} frames found no room and are missing"
    words = lost if capture.dropped else f"all of {capture.received} frames"
    return f"{words}; {capture.stopped}." if capture.stopped else f"{words}."


def _description(capture: Capture) -> str:
    near, far = capture.ends
    return (
        f"Link {capture.link}: inbound is what arrived at {near}, outbound what arrived at {far}, "
        "each stamped on arrival. Frames are up to 64 KiB, as they crossed: on a veth nothing is segmented. "
        "Checksums, which nothing computes there, were completed afterwards."
    )
