"""Programs that know nothing of this testbed, put through a migration."""

from __future__ import annotations

import json
import select
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from testbed.lab.lab import Lab
from tests.conftest import require
from tests.system.labs import PRELOAD, SMALL, lab_of, move

pytestmark = pytest.mark.universe(preload=PRELOAD)

GUEST = "10.7.0.10"
GUEST_IPV6 = "fd07::10"
DEADLINE_S = 60


@pytest.fixture
def lab_running(tmp_path: Path) -> Iterator[Any]:
    """Makes a lab whose guest runs the given program, without probes of ours."""
    labs: list[Lab] = []

    def make(program: str) -> Lab:
        lab = lab_of(replace(SMALL, program=program, dirty_rate_pages_per_s=500), tmp_path)
        labs.append(lab)
        lab.boot()
        return lab

    yield make
    for lab in labs:
        lab.close()


def migrate(lab: Lab) -> None:
    source_answer, target_answer = move(lab)
    assert "error" not in source_answer, source_answer
    assert "error" not in target_answer, target_answer


def output_of(lab: Lab, *command: str) -> str:
    with lab.start_program("client1", command) as process:
        output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, f"{command[0]} exited with {process.returncode}: {output!r}"
    return output.decode()


@contextmanager
def _endless(lab: Lab, command: Sequence[str]) -> Iterator[Any]:
    """A program that works until it is told to end, at the latest when the block is left."""
    with lab.start_program("client1", command) as process:
        try:
            yield process
        finally:
            process.terminate()


def test_redis_benchmark_goes_on_through_migrations_there_and_back(lab_running: Any) -> None:
    require("redis-benchmark", bool(shutil.which("redis-benchmark")))
    lab = lab_running("kv")
    rounds = [
        "stdbuf",
        "-oL",
        "redis-benchmark",
        "-h",
        GUEST,
        "-t",
        "set,get",
        "-n",
        "3000",
        "-c",
        "20",
        "-r",
        "1000",
        "--csv",
        "-l",
    ]
    with _endless(lab, rounds) as benchmark:
        lines = _lines_until(benchmark, b'"GET"', 1)
        for _ in range(2):
            migrate(lab)
        lines += _lines_until(benchmark, b'"GET"', 3)
        assert benchmark.poll() is None
    assert not any(b"rror" in line for line in lines)


def _lines_until(process: Any, word: bytes, times: int) -> list[bytes]:
    """What `process` prints until `word` has come so often. It fails where the process ends, or is silent for
    long."""
    lines: list[bytes] = []
    while sum(word in line for line in lines) < times:
        assert select.select([process.stdout], [], [], DEADLINE_S)[0], "silent"
        line = process.stdout.readline()
        assert line, f"ended after {lines!r}"
        lines.append(line)
    return lines


def test_redis_cli_finds_at_the_target_what_it_stored_at_the_source(lab_running: Any) -> None:
    require("redis-cli", bool(shutil.which("redis-cli")))
    lab = lab_running("kv")
    value = "x" * 100_000
    assert output_of(lab, "redis-cli", "-h", GUEST, "set", "kept", value).strip() == "OK"
    session = ["stdbuf", "-oL", "redis-cli", "-h", GUEST_IPV6, "-r", "-1", "-i", "0.05", "incr", "counter"]
    with _endless(lab, session) as counting:
        lines = _lines_until(counting, b"1\n", 1)
        migrate(lab)
        last = int(output_of(lab, "redis-cli", "-h", GUEST, "get", "counter")) + 20
        lines += _lines_until(counting, b"%d\n" % last, 1)
    assert [int(line) for line in lines] == list(range(1, last + 1))
    assert output_of(lab, "redis-cli", "-h", GUEST, "get", "kept").strip() == value


def test_curl_sees_the_page_move_from_host_to_host(lab_running: Any) -> None:
    require("curl", bool(shutil.which("curl")))
    lab = lab_running("http")
    assert "host-a" in output_of(lab, "curl", "-sS", "--max-time", "20", f"http://{GUEST}/")
    migrate(lab)
    assert "host-b" in output_of(lab, "curl", "-sS", "--max-time", "20", f"http://{GUEST}/")
    counter = json.loads(output_of(lab, "curl", "-sS", "--max-time", "20", f"http://[{GUEST_IPV6}]/counter"))
    assert counter["requests"] >= 2, counter


def test_curl_keeps_one_connection_through_a_migration(lab_running: Any) -> None:
    require("curl", bool(shutil.which("curl")))
    lab = lab_running("http")
    command = ["curl", "-sS", "--rate", "20/s", "--max-time", "20", "-w", "\\nconnects %{num_connects}\\n"]
    with _endless(lab, ["stdbuf", "-oL", *command, *[f"http://{GUEST}/"] * 2000]) as keeping:
        lines = _lines_until(keeping, b"host-a", 1)
        migrate(lab)
        lines += _lines_until(keeping, b"host-b", 20)
    made = [int(line.split()[1]) for line in lines if line.startswith(b"connects")]
    assert sum(made) == 1, "more than one connection was made"


def test_a_program_that_is_not_there_is_named(lab_running: Any) -> None:
    lab = lab_running("echo")
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        lab.start_program("client1", ["/no-such-program"])


def test_wrk_sees_no_socket_error_through_a_migration(lab_running: Any) -> None:
    require("wrk", bool(shutil.which("wrk")))
    require("curl", bool(shutil.which("curl")))
    lab = lab_running("http")
    with _endless(lab, ["wrk", "-t1", "-c8", "-d300s", f"http://{GUEST}/counter"]) as load:
        _await_requests(lab)
        migrate(lab)
        _await_requests(lab)
        assert load.poll() is None, "it must still be at work, or nothing was shown"
        load.send_signal(signal.SIGINT)
        output, _ = load.communicate(timeout=DEADLINE_S)
    assert load.returncode == 0
    assert b"requests in" in output
    assert b"Socket errors" not in output
    assert b"Non-2xx" not in output


def _await_requests(lab: Lab) -> None:
    """Until the guest has been asked a hundred times more."""
    goal = _requests(lab) + 100
    deadline_s = time.monotonic() + DEADLINE_S
    while _requests(lab) < goal:
        assert time.monotonic() < deadline_s


def _requests(lab: Lab) -> int:
    counter = json.loads(output_of(lab, "curl", "-sS", "--max-time", "20", f"http://{GUEST}/counter"))
    return int(counter["requests"])
