"""The agent's hold on a guest's process that answers late."""

from __future__ import annotations

import os
import signal

import pytest

from netns.namespace import Namespace
from testbed.host import guest_process
from testbed.host.guest_process import GuestError, GuestProcess
from testbed.memory.region import Region

pytestmark = pytest.mark.universe(preload=("testbed.guest.machine",))

ARGUMENT = {"program": "echo", "host": "host-a", "fresh": True, "seed": 1, "max_connections": 64}


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that takes longer than the agent waits: the pause is given up, the guest runs on."""
    with Region.create(16 << 20) as ram, Namespace.create("guest") as namespace:
        process = GuestProcess.start(ARGUMENT, ram, namespace)
        process.ask({"do": "start"})
        os.kill(process.pid, signal.SIGSTOP)
        monkeypatch.setattr(guest_process, "ANSWER_DEADLINE_S", 0.2)
        with pytest.raises(GuestError, match="did not answer"):
            process.pause()
        os.kill(process.pid, signal.SIGCONT)
        monkeypatch.undo()
        assert "running" in process.unpause()
        assert process.ask({"do": "stats"})["state"] == "running"
        process.close()
