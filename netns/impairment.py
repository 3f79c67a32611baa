"""A link whose conditions can be changed while traffic flows.

    with ConditionedLink(topology, ("client1", "eth0"), ("switch", "client1")) as link:
        link.set(Conditions(delay_ns=25_000_000), Conditions(delay_ns=25_000_000, loss=0.001))
        ...
        print(link.figures())
        link.reset()

Forward is from the first end to the second. A rate alone is a token bucket of the kernel's; the rest is
netem's where the kernel has it and netem does it as it was meant, and else a relay's (`netns.relay`), which
can do all. Of itself netem is not taken where chance or a slow wire is to meet each frame: to netem 64 KiB
that the kernel has not cut up yet are one. A link without conditions has none of them in its way.
"""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Self

from netns.apply import Topology
from netns.conditions import Conditions
from netns.detour import Place
from netns.kernel_queues import KernelQueues, has
from netns.link_figures import Choice, DirectionFigures, LinkFigures, Wanted, choose
from netns.relayed import RelayedLink
from netns.sounding import COUNT, RATE_PROBE_S, Sounding, sound

End = tuple[str, str]
"""A node and an interface in it."""


class ConditionedLink:
    """One link. `rate_mbit` is what the topology's plan gave it, in both directions: what `reset` goes back
    to.

    Closed, it is as after `reset`. Not for two threads at once.
    """

    def __init__(
        self, topology: Topology, a: End, b: End, *, backend: Wanted = "auto", rate_mbit: float | None = None
    ) -> None:
        """Nothing is changed yet. KeyError if there is no such node."""
        self._places = (Place(topology.namespace(a[0]), a[1]), Place(topology.namespace(b[0]), b[1]))
        self._wanted: Wanted = backend
        self._plain = Conditions(rate_bits_per_s=None if rate_mbit is None else rate_mbit * 1e6)
        self._queues = KernelQueues(*self._places)
        self._relay: RelayedLink | None = None
        self._choice = Choice("none" if rate_mbit is None else "tbf", "as the link was made")
        self.asked: tuple[Conditions, Conditions] = (self._plain, self._plain)
        """What holds now, forward and backward."""

    @property
    def choice(self) -> Choice:
        """Who does it now, and why."""
        return self._choice

    def set(self, forward: Conditions, backward: Conditions, *, backend: Wanted | None = None) -> Choice:
        """From now on these conditions hold, whatever held before (a rate of the plan's too); frames that are
        under way in a relay are not lost by it.

        `backend` None: the one that this object was made for. ConditionsError or BackendMissing if it cannot
        do it; LinkError, TopologyError or OSError if the kernel refuses; RelayDied if the relay is gone. What
        held before goes on then, but for RelayDied.
        """
        wanted = backend or self._wanted
        needed = not (forward.is_none and backward.is_none)
        choice = choose(
            wanted, forward, backward, has_netem=needed and has("netem"), has_tbf=needed and has("tbf")
        )
        if choice.backend == "relay":
            self._relay_from_now_on(forward, backward)
        else:
            self._queues.set(choice.backend, forward, backward)
            self._relay_no_more()
        self._choice, self.asked = choice, (forward, backward)
        return choice

    def _relay_from_now_on(self, forward: Conditions, backward: Conditions) -> None:
        with ExitStack() as undo:
            if self._relay is None:
                started = RelayedLink(*self._places)
                undo.callback(started.close)
                started.set(forward, backward)
                self._relay = started
            else:
                self._relay.set(forward, backward)
            undo.pop_all()
        self._queues.set("none", Conditions(), Conditions())

    def _relay_no_more(self) -> None:
        if self._relay is not None:
            relay, self._relay = self._relay, None
            try:
                relay.drain()
            finally:
                relay.close()

    def reset(self) -> None:
        """As the plan made it. Also after RelayDied."""
        self.set(self._plain, self._plain, backend="auto")

    def restart(self) -> None:
        """Count anew."""
        if self._relay is not None:
            self._relay.restart()
        else:
            self._queues.restart()

    def figures(self) -> LinkFigures:
        """What was asked and what came of it. RelayDied if the relay is gone."""
        forward, backward = self._directions()
        processor_ns = None if self._relay is None else self._relay.processor_ns()
        return LinkFigures(self._choice.backend, self._choice.why, forward, backward, processor_ns)

    def sound(self, count: int = COUNT, rate_probe_s: float = RATE_PROBE_S) -> Sounding:
        """Measure it from its two ends, independently of who conditions it: see `netns.sounding`. Takes a
        millisecond a frame and the delay, and `rate_probe_s` for each direction with a rate. Frames of the
        measurement are in the counts: `restart` after it.
        """
        forward, backward = self.asked
        expected_ns = sum(one.delay_ns + 4 * one.jitter_ns for one in self.asked)
        rates = (forward.rate_bits_per_s, backward.rate_bits_per_s)
        return sound(
            *self._places, count=count, expected_delay_ns=expected_ns, rates_bits_per_s=rates,
            rate_probe_s=rate_probe_s,
        )  # fmt: skip

    def _directions(self) -> tuple[DirectionFigures, DirectionFigures]:
        if self._relay is not None:
            return self._relay.figures()
        if self._choice.why == "as the link was made":
            forward, backward = (DirectionFigures(one, wire_frames=False) for one in self.asked)
            return forward, backward
        return self._queues.figures()

    def close(self) -> None:
        """As after `reset`. Twice is allowed."""
        if self.asked != (self._plain, self._plain):
            self.reset()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
