"""Labs that stand, as people use them: from several terminals, with everything that may go wrong there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from netns import universe
from testbed.measure.result import SCHEMA_FILE
from testbed.standing import registry
from tests.conftest import require
from tests.system.commands import COMMAND, DEADLINE_S, Running, adopting, left_behind, run
from tests.system.terminal import Terminal

SMALL = (
    *("--ram", "32MiB", "--working-set", "4MiB", "--clients", "2", "--connections", "4", "--churn", "20"),
    *("--stream-rate", "50"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to type commands in, and a registry that is this module's alone."""
    require("universe", lambda: universe.check() is None)
    folder = tmp_path_factory.mktemp("standing")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        patch.setenv("SHELL", "/bin/bash")
        patch.setenv("HOME", str(folder))
        yield folder
        run(folder, "down", "--all")


@pytest.fixture(scope="module")
def lab(place: Path) -> str:
    """A lab that stands, for all tests that leave it standing."""
    assert run(place, "up", *SMALL, "--name", "main").status == 0
    return "main"


def owner(place: Path, lab: str) -> str:
    (host,) = json.loads(run(place, "ps", "--name", lab, "--json").out)["owners"].values()
    return str(host)


def test_ps_tells_who_is_where(place: Path, lab: str) -> None:
    listed = run(place, "ps")
    assert lab in listed.out
    assert "vm1 on host-" in listed.out
    told = json.loads(run(place, "ps", "--name", lab, "--json").out)
    nodes = {process["node"] for process in told["processes"]}
    assert {"host-a", "host-b", "client1", "client2", "vm1"} <= nodes
    assert all(probe["requests"] > 0 for probes in told["clients"].values() for probe in probes)
    shown = run(place, "ps", "--name", lab).out
    assert "closed-loop" in shown
    assert "guest" in shown


@pytest.mark.parametrize(
    ("node", "address"),
    [("client1", "10.7.0.101"), ("client2", "10.7.0.102"), ("host-a", "10.6.0.1"), ("vm1", "10.7.0.10")],
)
def test_a_command_runs_in_its_node(place: Path, lab: str, node: str, address: str) -> None:
    ended = run(place, "exec", node, "--", "hostname", "-I")
    assert address in ended.out.split(), ended


