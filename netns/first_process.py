"""The universe's first process: it forks when asked (the server side of `netns.forkserver`), kills, and
reaps.

It is pid 1 of its namespace: the kernel gives it every orphan, shields it from signals, and kills everything
when it ends. It has one thread and never leaves `serve`.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from netns import forkserver, syscalls
from netns.paths import FORK_SERVER, HOME

_STDERR = 2


def listen() -> socket.socket:
    """The fork server's listening socket, at the place where `spawn` looks for it."""
    HOME.mkdir(mode=0o755)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(FORK_SERVER))
    listener.listen(128)
    listener.setblocking(False)
    return listener


def serve(listener: socket.socket, main_pid: int, preload: Sequence[str]) -> int:
    """Serve until the process `main_pid` ends; its exit status (-n: signal n)."""
    return _Server(listener, main_pid).serve(preload)


class _Server:
    def __init__(self, listener: socket.socket, main_pid: int) -> None:
        self._listener = listener
        self._main_pid = main_pid
        self._owners: dict[int, socket.socket] = {}  # by the pid of what they own
        self._broken_preload = ""
        self._selector = selectors.DefaultSelector()
        self._wakeup, wakeup_write = socket.socketpair()
        self._wakeup_write = wakeup_write
        for end in (self._wakeup, wakeup_write):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)  # unhandled, it would wake nobody
        signal.set_wakeup_fd(wakeup_write.fileno(), warn_on_full_buffer=False)
        self._selector.register(self._wakeup, selectors.EVENT_READ, self._nothing)
        self._selector.register(listener, selectors.EVENT_READ, self._accept)

    def serve(self, preload: Sequence[str]) -> int:
        self._import(preload)
        while True:
            status = self._reap()
            if status is not None:
                return status
            for key, _ in self._selector.select():
                action: Callable[[], None] = key.data
                action()

    def _import(self, preload: Sequence[str]) -> None:
        """Import what the processes will need. What cannot be imported is told to everyone who asks for a
        process.
        """
        # OpenBLAS would start a thread for every processor, end them all at each fork, and start them again
        # in every process that multiplies two matrices.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        for name in preload:
            try:
                importlib.import_module(name)
            except Exception as error:
                self._broken_preload = f"cannot import {name!r}: {type(error).__name__}: {error}"
        gc.collect()
        gc.freeze()  # a collection in a child would touch, and so copy, all the pages that it shares with us

    def _nothing(self) -> None:
        """Woken by SIGCHLD: `serve` reaps before it waits again."""
        self._wakeup.recv(4096)

    def _reap(self) -> int | None:
        """Bury every ended child, with what is left of its process group; the status of main if it was among
        them.
        """
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return None
            if ended is None:
                return None
            pid = ended.si_pid
            owner = self._owners.pop(pid, None)
            if owner is not None:
                _kill_group(pid)  # before it is reaped: until then nobody else can have this number
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if pid == self._main_pid:
                return status
            if owner is not None:
                self._forget(owner, {"exit": status})

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._request(connection))

    def _request(self, connection: socket.socket) -> None:
        try:
            message, descriptors, _, _ = socket.recv_fds(connection, forkserver.LARGEST_REQUEST_BYTES, 253)
        except ConnectionError:
            message, descriptors = b"", []
        if not message:
            self._forget(connection, None)
            return
        try:
            if self._broken_preload:
                raise ValueError(self._broken_preload)
            self._start(connection, _checked(json.loads(message), len(descriptors)), descriptors)
        except (ValueError, KeyError, OSError) as error:
            self._forget(connection, {"error": f"{type(error).__name__}: {error}"})
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _start(self, connection: socket.socket, request: dict[str, Any], descriptors: list[int]) -> None:
        pid = os.fork()
        if pid == 0:
            _child(request, descriptors)
        pidfd = os.pidfd_open(pid)
        try:
            self._owners[pid] = connection
            self._selector.modify(connection, selectors.EVENT_READ, lambda: self._abandoned(connection, pid))
            with suppress(ConnectionError):  # the owner has gone: the selector tells it next
                socket.send_fds(connection, [json.dumps({"pid": pid}).encode()], [pidfd])
        finally:
            os.close(pidfd)

    def _abandoned(self, connection: socket.socket, pid: int) -> None:
        """The owner has closed its connection (or, which is as bad, said something): what it owns ends."""
        self._selector.unregister(connection)
        if pid in self._owners:
            _kill_group(pid)

    def _forget(self, connection: socket.socket, last_word: dict[str, Any] | None) -> None:
        if last_word is not None:
            with suppress(ConnectionError, BlockingIOError):  # nobody listens any more
                connection.send(json.dumps(last_word).encode())
        if connection in self._selector.get_map():
            self._selector.unregister(connection)
        connection.close()


