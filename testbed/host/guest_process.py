"""The agent's hold on a guest's process: its control channel, its pause flag, and its sockets on loan.

The guest says what descriptors its sockets have; the agent takes duplicates of them with pidfd_getfd(2), so
that freezing them needs nothing of the guest's interpreter, which is paused.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

from netns import syscalls
from netns.forkserver import Process, spawn
from netns.namespace import Namespace
from testbed.guest.control import FDS_A_MESSAGE, Control, ControlClosed, ControlError, is_unasked
from testbed.host.keeper import Kept
from testbed.memory.region import Region

ENTRY = "testbed.guest.machine:main"
START_DEADLINE_S = 60.0
ANSWER_DEADLINE_S = 10.0
LAST_WORDS_DEADLINE_S = 1.0


class GuestError(Exception):
    """The guest could not do what it was told, ended, or stayed silent; the text is its own word where it has
    one."""


class GuestProcess:
    """A guest's process in its namespace, with its RAM mapped. Close it to end it."""

    def __init__(self, process: Process, control: socket.socket, flag: int) -> None:
        """Use :meth:`start` or :meth:`adopt`."""
        self.process = process
        self.address = 0
        self.refusal = ""
        self.found = ""
        """In which state an adopted guest was found (testbed.guest.machine.State)."""
        self.userfaultfd: int | None = None
        self._flag_fd = flag
        self._flag = mmap.mmap(flag, mmap.PAGESIZE)
        self._control = Control(control)
        self._attached = False
        self._late_answers = 0
        self.unasked: list[dict[str, Any]] = []
        """What the guest has said of itself and of its disk, as far as it was heard; the caller takes it."""

    @classmethod
    def start(cls, argument: Mapping[str, Any], ram: Region, namespace: Namespace) -> Self:
        """Start the process, not yet running its program, and wait until it has mapped its RAM. Raises
        GuestError; nothing is left then.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        flag = os.memfd_create("pause-flag")
        os.ftruncate(flag, mmap.PAGESIZE)
        with theirs:
            fds = [theirs.fileno(), ram.fd, flag]
            process = spawn(ENTRY, dict(argument), namespace=namespace, fds=fds, name="guest")
        started = cls(process, ours, flag)
        try:
            hello, received = started._receive(START_DEADLINE_S)
        except BaseException:
            started.close()
            raise
        started.address = hello["address"]
        started.refusal = hello.get("tracking_error") or ""
        started.userfaultfd = received[0] if received else None
        return started

    @classmethod
    def adopt(cls, kept: Kept) -> Self:
        """The process of an agent that has died: it stands where it stood."""
        process = Process.adopt("guest", kept.pid, kept.process)
        adopted = cls(process, socket.socket(fileno=kept.control), kept.flag)
        adopted.address, adopted.refusal, adopted.userfaultfd = kept.address, kept.refusal, kept.userfaultfd
        adopted._synchronise()
        return adopted

    def _synchronise(self) -> None:
        """Pass over answers to an agent that is gone, and learn in which state the guest is."""
        token = os.urandom(8).hex()
        self._send({"do": "sync", "token": token})
        end = time.monotonic() + ANSWER_DEADLINE_S
        while (answer := self._next(end, ANSWER_DEADLINE_S)[0]).get("token") != token:
            continue
        self.found = answer["state"]
        self._attached = self.found == "attached"

    def to_keep(self, description: dict[str, Any], ram: Region) -> Kept:
        """What the next agent needs to :meth:`adopt` this process; the descriptors are still this one's."""
        fds = [ram.fd, self._flag_fd, self._control.fileno(), *self.process.descriptors]
        if self.userfaultfd is not None:
            fds.append(self.userfaultfd)
        return Kept(description, self.pid, self.address, self.refusal, tuple(fds))

    @property
    def pid(self) -> int:
        return self.process.pid

    def state(self) -> str:
        """What the guest's machine is doing (testbed.guest.machine.State), or ``dead``."""
        try:
            return str(self.ask({"do": "stats"})["state"])
        except GuestError:
            if self.process.wait(0) is None:
                raise
            return "dead"

    def ask(
        self, message: dict[str, Any], deadline_s: float = ANSWER_DEADLINE_S, fds: Sequence[int] = ()
    ) -> dict[str, Any]:
        """Send an order, with duplicates of `fds`, and return its answer. Raises GuestError."""
        self._send(message, fds)
        return self._receive(deadline_s)[0]

    def pause(self) -> tuple[dict[str, Any], list[tuple[int, int, str]]]:
        """Stop the guest at the end of a step; returns its answer and its sockets (slot, descriptor, kind).

        The flag stops it between two handlers, the message wakes it when it sleeps.
        """
        self._attached = False
        self._flag[0] = 1
        answer = self.ask({"do": "pause"}, ANSWER_DEADLINE_S)
        return answer, self._all_sockets(answer)

    def _all_sockets(self, answer: dict[str, Any]) -> list[tuple[int, int, str]]:
        sockets, last = answer["sockets"], answer["last"]
        while not last:
            more = self._receive(ANSWER_DEADLINE_S)[0]
            sockets, last = sockets + more["sockets"], more["last"]
        return [(slot, fd, kind) for slot, fd, kind in sockets]

    def sockets(self) -> list[tuple[int, int, str]]:
        """The sockets (slot, descriptor, kind) of a guest that does not run."""
        answer = self.ask({"do": "sockets"}, ANSWER_DEADLINE_S)
        return self._all_sockets(answer)

    def unpause(self) -> dict[str, Any]:
        """Let it run, on where it was paused or for the first time where it was attached."""
        self._flag[0] = 0
        return self.ask({"do": "resume" if self._attached else "continue"})

    def stall(self, duration_ns: int) -> tuple[int, int]:
        """Stop a running guest for about so long, and let it run on here. Returns when its last step had
        ended and when its next could begin, by its own clock (CLOCK_MONOTONIC, ns): how long it really was.

        Its kernel works on: it acknowledges, and keeps what comes, as for a process that got SIGSTOP. Raises
        GuestError; a guest that is not dead runs then.
        """
        paused_ns = int(self.pause()[0]["t_ns"])
        try:
            while (left_ns := paused_ns + duration_ns - time.monotonic_ns()) > 0:
                if select.select([self.process.pidfd], [], [], left_ns / 1e9)[0]:
                    raise GuestError(f"the guest's process ended{self._last_words()}")
        finally:
            running = self.unpause()
        return paused_ns, int(running["running"])

    def borrow(self, fd: int) -> socket.socket:
        """A duplicate of the guest's descriptor `fd`."""
        return socket.socket(fileno=syscalls.pidfd_getfd(self.process.pidfd, fd))

    def begin_attach(
        self,
        registers: dict[str, Any],
        sockets: Sequence[tuple[int, str, socket.socket]],
        disk: dict[str, int] | None = None,
    ) -> None:
        """RAM is complete: hand over registers and first sockets. Does not wait: the program finds its state
        in RAM while the connections are still being rebuilt here.
        """
        about_disk = {} if disk is None else {"disk": disk}
        self._send_sockets({"registers": registers, **about_disk}, sockets, last=False)

    def finish_attach(self, sockets: Sequence[tuple[int, str, socket.socket]]) -> None:
        """Hand over the rest of the sockets, by slot; returns when the guest could run. Raises GuestError."""
        starts = range(0, max(len(sockets), 1), FDS_A_MESSAGE)
        for start in starts:
            self._send_sockets({}, sockets[start : start + FDS_A_MESSAGE], last=start == starts[-1])
        self._receive(ANSWER_DEADLINE_S)
        self._attached = True

    def _send_sockets(
        self, message: dict[str, Any], sockets: Sequence[tuple[int, str, socket.socket]], *, last: bool
    ) -> None:
        names = [[slot, kind] for slot, kind, _ in sockets]
        fds = [one.fileno() for _, _, one in sockets]
        self._send(message | {"do": "attach", "sockets": names, "last": last}, fds)

    def _send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        try:
            self._control.send(message, fds)
        except (ControlClosed, ControlError, OSError) as error:
            raise GuestError(f"the guest cannot be told: {error}{self._last_words()}") from error

    def _receive(self, deadline_s: float) -> tuple[dict[str, Any], list[int]]:
        """The answer to the last order; late ones, to orders that were given up, are passed over."""
        end = time.monotonic() + deadline_s
        while self._late_answers:
            message, fds = self._next(end, deadline_s)
            self._late_answers -= bool(message.get("last", True))
            for fd in fds:
                os.close(fd)
        message, fds = self._next(end, deadline_s)
        if "error" in message:
            raise GuestError(str(message["error"]))
        return message, fds

    def fileno(self) -> int:
        """Readable when the guest has said something unasked, or has ended: then :meth:`hear`."""
        return self._control.fileno()

    def hear(self) -> list[dict[str, Any]]:
        """What the guest has said unasked since the last time, without waiting. GuestError where it ended."""
        try:
            while (received := self._control.receive(wait=False)) is not None:
                if is_unasked(received[0]):
                    self.unasked.append(received[0])
        except (ControlClosed, ControlError, OSError) as error:
            raise GuestError(f"the guest's process ended{self._last_words()}") from error
        said, self.unasked = self.unasked, []
        return said

    def _next(self, end: float, deadline_s: float) -> tuple[dict[str, Any], list[int]]:
        """The next answer; what comes unasked is put aside."""
        while True:
            if not select.select([self._control], [], [], max(end - time.monotonic(), 0))[0]:
                self._late_answers += 1
                raise GuestError(f"the guest did not answer within {deadline_s:g} s")
            try:
                received = self._control.receive()
            except (ControlClosed, ControlError, OSError) as error:
                raise GuestError(f"the guest's process ended{self._last_words()}") from error
            assert received is not None
            if not is_unasked(received[0]):
                return received
            self.unasked.append(received[0])

    def _last_words(self) -> str:
        """What the process wrote last, once it has ended or a second is over."""
        end = time.monotonic() + LAST_WORDS_DEADLINE_S
        while self.process.wait(0) is None and time.monotonic() < end:
            select.select([self.process.pidfd], [], [], end - time.monotonic())
        words = self.process.stderr_tail().strip().splitlines()
        return f": {words[-1]}" if words else ""

    def close(self) -> None:
        """End the process and wait until it is gone, and its sockets with it."""
        self._control.socket.close()
        with self.process:
            pass
        self._flag.close()
        os.close(self._flag_fd)
        if self.userfaultfd is not None:
            os.close(self.userfaultfd)
            self.userfaultfd = None
