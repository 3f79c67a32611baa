"""A terminal's whole screen, drawn on and given back as it was.

Pictures go to the alternate screen (xterm's private mode 1049), so that what stood on the terminal is there
again afterwards. Only lines that have changed are written, all of them in one piece, so nothing flickers, and
a terminal that knows synchronised updates (mode 2026) shows them at once.

Whoever draws may be killed. So a terminal is *lent* by a process that outlives it (:func:`lent`).
"""

from __future__ import annotations

import os
import signal
import sys
import termios
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO

from rich.console import Console
from rich.text import Text

_ENTER = "\x1b[?1049h\x1b[?25l\x1b[2J"
_LEAVE = "\x1b[?2026l\x1b[0m\x1b[?25h\x1b[?1049l"
_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"
_LOCAL_FLAGS, _SPECIAL = 3, 6  # termios(3): c_lflag, c_cc


class Screen:
    """The screen of the terminal that `console` writes to, from `enter` to `leave`. A context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._drawn: list[Text] = []
        self._size = (0, 0)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines, as they are now."""
        return self._console.size

    def draw(self, lines: Sequence[Text]) -> None:
        """Show `lines`, from the top. OSError when the terminal is gone."""
        parts = []
        if self.size != self._size:
            self._size = self.size
            self._drawn = []
            parts.append("\x1b[2J")
        for number, line in enumerate(lines):
            before = self._drawn[number] if number < len(self._drawn) else None
            if before is None or (before.plain, before.spans) != (line.plain, line.spans):
                parts.append(f"\x1b[{number + 1};1H{self._coded(line)}\x1b[K")
        self._drawn = [line.copy() for line in lines]
        if parts:
            self._write("".join((_BEGIN, *parts, _END)))

    def _coded(self, line: Text) -> str:
        with self._console.capture() as captured:
            self._console.print(line, end="", no_wrap=True, overflow="crop", crop=True)
        return captured.get()

    def _write(self, text: str) -> None:
        file: IO[str] = self._console.file
        encoding = self._console.encoding
        file.write(text.encode(encoding, "replace").decode(encoding))
        file.flush()

    def __enter__(self) -> Screen:
        self._write(_ENTER)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # a terminal that is gone needs nothing back
            self._write(_LEAVE)


@contextmanager
def lent() -> Iterator[None]:
    """For the length of the block somebody else may draw on standard output's terminal; after it, the screen,
    the cursor and the keyboard are as they were, whatever became of him.

    Meanwhile keys are not echoed into the picture, and Ctrl-Z does nothing: what draws is not in the
    terminal's session and would go on drawing.
    """
    out = sys.stdout.fileno()
    before = termios.tcgetattr(out)
    quiet = termios.tcgetattr(out)
    quiet[_LOCAL_FLAGS] &= ~termios.ECHO
    quiet[_SPECIAL][termios.VSUSP] = b"\0"
    termios.tcsetattr(out, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        with suppress(OSError, termios.error), _undisturbed():
            os.write(out, _LEAVE.encode())
            termios.tcsetattr(out, termios.TCSAFLUSH, before)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Setting a terminal from a process that is not in its foreground stops that process, unless it ignores
    that."""
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTTOU, before)
