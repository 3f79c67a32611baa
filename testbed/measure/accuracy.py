"""Accuracy: how far what a probe measured is from what was done. Pure.

A *stall* is a pause of a guest at the place where it is, of a length that the guest itself tells: from the
end of its last step (P) to the moment from which its next may begin (R), as for the blackout of a migration.
Where the guest's kernel answers, it is the way to the guest that is shut, of a length that its host tells:
from when it begins to turn frames to the hold (P) to when it begins to release them (R).
Its length is d = R - P. What a probe shows of it is the longest of its waits that overlap [P, R], which is
what a run shows of a migration.

No probe measures d. What it measures is how long *somebody who asked* was left waiting, and that depends on
when they asked: the pause begins somewhere between two requests, and nobody waits before the first that meets
it. So there are several errors, and all are told.

**Against the definition** (`error`): the figure against what it should say, given when the wait began. This
is the instrument's own error, for the phase of the pause is no error of it: a client that did not ask did not
wait. The end of the wait is where the truth comes in, for nothing is answered before R:

- *request* (closed loop, churn, ledger): a request sent at s was in truth unanswered until R. Due is R - s.
  Over all pauses that lies between d - i and d + a, where i is the longest time in which the probe asks
  nothing, and a the way there.
- *delivery* (open loop): after a delivery at r, with messages that are sent each I: nothing could come before
  R, and the next was due at r + I. Due is R - r - I, but not below zero. Over all pauses that lies between
  d - I and d.

- *silence* (download, upload): after bytes at r, none until the next. Due is R - r. Over all pauses that is
  d, but for what buffers on the way hold: they are emptied after P.

What is left, measured less due, is the guest's first steps, the way back and everything that is the probe's
own: its wake-up, the other descriptors before this one, its clock. Guest and network are counted as error
here, and are most of it: this is a bound that needs nobody's word but the guest's. Delivery: where the probe
itself sent late, its figure is less by as much, so an error may be negative.

**Against the wire** (`own`): the figure against the same wait as the client's network card saw it
(:mod:`testbed.measure.wire`). That leaves the probe's own part alone. A probe whose clock is wrong measures
the right length at the wrong time, so the stamp at its end is held against the frame that ended it, too
(`late`).

**Against the pause** (`of_pause`): the figure against d, as somebody reads it who takes the longest wait for
the length of the pause. Its bounds are the ones above: a probe that asks each 5 ms is up to 5 ms below. This
one knows nothing of when the probe says that it asked, so it finds a probe that is wrong about that.

Where the longest wait had ended before R, no request met the pause: it went *unnoticed*. That is no error of
a probe as long as the pause was shorter than i; of a longer one it is, and counts in full.

A stall of length zero is none: the guest is let alone, and the window is the FLOOR_NS after that moment.
The longest wait in it is the noise floor, and stands for both errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

FLOOR_NS = 10_000_000


class Definition(Enum):
    """What a probe's wait is; see above."""

    REQUEST = "request"
    DELIVERY = "delivery"
    SILENCE = "silence"


@dataclass(frozen=True)
class Stall:
    """A pause that was made: `asked_ns` long by the order, by the guest's word from `paused_ns` to
    `running_ns` on CLOCK_MONOTONIC. With `asked_ns` zero it was not made, and both are the same moment.
    """

    asked_ns: int
    paused_ns: int
    running_ns: int

    @property
    def length_ns(self) -> int:
        return self.running_ns - self.paused_ns

    @property
    def window(self) -> tuple[int, int]:
        """In which the longest wait is looked for, [begin, end)."""
        return self.paused_ns, self.running_ns + (0 if self.asked_ns else FLOOR_NS)


@dataclass(frozen=True)
class Sight:
    """What a probe saw of a stall: its longest wait in the window, and when that began."""

    longest_ns: int
    longest_at_ns: int

    def ended_ns(self, definition: Definition, interval_ns: int) -> int:
        """By its own word."""
        return self.longest_at_ns + self.longest_ns + _expected_ns(definition, interval_ns)


@dataclass(frozen=True)
class Deviation:
    """Measured less true, in ns, of one stall and one probe. `error_ns` is None where it went unnoticed;
    `own_ns`, and `late_ns` of the stamp at its end, where the wire does not tell."""

    stall: Stall
    measured_ns: int
    error_ns: int | None
    own_ns: int | None = None
    late_ns: int | None = None

    @property
    def of_pause_ns(self) -> int:
        return self.measured_ns - self.stall.length_ns


def deviation(definition: Definition, interval_ns: int, stall: Stall, sight: Sight | None) -> Deviation:
    """Of a probe that asks at least each `interval_ns` (delivery: sends each). `sight` is None where no wait
    of it overlapped the window: then it measured nothing, which is 0.
    """
    if not stall.asked_ns:
        longest_ns = sight.longest_ns if sight is not None else 0
        return Deviation(stall, longest_ns, longest_ns)
    if sight is None:
        unnoticed = stall.length_ns < interval_ns
        return Deviation(stall, 0, None if unnoticed else -stall.length_ns)
    if sight.ended_ns(definition, interval_ns) < stall.running_ns and stall.length_ns < interval_ns:
        return Deviation(stall, sight.longest_ns, None)
    due_ns = max(0, stall.running_ns - sight.longest_at_ns - _expected_ns(definition, interval_ns))
    return Deviation(stall, sight.longest_ns, sight.longest_ns - due_ns)


def _expected_ns(definition: Definition, interval_ns: int) -> int:
    """What lies between two deliveries anyway, and is no waiting."""
    return interval_ns if definition is Definition.DELIVERY else 0


@dataclass(frozen=True)
class Spread:
    """A set of errors, in whatever unit they came. `median` has its sign; `p95` and `largest` are of the
    magnitude (nearest rank), `low` and `high` the lowest and the highest with their signs; `above` counts
    those over zero.
    """

    count: int
    median: float
    p95: float
    largest: float
    low: float
    high: float
    above: int


def spread(errors: Iterable[float]) -> Spread | None:
    """Of any errors; None of none."""
    ordered = sorted(errors)
    if not ordered:
        return None
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    sizes = sorted(abs(one) for one in ordered)
    p95 = sizes[math.ceil(0.95 * len(sizes)) - 1]
    above = sum(one > 0 for one in ordered)
    return Spread(len(ordered), median, p95, sizes[-1], ordered[0], ordered[-1], above)
