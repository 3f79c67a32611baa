"""Ordinary programs in a node: started, waited for, ended, and what they said kept."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from netns.namespace import Namespace
from testbed.lab.programs import ProgramNotStarted, Programs

pytestmark = pytest.mark.universe

DEADLINE_S = 20.0


@pytest.fixture
def node() -> Iterator[Namespace]:
    with Namespace.create("client1") as namespace:
        yield namespace


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    with Programs(tmp_path) as made:
        yield made


def sh(programs: Programs, node: Namespace, script: str, **how: object) -> str:
    return programs.start("client1", node, ["sh", "-c", script], **how)  # type: ignore[arg-type]


def test_output_status_and_times_are_kept(programs: Programs, node: Namespace, tmp_path: Path) -> None:
    before_ns = time.monotonic_ns()
    script = 'read nothing; echo "$GREETING"; echo wrong >&2; exit 3'
    assert sh(programs, node, script, environment={"GREETING": "héllo"}) == "client1-sh"
    assert programs.running == ["client1-sh"]
    assert select.select([programs], [], [], DEADLINE_S)[0], "its end makes the descriptor readable"
    begin, end = programs.take()
    assert (begin["source"], begin["event"], begin["program"]) == ("client1", "program-begin", "client1-sh")
    assert begin["command"] == ["sh", "-c", script]
    assert (end["event"], end["status"], end["signal"], end["ended_by"]) == ("program-end", 3, None, "itself")
    assert before_ns <= begin["t_ns"] <= end["t_ns"] <= time.monotonic_ns()
    (run,) = programs.runs()
    assert (run.exit_status, run.signal, run.ended_by) == (3, None, "itself")
    assert (run.output_tail, run.error_tail) == ("héllo\n", "wrong\n")
    assert (tmp_path / run.output_file).read_text() == "héllo\n"
    assert run.duration_ms == pytest.approx((end["t_ns"] - begin["t_ns"]) / 1e6, abs=0.001)
    assert programs.running == []
    assert programs.take() == []


def test_it_runs_in_the_namespace_of_its_node(programs: Programs, node: Namespace) -> None:
    programs.start("client1", node, ["readlink", "/proc/self/ns/net"])
    assert programs.wait(DEADLINE_S)
    (run,) = programs.runs()
    assert run.output_tail.strip() == f"net:[{os.fstat(node.fd).st_ino}]"
    assert str(Path("/proc/self/ns/net").readlink()) != run.output_tail.strip(), "or nothing was shown"


def test_of_much_output_the_end_is_in_the_result_and_all_in_the_file(
    programs: Programs, node: Namespace, tmp_path: Path
) -> None:
    sh(programs, node, "seq 100000")
    assert programs.wait(DEADLINE_S)
    (run,) = programs.runs()
    assert len(run.output_tail) == 4096
    assert run.output_tail.endswith("\n99999\n100000\n")
    assert (tmp_path / run.output_file).read_text().count("\n") == 100_000


@contextmanager
def born_deaf() -> Iterator[None]:
    """What is started meanwhile ignores SIGTERM from its first instruction on."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_deadline_ends_it_and_whoever_does_not_listen_is_killed(
    programs: Programs, node: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("testbed.lab.programs.GRACE_S", 0.05)
    assert programs.patience_s() is None
    sh(programs, node, "exec sleep 1000", deadline_s=0.05, name="obedient")
    with born_deaf():
        sh(programs, node, "exec sleep 1000", deadline_s=0.05, name="deaf")
    sh(programs, node, "exec sleep 1000", name="without")
    patience_s = programs.patience_s()
    assert patience_s is not None
    assert 0 <= patience_s <= 0.05
    while programs.running != ["without"]:
        select.select([programs], [], [], programs.patience_s())
        programs.take()
    obedient, deaf, without = programs.runs()
    assert (obedient.signal, obedient.ended_by) == ("SIGTERM", "deadline")
    assert (deaf.signal, deaf.ended_by) == ("SIGKILL", "deadline")
    assert (without.exit_status, without.signal, without.ended_by) == (None, None, None)


def test_the_end_of_the_lab_ends_all_with_their_children(node: Namespace, tmp_path: Path) -> None:
    with Programs(tmp_path) as programs:
        sh(programs, node, "sleep 1000 & exec sleep 1000")
        sh(programs, node, "sleep 1000 & echo started")  # ends, and leaves a child behind
        while len(programs.running) > 1:
            assert select.select([programs], [], [], DEADLINE_S)[0]
            programs.take()
    first, second = programs.runs()
    assert (first.signal, first.ended_by) == ("SIGTERM", "lab")
    assert (second.exit_status, second.ended_by) == (0, "itself")
    assert sleepers() == []


def sleepers() -> list[int]:
    """What sleeps in this universe and does not end: one that was killed may take a moment."""
    return [pid for pid in (int(path.name) for path in Path("/proc").glob("[0-9]*")) if sleeps_on(pid)]


def sleeps_on(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
        pidfd = os.pidfd_open(pid)
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            return line.startswith(b"sleep\0001000") and not select.select([pidfd], [], [], DEADLINE_S)[0]
        finally:
            os.close(pidfd)
    return False


def test_a_program_that_is_not_there_is_named_and_leaves_no_file(
    programs: Programs, node: Namespace, tmp_path: Path
) -> None:
    wanted = "client1: cannot run no-such-program: not found, or not executable"
    with pytest.raises(ProgramNotStarted, match=wanted):
        programs.start("client1", node, ["no-such-program", "x"])
    assert list(tmp_path.iterdir()) == []
    assert programs.runs() == []
    assert programs.take() == []


@pytest.mark.parametrize(("command", "name"), [([], None), ([""], None), (["true"], "a/b"), (["true"], "")])
def test_what_is_no_command_or_no_name_is_refused(
    programs: Programs, node: Namespace, command: list[str], name: str | None
) -> None:
    with pytest.raises(ValueError, match=r"a program is a command|not a name"):
        programs.start("client1", node, command, name=name)


def test_names_are_never_given_twice(programs: Programs, node: Namespace) -> None:
    names = [programs.start("client1", node, ["/bin/true"]) for _ in range(3)]
    assert names == ["client1-true", "client1-true-2", "client1-true-3"]
    with pytest.raises(ValueError, match="there is a program 'client1-true' already"):
        programs.start("client1", node, ["true"], name="client1-true")
    assert programs.wait(DEADLINE_S)
