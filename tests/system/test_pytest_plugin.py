"""The plugin as a project uses it: pytest itself runs on files made for it."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from xml.etree import ElementTree

import pytest

from netns import universe
from testbed.standing import registry
from tests.conftest import require
from tests.system.commands import DEADLINE_S, run
from tests.system.terminal import Terminal

PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider")
LAB_S = 100.0

FORGETFUL = '''
from testbed.guest.program import Connection, Program

class Server(Program):
    """Counts where a migration does not find it."""
    port = 7777
    def attach(self):
        self.count = 0
    def received(self, connection):
        self.count += 1
        connection.send(b"%d\\n" % self.count)
        connection.consume(len(connection.inbox))
'''
WITH_LABS = '''
import os
import socket

import pytest

def test_plain():
    assert os.getpid() != 2  # not in a universe

def test_nobody_notices(lab, vm, clients, continuity):
    assert os.getpid() == 2
    with continuity() as c:
        assert vm.migrate("host-b").outcome == "completed"
    assert vm.host == "host-b"
    assert c.clients.broken == 0 and len(c.results) == 1 and c.longest_ms > 0
    assert lab.node("host-a").run("true").returncode == 0

def test_sockets_belong_to_the_machine_where_they_are_made(clients, vm):
    with clients[0]:
        one = socket.create_connection((vm.address, 7000), timeout=10)
        with clients[1]:
            two = socket.create_connection((vm.address, 7000), timeout=10)
        three = socket.create_connection((vm.address, 7000), timeout=10)
    here = [one.getsockname()[0], two.getsockname()[0], three.getsockname()[0]]
    first, second = clients[0].address, clients[1].address
    assert here == [first, second, first] and first != second
    with pytest.raises(OSError):
        socket.create_connection((vm.address, 7000), timeout=1)

def test_who_waits_too_long_is_named(vm, continuity):
    with continuity(at_most="1us"):
        vm.migrate()

@pytest.mark.testbed(program="forgetful:Server", connections=0)
def test_what_is_kept_outside_ram_is_lost(vm, clients, continuity):
    with clients[0]:
        connection = socket.create_connection((vm.address, 7777), timeout=10)
    seen = [0]
    def count():
        connection.send(b"?")
        seen.append(int(connection.recv(99)))
        assert seen[-1] == seen[-2] + 1, f"{seen[-1]} after {seen[-2]}"
    with continuity(count):
        vm.migrate()

@pytest.mark.testbed(mac="per-host", announce="none", connections=0, stream_rate=0, churn=0)
def test_a_client_that_is_cut_off_is_told_of(vm, clients, continuity):
    with clients[0]:
        connection = socket.create_connection((vm.address, 7000), timeout=2)
    with continuity(lambda: connection.recv(1), every="10ms"):
        vm.migrate()
'''
OWN_FIXTURES = '''
import os
import pytest

@pytest.fixture
def lab():
    return "mine"

@pytest.fixture
def vm(lab):
    return lab

def test_own_fixtures_of_the_same_name_are_left_alone(vm):
    assert vm == "mine" and os.getpid() != 2
'''
WRONG = '''
import pytest

@pytest.mark.testbed(memory="1GiB")
def test_unknown(lab): ...

@pytest.mark.testbed(ram="1KiB")
def test_too_small(lab): ...

@pytest.mark.testbed(scenario="demo", ram="64MiB")
def test_two_things(lab): ...

@pytest.mark.testbed_needs("no-such-thing")
def test_needs_what_nobody_knows(): ...
'''


@pytest.fixture(autouse=True)
def without_options_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the run that these tests are part of: workers, say."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    require("universe", lambda: universe.check() is None)
    return tmp_path


def tried(project: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    (project / "test_it.py").write_text(text)
    words = [*PYTEST, "-rA", "--tb=short", *options]
    return subprocess.run(words, cwd=project, capture_output=True, text=True, timeout=4 * LAB_S)


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_labs_under_tests(project: Path) -> None:
    (project / "forgetful.py").write_text(FORGETFUL)
    done = tried(project, WITH_LABS, "--testbed-runs", "runs", "--junitxml", "report.xml")
    assert "3 failed, 3 passed" in done.stdout, done.stdout
    assert "connection to 10.7.0.10: waited" in done.stdout
    assert "allowed are 0.001 ms" in done.stdout
    assert "count: AssertionError: 1 after" in done.stdout
    assert "<lambda>: TimeoutError: timed out" in done.stdout
    assert "after the guest paused" in done.stdout
    kept = sorted(path.name for path in (project / "runs").iterdir())
    assert kept == [
        "test_it.py-test_a_client_that_is_cut_off_is_told_of",
        "test_it.py-test_what_is_kept_outside_ram_is_lost",
        "test_it.py-test_who_waits_too_long_is_named",
    ]
    assert (project / "runs" / kept[2] / "migration-1" / "result.json").exists()
    assert {path.name for path in (project / "runs" / kept[2] / "evidence").iterdir()} >= {"client1.sockets"}
    told = ElementTree.parse(project / "report.xml").iter("property")
    assert sorted(Path(one.attrib["value"]).name for one in told) == kept


@pytest.mark.timeout(200)
def test_what_is_kept_and_captured(project: Path) -> None:
    text = "def test_one(vm):\n    vm.migrate()\n"
    done = tried(project, text, "--testbed-runs", "runs", "--testbed-keep", "--testbed-pcap")
    assert done.returncode == 0, done.stdout
    (folder,) = (project / "runs").iterdir()
    assert {"client1.pcapng", "host-a.pcapng"} <= {path.name for path in (folder / "pcap").iterdir()}
    assert (folder / "result.json").exists()


def test_fixtures_of_a_projects_own_are_left_alone(project: Path) -> None:
    done = tried(project, OWN_FIXTURES)
    assert "1 passed" in done.stdout, done.stdout


@pytest.mark.timeout(200)
def test_what_is_wrong_with_a_marker_is_one_line(project: Path) -> None:
    done = tried(project, WRONG)
    for said in (
        "testbed(...): memory: no option of a lab; there are scenario, mode, ram",
        "testbed(...): --ram: 1024 bytes",
        "testbed(...): ram: the scenario says what the lab is like",
        "testbed_needs('no-such-thing'): there are",
    ):
        assert said in done.stdout, done.stdout


def test_workers_have_no_terminal_to_wait_at(project: Path) -> None:
    done = tried(project, "def test_one(lab): ...\n", "-n", "1", "--testbed-pause-on-failure")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "workers have no terminal to wait at; add -n 0" in done.stderr


@pytest.mark.timeout(200)
def test_a_lab_of_a_failed_test_can_be_looked_into(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(project / "state"))
    (project / "test_it.py").write_text("def test_one(lab):\n    assert not lab.hosts\n")
    words = (*PYTEST, "--testbed-pause-on-failure", "--timeout", "5", str(project))
    with Terminal(*words) as terminal:
        terminal.wait_for("Enter brings it down")
        assert not terminal.ends(5), "after as long as a test may take that nobody looks into"
        (entry,) = registry.standing()
        there = run(project, "exec", "--name", entry.name, "client1", "--", "hostname", "-I")
        assert "10.7.0.101" in there.out
        terminal.type("\n")
        terminal.wait_for("1 failed")
        assert terminal.status() == 1
    assert registry.standing() == []


def test_the_plugin_is_known_to_pytest_and_weighs_nothing(tmp_path: Path) -> None:
    assert [one.value for one in entry_points(group="pytest11", name="testbed")] == ["testbed.pytest_plugin"]
    heavy = "{'numpy', 'scapy', 'pyroute2', 'pydantic', 'rich', 'typer', 'psutil'}"
    text = f"import sys, testbed.pytest_plugin; found = {heavy} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", text], check=True, timeout=DEADLINE_S)
    (tmp_path / "test_it.py").write_text("def test_one(): ...\n")
    done = subprocess.run(
        [*PYTEST, "-q"], cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert "testbed" not in done.stdout, done.stdout
