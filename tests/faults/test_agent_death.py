"""An agent that dies leaves its guest alone: another agent takes its place, and no client notices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from testbed.faults.kinds import Fault, Kind
from testbed.migration.phases import Phase
from testbed.scenario.lab import Lab
from tests.system.labs import PRELOAD, SMALL

pytestmark = pytest.mark.universe(preload=PRELOAD)

DEADLINE_S = 60


@pytest.fixture(params=[0, 8 << 20], ids=["alone", "shared-storage"])
def lab(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Lab]:
    options = replace(SMALL, ram_bytes=32 << 20, disk_bytes=request.param)
    with Lab(options, tmp_path, peer_deadline_s=3.0) as standing:
        standing.boot([])
        standing.start_clients()
        yield standing


def assert_clients_unbroken(lab: Lab) -> None:
    lab.watch(0.5, lambda event: None)
    for name, summary in lab.stop_clients([]).items():
        for probe in summary["probes"]:
            wrong = {key: probe[key] for key in ("broken", "resets", "failed_connects", "bytes_lost")}
            assert not any(wrong.values()), (name, probe["kind"], wrong, probe["reasons"])


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("kind", [Kind.SOURCE_AGENT_KILLED, Kind.TARGET_AGENT_KILLED])
def test_whenever_an_agent_dies_the_guest_runs_on_one_host(lab: Lab, kind: Kind, phase: Phase) -> None:
    lab.migrate(lambda event: None, DEADLINE_S, [], fault=Fault(phase, kind))
    found = lab.settle(DEADLINE_S)
    assert sorted(str(status["guest"]) for status in found.values()) == ["None", "running"]
    source_answer, target_answer = lab.migrate(lambda event: None, DEADLINE_S, [])
    assert "error" not in source_answer | target_answer
    assert source_answer["audited"]
    assert_clients_unbroken(lab)
