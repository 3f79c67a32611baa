"""The command itself, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from testbed.measure.result import SCHEMA_FILE

DEADLINE_S = 100
SMALL = ("--ram", "64MiB", "--working-set", "4MiB", "--baseline", "300ms", "--clients", "2")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "testbed", *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )


def test_demo_takes_no_argument_and_leaves_its_result(tmp_path: Path) -> None:
    ended = run(tmp_path, "demo")
    assert ended.returncode == 0, ended.stderr + ended.stdout
    assert "live migration host-a → host-b: completed" in ended.stdout
    assert "round 1" in ended.stdout
    (folder,) = (tmp_path / "testbed-runs").iterdir()
    assert folder.name.endswith("-demo")
    result = json.loads((folder / "result.json").read_text())
    jsonschema.validate(result, json.loads(SCHEMA_FILE.read_text()))
    assert result["outcome"] == "completed"
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert {"host-a", "host-b", "client1", "client2", "client3"} <= {event["source"] for event in events}


def test_json_prints_the_result_and_nothing_else_on_standard_output(tmp_path: Path) -> None:
    ended = run(tmp_path, "migrate", *SMALL, "--json")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    (folder,) = (tmp_path / "testbed-runs").iterdir()
    assert ended.stdout == (folder / "result.json").read_text()
    assert json.loads(ended.stdout)["options"]["ram_bytes"] == 64 << 20


def test_a_migration_that_gives_up_ends_with_four_and_the_guest_alive(tmp_path: Path) -> None:
    hot = (
        "--dirty-rate",
        "50000",
        "--working-set",
        "16MiB",
        "--max-bandwidth",
        "300mbit",
        "--max-rounds",
        "2",
        "--downtime-limit",
        "1ms",
    )
    ended = run(tmp_path, "migrate", *SMALL, *hot, "--on-stall", "give-up", "--json")
    assert ended.returncode == 4, ended.stderr
    result = json.loads(ended.stdout)
    assert result["outcome"] == "rolled-back"
    assert result["clients"]["broken"] == 0


@pytest.mark.slow
def test_a_client_that_is_cut_off_is_no_success(tmp_path: Path) -> None:
    alone = ("--mac", "per-host", "--announce", "none", "--churn", "40")
    ended = run(tmp_path, "migrate", *SMALL, *alone, "--json")
    assert ended.returncode == 1, ended.stdout
    failed = [check["name"] for check in json.loads(ended.stdout)["checks"] if not check["passed"]]
    assert failed
