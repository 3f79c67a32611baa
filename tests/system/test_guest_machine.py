"""The guest's process under a fake agent: orders, pauses, real clients, and a move from one process to
another.

The move here is between two machines in one network namespace: the second gets a copy of RAM, the
registers, and duplicates of the first one's sockets. TCP itself does not move (that is testbed.tcp's): all
the rest is as in a migration.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import socket
import subprocess
import threading
from contextlib import ExitStack

import pytest

from netns import syscalls
from testbed.guest.memory import Counter, Memory
from testbed.measure.pattern import pattern
from tests.conftest import require
from tests.system.guest_agent import (
    DEADLINE_S,
    ECHO,
    RAM_BYTES,
    FakeAgent,
    connect,
    cpu_seconds,
    eventually,
    read,
    running,
)

pytestmark = pytest.mark.universe(preload=("testbed.guest.machine", "testbed.guest.programs.kv"))

# -- pausing ---------------------------------------------------------------------------------------------


def test_hello_says_what_there_is() -> None:
    with running(**ECHO) as agent:
        assert agent.hello["pid"] == agent.process.pid
        assert agent.hello["port"] == 7000
        assert agent.hello["ram_bytes"] == RAM_BYTES
        assert bool(agent.hello_fds) == (agent.hello["tracking_error"] is None)


def test_paused_guest_is_silent_and_goes_on() -> None:
    with running(**ECHO, load={"rate_pages_per_s": 5000, "working_set_bytes": 1 << 20}) as agent:
        client = connect(7000)
        for turn in range(50):
            client.send(b"%04d" % turn)
            assert read(client, 4) == b"%04d" % turn
            paused = agent.pause()
            kinds = [kind for _, _, kind in paused["sockets"]]
            assert kinds == ["listener", "listener", "datagrams", "datagrams", "connection"]
            before = bytes(agent.region.view)
            client.send(b"late")
            assert not select.select([client], [], [], 0.002)[0], "a paused guest answered"
            assert bytes(agent.region.view) == before, "a paused guest wrote to its RAM"
            assert agent.ask("continue")["running"] > paused["t_ns"]
            assert read(client, 4) == b"late"
        stats = agent.ask("stats")
        assert stats["faults"] == stats["resets"] == 0
        assert stats["load"]["written_pages"] > 0


def count_of(agent: FakeAgent) -> Counter:
    """The counter of the program Slow, in RAM, which the agent maps too."""
    return Memory(agent.region.view).counter("count")


def test_pause_waits_for_one_step_and_not_for_all_that_are_ready() -> None:
    with running(program="tests.system.guest_programs:Slow") as agent:
        clients = [connect(7002) for _ in range(10)]
        eventually(lambda: bool(agent.ask("stats")["connections"] == 10))
        agent.pause()
        for client in clients:
            client.send(b"x")
        count = count_of(agent)
        agent.ask("continue")
        eventually(lambda: count.value > 0)
        agent.control.send({"do": "pause"})  # before the flag, so that none of its steps waits for the order
        agent.flag[0] = 1
        begun = count.value
        assert begun < 8, "this test came too late"
        assert agent.receive()[0]["paused"]
        assert count.value <= begun + 1, "more than the step under way was waited for"
        agent.ask("continue")
        eventually(lambda: count.value == 10)


def test_order_that_comes_first_in_a_batch_ends_the_batch() -> None:
    with running(program="tests.system.guest_programs:Slow") as agent:
        clients = [connect(7002) for _ in range(10)]
        eventually(lambda: bool(agent.ask("stats")["connections"] == 10))
        count = count_of(agent)
        clients[0].send(b"x")
        eventually(lambda: count.value == 1)
        agent.control.send({"do": "pause"})  # without the flag, while the first step lasts
        for client in clients[1:]:
            client.send(b"x")
        assert agent.receive()[0]["paused"]
        before = count.value
        select.select([], [], [], 0.2)
        assert count.value == before, "a paused guest made steps"
        agent.ask("continue")
        eventually(lambda: count.value == 10)


def test_accept_queue_is_drained_by_a_pause() -> None:
    with running(program="tests.system.guest_programs:Slow") as agent:
        busy = connect(7002)
        eventually(lambda: bool(agent.ask("stats")["connections"] == 1))
        for _ in range(20):
            busy.send(b"x")
        waiting = [connect(7002) for _ in range(30)]
        paused = agent.pause()
        assert len(paused["sockets"]) == 2 + 31
        assert len(waiting) == 30


def test_nothing_runs_between_the_answer_to_a_pause_and_the_next_order() -> None:
    with running(program="tests.system.guest_programs:Slow") as agent:
        clients = [connect(7002) for _ in range(10)]
        eventually(lambda: bool(agent.ask("stats")["connections"] == 10))
        for with_flag in (True, False):
            for client in clients:
                client.send(b"x")
            late = [connect(7002) for _ in range(3)]  # in the accept queue
            paused = agent.pause() if with_flag else agent.ask("pause")
            before = bytes(agent.region.view)
            select.select([], [], [], 0.3)
            assert bytes(agent.region.view) == before, "a paused guest wrote to its RAM"
            assert agent.ask("stats")["steps"] == paused["registers"]["steps"], "it made steps"
            agent.ask("continue")
            clients += late
        eventually(lambda: bool(agent.ask("stats")["connections"] == 16))


def test_stale_flag_does_no_harm() -> None:
    with running(**ECHO) as agent:
        agent.flag[0] = 1  # and no message
        client = connect(7000)
        client.send(b"still there")
        assert read(client, 11) == b"still there"


# -- moving ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_echo_moves_with_300_connections(address: str) -> None:
    with running(**ECHO) as source, FakeAgent({**ECHO, "host": "host-b", "fresh": False}) as target:
        clients = [connect(7000, address) for _ in range(300)]
        for client in clients:
            client.send(b"one")
        for client in clients:
            assert read(client, 3) == b"one"
        for client in clients[:150]:
            client.send(b"two")
        target.take_over(source)
        for client in clients[150:]:
            client.send(b"two")
        for client in clients:
            assert read(client, 3) == b"two"
            client.close()
        connect(7000, address).close()
        eventually(lambda: bool(target.ask("stats")["connections"] == 0))
        stats = target.ask("stats")
        assert (stats["accepted"], stats["closed"], stats["resets"], stats["faults"]) == (301, 301, 0, 0)


def test_ramp_moves_there_and_back_while_both_sides_talk() -> None:
    argument = {"program": "ramp", "host": "x"}
    with ExitStack() as stack:
        agent = stack.enter_context(running(**argument))
        client = connect(7001)
        client.setblocking(False)
        sent = got = 0
        for _ in range(4):
            goal = got + (1 << 20)
            while got < goal:
                readable, writable, _ = select.select([client], [client], [], DEADLINE_S)
                if readable:
                    data = client.recv(65536)
                    assert data == pattern(got, len(data))
                    got += len(data)
                if writable:
                    sent += client.send(pattern(sent, 4096))
            successor = stack.enter_context(FakeAgent({**argument, "fresh": False}))
            successor.take_over(agent)
            agent = successor
        client.setblocking(True)
        client.shutdown(socket.SHUT_WR)
        while data := client.recv(1 << 16):
            assert data == pattern(got, len(data))
            got += len(data)
        stats = agent.ask("stats")["program"]
        assert (stats["bytes_received"], stats["bytes_wrong"]) == (sent, 0)
        assert stats["bytes_sent"] == got


def test_real_redis_clients_through_moves() -> None:
    require("redis-benchmark", lambda: subprocess.run(["redis-benchmark", "--version"], capture_output=True))
    argument = {"program": "kv", "host": "x"}

    def cli(*words: str) -> str:
        return subprocess.run(
            ["redis-cli", *words], capture_output=True, text=True, timeout=DEADLINE_S, check=True
        ).stdout.strip()

    with ExitStack() as stack:
        agent = stack.enter_context(running(**argument))
        assert cli("set", "before", "the move") == "OK"
        options = ["-q", "-n", "10000", "-c", "20", "-P", "4", "-r", "1000", "-t", "set,get,incr"]
        with subprocess.Popen(
            ["redis-benchmark", *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as benchmark:
            moves = 0
            while moves < 3 or (benchmark.poll() is None and moves < 20):
                successor = stack.enter_context(FakeAgent({**argument, "fresh": False}))
                successor.take_over(agent)
                agent = successor
                moves += 1
            output, _ = benchmark.communicate(timeout=60)
        assert benchmark.returncode == 0, output
        assert "Error" not in output
        assert cli("get", "before") == "the move"
        assert cli("get") == "ERR wrong number of arguments for 'get' command"
        assert agent.ask("stats")["faults"] == 0
        assert agent.ask("stats")["resets"] == 0


def test_redis_py_through_a_move() -> None:
    require("redis-py", lambda: importlib.import_module("redis"))
    redis = importlib.import_module("redis")
    argument = {"program": "kv", "host": "x"}
    with running(**argument) as source, FakeAgent({**argument, "fresh": False}) as target:
        client = redis.Redis(socket_timeout=DEADLINE_S)
        value = os.urandom(512 << 10)
        assert client.set("large", value)
        target.take_over(source)
        assert client.get("large") == value
        pipeline = client.pipeline()
        for _ in range(500):
            pipeline.incr("n")
        assert pipeline.execute()[-1] == 500
        assert client.mget("n", "none") == [b"500", None]


def test_curl_sees_the_host_change_and_the_count_go_on() -> None:
    require("curl", lambda: subprocess.run(["curl", "--version"], capture_output=True))
    argument = {"program": "http", "host": "host-a"}
    command = ["curl", "-sS", "--max-time", str(DEADLINE_S), "http://[::1]/counter"]
    with running(**argument) as source, FakeAgent({**argument, "host": "host-b", "fresh": False}) as target:
        first = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        target.take_over(source)
        second = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        assert (first["host"], first["requests"]) == ("host-a", 1)
        assert (second["host"], second["requests"]) == ("host-b", 2)


def test_load_goes_on_after_a_move() -> None:
    load = {"rate_pages_per_s": 4000, "working_set_bytes": 4 << 20}
    argument = {**ECHO, "host": "x", "load": load, "fill": 0.5, "seed": 5}
    with running(**argument) as source, FakeAgent({**argument, "fresh": False, "populate": True}) as target:
        eventually(lambda: bool(source.ask("stats")["load"]["written_pages"] > 200))
        before = source.ask("stats")["load"]["written_pages"]
        target.take_over(source)
        eventually(lambda: bool(target.ask("stats")["load"]["written_pages"] > before + 200))


# -- ends of connections ------------------------------------------------------------------------------------


def test_connections_that_end_leave_nothing_and_cost_nothing() -> None:
    with running(program="kv") as agent:
        waiting = connect(6379)
        waiting.send(b"QUIT\r\n")
        assert read(waiting, 5) == b"+OK\r\n"
        assert waiting.recv(1) == b""
        reset = connect(6379)
        reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        ended = connect(6379)
        ended.send(b"PING\r\n")
        ended.shutdown(socket.SHUT_WR)
        assert read(ended, 7) == b"+PONG\r\n"
        assert ended.recv(1) == b""
        eventually(lambda: bool(agent.ask("stats")["connections"] == 2))
        reset.close()
        eventually(lambda: bool(agent.ask("stats")["connections"] == 1))
        steps = agent.ask("stats")["steps"]
        select.select([], [], [], 0.2)
        assert agent.ask("stats")["steps"] == steps, "who waits for an end keeps the machine busy"
        waiting.close()
        eventually(lambda: bool(agent.ask("stats")["connections"] == 0))
        stats = agent.ask("stats")
        assert (stats["accepted"], stats["closed"], stats["resets"]) == (3, 3, 1)
        descriptors = agent.descriptors()
        connect(6379).close()
        eventually(lambda: bool(agent.ask("stats")["closed"] == 4))
        assert agent.descriptors() == descriptors


def test_closed_connection_of_which_the_agent_has_a_duplicate_is_not_polled() -> None:
    with running(**ECHO) as agent:
        client = connect(7000)
        client.send(b"x")
        assert read(client, 1) == b"x"
        paused = agent.pause()
        duplicate = syscalls.pidfd_getfd(agent.process.pidfd, paused["sockets"][-1][1])
        agent.ask("continue")
        client.close()
        eventually(lambda: bool(agent.ask("stats")["connections"] == 0))
        before_s = cpu_seconds(agent.process.pid)
        select.select([], [], [], 0.5)
        assert cpu_seconds(agent.process.pid) - before_s < 0.1, "the machine is busy with a closed socket"
        os.close(duplicate)


def test_lingering_peer_is_given_up() -> None:
    with running(program="kv", linger_ns=300_000_000) as agent:
        client = connect(6379)
        client.send(b"QUIT\r\n")
        eventually(lambda: bool(agent.ask("stats")["lingered"] == 1))
        assert agent.ask("stats")["connections"] == 0


def test_churn_of_connections_leaves_nothing() -> None:
    with running(**ECHO) as agent:

        def churn() -> None:
            for _ in range(100):
                with connect(7000) as client:
                    client.send(b"x")
                    assert read(client, 1) == b"x"

        used = agent.ask("stats")["heap"]["used_bytes"]
        threads = [threading.Thread(target=churn) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            agent.pause()
            agent.ask("continue")
        eventually(lambda: bool(agent.ask("stats")["closed"] == 400))
        stats = agent.ask("stats")
        assert (stats["accepted"], stats["resets"], stats["refused"]) == (400, 0, 0)
        assert stats["heap"]["used_bytes"] == used
