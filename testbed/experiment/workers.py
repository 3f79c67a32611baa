"""Labs beside each other: a process for each worker, with a universe of its own inside the comparison's.

A universe in a universe ends with it, so whoever ends the comparison ends all of its labs. A worker is told
the number of a turn over a socket, and says when it is over; what came of it lies in the turn's folder. A
worker that dies takes down the run that it was at, and no other: what waits is done by one in its place.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from netns import universe
from testbed.lab.lab import PRELOAD
from testbed.scenario.variants import Contender

_MOST_BYTES = 1 << 16


@dataclass(frozen=True)
class Turn:
    """A run that is to be made: its place in the order and its repeat (both from 1), of whom, and in which
    folder."""

    number: int
    repeat: int
    contender: Contender
    folder: str


@dataclass
class _Worker:
    pid: int
    line: socket.socket
    turn: Turn | None = None
    died: bool = False

    def fileno(self) -> int:
        return self.line.fileno()

    def begin(self, turn: Turn) -> None:
        self.turn = turn
        with suppress(BrokenPipeError):  # it has died: the end of its line says so
            self.line.send(json.dumps({"turn": turn.number}).encode())

    def over(self) -> tuple[Turn, str | None]:
        """The turn that it was at, and what brought its lab down."""
        try:
            said = self.line.recv(_MOST_BYTES)
        except ConnectionResetError:
            said = b""
        assert self.turn is not None
        turn, self.turn = self.turn, None
        self.died = not said
        return turn, "its worker died" if self.died else json.loads(said)["error"]


def beside_each_other(
    turns: Sequence[Turn],
    workers: int,
    attempt: Callable[[Turn], Exception | None],
    begin: Callable[[Turn], None],
) -> Iterator[tuple[Turn, str | None]]:
    """Make all turns, so many at a time: each as it is over, with what brought its lab down. `begin` is
    called here and `attempt` in a worker. Closing the iterator ends all workers."""
    waiting = list(reversed(turns))
    standing = [_started(turns, attempt) for _ in range(min(workers, len(turns)))]
    try:
        for worker in standing:
            _next(worker, waiting, begin)
        while busy := [worker for worker in standing if worker.turn is not None]:
            for worker in select.select(busy, [], [])[0]:
                yield worker.over()
                if not worker.died:
                    _next(worker, waiting, begin)
                elif waiting:
                    standing.append(_started(turns, attempt))
                    _next(standing[-1], waiting, begin)
    finally:
        for worker in standing:
            worker.line.close()
        _end(standing)


def _next(worker: _Worker, waiting: list[Turn], begin: Callable[[Turn], None]) -> None:
    if waiting:
        turn = waiting.pop()
        begin(turn)
        worker.begin(turn)


def _started(turns: Sequence[Turn], attempt: Callable[[Turn], Exception | None]) -> _Worker:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            ours.close()
            status = universe.run(lambda: _work(theirs, turns, attempt), preload=PRELOAD)
        finally:
            os._exit(status)
    theirs.close()
    return _Worker(pid, ours)


def _work(line: socket.socket, turns: Sequence[Turn], attempt: Callable[[Turn], Exception | None]) -> int:
    """In the worker's universe: do what is asked until nobody asks any more."""
    of = {turn.number: turn for turn in turns}
    while said := line.recv(_MOST_BYTES):
        error = attempt(of[json.loads(said)["turn"]])
        told = None if error is None else f"{type(error).__name__}: {' '.join(str(error).split())}"
        line.send(json.dumps({"error": told}).encode())
    return 0


def _end(workers: Sequence[_Worker]) -> None:
    """Those that are at work are ended; those that wait have seen the end of their line."""
    for worker in workers:
        if worker.turn is not None:
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGTERM)
    for worker in workers:
        os.waitpid(worker.pid, 0)
