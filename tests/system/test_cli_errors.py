"""What the command does with what it cannot do: one line, the contract's exit status, nothing left behind.

Here it is started as people start it. What is wrong inside a run (wires, peers, guests) is tested elsewhere.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from netns import universe
from netns.paths import RUN
from testbed.commands.ending import CANNOT, CHECK_FAILED, ENDED_BY, INTERRUPTED, PASSED, WRONG_REQUEST
from testbed.measure.result import SCHEMA_FILE
from tests.conftest import require
from tests.system.commands import COMMAND, SMALL, Ended, Running, adopting, left_behind, named_namespaces, run

RUNS = "testbed-runs"

PROGRAMS = '''
from testbed.guest.program import Connection, Program


class Stumbles(Program):
    """Answers, until it has been asked 20 times."""
    port = 7000

    def attach(self) -> None:
        self.asked = self.memory.counter("asked")

    def received(self, connection: Connection) -> None:
        self.asked.add(1)
        if self.asked.value > 20:
            raise ZeroDivisionError("one too many")
        connection.send(connection.inbox)
        connection.consume(len(connection.inbox))


class NeverBoots(Program):
    port = 7000

    def boot(self) -> None:
        raise LookupError("no floor to stand on")


class NotAProgram:
    port = 7000
'''


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """After each test: no process, and no namespace that has a name."""
    before = named_namespaces()
    with adopting():
        yield
        assert left_behind() == []
    assert named_namespaces() == before


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the command is started: some programs lie in it."""
    (tmp_path / "programs.py").write_text(PROGRAMS)
    (tmp_path / "broken.py").write_text("def nothing(:\n")
    (tmp_path / "bursting.py").write_text("raise RuntimeError('burst on import\\nin two lines')\n")
    return tmp_path


@pytest.fixture
def possible() -> None:
    require("universe", lambda: universe.check() is None)


def assert_one_line(ended: Ended, status: int, *words: str) -> None:
    """Exactly one line on standard error, which has all `words`; the exit status."""
    assert "Traceback" not in ended.err, ended.err
    assert len(ended.err.splitlines()) == 1, ended.err
    assert [word for word in words if word not in ended.err] == [], ended.err
    assert ended.status == status


