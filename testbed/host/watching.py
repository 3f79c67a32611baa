"""How a guest writes to its RAM, watched by its host while it runs: what a prediction is made from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from testbed.host.hosted import HostedGuest
from testbed.memory.sampling import SamplingTooDear, sample


def watch(
    guest: HostedGuest, all_ns: int, clock: Callable[[], int], wait: Callable[[int], bool]
) -> dict[str, Any]:
    """Watch the guest for `all_ns` at most. Raises OSError where it is gone.

    Returns `samples` [[interval in ns, distinct pages], ...], `touched_pages` of its RAM, of them
    `zero_pages`, its `tracker`, whether that is `exact`, and in `refused` why there are no samples, or null.
    """
    refused = None
    try:
        samples = sample(guest.tracker, all_ns, clock, wait)
    except SamplingTooDear as error:
        samples, refused = [], str(error)
    if not samples and refused is None:
        refused = "there was no time to watch the guest"
    touched = guest.ram.touched()
    return {
        "samples": samples,
        "touched_pages": len(touched),
        "zero_pages": len(guest.ram.zero(touched)),
        "tracker": guest.tracker.name,
        "exact": guest.tracker.exact,
        "refused": refused,
    }
