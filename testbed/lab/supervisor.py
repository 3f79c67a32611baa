"""Starts a host's agent, keeps what outlives it, and starts another in its place when it has died."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from netns.forkserver import Process, spawn
from netns.namespace import Namespace
from testbed.host.control import ControlError, Line
from testbed.host.keeper import Storeroom

ENTRY = "testbed.host.agent:main"
AGENTS = Path("/run/agents")


class Supervisor:
    """One host's agent, whichever it is just now. The guest outlives each of them: see
    :mod:`testbed.host.keeper`.
    """

    def __init__(self, name: str, namespace: Namespace, argument: Mapping[str, Any], log: Path) -> None:
        """Start the first agent, which is not ready when this returns."""
        self.name = name
        self.socket = AGENTS / name
        """Where agents of this host listen for an orchestrator."""
        self._namespace = namespace
        self._argument = dict(argument)
        self._log = log
        AGENTS.mkdir(exist_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.socket))
        self._listener.listen()
        self._storeroom = Storeroom()
        self.process = self._start()
        self.line = Line.connect(self.socket)

    def _start(self) -> Process:
        kept, fds = self._storeroom.kept()
        room = self._storeroom
        passed = [self._listener.fileno(), room.agents_end.fileno(), room.journal, room.store, *fds]
        argument = self._argument | {"kept": kept}
        namespace, log = self._namespace, self._log
        return spawn(ENTRY, argument, namespace=namespace, fds=passed, name=self.name, stderr=log)

    def fileno(self) -> int:
        """Readable when the agent has given something to be kept: then :meth:`take`."""
        return self._storeroom.fileno()

    def take(self) -> None:
        self._storeroom.take()

    def ask_status(self, deadline_s: float) -> dict[str, Any]:
        """What the agent says of its guest and of its last migration; an agent that is dead is replaced
        first."""
        try:
            return dict(self.line.ask({"do": "status"}, deadline_s))
        except ControlError:
            if self.process.wait(deadline_s) is None:
                raise
            self.replace(deadline_s)
            return dict(self.line.ask({"do": "status"}, deadline_s))

    def reconnect(self) -> None:
        """Speak to the agent again, after another orchestrator has."""
        self.line.close()
        self.line = Line.connect(self.socket)

    def replace(self, deadline_s: float) -> None:
        """The agent has died: start another, and wait until it has brought the guest to one state."""
        with self.process:
            pass
        self.line.close()
        self.process = self._start()
        self.line = Line.connect(self.socket)
        self.process.wait_ready(deadline_s)

    def close(self) -> None:
        """End the agent, and with it the guest."""
        with self.process:
            pass
        self.line.close()
        self._listener.close()
        self.socket.unlink(missing_ok=True)
        self._storeroom.close()
