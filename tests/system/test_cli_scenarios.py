"""`testbed run`, `validate` and `scenarios`, as a user types them."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from testbed.commands.ending import CANNOT, CHECK_FAILED, PASSED, WRONG_REQUEST
from tests.system.commands import run

SMALL = """shows = "A small one."
baseline = "200ms"
aftermath = "200ms"
[[vm]]
ram = "16MiB"
load.working_set = "1MiB"
[[client]]
[[client.probe]]
kind = "closed-loop"
connections = 1
interval = "2ms"
"""

GIVES_UP = """[migration]
mode = "live"
max_bandwidth = "100mbit"
max_rounds = 1
on_stall = "give-up"
downtime_limit = "0ms"
"""
"""The round takes most of a second, in which the guest writes something, if it comes to run at all."""


def write(folder: Path, name: str, more: str = "") -> str:
    (folder / f"{name}.toml").write_text(SMALL + more)
    return f"{name}.toml"


def test_a_scenario_runs_and_leaves_its_result(tmp_path: Path) -> None:
    ended = run(tmp_path, "run", write(tmp_path, "mine"), "--no-report")
    assert ended.status == PASSED, ended.err + ended.out
    assert "live migration host-a → host-b: completed" in ended.out
    (folder,) = (tmp_path / "testbed-runs").iterdir()
    assert folder.name.endswith("-mine")
    result = json.loads((folder / "result.json").read_text())
    assert (result["name"], result["options"]) == ("mine", {})
    assert result["scenario"]["vm"][0]["ram"] == "16MiB"


def test_several_end_with_the_worst_and_print_an_array(tmp_path: Path) -> None:
    impossible = write(tmp_path, "impossible", '[[check]]\nfigure = "blackout_ms"\nat_most = "1ns"\n')
    stays = write(tmp_path, "stays", GIVES_UP)
    ended = run(tmp_path, "run", write(tmp_path, "fine"), impossible, stays, "--json", "--no-report")
    assert ended.status == CHECK_FAILED, ended.err
    assert ended.err == ""
    results = json.loads(ended.out)
    assert [(one["name"], one["outcome"]) for one in results] == [
        ("fine", "completed"),
        ("impossible", "completed"),
        ("stays", "rolled-back"),
    ]
    assert [check["name"] for check in results[1]["checks"] if not check["passed"]] == [
        "blackout_ms ≤ 1e-06 ms"
    ]


def test_a_scenario_that_shows_a_rollback_succeeds_by_showing_it(tmp_path: Path) -> None:
    (tmp_path / "stays.toml").write_text('waive = ["migrated"]\n' + SMALL + GIVES_UP)
    ended = run(tmp_path, "run", "stays.toml", "--json", "--no-report")
    assert ended.status == PASSED, ended.err
    assert json.loads(ended.out)["outcome"] == "rolled-back"


def test_what_is_wrong_is_told_before_anything_runs(tmp_path: Path) -> None:
    wrong = write(tmp_path, "wrong", "[[step]]\nmigrate = 'vm9'\n")
    ended = run(tmp_path, "run", write(tmp_path, "fine"), wrong)
    assert ended.status == WRONG_REQUEST
    assert ended.out == ""
    assert ended.err == "testbed: wrong.toml: step[1].migrate: there is no guest 'vm9'; there are: vm1\n"
    assert not (tmp_path / "testbed-runs").exists()


def test_validate_tells_everything_that_is_wrong_and_what_is_right(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("seed = 'x'\n[[vm]]\nrma = 1\n")
    ended = run(tmp_path, "validate", "wrong.toml", "demo", "none.toml", "nowhere")
    assert ended.status == WRONG_REQUEST
    assert ended.out.startswith("demo: right: 1 guest, 2 hosts, 3 clients, 1 step")
    lines = ended.err.splitlines()
    assert lines[0].startswith("testbed: wrong.toml: seed: 'x' is not a whole number")
    assert lines[1].startswith("testbed: wrong.toml: vm[1]: unknown key 'rma'; did you mean ram?")
    assert lines[2] == "testbed: none.toml: cannot be read: No such file or directory"
    assert lines[3].startswith(
        "testbed: nowhere: neither a file nor a scenario of the shelf, which has agent-killed-at-commit,"
    )
    assert len(lines) == 4


def test_the_shelf_is_listed_and_a_file_of_it_can_be_begun_with(tmp_path: Path) -> None:
    listed = run(tmp_path, "scenarios", "--json")
    names = [one["name"] for one in json.loads(listed.out)]
    assert {"demo", "quick-migration", "two-vms-at-once", "drain-a-host"} <= set(names)
    assert all(one["shows"] and one["expect"] for one in json.loads(listed.out))
    printed = run(tmp_path, "scenarios", "demo")
    assert "client" in tomllib.loads(printed.out)
    assert run(tmp_path, "scenarios", "nothing").status == WRONG_REQUEST


def test_a_program_that_is_not_there_is_what_the_machine_lacks(tmp_path: Path) -> None:
    step = "[[step]]\nrun = ['no-such-program']\non = 'client1'\n"
    step += "[[client]]\n[[client.program]]\ncommand = ['none-such', '-x']\n"
    ended = run(tmp_path, "run", write(tmp_path, "lacking", step), "--quiet")
    assert ended.status == CANNOT
    assert ended.err.splitlines() == [
        "testbed: lacking: client2: cannot run none-such: not found, or not executable",
        "testbed: lacking: client1: cannot run no-such-program: not found, or not executable",
    ]
    assert not (tmp_path / "testbed-runs").exists(), "nothing ran"


@pytest.mark.parametrize("word", ["--pcap-snap=x", "--seed=x"])
def test_a_wrong_option_is_told_in_one_line(tmp_path: Path, word: str) -> None:
    ended = run(tmp_path, "run", write(tmp_path, "fine"), word)
    assert ended.status == WRONG_REQUEST
    assert len(ended.err.splitlines()) == 1
