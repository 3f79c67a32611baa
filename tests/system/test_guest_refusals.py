"""What a machine does with faults of its program and with orders that are wrong: it says so, and lives."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import pytest

from netns import syscalls
from testbed.guest.control import ControlClosed
from tests.system.guest_agent import (
    DEADLINE_S,
    ECHO,
    RAM_BYTES,
    FakeAgent,
    connect,
    read,
    running,
)

pytestmark = pytest.mark.universe(preload=("testbed.guest.machine", "testbed.guest.programs.kv"))

def test_fault_of_a_handler_is_told_and_survived() -> None:
    with running(program="tests.system.guest_programs:Faulty") as agent:
        bad, good = connect(7003), connect(7003)
        bad.send(b"raise")
        assert bad.recv(1) == b""
        good.send(b"hello")
        assert read(good, 5) == b"hello"
        stats = agent.ask("stats")
        assert stats["faults"] == 1
        assert stats["fault_lines"] == ["program Faulty raised in received(): RuntimeError: as told"]
        assert agent.pause()["registers"]["faults"] == stats["fault_lines"]


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ({"program": "nothing"}, "no program 'nothing'"),
        ({"program": "no.module:Class"}, "cannot be imported"),
        ({}, "not described by nothing"),
        ({"program": "echo", "colour": 1}, "not described by colour"),
        ({"program": "echo", "fill": 2}, "fill of 2 is not between"),
        ({"program": "echo", "max_connections": 0}, "0 connections at most"),
        ({"program": "echo", "load": {"rate_pages_per_s": -1}}, "negative"),
        ({"program": "echo", "load": {"speed": 1}}, "load is described wrongly"),
    ],
)
def test_machine_that_cannot_be(argument: dict[str, Any], problem: str) -> None:
    with FakeAgent(argument) as agent:
        assert problem in agent.hello["error"]
        assert "\n" not in agent.hello["error"]
        assert agent.process.wait(DEADLINE_S) == 2


@pytest.mark.parametrize(
    ("argument", "ram_bytes", "problem"),
    [
        ({"program": "tests.system.guest_programs:NoBoot"}, RAM_BYTES, "raised in boot(): RuntimeError"),
        ({"program": "echo", "addresses": ["192.0.2.1"]}, RAM_BYTES, "cannot listen on 192.0.2.1 port 7000"),
        ({"program": "echo"}, 4096, "4096 bytes of RAM"),
        ({"program": "echo"}, 1 << 16, "no room for"),
        ({**ECHO, "load": {"rate_pages_per_s": 1, "working_set_bytes": 64 << 20}}, RAM_BYTES, "no room"),
    ],
)
def test_start_that_fails_is_told(argument: dict[str, Any], ram_bytes: int, problem: str) -> None:
    with FakeAgent(argument, ram_bytes) as agent:
        assert problem in agent.ask("start")["error"]
        assert agent.ask("stats")["state"] == "failed"
        assert agent.ask("start") == {"error": "start: cannot start while failed"}
        assert agent.ask("stop") == {"stopped": True}


def test_wrong_orders_are_refused_and_change_nothing() -> None:
    with running(**ECHO) as agent:
        client = connect(7000)
        for order in ("start", "continue", "resume", "attach"):
            assert agent.ask(order) == {"error": f"{order}: cannot {order} while running"}
        assert "no order 'dance'" in agent.ask("dance")["error"]
        for junk in (b"{", b"[]", b"\xff\xfe", b'{"do": ["pause"]}', b'{"do": null}', b"null"):
            agent.control.socket.send(junk)
            assert "error" in agent.receive()[0]
        agent.pause()
        assert agent.ask("pause") == {"error": "pause: cannot pause while paused"}
        agent.ask("continue")
        client.send(b"unharmed")
        assert read(client, 8) == b"unharmed"


def test_descriptors_of_a_refused_order_are_closed() -> None:
    with running(**ECHO) as agent:
        before = agent.descriptors()
        with socket.socket() as something:
            for _ in range(5):
                agent.control.send({"do": "attach"}, [something.fileno()] * 100)
                assert "error" in agent.receive()[0]
                socket.send_fds(agent.control.socket, [b"junk"], [something.fileno()])
                assert "error" in agent.receive()[0]
        assert agent.descriptors() == before


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda message: message.pop("registers"), "registers of version 1 are needed"),
        (lambda message: message["registers"].update(program="kv"), "registers of 'kv', not of 'echo'"),
        (lambda message: message.update(sockets=[]), "1 connections came without a socket"),
        (lambda message: message.update(sockets=[[7, "connection"]]), "RAM has no connection in slot 7"),
        (lambda message: message.update(sockets=[[0, "pipe"]]), "no kind of socket 'pipe'"),
        (lambda message: message.update(sockets=[[0, "connection"]] * 2), "2 sockets were named and 1"),
        (lambda message: message.update(gone=[99]), "RAM has no connection in slot 99"),
    ],
)
def test_attach_that_does_not_add_up(change: Callable[[dict[str, Any]], Any], problem: str) -> None:
    with running(**ECHO) as source, FakeAgent({**ECHO, "fresh": False}) as target:
        client = connect(7000)
        client.send(b"x")
        read(client, 1)
        paused = source.pause()
        target.region.view[:] = source.region.view
        sockets, last_fd = [[0, "connection"]], paused["sockets"][-1][1]
        message = {"do": "attach", "registers": paused["registers"], "sockets": sockets, "last": True}
        change(message)
        fds = [syscalls.pidfd_getfd(source.process.pidfd, last_fd)] if message["sockets"] else []
        target.control.send(message, fds)
        assert problem in target.receive()[0]["error"]
        assert "cannot resume while failed" in target.ask("resume")["error"]
        assert target.ask("stop") == {"stopped": True}
        for fd in fds:
            os.close(fd)
        source.ask("continue")
        client.send(b"rolled back")
        assert read(client, 11) == b"rolled back"


def test_connection_that_is_gone_is_a_reset_for_the_program() -> None:
    deaf = {"program": "tests.system.guest_programs:Deaf"}
    with running(**deaf) as source, FakeAgent({**deaf, "fresh": False}) as target:
        client = connect(7000)
        client.send(b"x")
        read(client, 1)
        paused = source.pause()
        target.region.view[:] = source.region.view
        answer = target.ask("attach", registers=paused["registers"], sockets=[], gone=[0], last=True)
        assert answer == {"attached": True}
        target.ask("resume")
        stats = target.ask("stats")
        assert (stats["connections"], stats["resets"]) == (0, 1)


def test_attach_to_ram_that_holds_no_guest() -> None:
    with running(**ECHO) as source, FakeAgent({**ECHO, "fresh": False}) as target:
        registers = source.pause()["registers"]
        target.region.view[:4096] = b"\xaa" * 4096
        assert "no heap in RAM" in target.ask("attach", registers=registers, sockets=[], last=True)["error"]


def test_guest_ends_when_its_agent_is_gone() -> None:
    with running(**ECHO) as agent:
        agent.control.socket.close()
        assert agent.process.wait(DEADLINE_S) == 1


def test_control_says_when_the_guest_is_gone() -> None:
    with running(**ECHO) as agent:
        agent.process.kill()
        with pytest.raises(ControlClosed):
            agent.receive()
