"""Processes: how they start, what they are given, when they are ready, and when they end."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from netns import forkserver
from netns.forkserver import NotReady, Process, ProcessDied, SpawnError, ready, spawn
from netns.namespace import Namespace

pytestmark = pytest.mark.universe

DEADLINE_S = 20.0


def start(function: Callable[..., object], argument: object = None, **options: object) -> Process:
    """Spawn a function of this file."""
    entry = f"{__name__}:{function.__name__}"
    options = {"namespace": None, "name": function.__name__, **options}
    return spawn(entry, argument, **options)  # type: ignore[arg-type]


# ---- what is spawned here


def reports(argument: object, fds: list[int]) -> int:
    """Writes what it is and has on its last descriptor, and is ready."""
    told = {
        "argument": argument,
        "descriptors": sorted(int(path.name) for path in Path("/proc/self/fd").iterdir() if path.exists()),
        "fds": fds,
        "interfaces": [name for _, name in socket.if_nameindex()],
        "leads_session": os.getsid(0) == os.getpid(),
        "name": Path("/proc/self/comm").read_text().strip(),
        "sigint_ignored": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
        "stdin": sys.stdin.read(),
        "parent": os.getppid(),
    }
    os.write(fds[-1], json.dumps(told).encode())
    ready()
    return 3


def measures(argument: str, _fds: list[int]) -> int:
    assert set(argument) == {"x"}
    return len(argument) % 251


def multiplies(_argument: object, _fds: list[int]) -> int:
    """How many threads a process has once it has multiplied matrices."""
    import numpy as np

    matrix = np.ones((512, 512))
    assert (matrix @ matrix)[0, 0] == 512
    return len(list(Path("/proc/self/task").iterdir()))


def stays(_argument: object, _fds: list[int]) -> None:
    ready()
    os.read(os.pipe()[0], 1)


def stays_unready(_argument: object, _fds: list[int]) -> None:
    print("still thinking")
    os.read(os.pipe()[0], 1)


def dies_of_an_exception(_argument: object, _fds: list[int]) -> None:
    raise LookupError("no such disk")


def dies_of_a_signal(_argument: object, _fds: list[int]) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def leaves_a_child(_argument: object, fds: list[int]) -> None:
    """Its child holds the descriptor, too, and would live on."""
    child = subprocess.Popen(["sleep", "1000"], pass_fds=fds)
    os.write(fds[0], str(child.pid).encode())
    ready()
    os.read(os.pipe()[0], 1)


def owns(_argument: object, fds: list[int]) -> None:
    """Starts a process of its own and hands the descriptor on."""
    mine = start(stays, fds=fds)
    mine.wait_ready(DEADLINE_S)
    os.write(fds[0], b"!")
    ready()
    os.read(os.pipe()[0], 1)


def knows_preloaded(argument: list[str], fds: list[int]) -> None:
    os.write(fds[0], json.dumps([name in sys.modules for name in argument]).encode())


# ---- what they are given


def _report(**options: object) -> tuple[dict[str, object], Process]:
    read, write = os.pipe()
    process = start(reports, fds=[*options.pop("fds", []), write], **options)  # type: ignore[misc]
    process.wait_ready(DEADLINE_S)
    os.close(write)
    with os.fdopen(read) as told:
        return json.loads(told.read()), process


def test_a_process_gets_what_it_was_given_and_nothing_else() -> None:
    read, write = os.pipe()
    with Namespace.create("elsewhere") as namespace:
        name = "a-name-too-long-for-ps"
        told, process = _report(argument={"a": [1, None]}, fds=[read], namespace=namespace, name=name)
    assert told["argument"] == {"a": [1, None]}
    assert told["interfaces"] == ["lo"]
    assert told["name"] == "a-name-too-long"
    assert told["leads_session"]
    assert told["sigint_ignored"]
    assert told["stdin"] == ""
    assert told["parent"] == 1
    assert isinstance(told["fds"], list)
    assert len(told["fds"]) == 2
    # its standard streams, the two, and the one that ready() has not yet closed
    assert isinstance(told["descriptors"], list)
    assert len(told["descriptors"]) == 6
    assert {0, 1, 2, *told["fds"]} < set(told["descriptors"])
    assert process.wait(DEADLINE_S) == 3
    os.close(read)
    os.close(write)


def test_a_process_is_in_the_namespace_that_was_named() -> None:
    with Namespace.create("elsewhere") as namespace:
        with start(stays, namespace=namespace) as inside, start(stays) as outside:
            inside.wait_ready(DEADLINE_S)
            outside.wait_ready(DEADLINE_S)
            there = os.fstat(namespace.fd).st_ino
            here = Path("/proc/self/ns/net").stat().st_ino
            assert here != there
            assert Path(f"/proc/{inside.pid}/ns/net").stat().st_ino == there
            assert Path(f"/proc/{outside.pid}/ns/net").stat().st_ino == here


@pytest.mark.universe(preload=("wave", "colorsys"))
def test_modules_are_imported_once_for_all() -> None:
    read, write = os.pipe()
    assert "wave" not in sys.modules
    process = start(knows_preloaded, ["wave", "colorsys"], fds=[write])
    assert process.wait(DEADLINE_S) == 0
    assert json.loads(os.read(read, 100)) == [True, True]
    assert "wave" not in sys.modules


@pytest.mark.universe(preload=("numpy",))
def test_the_fork_server_and_its_children_keep_to_one_thread() -> None:
    assert start(multiplies).wait(DEADLINE_S) == 1
    with start(stays) as process:
        process.wait_ready(DEADLINE_S)
        assert [path.name for path in Path("/proc/1/task").iterdir()] == ["1"]


@pytest.mark.universe(preload=("no_such_module_here",))
def test_what_cannot_be_preloaded_is_told_to_everyone_who_asks() -> None:
    for _ in range(2):
        with pytest.raises(SpawnError, match="cannot import 'no_such_module_here'"):
            start(stays)


# ---- readiness and death


def test_a_death_before_readiness_is_told_with_the_last_words() -> None:
    process = start(dies_of_an_exception)
    with pytest.raises(ProcessDied, match="ended before it was ready: exit status 1; its last words") as died:
        process.wait_ready(DEADLINE_S)
    assert str(died.value).endswith("LookupError: no such disk")
    assert process.wait(DEADLINE_S) == 1


def test_a_death_by_signal_is_told_by_its_name() -> None:
    process = start(dies_of_a_signal)
    with pytest.raises(ProcessDied, match="signal SIGSEGV; it wrote nothing"):
        process.wait_ready(DEADLINE_S)
    assert process.wait() == -signal.SIGSEGV


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("no.such:thing", "ModuleNotFoundError"),
        (f"{__name__}:nothing", "AttributeError"),
        ("os:getpid", "TypeError"),
    ],
)
def test_a_wrong_entry_is_a_death_that_says_so(entry: str, words: str) -> None:
    process = spawn(entry, None, namespace=None, name="wrong")
    with pytest.raises(ProcessDied, match=words):
        process.wait_ready(DEADLINE_S)


def test_one_that_is_not_ready_in_time_is_told_and_lives() -> None:
    with start(stays_unready) as process:
        while "thinking" not in process.stderr_tail():
            assert process.wait(0.01) is None
        with pytest.raises(NotReady, match=r"not ready within 0.05 s; its last words:\nstill thinking"):
            process.wait_ready(0.05)
        assert process.wait(0) is None


def test_what_is_written_goes_to_the_file_and_its_end_can_be_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    process = start(dies_of_an_exception, stderr=log)
    assert process.wait(DEADLINE_S) == 1
    assert log.read_text().startswith("before\nTraceback")
    assert process.stderr_tail(6) == " disk\n"


def test_ready_is_for_spawned_processes_alone() -> None:
    with pytest.raises(RuntimeError, match="only once"):
        ready()


def test_wait_returns_the_status_again_and_again() -> None:
    with start(stays) as process:
        process.wait_ready(DEADLINE_S)
        assert process.wait(0.0) is None
        process.terminate()
        assert process.wait(DEADLINE_S) == -signal.SIGTERM
        assert process.wait() == -signal.SIGTERM
        process.terminate()  # nothing happens
        process.kill()


def test_the_pidfd_tells_the_end_to_a_selector() -> None:
    with start(stays) as process:
        process.wait_ready(DEADLINE_S)
        assert not select.select([process.pidfd], [], [], 0)[0]
        process.kill()
        assert select.select([process.pidfd], [], [], DEADLINE_S)[0]


# ---- owners


def _ends(read: int) -> bool:
    """Whether everyone who held the other end is gone, within the deadline."""
    return bool(select.select([read], [], [], DEADLINE_S)[0]) and os.read(read, 100) == b""


def test_a_process_given_up_is_killed() -> None:
    read, write = os.pipe()
    process = start(stays, fds=[write])
    process.wait_ready(DEADLINE_S)
    os.close(write)
    assert not select.select([read], [], [], 0)[0]
    process.close()
    assert _ends(read)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_dies_with_its_owner(end: signal.Signals) -> None:
    read, write = os.pipe()
    owner = start(owns, fds=[write])
    owner.wait_ready(DEADLINE_S)
    os.close(write)
    assert os.read(read, 1) == b"!"
    signal.pidfd_send_signal(owner.pidfd, end)
    assert _ends(read)


def test_what_a_process_started_dies_with_it() -> None:
    read, write = os.pipe()
    process = start(leaves_a_child, fds=[write])
    process.wait_ready(DEADLINE_S)
    os.close(write)
    assert int(os.read(read, 100)) > 0
    process.kill()
    assert _ends(read)


def test_the_fork_server_keeps_nothing_of_those_that_ended() -> None:
    def open_now() -> int:
        return len(list(Path("/proc/1/fd").iterdir()))

    with start(stays) as first:
        first.wait_ready(DEADLINE_S)
        before = open_now()
    for _ in range(20):
        with start(stays) as process:
            process.wait_ready(DEADLINE_S)
    with start(stays) as last:
        last.wait_ready(DEADLINE_S)
        end_s = time.monotonic() + DEADLINE_S
        while open_now() > before:  # it lets go once its turn comes, which nobody is told
            assert time.monotonic() < end_s
            select.select([], [], [], 0.01)
    assert _pids() == ["1", "2"]


def _pids() -> list[str]:
    return sorted(path.name for path in Path("/proc").glob("[0-9]*"))


def test_many_may_ask_at_once() -> None:
    outcomes: list[int | None] = []

    def ask() -> None:
        _, process = _report()
        outcomes.append(process.wait(DEADLINE_S))

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert outcomes == [3] * 20


def test_a_client_that_talks_nonsense_harms_nobody() -> None:
    for nonsense in (b"{", b"[]", b'"x"', b"{}", b"\xff\xff", b'{"entry": 1}'):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.settimeout(DEADLINE_S)
            client.connect(str(forkserver.FORK_SERVER))
            client.send(nonsense)
            assert b"error" in client.recv(4096)
    assert _report()[1].wait(DEADLINE_S) == 3


# ---- requests that cannot be made


@pytest.mark.parametrize(
    ("entry", "argument", "name", "words"),
    [
        ("module", None, "x", "not of the form"),
        ("module:", None, "x", "not of the form"),
        ("m:f", object(), "x", "not JSON"),
        ("m:f", "x" * forkserver.LARGEST_REQUEST_BYTES, "x", "of at most 131072"),
        ("m:f", None, "", "not a name"),
    ],
)
def test_a_wrong_request_starts_nothing(entry: str, argument: object, name: str, words: str) -> None:
    before = _pids()
    with pytest.raises(SpawnError, match=words):
        spawn(entry, argument, namespace=None, name=name)
    assert _pids() == before


def test_too_many_descriptors_are_refused_and_the_most_are_passed() -> None:
    most = [os.dup(0) for _ in range(forkserver.MOST_DESCRIPTORS - 1)]
    told, process = _report(fds=most)
    assert isinstance(told["fds"], list)
    assert len(told["fds"]) == forkserver.MOST_DESCRIPTORS
    assert process.wait(DEADLINE_S) == 3
    with pytest.raises(SpawnError, match="241 descriptors, of at most 240"):
        start(reports, fds=[*most, 0, 0])


def test_the_largest_argument_arrives_whole() -> None:
    argument = "x" * (forkserver.LARGEST_REQUEST_BYTES - 1000)
    assert start(measures, argument).wait(DEADLINE_S) == len(argument) % 251
