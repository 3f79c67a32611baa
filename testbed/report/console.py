"""Where a command prints: as wide as the terminal, and off a terminal wide enough for any table.

What goes to a file or a pipe is not to be broken at the 80 columns of a terminal that is not there. COLUMNS
in the environment decides all the same.
"""

from __future__ import annotations

import os

from rich.console import Console

OFF_TERMINAL_COLUMNS = 120


def printer(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Standard output, or standard error, without highlighting of its own."""
    made = Console(stderr=stderr, quiet=quiet, highlight=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = OFF_TERMINAL_COLUMNS
    return made
