"""Conditions by the kernel's own queues: a token bucket, or netem, on what each end of a link sends."""

from __future__ import annotations

import itertools
import os
from contextlib import ExitStack
from functools import cache

from netns.conditions import Conditions
from netns.detour import Place
from netns.link_figures import Backend, DirectionFigures
from netns.links import LinkError, Links
from netns.namespace import Namespace
from netns.netem import Netem
from netns.topology import token_bucket

SMALLEST_FRAME_BITS = 64 * 8
_LEAST_LIMIT_FRAMES, _MOST_LIMIT_FRAMES = 1000, 1_000_000
_FASTEST_BITS_PER_S = 40e9
"""Of a veth pair: what a delay without a rate must hold."""
_LONG_FRAME_BITS = 1514 * 8
_NUMBERS = itertools.count(1)


@cache
def has(kind: str) -> bool:
    """Whether this kernel has the queue `kind`: one is added to the loopback of a namespace made for that."""
    with ExitStack() as stack:
        namespace = stack.enter_context(Namespace.create(f"probe-{os.getpid()}-{next(_NUMBERS)}"))
        stack.callback(namespace.delete)
        links = stack.enter_context(Links(namespace))
        try:
            if kind == "netem":
                links.netem("lo", Netem(_LEAST_LIMIT_FRAMES))
            else:
                links.limit_rate("lo", 1.0)
        except LinkError:
            return False
        return True


class KernelQueues:
    """The root queues of both ends of a link."""

    def __init__(self, a: Place, b: Place) -> None:
        self._places = (a, b)
        self._asked: tuple[Conditions, Conditions] = (Conditions(), Conditions())
        self._before: dict[int, dict[str, int]] = {}

    def set(self, backend: Backend, forward: Conditions, backward: Conditions) -> None:
        """What each end sends meets these conditions from now on. Frames that wait in a queue which is
        replaced by one of another kind are lost (the kernel's way).
        """
        for place, asked in zip(self._places, (forward, backward), strict=True):
            with Links(place.namespace) as links:
                if asked.is_none:
                    links.limit_rate(place.ifname, None)
                elif backend == "netem":
                    links.netem(place.ifname, netem_of(asked))
                else:
                    rate = asked.rate_bits_per_s
                    links.limit_rate(place.ifname, None if rate is None else rate / 1e6)
        self._asked = (forward, backward)
        self.restart()

    def restart(self) -> None:
        """Count anew."""
        self._before = {number: self._counts(place) for number, place in enumerate(self._places)}

    def figures(self) -> tuple[DirectionFigures, DirectionFigures]:
        forward, backward = (self._direction(number) for number in range(2))
        return forward, backward

    def _direction(self, number: int) -> DirectionFigures:
        asked = self._asked[number]
        if asked.is_none:
            return DirectionFigures(asked, wire_frames=False)
        now, before = self._counts(self._places[number]), self._before[number]
        passed, dropped = (now[name] - before[name] for name in ("packets", "drops"))
        by_chance = asked.loss > 0
        return DirectionFigures(
            asked,
            wire_frames=False,
            received_frames=passed + dropped if not asked.duplication else None,
            passed_frames=passed,
            passed_bytes=now["bytes"] - before["bytes"],
            lost=dropped if by_chance else 0,
            queue_dropped=None if by_chance else dropped,
        )

    @staticmethod
    def _counts(place: Place) -> dict[str, int]:
        with Links(place.namespace) as links:
            return links.queue_counts(place.ifname)


def netem_of(asked: Conditions) -> Netem:
    """Conditions in netem's terms."""
    rate = asked.rate_bits_per_s
    return Netem(
        limit_frames=netem_limit(asked),
        delay_ns=asked.delay_ns,
        jitter_ns=asked.jitter_ns,
        loss=asked.loss,
        duplication=asked.duplication,
        reordering=asked.reordering,
        rate_bytes_per_s=None if rate is None else round(rate / 8),
        seed=asked.seed,
    )


def netem_limit(asked: Conditions) -> int:
    """Frames that netem must have room for, so that delay does not become loss: as many long frames as are
    under way at the rate (without one, at what the machine gives), and the queue.
    """
    rate = asked.rate_bits_per_s
    longest_s = (asked.delay_ns + 4 * asked.jitter_ns) / 1e9
    if rate is None:
        least, frames = _LEAST_LIMIT_FRAMES, longest_s * _FASTEST_BITS_PER_S / _LONG_FRAME_BITS
    elif asked.queue_frames is not None:
        least, frames = 1, asked.queue_frames + longest_s * rate / _LONG_FRAME_BITS
    else:
        bucket = token_bucket(rate / 1e6)
        queue_bits = (bucket.limit_bytes - bucket.burst_bytes) * 8
        least, frames = 1, (longest_s * rate + queue_bits) / SMALLEST_FRAME_BITS
    return round(min(max(frames, least), _MOST_LIMIT_FRAMES))
