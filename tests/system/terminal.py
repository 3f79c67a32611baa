"""A terminal for a test: a command is started in one of its own, is typed to, and what it shows is waited
for."""

from __future__ import annotations

import os
import pty
import select
import termios
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

DEADLINE_S = 60.0


class Terminal:
    """`command` with a pseudo-terminal as its controlling one. A context manager that hangs it up."""

    def __init__(self, *command: str) -> None:
        self.shown = ""
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            os.execvp(command[0], command)

    def wait_for(self, text: str) -> None:
        """Until `text` has been shown since the last call; what is shown after it is for the next."""
        end_s = time.monotonic() + DEADLINE_S
        begun = self.shown
        while text not in self.shown:
            left_s = max(0.0, end_s - time.monotonic())
            assert select.select([self._fd], [], [], left_s)[0], f"no {text!r} in {self.shown!r}"
            try:
                data = os.read(self._fd, 1 << 16)
            except OSError as error:  # EIO: nobody has the other side open any more
                raise AssertionError(f"ended without {text!r}: {self.shown!r}") from error
            self.shown += data.decode(errors="replace")
        assert text in self.shown, begun
        self.shown = self.shown.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    @property
    def settings(self) -> list[Any]:
        """tcgetattr(3), without the control characters."""
        return termios.tcgetattr(self._fd)[:6]

    @property
    def foreground(self) -> int:
        """The process group that has the terminal; 0 for one in another pid namespace."""
        return os.tcgetpgrp(self._fd)

    @property
    def pid(self) -> int:
        return self._pid

    def ends(self, within_s: float) -> bool:
        """Whether the command ends within that time."""
        pidfd = os.pidfd_open(self._pid)
        try:
            return bool(select.select([pidfd], [], [], within_s)[0])
        finally:
            os.close(pidfd)

    def status(self) -> int:
        """The command's exit status, when it has ended; what it shows until then is kept in `shown`."""
        while True:
            try:
                data = os.read(self._fd, 1 << 16)
            except OSError:
                break
            if not data:
                break
            self.shown += data.decode(errors="replace")
        _, status = os.waitpid(self._pid, 0)
        self._pid = -1
        return os.waitstatus_to_exitcode(status)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)
        if self._pid > 0:
            os.waitpid(self._pid, 0)


def command(*words: str) -> Sequence[str]:
    """`testbed WORDS`, quoted for a shell."""
    import shlex
    import sys

    return [shlex.quote(word) for word in (sys.executable, "-m", "testbed", *words)]
