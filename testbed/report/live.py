"""The live view: a run as a picture on the terminal while it goes on.

It must not spoil what it shows. So it is drawn by the process that conducts the run and by nobody else, when
events come (clients' beats keep it going) and never by a thread; at most a tenth of that process's time goes
into it, less while memory is copied, and *nothing* is drawn from the announcement of a switchover until its
end has been heard: the blackout is shown from events when it is over.

Afterwards the terminal has what it would have without the view: the lines of
:class:`testbed.report.terminal.Progress`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Self

from rich.console import Console

from testbed.report.glyphs import ASCII, UNICODE
from testbed.report.live_state import Cast, LiveState
from testbed.report.live_view import fits, picture
from testbed.report.screen import Screen
from testbed.report.terminal import Progress

DRAW_NS = 100_000_000
COPYING_NS = 250_000_000
"""How often at most, and while memory is copied: the copy wants both processors of a small machine."""
_SHARE = 10
"""Of what drawing took, how often it must pass before the next time."""
_MOST_TOLD = 4000


class Live:
    """A witness of a run that shows it on `console`, from ``with`` to its end."""

    def __init__(
        self, console: Console, cast: Cast, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._console = console
        self._clock = clock
        self._screen = Screen(console)
        self._glyphs = ASCII if console.options.ascii_only else UNICODE
        self._told: deque[Callable[[Progress], None]] = deque(maxlen=_MOST_TOLD)
        self._due_ns = 0
        self.state = LiveState(cast, clock())

    def say(self, text: str) -> None:
        self._told.append(lambda progress: progress.say(text))
        self.state.say(text)
        self._draw_if_due()

    def migration(self, source: str, target: str, number: int, of: int, vm: str | None = None) -> None:
        self._told.append(lambda progress: progress.migration(source, target, number, of, vm))
        self.state.migration(source, target, number, of, vm)
        self._draw_if_due()

    def event(self, event: dict[str, Any]) -> None:
        now_ns = self._clock()
        self.state.event(event, now_ns)
        if event["event"] != "beat":
            short = {name: value for name, value in event.items() if name != "map"}
            self._told.append(lambda progress: progress.event(short))
        self._draw_if_due()

    def _draw_if_due(self) -> None:
        now_ns = self._clock()
        if now_ns < self._due_ns or self.state.holding(now_ns):
            return
        width, height = self._screen.size
        if fits(width, height):
            self._screen.draw(picture(self.state, now_ns, width, height, self._glyphs))
        took_ns = self._clock() - now_ns
        copying = any(guest.phase == "precopy" for guest in self.state.moving)
        self._due_ns = now_ns + max(COPYING_NS if copying else DRAW_NS, took_ns * _SHARE)

    def __enter__(self) -> Self:
        self._screen.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Give the screen back, and say what was told."""
        self._screen.__exit__()
        if len(self._told) == _MOST_TOLD:
            self._console.print("earlier lines are left out; all of it is in events.jsonl", style="dim")
        progress = Progress(self._console)
        for tell in self._told:
            tell(progress)
