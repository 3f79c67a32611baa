"""When to switch over: the rounds so far in, a decision out.

The rule is the one that hypervisors use (QEMU, Xen; Clark et al., NSDI 2005): the guest is paused once what
is still dirty can cross within the downtime limit at the bandwidth seen. Ours adds one thing. Below the limit
it goes on as long as another round still halves what is left, because each such round costs little and takes
its part off the blackout; so the limit is a bound and not a target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

PAGE = 4096
MESSAGE_NS = 100_000_000
"""How long a message may keep the source from hearing that the migration is cancelled, roughly."""
FIRST_MESSAGE_PAGES = 64
LEAST_MESSAGE_PAGES = 16
MOST_MESSAGE_PAGES = 4096  # wire.MAX_PAGES_A_MESSAGE, which `testbed --help` need not load
LONG_COPY_PAGES = 2048
"""8 MiB: some milliseconds of a processor."""
WORTH_MEASURING = 1 << 20  # bytes; a shorter round says more about latency than about bandwidth


@dataclass(frozen=True)
class RoundStatistics:
    """One finished round: `pages` sent, of them `zero_pages` as zeros; `bytes` on the wire; `duration_ns`
    until the target had them; `dirty_pages` written by the guest meanwhile, which are what the next round
    would carry."""

    number: int
    pages: int
    zero_pages: int
    bytes: int
    duration_ns: int
    dirty_pages: int


@dataclass(frozen=True)
class Policy:
    """What the user chose. `on_stall` is what happens when `max_rounds` rounds did not reach the downtime
    limit."""

    downtime_limit_ns: int = 300_000_000
    max_rounds: int = 30
    on_stall: str = "switch"  # or "give-up"


class Decision(Enum):
    CONTINUE = "continue"
    SWITCH = "switch"
    GIVE_UP = "give-up"


@dataclass(frozen=True)
class Verdict:
    """The decision, the time that the rest would take (ns) and a sentence that says why."""

    decision: Decision
    expected_ns: int
    reason: str


def bandwidth(history: Sequence[RoundStatistics]) -> float:
    """Bytes per second: of the latest round that was large enough to tell, else of all rounds together."""
    for statistics in reversed(history):
        if statistics.bytes >= WORTH_MEASURING and statistics.duration_ns > 0:
            return statistics.bytes * 1e9 / statistics.duration_ns
    duration_ns = sum(statistics.duration_ns for statistics in history)
    return sum(statistics.bytes for statistics in history) * 1e9 / max(duration_ns, 1)


def decide(history: Sequence[RoundStatistics], policy: Policy) -> Verdict:
    """Judge after a round. `history` holds every round so far, at least one."""
    last = history[-1]
    pending_bytes = last.dirty_pages * PAGE
    rate = bandwidth(history)
    expected_ns = int(pending_bytes * 1e9 / rate) if rate > 0 else (0 if pending_bytes == 0 else 1 << 62)
    within = expected_ns <= policy.downtime_limit_ns
    if within and last.dirty_pages * 2 > last.pages:
        return Verdict(Decision.SWITCH, expected_ns, "the rest fits the downtime limit and no longer halves")
    if within and last.dirty_pages == 0:
        return Verdict(Decision.SWITCH, expected_ns, "nothing is left to copy")
    if len(history) < policy.max_rounds:
        why = "another round still halves the rest" if within else "the rest does not fit the downtime limit"
        return Verdict(Decision.CONTINUE, expected_ns, why)
    if within:
        return Verdict(Decision.SWITCH, expected_ns, "the rest fits the downtime limit")
    if policy.on_stall == "give-up":
        return Verdict(
            Decision.GIVE_UP, expected_ns, f"{len(history)} rounds did not reach the downtime limit"
        )
    return Verdict(Decision.SWITCH, expected_ns, f"{len(history)} rounds did not converge, switching anyway")


def message_pages(pages: int, duration_ns: int) -> int:
    """How many pages the next message may carry, after one that might carry `pages` took `duration_ns`.

    Between two messages a round can be given up, within one it cannot. So they are large where the wire is
    fast, for each costs a few system calls, and small where it is slow.
    """
    if duration_ns > MESSAGE_NS:
        return max(pages // 2, LEAST_MESSAGE_PAGES)
    if duration_ns < MESSAGE_NS // 4:
        return min(pages * 2, MOST_MESSAGE_PAGES)
    return pages


def takes_long(pages: int) -> bool:
    """Whether copying `pages` in the blackout is so much work that others are to have their share of the
    processors meanwhile."""
    return pages > LONG_COPY_PAGES
