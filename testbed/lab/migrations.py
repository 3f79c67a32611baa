"""Migrations as orders: what is asked for (:class:`Move`), what the two agents are told, what came of it.

Nothing is decided here. The target is told first, for it must listen before the source connects; from then on
the two settle the migration between themselves, and each answers when it is through.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.faults.kinds import Fault
from testbed.host.control import ControlError, Line
from testbed.scenario.model import Manner

ORDER_DEADLINE_S = 30.0
MEND_AFTER_S = 4.0
"""How long a fault made on purpose lasts, where nothing ends without its end: longer than every patience."""
Answer = dict[str, Any]


@dataclass(frozen=True)
class Move:
    """A guest, by name, that is to go to a host, in which manner, and the fault that is made on the way. One
    side may be silent towards the other for `peer_deadline_s`, or for as long as it may in its lab."""

    vm: str
    target: str
    manner: Manner
    fault: Fault | None = None
    peer_deadline_s: float | None = None


@dataclass(frozen=True)
class Moved:
    """What came of a move: the answers of both agents, each with ``error`` if it failed, and when it was
    ordered and over (CLOCK_MONOTONIC, ns)."""

    move: Move
    source: str
    source_answer: Answer
    target_answer: Answer
    ordered_ns: int
    ended_ns: int

    @property
    def failed(self) -> bool:
        return "error" in self.source_answer or "error" in self.target_answer


@dataclass(frozen=True)
class Way:
    """How a guest's migrations travel: the target's address, the guest's port there, and for how long one
    side may be silent towards the other."""

    address: str
    port: int
    deadline_s: float


def orders(move: Move, way: Way, import_path: Sequence[str]) -> tuple[Answer, Answer]:
    """What the target and the source are told."""
    common = {
        "secret": secrets.token_hex(32),
        "port": way.port,
        "fault": None if move.fault is None else str(move.fault),
        "deadline_s": way.deadline_s,
    }
    receiving = {"do": "receive", "import_path": list(import_path)}
    sending = {"do": "migrate", "address": way.address, "plan": _plan(move.manner)}
    return common | receiving, common | sending


def _plan(manner: Manner) -> Answer:
    rate = manner.max_bandwidth_bits_per_s
    return {
        "policy": {
            "downtime_limit_ns": manner.downtime_limit_ns,
            "max_rounds": manner.max_rounds,
            "on_stall": manner.on_stall,
        },
        "precopy": manner.mode == "live",
        "whole": manner.mode == "quick",
        "rate_limit": None if rate is None else rate // 8,
    }


class Flight:
    """One migration under way, from the orders to both answers. Raises ControlError when an agent is gone or
    silent."""

    def __init__(
        self, move: Move, way: Way, source: str, lines: tuple[Line, Line], import_path: Sequence[str]
    ) -> None:
        """Give the orders, to source and target by their `lines`."""
        self.move = move
        self._source = source
        self._source_line, self._target_line = lines
        self._answers: dict[Line, Answer] = {}
        self._ended_ns = 0
        receiving, sending = orders(move, way, import_path)
        self._ordered_ns = time.monotonic_ns()
        self._target_line.ask(receiving, ORDER_DEADLINE_S)
        self._source_line.ask(sending, ORDER_DEADLINE_S)

    @property
    def waiting(self) -> list[Line]:
        """The lines from which an answer is still to come."""
        return [line for line in (self._source_line, self._target_line) if line not in self._answers]

    def take(self) -> None:
        """Take in the answers that are there."""
        for line in self.waiting:
            answer = _answer_from(line)
            if answer is not None:
                self._answers[line] = answer
                self._ended_ns = time.monotonic_ns()

    @property
    def moved(self) -> Moved:
        """What came of it, once nothing is waited for."""
        source, target = self._answers[self._source_line], self._answers[self._target_line]
        return Moved(self.move, self._source, source, target, self._ordered_ns, self._ended_ns)


def _answer_from(line: Line) -> Answer | None:
    """An agent's final answer if it is there; where the agent is gone, an answer that says so."""
    try:
        message = line.poll()
    except ControlError as error:
        return {"error": f"the agent is gone: {error}", "kind": "AgentGone"}
    return None if message is None else dict(message.get("ok", message))


class Mending:
    """When what a fault did is to be undone: MEND_AFTER_S after it happened, of which its event tells. (Not
    after the order: on a busy machine its phase may begin later than that, and it would last for ever.)
    """

    def __init__(
        self, on_event: Callable[[dict[str, Any]], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Events are passed on to `on_event`."""
        self._on_event = on_event
        self._clock = clock
        self._due_s: float | None = None

    def event(self, event: dict[str, Any]) -> None:
        if event["event"] == "fault":
            self._due_s = self._clock() + MEND_AFTER_S
        self._on_event(event)

    def patience_s(self, left_s: float) -> float:
        """How long to wait at most, of the `left_s` that there are."""
        return left_s if self._due_s is None else min(left_s, self._due_s - self._clock())

    def is_due(self) -> bool:
        """Whether to mend now; once for each time that a fault happened."""
        if self._due_s is None or self._clock() < self._due_s:
            return False
        self._due_s = None
        return True
