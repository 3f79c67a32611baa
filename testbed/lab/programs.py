"""Ordinary programs in the nodes of a lab: started, waited for, ended, and what they said kept.

Anything will do: redis-benchmark, curl, iperf3, ping, a shell script. A program is no part of the testbed
and knows nothing of it; what counts is its exit status and what it prints. It has a session of its own (a
Ctrl-C at the terminal is not for it), its standard input is empty, and its standard output and error go to
files of the run's folder, so that a program which prints much never waits for somebody to read.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from netns.namespace import Namespace
from testbed.measure.result import ProgramRun

Event = dict[str, Any]
EndedBy = Literal["itself", "deadline", "lab"]

TAIL_BYTES = 4096
"""How much of the end of each file goes into the result."""
GRACE_S = 1.0
"""How long a program that is asked to end (SIGTERM) may take before it is killed."""


class ProgramNotStarted(Exception):
    """There is no such program, or it cannot be run. One line that names it; nothing was started."""


@dataclass
class _Running:
    """One program, and what is known of it so far. `deadline_s` is on time.monotonic()'s clock."""

    name: str
    node: str
    command: tuple[str, ...]
    process: subprocess.Popen[bytes]
    pidfd: int
    out: Path
    err: Path
    begun_ns: int
    deadline_s: float | None
    ended_by: EndedBy = "itself"
    asked_to_end_s: float | None = None
    ended_ns: int | None = None
    status: int | None = None


