"""An orchestrator as a process of its own: it gives the order to migrate, and waits for what comes of it.

Whoever runs a lab can give the order itself (:meth:`testbed.lab.lab.Lab.migrate`). This is for the
question what happens when the one who gave it dies: nothing, for the agents need nobody to finish.
"""

from __future__ import annotations

import select
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from testbed.host.control import Line

ANSWER_DEADLINE_S = 30.0


def main(argument: dict[str, Any], _fds: Sequence[int]) -> int:
    """Entry for the fork server. `argument`: {"target": {"socket", "order"}, "source": {...}, "deadline_s"}.
    """
    lines: list[Line] = []
    for side in ("target", "source"):  # the target listens before the source connects
        line = Line.connect(Path(argument[side]["socket"]))
        line.ask(argument[side]["order"], ANSWER_DEADLINE_S)
        lines.append(line)
    while lines:
        ready, _, _ = select.select(lines, [], [], argument["deadline_s"])
        if not ready:
            return 1
        for line in ready:
            if line.poll() is not None:
                lines.remove(line)
    return 0
