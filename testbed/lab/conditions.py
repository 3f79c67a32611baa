"""Conditions as a scenario names them, as those of a link's two directions. Pure."""

from __future__ import annotations

from netns.conditions import Conditions
from testbed.scenario import parts


def of_link(part: parts.Conditions, seed: int = 0) -> tuple[Conditions, Conditions]:
    """Forward, from the node that the link is named after, and backward. ConditionsError for what cannot be.

    Jitter keeps the frames' order, as queues on the way do; for overtaking there is `reorder`.
    """
    asked = Conditions(
        rate_bits_per_s=part.rate_bits_per_s,
        delay_ns=part.delay_ns,
        jitter_ns=part.jitter_ns,
        distribution=part.distribution,
        loss=part.loss,
        duplication=part.duplicate,
        reordering=part.reorder,
        queue_frames=part.queue_frames,
        seed=seed,
    )
    nothing = Conditions.none()
    return {
        "both": (asked, asked),
        "from-node": (asked, nothing),
        "to-node": (nothing, asked),
    }[part.direction]
