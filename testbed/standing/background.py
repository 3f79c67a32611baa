"""How a lab gets into the background: forked, in a session of its own, watched until it stands.

    starter    the terminal's process: forks the holder, hears what it says, returns when the lab stands
    holder     waits for the universe, and clears up after it; has the name (testbed.standing.registry)
    server     main of the universe: brings the lab up, says so, serves it

Until the lab stands the starter owns it: it hangs up, by Ctrl-C or however it ends, and the lab goes. From
then on the starter is one terminal among others.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from testbed.standing.client import Conversation
from testbed.standing.protocol import LabGone, Message, encode

END_DEADLINE_S = 10.0
LOG = "lab.log"


class StarterGone(Exception):
    """Whoever wanted the lab is not there any more."""


class Voice:
    """The new lab's word to the terminal that starts it."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def say(self, message: Message) -> None:
        """StarterGone if nobody hears it."""
        try:
            self._socket.sendall(encode(message))
        except OSError as error:
            raise StarterGone from error

    def fail(self, text: str, status: int) -> None:
        """The last word of a lab that cannot be brought up."""
        with suppress(StarterGone):
            self.say({"error": text, "status": status})

    def close(self) -> None:
        self._socket.close()


class Background:
    """A lab that is coming up. A context manager: left by an exception, the lab ends."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self._conversation = Conversation(connection)

    def wait_standing(self, on_progress: Callable[[Message], None]) -> Message:
        """What the server says when the lab stands. Refused with its reason if it cannot; LabGone if it
        died."""
        return self._conversation.answer(None, on_progress)

    def end(self) -> None:
        """End it, and wait for that."""
        self._conversation.close()
        end(self.pidfd)
        with suppress(ChildProcessError):  # reaped by whoever started it
            os.waitpid(self.pid, 0)

    def __enter__(self) -> Background:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is not None:
                self.end()
        finally:
            self._conversation.close()
            os.close(self.pidfd)


def start(hold: Callable[[Voice], int], log: Path) -> Background:
    """Fork a holder, whose life is `hold`; its output and its universe's go to `log`."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        pid = os.fork()
        if pid == 0:
            ours.close()
            _be_holder(hold, Voice(theirs), descriptor)
    finally:
        os.close(descriptor)
    theirs.close()
    return Background(pid, ours)


def end(pidfd: int) -> None:
    """End a holder: asked first, killed if it takes too long. Returns when it and its universe are gone."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)
        if select.select([pidfd], [], [], END_DEADLINE_S)[0]:
            return


def wait_for_end(pidfd: int, timeout_s: float) -> bool:
    """Whether a holder has ended within so long."""
    return bool(select.select([pidfd], [], [], timeout_s)[0])


def _be_holder(hold: Callable[[Voice], int], voice: Voice, log: int) -> NoReturn:
    """The holder's life: never returns into the frames of the starter."""
    status = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, goal in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, goal)
        os.close(null)
        sys.stdout = open(1, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
        status = hold(voice)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # the log has no room for more
                stream.flush()
        os._exit(status & 0xFF)


__all__ = ["Background", "LabGone", "StarterGone", "Voice", "end", "start", "wait_for_end"]
