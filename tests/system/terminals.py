"""A command on a terminal of the test's: what it writes, keys for it, and the terminal's own state."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.system.commands import COMMAND, DEADLINE_S

ECHO = termios.ECHO


def _unsized() -> dict[str, str]:
    """Our environment, without what a parallel test run says of a size: it would outdo the terminal's own."""
    return {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}


class OnTerminal:
    """`testbed WORDS` in `folder` with a terminal of `columns` x `lines` as its controlling one."""

    def __init__(
        self, folder: Path, *words: str, columns: int = 80, lines: int = 24, **environment: str
    ) -> None:
        self._master, slave = pty.openpty()
        self.resize(columns, lines)
        self.settings = termios.tcgetattr(slave)
        """As they were before anything ran."""
        self._slave = slave
        self.process = subprocess.Popen(
            [*COMMAND, *words], cwd=folder, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env={**_unsized(), "TERM": "xterm-256color", **environment},
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        self.written = b""

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def wait_for(self, text: str, since: int = 0) -> None:
        """Until `text` has been written, not before byte number `since`."""
        end_s = time.monotonic() + DEADLINE_S
        while text.encode() not in self.written[since:]:
            assert time.monotonic() < end_s, f"no {text!r} in {self.written[-3000:]!r}"
            assert self._read(end_s - time.monotonic()), f"ended without {text!r}: {self.written[-3000:]!r}"

    def end(self) -> int:
        """Its exit status, when all that it wrote has been read."""
        end_s = time.monotonic() + DEADLINE_S
        while self.process.poll() is None:
            assert time.monotonic() < end_s, "it does not end"
            self._read(0.05)
        while self._read(0):
            pass
        return self.process.returncode

    def settings_now(self) -> list[Any]:
        return termios.tcgetattr(self._slave)

    def kill_group(self, number: signal.Signals) -> None:
        os.killpg(self.process.pid, number)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)
        os.close(self._slave)

    def _read(self, timeout_s: float) -> bool:
        if not select.select([self._master], [], [], max(timeout_s, 0))[0]:
            return False
        data = os.read(self._master, 1 << 16)
        self.written += data
        return bool(data)


@contextmanager
def on_terminal(folder: Path, *words: str, **options: Any) -> Iterator[OnTerminal]:
    terminal = OnTerminal(folder, *words, **options)
    try:
        yield terminal
    finally:
        terminal.close()
