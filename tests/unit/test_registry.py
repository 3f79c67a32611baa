"""The registry of labs: names, claims, and what is left of a lab that died."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from testbed.scenario.options import OptionError
from testbed.standing import registry
from testbed.standing.registry import Claim, Entry


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def stand(claim: Claim) -> Entry:
    nodes = {"host-a": "host"}
    entry = Entry(claim.name, 11, 12, "2026-01-01T00:00:00+00:00", "/runs/x", nodes, ("client1",))
    claim.publish(entry)
    return entry


def test_a_lab_is_found_by_its_name_from_when_it_stands_to_when_it_is_given_up() -> None:
    claim = registry.claim("one")
    with pytest.raises(OptionError, match="still coming up"):
        registry.find("one")
    assert registry.standing() == []
    entry = stand(claim)
    assert registry.find("one") == entry
    assert registry.find(None) == entry
    claim.give_up()
    assert registry.standing() == []
    with pytest.raises(OptionError, match="none does: testbed up"):
        registry.find("one")


def test_a_name_that_is_taken_is_refused_with_what_to_do() -> None:
    claim = registry.claim("one")
    with pytest.raises(OptionError, match="testbed down --name one"):
        registry.claim("one")
    other = registry.claim("two")
    stand(claim), stand(other)
    with pytest.raises(OptionError, match="which lab\\? There are one, two"):
        registry.find(None)
    with pytest.raises(OptionError, match="there are one, two"):
        registry.find("three")
    claim.give_up(), other.give_up()


def test_what_a_dead_lab_left_is_buried_once_and_its_name_is_free() -> None:
    pid = os.fork()
    if pid == 0:
        stand(registry.claim("dead"))
        os._exit(0)  # without giving up: its lock goes with it
    os.waitpid(pid, 0)
    assert registry.standing() == []
    assert registry.bury() == ["dead"]
    assert registry.bury() == []
    pid = os.fork()
    if pid == 0:
        registry.claim("dead")
        os._exit(0)
    os.waitpid(pid, 0)
    registry.claim("dead").give_up()  # nobody has buried it


def test_a_living_lab_is_not_buried_while_a_fork_has_it() -> None:
    claim = registry.claim("one")
    stand(claim)
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        theirs.recv(1)
        os._exit(0)
    claim.close()
    assert registry.bury() == []
    assert [entry.name for entry in registry.standing()] == ["one"]
    ours.send(b"!")
    os.waitpid(pid, 0)
    assert registry.bury() == ["one"]


@pytest.mark.parametrize("name", ["", "a/b", "..", ".x", "a b", "-x", "é", "x" * 41, "a\n"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(OptionError, match="letters, digits"):
        registry.claim(name)


def test_the_registry_is_its_users_alone_and_its_sockets_work_however_long_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / ("long" * 30) / ("er" * 60)))
    claim = registry.claim("one")
    assert stat.S_IMODE(registry.home().stat().st_mode) == 0o700
    with registry.connect("one") as ours:
        theirs, _ = claim.listener.accept()
        ours.send(b"hello")
        assert theirs.recv(9) == b"hello"
        theirs.close()
    claim.give_up()
    with pytest.raises(FileNotFoundError):
        registry.connect("one")


def test_a_home_of_somebody_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert registry.home() == tmp_path / ".local/state/live-migration-testbed/labs"
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1 if tmp_path.stat().st_uid else 1)
    assert not registry.home().is_relative_to(tmp_path)
