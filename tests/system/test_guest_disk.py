"""The guest's process and its disk over a socket: it moves with requests under way, is fenced, loses the
connection."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from netns.namespace import Namespace
from testbed.host.guest_process import GuestError, GuestProcess
from testbed.memory.region import Region
from tests.system.guest_agent import DEADLINE_S, FakeAgent, connect, eventually, read
from tests.unit.disk_server import Medium, SocketServer, serving

pytestmark = pytest.mark.universe(preload=("testbed.guest.machine",))

SCRIBE = {"program": "tests.system.guest_programs:Scribe", "host": "host-a"}
DISK_BYTES = 1 << 20
DISK = {"bytes": DISK_BYTES}


@contextmanager
def scribe(medium: Medium) -> Iterator[tuple[FakeAgent, SocketServer]]:
    """A running guest with its disk."""
    with serving(medium) as server, FakeAgent(SCRIBE) as agent:
        assert "running" in agent.ask("start", disk=DISK, fds=[server.theirs.fileno()])
        server.theirs.close()
        yield agent, server


def finished(agent: FakeAgent, count: int) -> None:
    eventually(lambda: bool(agent.ask("stats")["program"]["finished"] == count))


def test_guest_writes_to_its_disk() -> None:
    medium = Medium(DISK_BYTES)
    with scribe(medium) as (agent, _):
        client = connect(7005)
        client.send(b"abc")
        assert read(client, 3) == b"abc"
        finished(agent, 3)
        stats = agent.ask("stats")["disk"]
    assert (stats["bytes"], stats["written_bytes"], stats["in_flight"]) == (DISK_BYTES, 3 * 512, 0)
    assert medium.lasting[: 3 * 512 : 512] == b"abc"


def test_guest_moves_with_requests_under_way() -> None:
    medium = Medium(DISK_BYTES)
    with scribe(medium) as (source, server), serving(medium) as other:
        client = connect(7005)
        server.answering.clear()
        client.send(b"xyz")
        assert read(client, 3) == b"xyz"
        with FakeAgent({**SCRIBE, "host": "host-b", "fresh": False}) as target:
            target.take_over(source, (DISK_BYTES, other.theirs.fileno()))
            other.theirs.close()
            finished(target, 3)
            stats = target.ask("stats")
            assert stats["disk"]["resubmitted"] >= 1
            client.send(b"!")
            finished(target, 4)
    assert medium.lasting[: 4 * 512 : 512] == b"xyz!"


def test_rollback_goes_on_with_the_connection_that_there_was() -> None:
    medium = Medium(DISK_BYTES)
    with scribe(medium) as (agent, server):
        client = connect(7005)
        server.answering.clear()
        client.send(b"x")
        assert read(client, 1) == b"x"
        agent.pause()
        server.answering.set()
        select.select([], [], [], 0.05)
        assert agent.ask("stats")["program"]["finished"] == 0, "a paused guest took an answer"
        agent.ask("continue")
        finished(agent, 1)
        assert agent.ask("stats")["disk"]["resubmitted"] == 0


def test_fenced_guest_says_so_and_does_nothing_more() -> None:
    medium = Medium(DISK_BYTES)
    with scribe(medium) as (agent, _):
        client = connect(7005)
        client.send(b"a")
        assert read(client, 1) == b"a"
        finished(agent, 1)
        medium.fenced = True
        client.send(b"b")
        message, _ = agent.receive()
        assert message.keys() == {"fenced"}
        assert "EPERM" in message["fenced"]
        assert read(client, 1) == b"b"  # it was sent before the disk said no
        client.send(b"c")
        assert not select.select([client], [], [], 0.1)[0], "a fenced guest answered"
        assert agent.ask("stats")["state"] == "fenced"
        for order in ("pause", "continue", "resume", "disk"):
            assert agent.ask(order) == {"error": f"{order}: cannot {order} while fenced"}
        assert agent.ask("stop") == {"stopped": True}


def test_lost_disk_is_told_and_another_connection_carries_on() -> None:
    medium = Medium(DISK_BYTES)
    with scribe(medium) as (agent, server):
        client = connect(7005)
        server.answering.clear()
        client.send(b"a")
        assert read(client, 1) == b"a"
        server.lose()
        assert agent.receive()[0] == {"disk": "lost"}
        client.send(b"b")
        assert read(client, 1) == b"b"
        assert agent.ask("stats")["disk"]["connected"] is False
        with serving(medium) as other:
            assert agent.ask("disk", fds=[other.theirs.fileno()]) == {"connected": True}
            finished(agent, 2)
    assert medium.lasting[: 2 * 512 : 512] == b"ab"


def test_disk_grows_with_a_new_connection_and_never_shrinks() -> None:
    medium = Medium(2 * DISK_BYTES)
    with scribe(medium) as (agent, _), serving(medium) as other:
        refused = agent.ask("disk", disk={"bytes": 512}, fds=[other.theirs.fileno()])
        assert refused == {"error": "disk: a disk of 1048576 bytes cannot become one of 512"}
        agent.ask("disk", disk={"bytes": 2 * DISK_BYTES}, fds=[other.theirs.fileno()])
        assert agent.ask("stats")["disk"]["bytes"] == 2 * DISK_BYTES


@pytest.mark.parametrize(
    ("disk", "count", "problem"),
    [
        ({"bytes": 0}, 1, "a disk is described by"),
        ({"bytes": True}, 1, "a disk is described by"),
        ("large", 1, "a disk is described by"),
        ({"bytes": 512}, 0, "0 descriptors came with a disk: one is needed"),
        ({"bytes": 512}, 2, "2 descriptors came with a disk: one is needed"),
    ],
)
def test_disk_that_is_described_wrongly(disk: Any, count: int, problem: str) -> None:
    with FakeAgent(SCRIBE) as agent, socket.socket() as something:
        agent.ask("stats")  # it has closed by then what it needed to begin
        before = agent.descriptors()
        answer = agent.ask("start", disk=disk, fds=[something.fileno()] * count)
        assert answer["error"].startswith(f"start: {problem}")
        assert agent.descriptors() == before


def test_attach_asks_for_the_disk_of_the_guest() -> None:
    with scribe(Medium(DISK_BYTES)) as (source, _):
        with FakeAgent({**SCRIBE, "fresh": False}) as target:
            paused = source.pause()
            target.region.view[:] = source.region.view
            answer = target.ask("attach", registers=paused["registers"], sockets=[], last=True)
            assert answer == {"error": "attach: the guest has a disk, and no socket of it came"}


def test_disk_for_a_guest_that_has_none() -> None:
    with FakeAgent({"program": "echo"}) as agent, socket.socket() as something:
        agent.ask("start")
        answer = agent.ask("disk", fds=[something.fileno()])
        assert answer == {"error": "disk: a socket of a disk came, and the guest has no disk"}


def test_agent_puts_aside_what_comes_unasked() -> None:
    medium = Medium(DISK_BYTES)
    with ExitStack() as stack:
        server = stack.enter_context(serving(medium))
        namespace = stack.enter_context(Namespace.create("guest"))
        ram = Region.create(8 << 20)
        stack.callback(ram.close)
        process = GuestProcess.start(SCRIBE, ram, namespace)
        stack.callback(process.close)
        process.ask({"do": "start", "disk": DISK}, fds=[server.theirs.fileno()])
        server.theirs.close()
        server.lose()
        for _ in range(int(DEADLINE_S * 500)):
            if not process.ask({"do": "stats"})["disk"]["connected"]:
                break
            select.select([], [], [], 0.002)
        assert process.unasked == [{"disk": "lost"}]
        process.pause()
        process.unpause()
        with serving(medium) as other:
            assert process.ask({"do": "disk"}, fds=[other.theirs.fileno()]) == {"connected": True}
        with pytest.raises(GuestError, match="cannot start while running"):
            process.ask({"do": "start"})
