"""What was asked of a link, and what came of it, as data. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from netns.conditions import Conditions, ConditionsError

Backend = Literal["none", "tbf", "netem", "relay"]
Wanted = Literal["auto", "netem", "relay"]

_NETEM_MOST_JITTER_NS = (1 << 31) - 1  # it counts in an int


class BackendMissing(Exception):
    """What was asked for by name is not in this kernel."""


@dataclass(frozen=True, slots=True)
class DirectionFigures:
    """One direction since the conditions were set, or since the last restart of the count.

    Frames and bytes are those of a wire (an offloaded frame counts as its segments) where `wire_frames` says
    so; the kernel's queues count an offloaded frame as one, and lose it as one. None is what the backend does
    not tell. `overrun` is what the relay could neither take nor pass, which nobody asked for. `delay_…` is
    from arrival to departure, `late_…` the part of it that was not meant.
    """

    asked: Conditions
    wire_frames: bool
    received_frames: int | None = None
    passed_frames: int | None = None
    passed_bytes: int | None = None
    lost: int | None = None
    announcements_lost: int | None = None
    queue_dropped: int | None = None
    overrun: int | None = None
    duplicated: int | None = None
    reordered: int | None = None
    delay_p50_ns: int | None = None
    delay_p99_ns: int | None = None
    late_p50_ns: int | None = None
    late_p99_ns: int | None = None
    active_ns: int | None = None
    """From the first frame to the last."""

    @property
    def loss(self) -> float | None:
        """The share of the frames received that were lost by chance."""
        if self.lost is None or not self.received_frames:
            return None
        return self.lost / self.received_frames

    @property
    def throughput_bits_per_s(self) -> float | None:
        """What passed, over the time from the first frame to the last."""
        return self.passed_bytes * 8e9 / self.active_ns if self.passed_bytes and self.active_ns else None


@dataclass(frozen=True, slots=True)
class LinkFigures:
    """Both directions, by whom it was done, and why by that one."""

    backend: Backend
    why: str
    forward: DirectionFigures
    backward: DirectionFigures
    processor_ns: int | None = None
    """What the relay has taken of a processor since it was started; None where there is none."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Who does it, and a few words on why."""

    backend: Backend
    why: str


def choose(
    wanted: Wanted, forward: Conditions, backward: Conditions, *, has_netem: bool, has_tbf: bool
) -> Choice:
    """Who brings conditions about. ConditionsError if netem is wanted and cannot do it; BackendMissing if it
    is not there.
    """
    both = (forward, backward)
    if all(one.is_none for one in both):
        return Choice("none", "nothing is asked")
    if wanted == "relay":
        return Choice("relay", "asked for by name")
    lacking = next((reason for one in both if (reason := netem_lacks(one)) is not None), None)
    if wanted == "netem":
        if lacking is not None:
            raise ConditionsError(f"netem {lacking}: take the relay")
        if not has_netem:
            raise BackendMissing("netem is not in this kernel (CONFIG_NET_SCH_NETEM): take the relay")
        return Choice("netem", "asked for by name")
    if has_tbf and all(one.is_none or one.is_rate_alone for one in both):
        return Choice("tbf", "a rate alone is a token bucket's business")
    if lacking is not None:
        return Choice("relay", f"netem {lacking}")
    if not has_netem:
        return Choice("relay", "netem is not in this kernel")
    if any(one.needs_wire_frames for one in both):
        return Choice("relay", "netem takes an offloaded frame of 64 KiB for one")
    return Choice("netem", "the kernel has it")


def netem_lacks(asked: Conditions) -> str | None:
    """What netem cannot do of it; None if it can do all. Source: net/sched/sch_netem.c (netem_enqueue,
    tabledist)."""
    if asked.jitter_ns and not asked.jitter_reorders:
        return "lets frames overtake each other where there is jitter"
    if asked.jitter_ns and asked.rate_bits_per_s is not None:
        return "keeps frames in order where there is a rate"
    if asked.jitter_ns > _NETEM_MOST_JITTER_NS:
        return f"has no jitter of more than {_NETEM_MOST_JITTER_NS / 1e9:.1f} s"
    if asked.reordering and asked.rate_bits_per_s is not None:
        return "lets frames that do not wait for the delay not wait for the wire either"
    if asked.loss and asked.duplication:
        return "does not lose a frame that it doubles"
    if asked.jitter_ns and asked.distribution != "uniform":
        return f"has no {asked.distribution} distribution without a table"
    if asked.lost_announcements:
        return "does not know an announcement"
    if asked.queue_bytes is not None:
        return "counts its queue in frames"
    return None
