"""A fake agent: the VMM's side of the control channel of a guest, and what its tests need besides."""

from __future__ import annotations

import json
import mmap
import os
import select
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from netns import syscalls
from netns.forkserver import spawn
from testbed.guest.control import FDS_A_MESSAGE, Control
from testbed.memory.region import Region

RAM_BYTES = 32 << 20
DEADLINE_S = 20.0
ECHO = {"program": "echo"}


class FakeAgent:
    """The VMM's side of the control channel, and nothing more."""

    def __init__(self, argument: dict[str, Any], ram_bytes: int = RAM_BYTES) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(DEADLINE_S)
        self.region = Region.create(ram_bytes)
        flag = os.memfd_create("flag")
        os.ftruncate(flag, mmap.PAGESIZE)
        self.flag = mmap.mmap(flag, mmap.PAGESIZE)
        self.control = Control(ours)
        fds = [theirs.fileno(), self.region.fd, flag]
        self.process = spawn("testbed.guest.machine:main", argument, namespace=None, fds=fds, name="guest")
        theirs.close()
        os.close(flag)
        self.hello, self.hello_fds = self.receive()

    def receive(self) -> tuple[dict[str, Any], list[int]]:
        received = self.control.receive()
        assert received is not None
        return received

    def ask(self, order: str, *, fds: Sequence[int] = (), **fields: Any) -> dict[str, Any]:
        self.control.send({"do": order, **fields}, fds)
        return self.receive()[0]

    def pause(self) -> dict[str, Any]:
        self.flag[0] = 1
        return self.ask("pause")

    def take_over(self, other: FakeAgent, disk: tuple[int, int] | None = None) -> None:
        """Pause `other`, copy its RAM and sockets, run here, end it there. `disk`: how many bytes it has, and
        the descriptor of its connection here.
        """
        paused = other.pause()
        assert paused["last"]
        self.region.view[:] = other.region.view
        fds = [syscalls.pidfd_getfd(other.process.pidfd, fd) for _, fd, _ in paused["sockets"]]
        named = [[slot, kind] for slot, _, kind in paused["sockets"]]
        step = FDS_A_MESSAGE
        if disk is not None:
            named, fds = [[0, "disk"], *named], [os.dup(disk[1]), *fds]
        for start in range(0, len(fds), step):
            last = start + step >= len(fds)
            message = {"do": "attach", "sockets": named[start : start + step], "last": last}
            if not start:
                message |= {"disk": {"bytes": disk[0]}} if disk is not None else {}
                message["registers"] = json.loads(json.dumps(paused["registers"]))
            self.control.send(message, fds[start : start + step])
        assert self.receive()[0] == {"attached": True}
        for fd in fds:
            os.close(fd)
        # The old machine goes first, while the new one does not run: nothing may depend on it.
        assert other.ask("stop") == {"stopped": True}
        assert other.process.wait(DEADLINE_S) == 0
        assert self.ask("resume")["running"] >= paused["t_ns"]

    def descriptors(self) -> int:
        """How many the guest has open."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def close(self) -> None:
        self.control.socket.close()
        self.process.close()
        for fd in self.hello_fds:
            os.close(fd)
        self.region.close()

    def __enter__(self) -> FakeAgent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def running(**argument: Any) -> Iterator[FakeAgent]:
    with FakeAgent({"host": "host-a", **argument}) as agent:
        assert agent.hello["ready"], agent.hello
        assert "running" in (answer := agent.ask("start")), answer
        yield agent


def connect(port: int, address: str = "127.0.0.1") -> socket.socket:
    client = socket.create_connection((address, port), DEADLINE_S)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def read(client: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = client.recv(count - len(data))
        assert part, f"closed after {len(data)} of {count} bytes"
        data += part
    return data


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(int(DEADLINE_S * 500)):
        if condition():
            return
        select.select([], [], [], 0.002)
    pytest.fail("it did not happen")
