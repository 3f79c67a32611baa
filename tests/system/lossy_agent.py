"""An agent that leaves behind what lies in its guest's UDP queues: what it must not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from testbed.host import agent
from testbed.host.departing import DepartingGuest
from testbed.udp.state import Datagram


def _sees_nothing(_: DepartingGuest) -> list[Datagram]:
    return []


def main(argument: dict[str, Any], fds: Sequence[int]) -> int | None:
    DepartingGuest._look_at_queues = _sees_nothing  # type: ignore[method-assign]
    return agent.main(argument, fds)
