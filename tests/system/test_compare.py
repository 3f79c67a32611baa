"""``testbed compare`` as people start it: turns, a folder for each run, and what really differs."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from netns import universe
from testbed.commands.ending import CHECK_FAILED, INTERRUPTED, PASSED
from testbed.experiment.run import give_to_caller
from testbed.measure import comparison, result
from tests.conftest import require
from tests.system.commands import Running, adopting, left_behind, run

RUNS = "testbed-runs"
SMALL = (
    *("--ram", "32MiB", "--connections", "4"),
    *("--with", "working-set=4MiB,baseline=200ms,clients=2,churn=20,stream-rate=50"),
)
LONG_BLACKOUT = (
    *("--ram", "256MiB", "--connections", "8"),
    *("--with", "mode=stop-and-copy,fill=0.8,interval=60ms,stream-rate=0,churn=0"),
)
"""Longer than half the clients' interval: some ask within it, and of those nothing else is on the way."""
RTO_FLOOR_MS = 200  # TCP_RTO_MIN, include/net/tcp.h


@pytest.fixture(autouse=True)
def possible() -> None:
    require("universe", lambda: universe.check() is None)


def compared(folder: Path, *words: str, status: int = PASSED) -> dict[str, Any]:
    """``comparison.json`` of `testbed compare WORDS --json`, which prints nothing else."""
    ended = run(folder, "compare", *words, "--json")
    assert ended.status == status, ended.err
    assert ended.err == ""
    (written,) = (folder / RUNS).glob("*-compare/comparison.json")
    assert written.read_text() == ended.out
    found: dict[str, Any] = json.loads(ended.out)
    jsonschema.validate(found, json.loads(comparison.SCHEMA_FILE.read_text()))
    return found


def difference(found: dict[str, Any], figure: str) -> dict[str, Any]:
    (one,) = [one for one in found["differences"] if one["figure"] == figure]
    return dict(one)


@pytest.mark.slow
def test_live_and_stop_and_copy_take_turns_and_each_run_keeps_its_result(tmp_path: Path) -> None:
    found = compared(tmp_path, "live", "stop-and-copy", *SMALL, "--repeats", "2")
    assert [(one["variant"], one["repeat"]) for one in found["runs"]] == [
        ("live", 1), ("stop-and-copy", 1), ("live", 2), ("stop-and-copy", 2),
    ]  # fmt: skip
    (folder,) = (tmp_path / RUNS).iterdir()
    for number, one in enumerate(found["runs"]):
        told = json.loads((folder / one["folder"] / "result.json").read_text())
        jsonschema.validate(told, json.loads(result.SCHEMA_FILE.read_text()))
        assert told["mode"] == one["variant"]
        assert told["options"]["seed"] == 1 + number // 2
        figures = found["variants"][number % 2]["figures"]
        assert figures["blackout_ms"]["values"][number // 2] == told["blackout_ms"]
        assert figures["longest_wait_ms"]["values"][number // 2] == told["clients"]["gap_ms"]["max"]
    live, stopped = found["variants"]
    assert live["options"] == stopped["options"] | {"mode": "live"}
    assert live["options"]["working_set_bytes"] == 4 << 20
    assert difference(found, "blackout_ms")["value"] > 0


@pytest.mark.slow
def test_frames_that_are_not_held_cost_a_retransmission(tmp_path: Path) -> None:
    """The negative control: holding off against holding on shows the 200 ms of TCP's shortest timeout."""
    found = compared(tmp_path, "hold=yes", "hold=no", *LONG_BLACKOUT)
    held, lost = (one["figures"] for one in found["variants"])
    assert min(lost["longest_wait_ms"]["values"]) >= RTO_FLOOR_MS
    assert lost["retransmits"]["low"] > 0
    assert {one["figures"]["broken"]["high"] for one in found["variants"]} == {0}
    if held["blackout_ms"]["high"] < RTO_FLOOR_MS / 2:  # else clients send again what is merely held
        waits = difference(found, "longest_wait_ms")
        assert waits["real"]
        assert waits["sentence"].startswith("hold=yes's clients' longest wait is ")
        assert difference(found, "retransmits")["real"]


@pytest.mark.slow
def test_it_tells_of_each_run_and_ends_as_the_worst_of_them(tmp_path: Path) -> None:
    """A guest whose MAC address changes without a word cuts off new connections; the other runs are well."""
    cut_off = "mac=per-host,announce=none,churn=40"
    ended = run(tmp_path, "compare", "live", cut_off, *SMALL, "--repeats", "1")
    assert ended.status == CHECK_FAILED, ended.err
    lines = ended.out.splitlines()
    assert lines[0] == "run 1 of 2: live"
    assert f"run 2 of 2: {cut_off}" in lines
    assert [line for line in lines if line.startswith("  ✗ 02-mac=per-host")]
    assert not [line for line in lines if line.startswith("  ✗ 01-live")]


def test_under_sudo_the_folders_of_the_runs_are_the_callers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / RUNS / "20260101-000000-compare"
    written = folder / "01-live" / "result.json"
    written.parent.mkdir(parents=True)
    written.touch()
    given: list[tuple[Path, int, int]] = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chown", lambda path, uid, gid: given.append((path, uid, gid)))
    monkeypatch.setenv("SUDO_UID", "1000")
    monkeypatch.setenv("SUDO_GID", "1001")
    give_to_caller(folder)
    expected = [(path, 1000, 1001) for path in (folder.parent, folder, written.parent, written)]
    assert sorted(given) == sorted(expected)


@pytest.mark.parametrize("moment", ["run 1", "run 2"])
def test_ctrl_c_leaves_the_runs_that_are_over(tmp_path: Path, moment: str) -> None:
    with adopting():
        running = Running(tmp_path, "compare", "live", "stop-and-copy", *SMALL)
        running.wait_for(moment)
        running.send(signal.SIGINT, group=True)
        ended = running.end()
        assert left_behind() == []
    assert ended.status == INTERRUPTED
    assert ended.err.splitlines() == ["testbed: ended by Ctrl-C; nothing of the lab is left"]
    left = [path.parent.name for path in (tmp_path / RUNS).glob("*/*/result.json")]
    assert left == ([] if moment == "run 1" else ["01-live"])
    assert (tmp_path / RUNS).exists() == (moment == "run 2")
