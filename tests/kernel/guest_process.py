"""A guest for tracker tests: another process, which maps the RAM at an address of its own and writes it when
told.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, NoReturn

import numpy as np

from testbed.memory.region import Region
from testbed.memory.tracking import Capability, DirtyTracker, Subject, choose, open_for_tracking

ANSWER_TIMEOUT_S = 30.0

SCRIBBLED_WORD = 3
"""Which 8-byte word of a page :meth:`GuestProcess.scribble` counts up."""


class GuestProcess:
    """The test's end of the guest. Each method returns when the guest has done it, except for
    :meth:`scribble`.
    """

    def __init__(self, region: Region, pid: int, control: socket.socket) -> None:
        self.pid = pid
        self._control = control
        hello, fds, _, _ = socket.recv_fds(control, 4096, 1)
        told = json.loads(hello)
        self.subject = Subject(region, pid, told["address"], fds[0] if fds else None, told["refusal"])
        self._untaken = fds

    def tracker(self, name: str) -> DirtyTracker:
        """The tracker `name` for this guest; the caller closes it. Once only."""
        self._untaken.clear()
        return choose(name, self.subject, [Capability(name, True)]).tracker

    def take_userfaultfd(self) -> tuple[int, int, int, int]:
        """What a UserfaultfdTracker is made of; the descriptor is the caller's from here on."""
        return self._untaken.pop(), self.pid, self.subject.address, self.subject.region.size

    def close(self) -> None:
        """Kill it, and close its userfaultfd if nobody took that."""
        for fd in self._untaken:
            os.close(fd)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def write(self, pages: Sequence[int], value: int = 1) -> int:
        """Set one byte in each of `pages`; returns how many page faults that took."""
        return int(self._ask(do="write", pages=list(pages), value=value))

    def read(self, pages: Sequence[int]) -> None:
        self._ask(do="read", pages=list(pages))

    def receive(self, start: int, length: int) -> None:
        """Have the kernel write `length` bytes at the offset `start` of RAM: recv_into from a socket."""
        self._ask(do="receive", start=start, length=length)

    def scribble(self, pages: int, *, passes: int, seed: int) -> None:
        """Begin to count up a word in every page below `pages`, each once in a pass, every pass in another
        order.
        """
        order = {"do": "scribble", "pages": pages, "passes": passes, "seed": seed}
        self._control.send(json.dumps(order).encode())

    def has_answered(self) -> bool:
        """Whether it has finished :meth:`scribble`; asked until it says yes."""
        if not select.select([self._control], [], [], 0)[0]:
            return False
        return bool(self._control.recv(4096))

    def die(self) -> None:
        """Killed, and gone from the process table's living: its memory is released."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def _ask(self, **order: Any) -> Any:
        self._control.send(json.dumps(order).encode())
        return json.loads(self._control.recv(4096))


@contextmanager
def guest_process(region: Region) -> Iterator[GuestProcess]:
    """A guest that has mapped `region`; it is killed at the end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(ANSWER_TIMEOUT_S)
    with ours:
        with theirs:
            pid = os.fork()
            if pid == 0:
                ours.close()
                _run(theirs, region.fd)
        with closing(GuestProcess(region, pid, ours)) as guest:
            yield guest


def _run(control: socket.socket, ram: int) -> NoReturn:
    try:
        region = Region.from_fd(ram)
        fds: list[int] = []
        refusal = ""
        try:
            fds.append(open_for_tracking(region.address, region.size))
        except OSError as error:
            refusal = str(error)
        hello = json.dumps({"address": region.address, "refusal": refusal})
        socket.send_fds(control, [hello.encode()], fds)
        for fd in fds:
            os.close(fd)  # the agent's copy alone must keep the tracking up
        while order := control.recv(1 << 20):
            answer = _obey(json.loads(order), region)
            control.send(json.dumps(answer).encode())
    finally:
        os._exit(0)


def _obey(order: dict[str, Any], region: Region) -> int:
    match order["do"]:
        case "write":
            pages = np.array(order["pages"], np.int64)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            region.array[pages, 0] = order["value"]
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        case "read":
            return int(region.array[np.array(order["pages"], np.int64), 0].sum())
        case "receive":
            here, there = socket.socketpair()
            with here, there:
                there.sendall(b"\xaa" * order["length"])
                stop = order["start"] + order["length"]
                return here.recv_into(region.view[order["start"] : stop])
        case "scribble":
            return _scribble(region, order["pages"], order["passes"], order["seed"])
    raise ValueError(order)


def _scribble(region: Region, pages: int, passes: int, seed: int) -> int:
    words = region.array.view(np.uint64)[:, SCRIBBLED_WORD]
    generator = np.random.default_rng(seed)
    for _ in range(passes):
        for page in generator.permutation(pages).tolist():
            words[page] += 1  # never old bytes again, so that a comparison can see every write
    return pages * passes
