"""What one direction of a link does to the frames that pass, as data. Pure.

    Conditions(delay_ns=25_000_000, jitter_ns=2_000_000, distribution="normal", loss=0.001, seed=7)

A link has two of them, one a direction. `netns.impairment` brings them about.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

from netns.topology import SpecError, token_bucket

Distribution = Literal["uniform", "normal", "pareto"]
DISTRIBUTIONS: tuple[Distribution, ...] = get_args(Distribution)

LONGEST_DELAY_NS = 60_000_000_000
LONGEST_QUEUE_FRAMES = 1_000_000
LONGEST_QUEUE_BYTES = 1 << 30
COARSE_RATE_BITS_PER_S = 500_000_000
"""Below this a frame of 64 KiB, which stands for 45 of a wire's, takes over a millisecond: too coarse."""


class ConditionsError(ValueError):
    """Conditions that no link can have. The message is one line, names the field and says what is allowed."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """One direction of a link. All of it zero or None: a wire as good as the machine gives.

    A frame meets them in this order: it is lost with probability `loss`; with probability `duplication` there
    are two of it from here on; it waits for its turn on a wire of `rate_bits_per_s` (whole frames, without
    preamble and checksum); then it is under way for `delay_ns`, give or take `jitter_ns`.

    `jitter_ns` is, by `distribution`: `uniform`, the most by which the delay is more or less; `normal`, its
    standard deviation; `pareto`, its standard deviation too, with a long tail of late frames (shape 3). No
    delay is under zero.

    Frames keep their order, as on a wire: one that the jitter would let overtake waits for the one before it.
    With `jitter_reorders` it overtakes, as under the kernel's netem. With probability `reordering` a frame
    does not wait for its delay at all and so overtakes those that do, which is netem's meaning of the word.

    At most `queue_frames` frames, or `queue_bytes` bytes, wait for their turn on the wire; what comes when
    the queue is full is lost. None for both: what a token bucket of that rate would keep, 50 ms and 128 KiB
    at least. Those under way are not in the queue.

    `lost_announcements`: so many of the first ARP announcements, reverse ARP requests and unsolicited
    neighbour advertisements are lost, counted from when the conditions are set.

    `seed` makes the losses and the jitter of a run come again in the same order of frames.
    """

    rate_bits_per_s: float | None = None
    delay_ns: int = 0
    jitter_ns: int = 0
    distribution: Distribution = "uniform"
    jitter_reorders: bool = False
    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    queue_frames: int | None = None
    queue_bytes: int | None = None
    lost_announcements: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        _check_times(self)
        for name in ("loss", "duplication", "reordering"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConditionsError(f"{name} {getattr(self, name):g}: must be 0 to 1 (1 is every frame)")
        if self.reordering and not self.delay_ns:
            raise ConditionsError("reordering: needs a delay, for frames overtake those that are under way")
        if self.lost_announcements < 0:
            raise ConditionsError(f"lost_announcements {self.lost_announcements}: must be 0 or more")
        _check_rate(self)

    @classmethod
    def none(cls) -> Conditions:
        """A wire as good as the machine gives."""
        return cls()

    @property
    def is_none(self) -> bool:
        """Whether frames pass as if there were no conditions."""
        return self._plainly() == Conditions()

    def _plainly(self) -> Conditions:
        """Without what changes nothing by itself."""
        return replace(self, seed=0, distribution="uniform", jitter_reorders=False)

    @property
    def is_rate_alone(self) -> bool:
        """Whether a token bucket in the kernel does all that is asked."""
        rate = self.rate_bits_per_s
        return rate is not None and self._plainly() == Conditions(rate_bits_per_s=rate)

    @property
    def needs_wire_frames(self) -> bool:
        """Whether frames must be as small as on a wire: an offloaded one of 64 KiB must not be lost, doubled
        or queued as if it were one frame.
        """
        coarse = self.rate_bits_per_s is not None and self.rate_bits_per_s < COARSE_RATE_BITS_PER_S
        chance = self.loss or self.duplication or self.reordering
        return bool(chance or coarse or self.queue_frames is not None or self.queue_bytes is not None)

    def describe(self) -> str:
        """The fields that are not as in `none()`, like "delay_ns=1000, loss=0.1"; "none" where there are
        none.
        """
        plain = Conditions()
        said = [
            f"{field.name}={getattr(self, field.name)}"
            for field in fields(self)
            if getattr(self, field.name) != getattr(plain, field.name)
        ]
        return ", ".join(said) or "none"


def _check_times(asked: Conditions) -> None:
    if asked.distribution not in DISTRIBUTIONS:
        raise ConditionsError(f"distribution {asked.distribution!r}: must be {', '.join(DISTRIBUTIONS)}")
    for name in ("delay_ns", "jitter_ns"):
        value = getattr(asked, name)
        if not 0 <= value <= LONGEST_DELAY_NS:
            raise ConditionsError(f"{name} {value}: must be 0 to {LONGEST_DELAY_NS} (60 s)")
    if asked.jitter_ns > asked.delay_ns:
        raise ConditionsError(f"jitter_ns {asked.jitter_ns}: must be at most delay_ns, {asked.delay_ns}")


def _check_rate(asked: Conditions) -> None:
    rate = asked.rate_bits_per_s
    if rate is not None:
        try:
            token_bucket(rate / 1e6 if math.isfinite(rate) else rate)
        except SpecError as error:
            raise ConditionsError(str(error)) from None
    if asked.queue_frames is None and asked.queue_bytes is None:
        return
    if rate is None:
        raise ConditionsError("queue: needs a rate, for without one nothing waits")
    if asked.queue_frames is not None and asked.queue_bytes is not None:
        raise ConditionsError("queue: in frames or in bytes, not both")
    if asked.queue_frames is not None and not 1 <= asked.queue_frames <= LONGEST_QUEUE_FRAMES:
        raise ConditionsError(f"queue_frames {asked.queue_frames}: must be 1 to {LONGEST_QUEUE_FRAMES}")
    if asked.queue_bytes is not None and not 1514 <= asked.queue_bytes <= LONGEST_QUEUE_BYTES:
        raise ConditionsError(f"queue_bytes {asked.queue_bytes}: must be 1514 to {LONGEST_QUEUE_BYTES}")
