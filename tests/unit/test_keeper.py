"""What outlives an agent."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.host.keeper import Journal, Keeper, Kept, Stage, Storeroom

FDS = ("ram", "flag", "control", "connection", "pidfd", "stderr", "userfaultfd")


@pytest.fixture
def room() -> Iterator[Storeroom]:
    room = Storeroom()
    yield room
    room.close()


def agent_of(room: Storeroom) -> Keeper:
    """An agent's hold on the room, on descriptors of its own, as a process of its own would have."""
    line = socket.socket(fileno=os.dup(room.agents_end.fileno()))
    return Keeper(line, os.dup(room.journal), os.dup(room.store))


def test_the_next_agent_gets_what_the_dead_one_gave_to_be_kept(room: Storeroom) -> None:
    files = [os.memfd_create(name) for name in FDS]
    agent_of(room).keep(Kept({"program": "echo"}, 12, 0x7000, "", tuple(files)))
    for fd in files:
        os.close(fd)  # as its death would
    told, fds = room.kept()
    assert told is not None
    kept = Kept(**told, fds=tuple(fds))
    names = [str(Path(f"/proc/self/fd/{fd}").readlink()) for fd in kept.fds]
    assert [name.split(":")[1].split(" ")[0] for name in names] == list(FDS)
    assert (kept.description, kept.pid, kept.address) == ({"program": "echo"}, 12, 0x7000)
    assert (kept.ram, kept.flag, kept.control) == kept.fds[:3]
    assert kept.process == kept.fds[3:6]
    assert kept.userfaultfd == kept.fds[6]


def test_what_was_dropped_is_not_given_on(room: Storeroom) -> None:
    agent = agent_of(room)
    file = os.memfd_create("file")
    agent.keep(Kept({}, 1, 2, "", (file,) * 6))
    agent.journal.write(Stage.HOSTED, 3)
    agent.put_connections(b"state")
    agent.drop()
    os.close(file)
    assert room.kept() == (None, [])
    assert agent_of(room).journal.stage is Stage.NONE
    assert agent_of(room).connections() == b""


def test_the_journal_says_to_the_next_agent_how_far_the_last_had_come(room: Storeroom) -> None:
    agent_of(room).journal.write(Stage.ARRIVING, 7)
    agent_of(room).journal.write(Stage.ARRIVED)
    journal = Journal(room.journal)
    assert (journal.stage, journal.epoch) == (Stage.ARRIVED, 7)


def test_connections_lie_behind_one_another_in_the_order_in_which_they_came(room: Storeroom) -> None:
    agent_of(room).put_connections(b"first")
    agent_of(room).put_connections(b"second")
    assert agent_of(room).connections() == b"firstsecond"


def test_what_came_with_a_guest_is_forgotten_once_it_lives(room: Storeroom) -> None:
    """An agent that died long after would else complete its sockets by it again: bytes sent a second time."""
    agent_of(room).put_connections(b"unsent bytes")
    agent_of(room).settle(7)
    assert agent_of(room).connections() == b""
    assert (agent_of(room).journal.stage, agent_of(room).journal.epoch) == (Stage.HOSTED, 7)


def test_without_a_supervisor_nothing_is_kept(room: Storeroom) -> None:
    alone = Keeper(None, os.dup(room.journal), os.dup(room.store))
    alone.keep(Kept({}, 1, 2, "", ()))
    alone.drop()
    assert room.kept() == (None, [])
