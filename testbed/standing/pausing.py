"""A pause in a run whose checks have failed: its lab still stands, and one can be in its nodes.

The run's process has no controlling terminal, but it has the terminal that the command was given. So a shell
gets a pseudo-terminal of its own, with which it controls jobs as ever, and everything is passed on between
the two. The lab is attended to all the while.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from netns.namespace import Namespace
from testbed.lab.lab import Lab
from testbed.standing.nodes import shell_of

_IN, _OUT = 0, 1
_READ_BYTES = 1 << 14
_FOREVER_S = 3600.0
_END_DEADLINE_S = 5.0


def is_possible() -> bool:
    """Whether there is a terminal to be asked at."""
    return os.isatty(_IN) and os.isatty(_OUT)


def pause(lab: Lab, name: str) -> None:
    """Ask for a node and be in it, again and again, until a line is empty or the terminal says end of file.
    OSError when the terminal is gone."""
    first = lab.scenario.clients[0].name
    nodes = (*lab.scenario.nodes, *lab.vms)
    with _settings(_ordinary):
        _say(f"\nA check has failed, and the lab stands: {', '.join(nodes)}\n")
        while node := _asked(lab, f"Be in which node ({first}, ...)? Enter alone ends the lab: "):
            if node not in nodes:
                _say(f"there is no node {node!r}; there are {', '.join(nodes)}\n")
                continue
            _be_in(lab, name, node)


def _be_in(lab: Lab, name: str, node: str) -> None:
    """A shell in a node, until it has ended."""
    guest = lab.vms.get(node)
    command, environment, bashrc = shell_of(name, node)
    ours, theirs = os.openpty()
    passed = () if bashrc is None else (bashrc,)
    try:
        _copy_size(theirs)
        with Namespace.open(node if guest is None else guest.namespace) as namespace, namespace.entered():
            shell = subprocess.Popen(
                command, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, **environment},
                start_new_session=True, pass_fds=passed, preexec_fn=_control_terminal,
            )  # fmt: skip
    finally:
        os.close(theirs)
        for descriptor in passed:
            os.close(descriptor)
    try:
        with _settings(tty.setraw):
            _pass_on(lab, ours)
    finally:
        shell.kill()
        shell.wait(_END_DEADLINE_S)
        os.close(ours)


def _control_terminal() -> None:
    fcntl.ioctl(_IN, termios.TIOCSCTTY, 0)


def _pass_on(lab: Lab, shell: int) -> None:
    """What is typed goes to the shell, what it writes to the terminal, until nobody has its side open any
    more."""
    ended = False

    def typed() -> None:
        nonlocal ended
        data = os.read(_IN, _READ_BYTES)
        ended = ended or not data
        _copy_size(shell)
        os.write(shell, data)

    def shown() -> None:
        nonlocal ended
        try:
            _write(os.read(shell, _READ_BYTES))
        except OSError:  # EIO: the last one has closed its side
            ended = True

    terminal, other = _Source(_IN), _Source(shell)
    lab.attended |= {terminal: typed, other: shown}
    try:
        while not ended:
            lab.wait(_FOREVER_S, _unwatched)
    finally:
        del lab.attended[terminal], lab.attended[other]


def _asked(lab: Lab, question: str) -> str:
    """The line that is typed, without its end; empty at the end of the file."""
    line: str | None = None

    def typed() -> None:
        nonlocal line
        line = os.read(_IN, _READ_BYTES).decode(errors="replace")

    _say(question)
    source = _Source(_IN)
    lab.attended[source] = typed
    try:
        while line is None:
            lab.wait(_FOREVER_S, _unwatched)
    finally:
        del lab.attended[source]
    return line.strip()


class _Source:
    """A descriptor, for those who wait on what has one."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor


def _unwatched(_: dict[str, Any]) -> None:
    """What happens in the pause is not of the run."""


# ---- the terminal


def _say(text: str) -> None:
    _write(text.encode())


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(_OUT, data) :]


def _copy_size(to: int) -> None:
    """A window may have been resized since; nobody tells a process that the terminal does not control."""
    termios.tcsetwinsize(to, termios.tcgetwinsize(_IN))


@contextmanager
def _settings(change: Callable[[int], Any]) -> Iterator[None]:
    """The terminal is as `change` makes it in the block, and as before afterwards."""
    before = termios.tcgetattr(_IN)
    change(_IN)
    try:
        yield
    finally:
        termios.tcsetattr(_IN, termios.TCSADRAIN, before)


def _ordinary(descriptor: int) -> None:
    """Whole lines, which are shown as they are typed, and Ctrl-C."""
    settings = termios.tcgetattr(descriptor)
    settings[3] |= termios.ICANON | termios.ECHO | termios.ISIG
    termios.tcsetattr(descriptor, termios.TCSADRAIN, settings)
