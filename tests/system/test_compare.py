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
    *("--ram", "16MiB", "--bandwidth", "1500mbit", "--connections", "8"),
    *("--with", "mode=stop-and-copy,fill=0.8,working-set=4MiB,interval=60ms,stream-rate=0,churn=0"),
)
"""Longer than half the clients' interval: some ask within it, and of those nothing else is on the way. A slow
wire makes it long, and not much RAM: two agents that copy, and are urgent, would leave clients no processor
to ask on where other labs run beside this one.
"""
RTO_FLOOR_MS = 200  # TCP_RTO_MIN, include/net/tcp.h


@pytest.fixture(autouse=True)
def possible() -> None:
    require("universe", lambda: universe.check() is None)


def compared(folder: Path, *words: str, status: int = PASSED, err: str = "") -> dict[str, Any]:
    """``comparison.json`` of `testbed compare WORDS --json`, which prints nothing else."""
    ended = run(folder, "compare", *words, "--json")
    assert ended.status == status, ended.err
    assert ended.err == err
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
    assert found["complete"]
    order = [(one["repeat"], one["variant"]) for one in found["runs"]]
    assert sorted(order) == [
        (repeat, label) for repeat in (1, 2) for label in ("live", "stop-and-copy")
    ]  # fmt: skip
    assert [repeat for repeat, _ in order] == [1, 1, 2, 2]
    (folder,) = (tmp_path / RUNS).iterdir()
    by_label = {one["label"]: one for one in found["variants"]}
    for one in found["runs"]:
        told = json.loads((folder / one["folder"] / "result.json").read_text())
        jsonschema.validate(told, json.loads(result.SCHEMA_FILE.read_text()))
        assert told["mode"] == one["variant"]
        assert told["options"]["seed"] == one["repeat"]
        figures, place = by_label[one["variant"]]["figures"], one["repeat"] - 1
        assert figures["blackout_ms"]["values"][place] == told["blackout_ms"]
        assert figures["longest_wait_ms"]["values"][place] == told["clients"]["gap_ms"]["max"]
    live, stopped = found["variants"]
    assert live["options"] == stopped["options"] | {"mode": "live"}
    assert live["options"]["working_set_bytes"] == 4 << 20
    assert difference(found, "blackout_ms")["value"] > 0
    assert "<svg" in (folder / "comparison.html").read_text()


@pytest.mark.slow
def test_frames_that_are_not_held_cost_a_retransmission(tmp_path: Path) -> None:
    """The negative control: holding off against holding on shows the 200 ms of TCP's shortest timeout."""
    found = compared(tmp_path, "hold=yes", "hold=no", *LONG_BLACKOUT, "--repeats", "2")
    held, lost = (one["figures"] for one in found["variants"])
    assert min(lost["longest_wait_ms"]["values"]) >= RTO_FLOOR_MS
    assert lost["retransmits"]["low"] > 0
    assert {one["figures"]["broken"]["high"] for one in found["variants"]} == {0}
    if held["longest_wait_ms"]["high"] < RTO_FLOOR_MS:  # else clients sent again what is merely held
        waits = difference(found, "longest_wait_ms")
        assert waits["sentence"].startswith("hold=yes's clients' longest wait is ")
        assert waits["chance"] == pytest.approx(1 / 3)  # wholly apart; two runs a side can tell no more
        assert "not shown by these 4 runs" in waits["sentence"]


@pytest.mark.slow
def test_it_tells_of_each_run_and_ends_as_the_worst_of_them(tmp_path: Path) -> None:
    """A guest whose MAC address changes without a word cuts off new connections; the other runs are well."""
    cut_off = "mac=per-host,announce=none,churn=40"
    ended = run(tmp_path, "compare", "live", cut_off, *SMALL, "--repeats", "1")
    assert ended.status == CHECK_FAILED, ended.err
    lines = ended.out.splitlines()
    begun = [line.partition(" (about")[0] for line in lines if line.startswith("run ")]
    assert sorted(line.partition(": ")[2] for line in begun) == ["live", cut_off]
    assert [line.partition(":")[0] for line in begun] == ["run 1 of 2", "run 2 of 2"]
    wrong = [line for line in lines if line.startswith("  ✗ ")]
    assert len(wrong) == 1
    assert "mac=per-host" in wrong[0]


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
    left = [path.parent.name[:4] for path in (tmp_path / RUNS).glob("*/*/result.json")]
    assert left == ([] if moment == "run 1" else ["0001"])
    assert (tmp_path / RUNS).exists() == (moment == "run 2")
    for path in (tmp_path / RUNS).glob("*/comparison.json"):
        told = json.loads(path.read_text())
        assert (told["complete"], len(told["runs"])) == (False, 1)


@pytest.mark.slow
def test_a_grid_of_labs_beside_each_other_compares_what_is_no_time(tmp_path: Path) -> None:
    warning = (
        "testbed: --workers 2: labs run beside each other, ALL TIMES ARE SPOILED; "
        "only counts and bytes are compared\n"
    )
    grid = ("hold=yes/no", "fill=0.2/0.6")
    *options, shared = SMALL
    still = (*options, f"{shared},dirty-rate=0")  # a page sent again would count as well
    found = compared(tmp_path, *grid, *still, "--repeats", "2", "--workers", "2", err=warning)
    assert found["factors"] == {"hold": ["yes", "no"], "fill": ["0.2", "0.6"]}
    assert {one["figure"] for one in found["effects"]} == {"moved_bytes", "retransmits", "broken"}
    (moved,) = [
        one for one in found["effects"] if (one["factor"], one["figure"]) == ("fill", "moved_bytes")
    ]
    assert moved["value"] == pytest.approx(0.4 * (32 << 20), rel=0.2)
    assert set(moved["by"]) == {"hold=yes", "hold=no"}
    assert [one["outcome"] for one in found["runs"]] == ["completed"] * 8


def test_a_variant_whose_lab_fails_leaves_the_others(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from testbed.guest.program import Program\n\n\nclass Broken(Program):\n    port = 7000\n\n"
        "    def attach(self) -> None:\n        raise RuntimeError('out of order')\n"
    )
    ended = run(tmp_path, "compare", "live", "program=mine:Broken", *SMALL, "--repeats", "1")
    assert ended.status == CHECK_FAILED, ended.err
    (wrong,) = [line for line in ended.out.splitlines() if line.startswith("  ✗ ")]
    assert "program=mine:Broken: the lab failed: " in wrong
    (written,) = (tmp_path / RUNS).glob("*-compare/comparison.json")
    told = json.loads(written.read_text())
    jsonschema.validate(told, json.loads(comparison.SCHEMA_FILE.read_text()))
    assert told["complete"]
    assert sorted(one["error"] is None for one in told["runs"]) == [False, True]
    assert list(written.parent.glob("*/traceback.txt"))


def test_labs_end_with_a_comparison_of_workers(tmp_path: Path) -> None:
    with adopting():
        running = Running(tmp_path, "compare", "live", "stop-and-copy", *SMALL, "--workers", "2")
        running.wait_for("run 3")
        running.send(signal.SIGINT, group=True)
        ended = running.end()
        assert left_behind() == []
    assert ended.status == INTERRUPTED
    (written,) = (tmp_path / RUNS).glob("*/comparison.json")
    assert not json.loads(written.read_text())["complete"]
