"""Both agents die at once, in the middle: what the guest's state and its LUN come to then."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from testbed.commands.faults import options_for
from testbed.experiment.sweep import counted
from tests.system.labs import PRELOAD, lab_of, move

pytestmark = pytest.mark.universe(preload=PRELOAD)

DEADLINE_S = 60


def test_a_guest_whose_lun_was_already_let_go_gets_it_back(tmp_path: Path) -> None:
    """The target was reading the saved state: the LUN is mounted there, and whoever reads is dead."""
    options = replace(options_for("64MiB", "quick", 1, storage=True), storage_rate_bits_per_s=200_000_000)
    with lab_of(options, tmp_path) as lab:
        lab.boot()
        lab.start_clients()

        def kill_both(event: dict[str, Any]) -> None:
            if event["event"] == "mark" and event["name"] == "dismounted":
                for agent in lab.vm.agents.values():
                    agent.process.kill()

        move(lab, kill_both)
        found = lab.settle(lab.vm, DEADLINE_S)
        assert {host: status["guest"] for host, status in found.items()} == {
            "host-a": "running",
            "host-b": None,
        }
        lab.watch(1.0, lambda event: None)
        counts = counted(lab.report_clients())
        assert {name: count for name, count in counts.items() if count} == {}
        source, target = move(lab)
        assert "error" not in source | target
        assert source["audited"]
        last = counted(lab.stop_clients([]))
        assert {name: count for name, count in last.items() if count} == {}