def test_input_output_and_exit_status_of_a_command_pass_through(
    place: Path, lab: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"  # to all but root: another user's folder on the search path
    closed.mkdir(mode=0)
    monkeypatch.setenv("PATH", str(closed), prepend=":")
    words = [*COMMAND, "exec", "switch", "--", "sh", "-c", "cat; echo to-err >&2; exit 7"]
    done = subprocess.run(words, cwd=place, input="in\n", capture_output=True, text=True, timeout=DEADLINE_S)
    assert (done.returncode, done.stdout, done.stderr) == (7, "in\n", "to-err\n")
    assert run(place, "exec", "client1", "--", "sh", "-c", "kill -9 $$").status == 137
    missing = run(place, "exec", "client1", "--", "no-such-program")
    assert missing.status == 127
    assert "no-such-program: No such file" in missing.err
    assert run(place, "exec", "client1", "--", "/etc/passwd").status == 126
    pipe = run(place, "exec", "client1", "--", "sh", "-c", "yes | head -1; test ${PIPESTATUS:-0}")
    assert pipe.out == "y\n"
    assert "roken pipe" not in pipe.err  # SIGPIPE is as a shell's child expects it


def test_a_migration_is_watched_judged_and_left_in_a_folder(place: Path, lab: str) -> None:
    source = owner(place, lab)
    ended = run(place, "migrate", "--name", lab)
    assert ended.status == 0, ended
    assert "round 1" in ended.out
    assert "completed" in ended.out
    target = owner(place, lab)
    assert {source, target} == {"host-a", "host-b"}
    told = run(place, "migrate", "--to", source, "--mode", "stop-and-copy", "--json", "--no-report")
    assert told.status == 0, told
    result = json.loads(told.out)
    jsonschema.validate(result, json.loads(SCHEMA_FILE.read_text()))
    assert result["mode"] == "stop-and-copy"
    assert result["migrations"][0]["source"] == target
    assert owner(place, lab) == source
    whole = Path(json.loads(run(place, "ps", "--name", lab, "--json").out)["folder"])
    first, second = (
        json.loads((whole / f"migration-{number}" / "result.json").read_text()) for number in (1, 2)
    )
    assert result == second
    assert {path.name for path in (whole / "migration-2").iterdir()} >= {"client1.npz", "events.jsonl"}
    events = [
        json.loads(line) for line in (whole / "migration-2" / "events.jsonl").read_text().splitlines()
    ]
    assert [one["name"] for one in events if one["event"] == "mark"].count("paused") == 1
    requests = json.loads(run(place, "ps", "--name", lab, "--json").out)["clients"]
    counted = sum(probe["requests"] for probes in requests.values() for probe in probes)
    assert 0 < second["clients"]["requests"] <= counted - first["clients"]["requests"]


def test_one_migration_at_a_time_and_others_are_answered_meanwhile(place: Path, lab: str) -> None:
    assert run(place, "link", "set", "migration", "--rate", "2mbit", "--name", lab).status == 0
    migrating = Running(place, "migrate", "--name", lab, "--no-report")
    migrating.wait_for("migrating")
    second = run(place, "migrate", "--name", lab)
    assert second.status == 1, second
    assert "on the way" in second.err, second
    told = json.loads(run(place, "ps", "--name", lab, "--json").out)
    assert "on the way" in told["busy"]
    assert told["clients"] is None
    assert run(place, "exec", "client1", "--", "true").status == 0
    assert run(place, "link", "reset", "migration", "--name", lab).status == 0  # or it would take a minute
    assert migrating.end().status == 0


def test_who_stops_watching_a_migration_stops_nothing(place: Path, lab: str) -> None:
    before = owner(place, lab)
    assert run(place, "link", "set", "migration", "--rate", "60mbit").status == 0
    migrating = Running(place, "migrate", "--name", lab)
    migrating.wait_for("migrating")
    migrating.send(signal.SIGINT)
    ended = migrating.end()
    assert ended.status == 130
    assert "goes on" in ended.err
    assert run(place, "link", "reset", "migration").status == 0
    while owner(place, lab) == before:
        pass  # each look takes as long as a command


def test_conditions_hold_from_when_they_are_set_to_when_they_are_reset(place: Path, lab: str) -> None:
    done = run(place, "link", "set", "client1", "--delay", "30ms", "--direction", "to-node")
    assert done.status == 0
    assert "30 ms" in done.out
    ping = run(place, "exec", "client1", "--", "ping", "-c", "3", "-i", "0.2", "10.7.0.10")
    assert ping.status == 0
    assert float(ping.out.rpartition("= ")[2].split("/")[0]) >= 30
    (told,) = json.loads(run(place, "link", "show", "client1", "--json").out)
    assert told["backward"]["asked"]["delay_ms"] == 30
    assert told["forward"]["asked"]["delay_ms"] == 0
    assert run(place, "link", "reset", "client1").status == 0
    (told,) = json.loads(run(place, "link", "show", "client1", "--json").out)
    assert told["backend"] == "none"


def test_a_capture_has_what_passed_while_it_was_made(place: Path, lab: str) -> None:
    file = place / "seen.pcapng"
    capturing = Running(place, "capture", "client1", "-o", str(file))
    capturing.wait_for("capturing client1")
    assert run(place, "exec", "client1", "--", "ping", "-c", "1", "-p", "7465737462", "10.7.0.10").status == 0
    capturing.send(signal.SIGINT)
    ended = capturing.end()
    assert ended.status == 0, ended
    assert f"{file}: " in ended.out, ended
    assert b"testbtestb" in file.read_bytes()
    assert [path.name for path in place.iterdir() if path.name.startswith(".seen")] == []


def test_events_are_json_lines_and_a_follower_is_told_to_the_end(place: Path) -> None:
    assert run(place, "up", *SMALL, "--name", "short").status == 0
    following = Running(place, "events", "--name", "short", "--follow")
    following.wait_for("probes-begin")
    done = run(place, "down", "--name", "short")
    assert done.status == 0
    assert "no result" in done.out
    ended = following.end()
    assert ended.status == 0, ended
    names = [json.loads(line)["event"] for line in ended.out.splitlines()]
    assert {"probes-begin", "probes-end"} <= set(names)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("up", "--name", "main"), "stands already"),
        (("up", "--name", "../x"), "cannot be a lab's name"),
        (("exec", "nowhere", "--", "true"), "there are switch, host-a"),
        (("exec", "--name", "other", "client1", "--", "true"), "there are main"),
        (("migrate", "--name", "main", "--to", "host-c"), "host-c"),
        (("migrate", "--name", "main", "--to", "client1"), "client1"),
        (("migrate", "--name", "main", "--vm", "vm9"), "vm9"),
        (("migrate", "--name", "main", "--pcap"), "testbed capture --name main"),
        (("migrate", "--name", "main", "--pause-on-failure"), "testbed shell --name main"),
        (("migrate", "--name", "main", "--ram", "1GiB"), "--ram: lab 'main' stands as it was brought up"),
        (("migrate", "--name", "main", "--mode", "quick"), "bring up another"),
        (("link", "set", "client9", "--delay", "1ms"), "client9"),
        (("link", "set", "client1", "--delay", "1"), "1"),
        (("link", "set", "client1", "--loss", "2"), "not between 0 and 1"),
        (("link", "set", "client1"), "give a condition"),
        (("link", "show", "nowhere"), "there are host-a"),
        (("capture", "nowhere"), "there are host-a"),
        (("down", "--name", "other"), "there are main"),
        (("down", "--all", "--name", "main"), "no --name"),
        (("up", "--scenario", "nothing-like-it"), "shelf"),
        (("up", "--scenario", "demo", "--ram", "1GiB", "--name", "x"), "the scenario says"),
        (("shell", "client1"), "testbed exec"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_two(
    place: Path, lab: str, words: tuple[str, ...], said: str
) -> None:
    ended = run(place, *words)
    assert ended.status == 2, ended
    assert said in ended.err, ended.err
    assert ended.err.count("\n") == 1, ended.err
    assert ended.err.startswith("testbed: "), ended.err
    assert [entry.name for entry in registry.standing()] == [lab]


# ---- shells


def shell(lab: str, node: str) -> Terminal:
    return Terminal(*COMMAND, "shell", "--name", lab, node)


def test_a_shell_says_where_it_is_and_controls_jobs(place: Path, lab: str) -> None:
    with shell(lab, "client1") as terminal:
        terminal.wait_for(f"[{lab} client1]")
        terminal.type("hostname -I; echo at=$TESTBED_NODE\n")
        terminal.wait_for("10.7.0.101")
        terminal.wait_for("at=client1")
        terminal.type("sh -c 'echo it-runs; exec sleep 1000'\n")
        terminal.wait_for("it-runs\r\n")
        terminal.type("\x1a")
        terminal.wait_for("Stopped")
        terminal.type("jobs; kill -9 %1; wait; echo end'-'of-jobs\n")
        terminal.wait_for("sleep 1000")
        terminal.wait_for("end-of-jobs")  # which is not how it was typed
        terminal.type("exit 5\nexit 5\n")  # the first may only say that a job is still stopped
        assert terminal.status() == 5


def test_ctrl_c_in_a_shell_ends_what_runs_there_and_not_the_shell(place: Path, lab: str) -> None:
    with shell(lab, "host-a") as terminal:
        terminal.wait_for("host-a]")
        terminal.type("sh -c 'echo it-runs; exec sleep 1000'\n")
        terminal.wait_for("it-runs\r\n")
        terminal.type("\x03")
        terminal.wait_for("host-a]")
        terminal.type("echo still; exit\n")
        terminal.wait_for("still")
        assert terminal.status() == 0


def test_a_shell_ends_with_its_lab_and_gives_the_terminal_back(place: Path) -> None:
    assert run(place, "up", *SMALL, "--name", "brief").status == 0
    outer = f"{' '.join(COMMAND)} shell --name brief client1; echo back=$?; stty -a"
    with Terminal("/bin/sh", "-c", outer) as terminal:
        terminal.wait_for("[brief client1]")
        assert run(place, "down", "--name", "brief").status == 0
        terminal.wait_for("has gone down")
        terminal.wait_for("back=137")
        terminal.wait_for(" icanon")  # what readline had switched off is on again
        assert terminal.status() == 0


# ---- ends


def test_ctrl_c_while_it_comes_up_leaves_nothing(place: Path) -> None:
    before = set(place.rglob("*-never*"))
    with adopting():
        coming = Running(place, "up", "--ram", "512MiB", "--fill", "0.9", "--name", "never")
        coming.wait_for("guest: echo")
        coming.send(signal.SIGINT)
        ended = coming.end()
        assert ended.status == 130, ended
        assert "nothing of the lab is left" in ended.err, ended
        assert left_behind() == []
    assert not (registry.home() / "never").exists()
    assert set(place.rglob("*-never*")) == before


def test_a_starter_that_is_killed_takes_the_unfinished_lab_along(place: Path) -> None:
    with adopting():
        coming = Running(place, "up", "--ram", "512MiB", "--fill", "0.9", "--name", "orphan")
        coming.wait_for("guest: echo")
        coming.send(signal.SIGKILL)
        assert coming.end().status == -signal.SIGKILL
        assert left_behind() == []
    assert not (registry.home() / "orphan").exists()


def test_a_lab_that_died_is_told_of_once_and_its_name_is_free(place: Path) -> None:
    with adopting():
        assert run(place, "up", *SMALL, "--name", "doomed").status == 0
        os.kill(registry.find("doomed").holder_pid, signal.SIGKILL)
        assert left_behind() == []
    first, second = run(place, "ps"), run(place, "ps")
    assert "'doomed' had died" in first.err
    assert second.err == ""
    assert "doomed" not in first.out
    gone = run(place, "exec", "--name", "doomed", "client1", "--", "true")
    assert gone.status == 2
    assert "doomed" in gone.err


def test_a_lab_that_is_asked_by_signal_goes_down_in_order(place: Path) -> None:
    with adopting():
        assert run(place, "up", *SMALL, "--name", "polite").status == 0
        entry = registry.find("polite")
        assert run(place, "migrate", "--name", "polite", "-q", "--no-report").status == 0
        os.kill(entry.holder_pid, signal.SIGTERM)
        assert left_behind() == []
    assert not (registry.home() / "polite").exists()
    result = json.loads((Path(entry.folder) / "result.json").read_text())
    jsonschema.validate(result, json.loads(SCHEMA_FILE.read_text()))
    assert result["outcome"] == "completed"
    assert result["clients"]["broken"] == 0


@pytest.mark.slow
def test_the_lab_of_a_scenario_stands_with_all_its_guests(place: Path) -> None:
    assert run(place, "up", "--scenario", "two-vms-at-once", "--name", "two", "-q").status == 0
    both = run(place, "migrate", "--name", "two", "--vm", "vm1", "--vm", "vm2", "--json", "--no-report")
    assert both.status == 0, both
    assert {one["vm"] for one in json.loads(both.out)["migrations"]} == {"vm1", "vm2"}
    assert run(place, "exec", "--name", "two", "vm2", "--", "hostname", "-I").status == 0
    assert run(place, "down", "--name", "two").status == 0


def test_completion_knows_labs_nodes_and_links(place: Path, lab: str) -> None:
    for words, expected in ((f"exec --name {lab} cl", "client1"), ("link reset mi", "migration")):
        environment = os.environ | {
            "_TESTBED_COMPLETE": "complete_bash",
            "COMP_WORDS": f"testbed {words}",
            "COMP_CWORD": str(len(words.split())),
        }
        done = subprocess.run(
            [Path(sys.executable).with_name("testbed")], env=environment, capture_output=True, text=True,
            timeout=DEADLINE_S,
        )  # fmt: skip
        assert expected in done.stdout.split(), (done.stdout, done.stderr)




# ---- a pause where a check has failed


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_failed_check_leaves_evidence_and_the_lab_open(place: Path) -> None:
    """Nobody is told where the guest went, so its clients are cut off."""
    cut_off = ("--mac", "per-host", "--announce", "none", "--baseline", "200ms", "--plain", "--no-report")
    words = (*COMMAND, "migrate", *SMALL, *cut_off, "--pause-on-failure", "--runs", str(place / "failed"))
    with Terminal(*words) as terminal:
        terminal.wait_for("Enter alone ends the lab")
        terminal.type("nowhere\n")
        terminal.wait_for("there is no node 'nowhere'")
        terminal.type("client1\n")
        terminal.wait_for("client1]")
        terminal.type("hostname -I\n")
        terminal.wait_for("10.7.0.101")
        terminal.type("sh -c 'echo it-runs; exec sleep 1000'\n")
        terminal.wait_for("it-runs\r\n")
        terminal.type("\x03")
        terminal.wait_for("client1]")
        terminal.type("exit\n")
        terminal.wait_for("Enter alone ends the lab")
        terminal.type("\n")
        assert terminal.status() == 1
    (folder,) = (place / "failed").iterdir()
    evidence = folder / "evidence"
    believed = [json.loads(line) for line in (evidence / "client1.neighbours").read_text().splitlines()]
    assert "02:00:00:00:0a:42" in [one["mac"] for one in believed]  # at host-a, where it is no more
    assert "10.7.0.10" in (evidence / "client1.sockets").read_text()


def test_a_run_that_passed_has_no_evidence(place: Path) -> None:
    words = ("migrate", *SMALL, "--baseline", "200ms", "--no-report", "-q", "--runs", "passed")
    assert run(place, *words, "--pause-on-failure").status == 0
    (folder,) = (place / "passed").iterdir()
    assert not (folder / "evidence").exists()