@pytest.mark.parametrize(
    ("words", "told"),
    [
        # what there is not
        ("jump", ("jump", "demo", "doctor", "migrate")),
        ("migrate --frobnicate", ("--frobnicate", "--help")),
        ("migrate quickly", ("quickly", "--help")),
        ("migrate --ram", ("--ram", "argument")),
        ("bench speed", ("speed", "switchover", "copy")),
        # none of the values that there are
        ("migrate --mode fast", ("--mode", "fast", "live", "stop-and-copy", "quick")),
        ("migrate --announce loudly", ("--announce", "loudly", "garp-request", "garp-reply", "rarp", "none")),
        ("migrate --mac mine", ("--mac", "mine", "keep", "per-host")),
        ("migrate --family ipv5", ("--family", "ipv5", "ipv4", "ipv6", "both")),
        ("migrate --pattern zigzag", ("--pattern", "zigzag", "uniform", "hot-cold", "sequential")),
        ("migrate --on-stall panic", ("--on-stall", "panic", "switch", "give-up")),
        ("migrate --tracker magic", ("--tracker", "magic", "auto", "userfaultfd", "soft-dirty", "digest")),
        ("migrate --program doom", ("--program", "doom", "echo", "kv", "http", "ramp", "module:Class")),
        (
            "migrate --disk 16MiB --storage-server san",
            ("--storage-server", "san", "testbed", "nbdkit"),
        ),
        # not together
        ("migrate --storage-server nbdkit", ("--storage-server", "without --disk")),
        ("migrate --mode quick --storage-server nbdkit", ("--storage-server", "no LUN", "quick")),
        # not what it should be
        ("migrate --clients few", ("--clients", "integer")),
        ("migrate --seed odd", ("--seed", "integer")),
        ("migrate --fill half", ("--fill", "number")),
        ("migrate --ram much", ("--ram", "much", "mib", "gib")),
        ("migrate --interval 10", ("--interval", "10", "ms")),
        ("migrate --bandwidth fast", ("--bandwidth", "fast", "mbit", "gbit")),
        ("migrate --max-bandwidth 1GiB", ("--max-bandwidth", "1GiB", "gbit")),
        # RAM
        ("migrate --ram 33554433B", ("--ram", "33554433", "pages", "4096")),
        ("migrate --ram 4MiB", ("--ram", "8 MiB")),
        ("migrate --ram 0MiB", ("--ram", "8 MiB")),
        ("migrate --ram 900TiB", ("--ram", "943718400 MiB", "allowed")),
        ("migrate --ram 64MiB --working-set 64MiB", ("--working-set", "half")),
        ("migrate --working-set 0MiB", ("--working-set", "page")),
        # storage
        ("migrate --disk much", ("--disk", "much", "mib", "gib")),
        ("migrate --disk 1000B", ("--disk", "1000", "sectors", "512")),
        ("migrate --disk=-1MiB", ("--disk", "-1MiB")),
        ("migrate --disk 900TiB", ("--disk", "943718400 MiB", "free")),
        ("migrate --disk 1MiB --ram 900TiB", ("--ram", "943718400 MiB", "a LUN of 33 MiB", "allowed")),
        ("migrate --mode quick --ram 900TiB", ("--ram", "943718400 MiB", "a LUN of", "allowed")),
        ("migrate --mode quick --disk 0MiB", ("--disk", "Quick Migration", "LUN")),
        ("migrate --storage-rate 1gbit", ("--storage-rate", "--disk", "--mode quick")),
        ("migrate --disk 1MiB --storage-rate fast", ("--storage-rate", "fast", "gbit")),
        ("migrate --disk 1MiB --storage-rate 0gbit", ("--storage-rate", "0", "between")),
        ("migrate --durable", ("--durable", "echo", "--program kv")),
        ("migrate --durable --program mine:Server", ("--durable", "mine:Server", "--program kv")),
        ("migrate --durable --program kv --disk 1MiB", ("--disk", "kv-durable", "4 MiB")),
        # comparisons
        ("compare", ("variants", "--help")),
        ("compare live", ("compare", "from 2", "1")),
        ("compare live live", ("compare", "'live'", "twice")),
        ("compare live fast", ("compare", "'fast'", "live, stop-and-copy, quick", "KEY=VALUE")),
        ("compare live speed=9", ("compare", "'speed'", "mode", "dirty-rate", "durable")),
        ("compare live ram=1GiB,ram=2GiB", ("compare", "ram twice")),
        ("compare live ram=much", ("compare", "ram=much", "--ram", "mib")),
        ("compare live hold=perhaps", ("compare", "--hold", "'perhaps'", "yes", "no")),
        ("compare live mac=mine", ("compare", "mac=mine", "--mac", "keep, per-host")),
        ("compare live ram=900TiB", ("--ram", "943718400 MiB", "allowed")),
        ("compare live program=nowhere:Guest", ("--program", "nowhere:Guest", "No module named")),
        ("compare live stop-and-copy --ram 4MiB", ("--ram", "8 MiB")),
        ("compare live stop-and-copy --storage-rate 1gbit", ("--storage-rate", "--disk", "--mode quick")),
        ("compare live stop-and-copy --repeats 0", ("--repeats", "0", "between 1")),
        ("compare live stop-and-copy --repeats 1001", ("--repeats", "1001", "1000")),
        ("compare live stop-and-copy --with loud", ("compare", "'loud'", "KEY=VALUE")),
        ("compare live stop-and-copy --with speed=9", ("compare", "'speed'", "dirty-rate")),
        ("compare live stop-and-copy --name ../up", ("--name", "../up", "slash")),
        # zero, negative, beyond
        ("migrate --bandwidth 0mbit", ("--bandwidth", "0", "between")),
        ("migrate --bandwidth=-1gbit", ("--bandwidth", "-1gbit")),
        ("migrate --max-bandwidth 0gbit", ("--max-bandwidth", "0", "between")),
        ("migrate --dirty-rate=-1", ("--dirty-rate", "-1", "between")),
        ("migrate --stream-rate=-1", ("--stream-rate", "-1", "between")),
        ("migrate --churn=-5", ("--churn", "-5", "between")),
        ("migrate --ram=-1GiB", ("--ram", "-1GiB")),
        ("migrate --interval 0ms", ("--interval", "0", "between")),
        ("migrate --downtime-limit=-1ms", ("--downtime-limit", "-1ms")),
        ("migrate --clients 0", ("--clients", "0", "between 1")),
        ("migrate --clients 101", ("--clients", "101", "100")),
        ("migrate --connections=-1", ("--connections", "-1", "between")),
        ("migrate --max-rounds 0", ("--max-rounds", "0", "between")),
        ("migrate --migrations 0", ("--migrations", "0", "between")),
        ("migrate --fill nan", ("--fill", "nan", "0.9")),
        ("migrate --fill 1", ("--fill", "1", "0.9")),
        ("bench --migrations 0", ("--migrations", "0", "between")),
        # captures
        ("demo --pcap client9", ("--pcap", "client9", "client1, client2, client3, host-a", "migration")),
        ("migrate --pcap --pcap-snap 1B", ("--pcap-snap", "1B", "64 B")),
        ("migrate --ram", ("--ram", "requires an argument", "see testbed migrate --help")),
        ("link set --name", ("--name", "see testbed link set --help")),
        # names
        ("migrate --name ../up", ("--name", "../up", "slash")),
        ("migrate --name .hidden", ("--name", ".hidden", "dot")),
        ("migrate --name=", ("--name", "''")),
        (f"demo --runs {RUN}/here", ("--runs", str(RUN))),
        # programs
        ("migrate --program nowhere:Guest", ("--program", "nowhere:Guest", "No module named")),
        ("migrate --program programs:Absent", ("--program", "programs", "Absent")),
        ("migrate --program programs:NotAProgram", ("--program", "NotAProgram", "Program")),
        ("migrate --program broken:Guest", ("--program", "broken", "SyntaxError")),
        ("migrate --program bursting:Guest", ("--program", "bursting", "burst on import in two lines")),
        ("migrate --program programs:", ("--program", "package.module:Class")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_request(folder: Path, words: str, told: tuple[str, ...]) -> None:
    ended = run(folder, *words.split())
    assert_one_line(ended, WRONG_REQUEST, *told)
    assert ended.out == ""
    assert not (folder / RUNS).exists()


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2J", "x" * 101])
def test_a_name_that_would_hurt(folder: Path, name: str) -> None:
    assert_one_line(run(folder, "migrate", "--name", name), WRONG_REQUEST, "--name")
    assert not (folder / RUNS).exists()


@pytest.mark.parametrize("runs", ["/proc/runs", "/sys/runs", "file/runs", "x" * 300])
def test_a_folder_that_cannot_be_made(folder: Path, runs: str) -> None:
    (folder / "file").touch()
    assert_one_line(run(folder, "demo", "--runs", runs), CANNOT, runs)


@pytest.mark.universe
def test_a_folder_that_must_not_be_written(folder: Path) -> None:
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", str(disk)], check=True)
    assert_one_line(run(folder, "demo", "--runs", str(disk)), CANNOT, str(disk), "Read-only")


def test_more_connections_than_the_descriptors_that_a_shell_gives(folder: Path, possible: None) -> None:
    """Debian's soft limit is 1024, and the target makes its sockets in advance; the hard limit counts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    require("4096 descriptors", hard >= 4096)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        ended = run(folder, "migrate", *SMALL, "--connections", "600", "--interval", "100ms")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert ended.status == PASSED, ended.err


def test_a_tracker_that_the_kernel_lacks(folder: Path, possible: None) -> None:
    """A run finds what the doctor finds."""
    told = json.loads(run(folder, "doctor", "--json").out)
    there = {one["name"]: one["there"] for one in told["findings"]}
    ended = run(folder, "migrate", *SMALL, "--tracker", "soft-dirty")
    if there["soft-dirty"]:
        assert ended.status == PASSED, ended.err
    else:
        assert_one_line(ended, CANNOT, "soft-dirty", "CONFIG_MEM_SOFT_DIRTY")
        assert not (folder / RUNS).exists()


def test_a_storage_server_that_is_not_installed(
    folder: Path, possible: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(folder))
    ended = run(folder, "migrate", *SMALL, "--disk", "1MiB", "--storage-server", "nbdkit", "--quiet")
    assert_one_line(ended, CANNOT, "nbdkit", "apt install")


# ---- programs that fail in a run


def test_a_program_that_raises_in_a_handler(folder: Path, possible: None) -> None:
    ended = run(folder, "migrate", *SMALL, "--program", "programs:Stumbles", "--json")
    assert ended.status == CHECK_FAILED
    assert "Traceback" not in ended.err
    result = json.loads(ended.out)
    jsonschema.validate(result, json.loads(SCHEMA_FILE.read_text()))
    (fault,) = result["guest"]["faults"][:1]
    assert [w for w in ("Stumbles", "received", "ZeroDivisionError", "one too many") if w not in fault] == []
    assert fault in [check["detail"] for check in result["checks"] if not check["passed"]]
    (written,) = (folder / RUNS).glob("*/result.json")
    assert json.loads(written.read_text()) == result


def test_a_program_that_does_not_boot(folder: Path, possible: None) -> None:
    ended = run(folder, "migrate", *SMALL, "--program", "programs:NeverBoots")
    assert_one_line(ended, CHECK_FAILED, "NeverBoots", "boot", "no floor to stand on")


# ---- a full disk


@pytest.mark.universe
@pytest.mark.parametrize("limit", ["size=8k", "size=40k", "nr_inodes=1", "nr_inodes=4"])
def test_a_full_disk(folder: Path, limit: str) -> None:
    """8k: the samples do not fit; 40k: some do; inodes: not the folder, not the logs."""
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", limit, "none", str(disk)], check=True)
    ended = run(folder, "migrate", *SMALL, "--runs", str(disk), "--quiet")
    assert_one_line(ended, CANNOT, str(disk), "No space left on device")
    assert [path for path in disk.glob("*/*") if not path.stat().st_size and path.suffix != ".log"] == []


# ---- ended from outside

BEFORE_SAMPLES = ("network:", "guest:", "clients:", "migrating", "pre-copy", "pause", "resume", "delete")
"""What the command says, each at another stage of a run, until there is something to keep."""


@pytest.mark.parametrize("moment", [*BEFORE_SAMPLES, "finish"])
def test_ctrl_c(folder: Path, possible: None, moment: str) -> None:
    """To the whole process group, as a terminal does it."""
    (folder / "jinja2.py").write_text("import signal\nsignal.pause()\n")  # no page ends the run before
    running = Running(folder, "migrate", *SMALL)
    running.wait_for(moment)
    running.send(signal.SIGINT, group=True)
    assert_one_line(running.end(), INTERRUPTED, "Ctrl-C")
    if moment != "finish":
        assert not (folder / RUNS).exists()


def test_ctrl_c_as_soon_as_there_is_something_to_interrupt(folder: Path, possible: None) -> None:
    """Not sooner: before its first line a program is Python, which tells of Ctrl-C in its own way."""
    (folder / "typer.py").write_text(
        "import os, sys\n"
        "os.write(1, b'importing')\n"
        "sys.path.remove(os.getcwd())\n"
        "del sys.modules['typer']\n"
        "import typer\n"
    )
    running = Running(folder, "migrate", *SMALL)
    running.wait_for("importing")
    running.send(signal.SIGINT, group=True)
    ended = running.end()
    assert ended.status in (INTERRUPTED, -signal.SIGINT)
    assert "Traceback" not in ended.err
    assert not (folder / RUNS).exists()


def test_ctrl_c_while_modules_are_imported(folder: Path) -> None:
    (folder / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    ended = run(folder, "demo")
    assert (ended.status, ended.err) == (-signal.SIGINT, "")


def test_ctrl_c_twice(folder: Path, possible: None) -> None:
    """However long the second takes to come: the universe does not end before its first process may."""
    running = Running(folder, "migrate", *SMALL)
    running.wait_for("pre-copy")
    (launcher,) = running.seen().children()
    (first,) = launcher.children()
    first.suspend()
    running.send(signal.SIGINT, group=True)
    running.send(signal.SIGINT, group=True)
    first.resume()
    assert_one_line(running.end(), INTERRUPTED, "Ctrl-C")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["network:", "clients:", "pre-copy"])
def test_told_to_end(folder: Path, possible: None, number: signal.Signals, moment: str) -> None:
    running = Running(folder, "migrate", *SMALL)
    running.wait_for(moment)
    running.send(number)
    status = 128 + signal.SIGTERM
    assert_one_line(running.end(), status, ENDED_BY[status])
    assert not (folder / RUNS).exists()


@pytest.mark.parametrize("moment", ["network:", "clients:", "pre-copy", "delete"])
def test_killed(folder: Path, possible: None, moment: str) -> None:
    """Nobody is left to say or tidy anything; the kernel does it. The run would go on for minutes."""
    running = Running(folder, "migrate", *SMALL, "--migrations", "1000")
    running.wait_for(moment)
    running.send(signal.SIGKILL)
    assert running.end().status == -signal.SIGKILL


def test_a_terminal_that_takes_nothing_more_does_not_change_the_exit_status(folder: Path) -> None:
    """/dev/full refuses every write, as a terminal that is gone does."""
    code = "from testbed import cli; cli.app = lambda *_, **__: 143; print('left', end=''); cli.main()"
    with Path("/dev/full").open("w") as full:
        buffered = os.environ | {"PYTHONUNBUFFERED": ""}
        done = subprocess.run([COMMAND[0], "-c", code], stdout=full, stderr=full, cwd=folder, env=buffered)
    assert done.returncode == 128 + signal.SIGTERM


def test_the_terminal_is_closed(folder: Path, possible: None) -> None:
    ours, theirs = os.openpty()
    try:
        command = subprocess.Popen(
            [*COMMAND, "migrate", *SMALL], cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0),
        )  # fmt: skip
    finally:
        os.close(theirs)
    written = b""
    while b"clients:" not in written:
        written += os.read(ours, 1 << 16)
    os.close(ours)
    assert command.wait(30) in (128 + signal.SIGTERM, -signal.SIGHUP)
    assert not (folder / RUNS).exists()


def test_output_that_nobody_reads(folder: Path, possible: None) -> None:
    """`testbed migrate | head -1`: the reader is gone after a line."""
    running = Running(folder, "migrate", *SMALL)
    running.wait_for("network:")
    running.stop_reading()
    ended = running.end()
    assert "Traceback" not in ended.err


# ---- at once


def test_help_loads_nothing_heavy(folder: Path) -> None:
    """What the command needs for a run is imported when there is one: else help would take a second."""
    heavy = ("numpy", "pyroute2", "scapy", "pydantic", "psutil", "xxhash", "testbed.lab.lab")
    code = (
        "import sys; sys.argv = ['testbed', '--help']\n"
        "from testbed.__main__ import main\n"
        "try: main()\n"
        f"finally: print('LOADED', [one for one in {heavy!r} if one in sys.modules])"
    )
    done = subprocess.run([COMMAND[0], "-c", code], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0
    assert "LOADED []" in done.stdout
    assert "migrate" in done.stdout
