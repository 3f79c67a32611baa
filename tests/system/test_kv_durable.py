"""The durable store in a process, with real clients: it moves under load, and is killed under load."""

from __future__ import annotations

import importlib
import random
import signal
import subprocess
import threading
from contextlib import ExitStack

import pytest

from tests.conftest import require
from tests.system.guest_agent import DEADLINE_S, FakeAgent, connect, eventually
from tests.unit.disk_server import Medium, SocketServer, serving

pytestmark = pytest.mark.universe(preload=("testbed.guest.machine", "testbed.guest.programs.kv_durable"))

DURABLE = {"program": "kv-durable", "host": "x"}
DISK_BYTES = 8 << 20
DISK = {"bytes": DISK_BYTES}


def start(stack: ExitStack, medium: Medium) -> FakeAgent:
    """A guest with fresh RAM over `medium`."""
    server = stack.enter_context(serving(medium))
    agent = stack.enter_context(FakeAgent(DURABLE))
    answer = agent.ask("start", disk=DISK, fds=[server.theirs.fileno()])
    assert "running" in answer, answer
    server.theirs.close()
    return agent


def move(stack: ExitStack, agent: FakeAgent, medium: Medium) -> FakeAgent:
    server: SocketServer = stack.enter_context(serving(medium))
    target = stack.enter_context(FakeAgent({**DURABLE, "fresh": False}))
    target.take_over(agent, (DISK_BYTES, server.theirs.fileno()))
    server.theirs.close()
    return target


def test_redis_benchmark_through_moves_and_a_cold_boot() -> None:
    require("redis-benchmark", lambda: subprocess.run(["redis-benchmark", "--version"], capture_output=True))
    redis = importlib.import_module("redis")
    medium = Medium(DISK_BYTES)
    options = ["-q", "-n", "2500", "-c", "20", "-P", "4", "-r", "1000", "-d", "300", "-t", "set,incr,mset"]
    with ExitStack() as stack:
        agent = start(stack, medium)
        with subprocess.Popen(
            ["redis-benchmark", *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as benchmark:
            moves = 0
            while moves < 3 or (benchmark.poll() is None and moves < 20):
                agent = move(stack, agent, medium)
                moves += 1
            output, _ = benchmark.communicate(timeout=90)
        assert benchmark.returncode == 0, output
        assert "Error" not in output
        stats = agent.ask("stats")
        assert (stats["faults"], stats["resets"]) == (0, 0)
        assert stats["program"]["log"]["snapshots"] >= 1
        client = redis.Redis(socket_timeout=DEADLINE_S)
        keys = [b"%b:%012d" % (kind, number) for kind in (b"key", b"counter") for number in range(1000)]
        before = client.mget(keys)
        client.close()
        kill(agent)
        medium.crash()
    with ExitStack() as stack:
        agent = start(stack, medium)
        assert redis.Redis(socket_timeout=DEADLINE_S).mget(keys) == before
        assert agent.ask("stats")["program"]["keys"] == stats["program"]["keys"]


def kill(agent: FakeAgent) -> None:
    """When its clients notice, its listener may be open yet: it is gone when the process has ended."""
    agent.process.kill()
    assert agent.process.wait(DEADLINE_S) == -signal.SIGKILL


class Writer(threading.Thread):
    """Sets its key to rising numbers until the connection ends."""

    def __init__(self, number: int) -> None:
        super().__init__(daemon=True)
        self.key = b"w%d" % number
        self.told = self.sent = 0
        self._socket = connect(6379)

    def run(self) -> None:
        try:
            while True:
                self.sent += 1
                self._socket.sendall(b"SET %b %d\r\n" % (self.key, self.sent))
                if self._socket.recv(100) != b"+OK\r\n":
                    return
                self.told = self.sent
        except ConnectionError:
            return


@pytest.mark.parametrize("flush_works", [True, False])
def test_killed_guest_and_its_disk_that_lost_power(flush_works: bool) -> None:
    """With a disk whose flush does nothing writes are lost, and seen to be: the negative control."""
    redis = importlib.import_module("redis")
    medium = Medium(DISK_BYTES)
    medium.flush_works = flush_works
    with ExitStack() as stack:
        agent = start(stack, medium)
        writers = [Writer(number) for number in range(8)]
        for writer in writers:
            writer.start()
        eventually(lambda: all(writer.told > 20 for writer in writers))
        agent = move(stack, agent, medium)
        goal = max(writer.told for writer in writers) + 20
        eventually(lambda: all(writer.told > goal for writer in writers))
        kill(agent)
        for writer in writers:
            writer.join()
        medium.crash(random.Random(1))
    with ExitStack() as stack:
        start(stack, medium)
        found = redis.Redis(socket_timeout=DEADLINE_S).mget([writer.key for writer in writers])
    numbers = [int(value or 0) for value in found]
    assert all(number <= writer.sent for number, writer in zip(numbers, writers, strict=True))
    lost = sum(number < writer.told for number, writer in zip(numbers, writers, strict=True))
    assert (lost == 0) is flush_works