class Programs:
    """The programs of one lab. `fileno()` is readable when one has ended: then :meth:`take`. A context
    manager that ends what still runs.

    A program with a deadline is asked to end (SIGTERM) when it is over, and killed a second later; as nothing
    becomes readable at that moment, wait no longer than :meth:`patience_s` and then :meth:`take`. What a
    program has left in its session when it ends itself is killed: it lives no longer than the program. (What
    has made a session of its own ends with the universe.)
    """

    def __init__(self, folder: Path) -> None:
        """Output goes to files in `folder`, ``<name>.out`` and ``<name>.err``."""
        self._folder = folder
        self._all: list[_Running] = []
        self._running: dict[int, _Running] = {}
        self._pending: list[Event] = []
        self._stack = ExitStack()
        self._epoll = self._stack.enter_context(select.epoll())

    def start(
        self,
        node: str,
        namespace: Namespace,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        deadline_s: float | None = None,
        name: str | None = None,
    ) -> str:
        """Start `command` in `namespace`, with `environment` beside our own; returns its name, made from node
        and command where none is given. Without `deadline_s` (from now) it may run as long as the lab.

        ProgramNotStarted where there is no such program, ValueError for an empty command or a name that is
        taken or no file name.
        """
        if not command or not command[0]:
            raise ValueError("a program is a command of at least one word that is not empty")
        searched = (environment or {}).get("PATH", os.environ.get("PATH"))
        if shutil.which(command[0], path=searched) is None:
            # Not left to exec, which names the last folder that it could not look into.
            raise ProgramNotStarted(f"{node}: cannot run {command[0]}: not found, or not executable")
        name = self._name(node, command, name)
        out, err = (self._folder / f"{name}.{suffix}" for suffix in ("out", "err"))
        with out.open("wb") as to_out, err.open("wb") as to_err, namespace.entered():
            begun_ns = time.monotonic_ns()
            try:
                process = subprocess.Popen(
                    list(command),
                    stdin=subprocess.DEVNULL,
                    stdout=to_out,
                    stderr=to_err,
                    env={**os.environ, **(environment or {})},
                    start_new_session=True,
                )
            except OSError as error:
                out.unlink()
                err.unlink()
                raise ProgramNotStarted(f"{node}: cannot run {command[0]}: {error.strerror}") from error
        deadline = None if deadline_s is None else time.monotonic() + deadline_s
        pidfd = os.pidfd_open(process.pid)
        one = _Running(name, node, tuple(command), process, pidfd, out, err, begun_ns, deadline)
        self._all.append(one)
        self._running[pidfd] = one
        self._epoll.register(pidfd, select.EPOLLIN)
        told = {"program": name, "pid": process.pid, "command": list(command)}
        self._pending.append({"t_ns": begun_ns, "source": node, "event": "program-begin", **told})
        return name

    def fileno(self) -> int:
        """Readable when a program has ended."""
        return self._epoll.fileno()

    @property
    def running(self) -> list[str]:
        """The names of those that have not ended, as far as :meth:`take` has noticed."""
        return [one.name for one in self._running.values()]

    def patience_s(self) -> float | None:
        """In how many seconds :meth:`take` must be called, if nothing becomes readable before; None: never.
        """
        dues = [due for one in self._running.values() if (due := _due_s(one)) is not None]
        return max(0.0, min(dues) - time.monotonic()) if dues else None

    def take(self) -> list[Event]:
        """End what is overdue and take in what has ended; the events since the last call, ``program-begin``
        (`program`, `pid`, `command`) and ``program-end`` (`program`, `status`, `signal`, `ended_by`). Never
        waits.
        """
        for fd, _ in self._epoll.poll(0):
            self._end(self._running[fd])
        now_s = time.monotonic()
        for one in self._running.values():
            due_s = _due_s(one)
            if due_s is not None and due_s <= now_s:
                self._press(one, "deadline")
        events, self._pending = self._pending, []
        return events

    def wait(self, timeout_s: float) -> bool:
        """Wait until every program has ended, for at most so long; whether they have. The events stay for
        :meth:`take`."""
        end_s = time.monotonic() + timeout_s
        while self._running:
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                return False
            patience_s = self.patience_s()
            self._epoll.poll(left_s if patience_s is None else min(left_s, patience_s))
            self._pending = self.take()
        return True

    def finish(self) -> None:
        """Ask what still runs to end, and kill what has not a second later. The events stay for :meth:`take`.
        """
        for one in list(self._running.values()):
            one.deadline_s = None
            self._press(one, "lab")
        while not self.wait(2 * GRACE_S):
            for one in self._running.values():
                self._press(one, "lab")

    def runs(self) -> list[ProgramRun]:
        """The result's rows, in the order of the start. What still runs has no `ended_by`."""
        return [_row(one) for one in self._all]

    def close(self) -> None:
        """End what still runs. Closing twice is allowed."""
        if not self._epoll.closed:
            self.finish()
            self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _name(self, node: str, command: Sequence[str], given: str | None) -> str:
        taken = {one.name for one in self._all}
        if given is not None:
            if not given or given in (".", "..") or "/" in given or "\0" in given:
                raise ValueError(f"not a name for a program: {given!r}")
            if given in taken:
                raise ValueError(f"there is a program {given!r} already")
            return given
        made = f"{node}-{Path(command[0]).name}"
        number = 1
        while (name := made if number == 1 else f"{made}-{number}") in taken:
            number += 1
        return name

    def _press(self, one: _Running, ended_by: EndedBy) -> None:
        """Ask a program to end; if it was asked a while ago, kill it."""
        now_s = time.monotonic()
        if one.asked_to_end_s is None:
            one.ended_by, one.asked_to_end_s = ended_by, now_s
            _signal_group(one, signal.SIGTERM)
        elif now_s >= one.asked_to_end_s + GRACE_S:
            _signal_group(one, signal.SIGKILL)

    def _end(self, one: _Running) -> None:
        """It has ended: note how, and end what it left behind, while its number is still its own."""
        one.ended_ns = time.monotonic_ns()
        _signal_group(one, signal.SIGKILL)
        status = one.process.wait()
        one.status = status
        self._epoll.unregister(one.pidfd)
        os.close(one.pidfd)
        del self._running[one.pidfd]
        told = {"program": one.name, "status": status if status >= 0 else None}
        told |= {"signal": _signal_name(status), "ended_by": one.ended_by}
        self._pending.append({"t_ns": one.ended_ns, "source": one.node, "event": "program-end", **told})


def _due_s(one: _Running) -> float | None:
    """When something is to be done about a program that does not end by itself."""
    if one.asked_to_end_s is not None:
        return one.asked_to_end_s + GRACE_S
    return one.deadline_s


def _signal_group(one: _Running, number: signal.Signals) -> None:
    """To the whole session; only before the program is reaped, for then its number may be another's."""
    with suppress(ProcessLookupError):  # killed before it had a session of its own, or none is left
        os.killpg(one.process.pid, number)


def _signal_name(status: int | None) -> str | None:
    return signal.Signals(-status).name if status is not None and status < 0 else None


def _row(one: _Running) -> ProgramRun:
    ended = one.ended_ns is not None
    return ProgramRun(
        name=one.name,
        node=one.node,
        command=list(one.command),
        exit_status=one.status if one.status is not None and one.status >= 0 else None,
        signal=_signal_name(one.status),
        ended_by=one.ended_by if ended else None,
        begun_ns=one.begun_ns,
        duration_ms=round((one.ended_ns - one.begun_ns) / 1e6, 3) if one.ended_ns is not None else None,
        output_file=one.out.name,
        error_file=one.err.name,
        output_tail=_tail(one.out),
        error_tail=_tail(one.err),
    )


def _tail(path: Path) -> str:
    """The end of a file as text; what is not UTF-8 in it is replaced."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return file.read().decode(errors="replace")