def _checked(request: Any, descriptors: int) -> dict[str, Any]:
    """The request, if it has the parts that a child relies on. ValueError."""
    kinds = {"entry": str, "name": str, "namespace": bool, "argument": object}
    if not isinstance(request, dict) or request.keys() != kinds.keys():
        raise ValueError(f"a request has the parts {', '.join(kinds)}")
    for part, kind in kinds.items():
        if not isinstance(request[part], kind):
            raise ValueError(f"{part} of a request must be of type {kind.__name__}")
    if descriptors < 2 + request["namespace"]:
        raise ValueError(f"only {descriptors} descriptors came with the request")
    return request


def _kill_group(pid: int) -> None:
    """SIGKILL for a child that is not reaped yet, and for its process group if it has come to have one."""
    os.kill(pid, signal.SIGKILL)
    with suppress(ProcessLookupError):  # killed between fork and setsid
        os.killpg(pid, signal.SIGKILL)


def _child(request: dict[str, Any], descriptors: list[int]) -> NoReturn:
    """The life of a spawned process. It never returns into the server's frames, whose descriptors it
    closes.
    """
    status = 1
    try:
        fds = _settle(request, descriptors)
        status = _call(request["entry"], request["argument"], fds)
    except SystemExit as error:
        status = exit_status(error)
    except BaseException:
        traceback.print_exc()
    finally:
        flush_and_exit(status)


def _settle(request: dict[str, Any], descriptors: list[int]) -> list[int]:
    """Make a fork of the server into a process of its own; the descriptors that are meant for its
    function.
    """
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # SIGINT stays ignored, as it is in the server
    os.setsid()
    ready, log, *fds = descriptors
    reopen_standard_streams(log)
    if request["namespace"]:
        syscalls.setns(fds.pop(0), syscalls.CLONE_NEWNET)
    syscalls.close_all_but([0, 1, _STDERR, ready, *fds])
    syscalls.set_name(request["name"])
    forkserver.set_ready_descriptor(ready)
    return fds


def _call(entry: str, argument: Any, fds: list[int]) -> int:
    module, _, function = entry.partition(":")
    result = getattr(importlib.import_module(module), function)(argument, fds)
    return 0 if result is None else int(result)


def reopen_standard_streams(log: int) -> None:
    """stdin on /dev/null, stdout and stderr on `log`, with new Python files over them.

    The old Python files may be anything that the universe's caller had put there (a test runner's capture,
    say).
    """
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(log, 1)
    os.dup2(log, _STDERR)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - they stay open for ever
    sys.stdout = open(1, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = open(_STDERR, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115


def exit_status(error: SystemExit) -> int:
    """What the interpreter would make of it: None is 0, a number itself, anything else is printed and 1."""
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    print(error.code, file=sys.stderr)
    return 1


def flush_and_exit(status: int) -> NoReturn:
    """End a forked process at once: nothing that the parent would do at its exit may be done here too."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            status = status or 1  # what it had to say is lost (disk full, closed): that is no success
    os._exit(status & 0xFF)
