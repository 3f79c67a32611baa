"""Private namespaces in which everything runs, and with which everything ends.

Why a universe. What a network simulation makes (namespaces, bridges, addresses, processes) belongs to the
kernel, and outlives whoever made it: after a crash it lies about, and a tool that tidies up by name destroys
what is not its own. So here everything is made inside namespaces that nobody else can see, and the kernel
takes them away with their first process, however that one ends. Four processes, each a child of the one
before:

    caller     waits; passes SIGINT, SIGTERM and SIGHUP on to main
    launcher   unshares; must be, because a process cannot enter a new pid namespace itself, only its
               children can
    first      pid 1 of the universe: mounts /proc and /run, forks main, then is the fork server
               (`first_process`)
    main       the function that was given to `run`, pid 2

SIGKILL to the caller ends the launcher (PR_SET_PDEATHSIG), that ends the first process (the same), and that
ends all (the kernel kills a pid namespace with its pid 1). With privilege no user namespace is made, without
privilege one is, in which the user is root. Nothing is shared between two universes, so there may be any
number at once.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from netns import launcher
from netns.paths import demand_universe
from netns.paths import inside as inside

_Routes = dict[signal.Signals, signal.Signals | None]
_PASSED_ON: _Routes = {
    signal.SIGINT: signal.SIGINT,
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGHUP: signal.SIGTERM,  # the terminal is gone: end in order
}
_TO_JOINED: _Routes = {
    signal.SIGINT: None,  # the terminal gives it to main already, which is in the caller's process group
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGHUP: signal.SIGTERM,
}
_MOST_BYTES = 4096
_COST = "without private namespaces nothing can be run that is sure to leave the machine as it was"


class UniverseUnavailable(Exception):
    """This machine does not let this user have a universe. `what` failed, at what `cost`, and the
    `remedy`.
    """

    def __init__(self, what: str, cost: str, remedy: str) -> None:
        super().__init__(f"{what}: {cost}; {remedy}")
        self.what = what
        self.cost = cost
        self.remedy = remedy


def run(main: Callable[[], int], *, preload: Sequence[str] = ()) -> int:
    """Run main() in a new universe and return its exit status: 128+n if signal n ended it, 1 for an
    exception.

    main() has the caller's memory (as after a fork) and open descriptors; its session is a new one without a
    terminal. SIGINT, SIGTERM and SIGHUP to the caller reach main as SIGINT (KeyboardInterrupt), SIGTERM and
    SIGTERM, and nobody else; that needs the caller's main thread, another thread passes nothing on. The
    modules `preload` are imported by the fork server while main already runs; one that cannot be imported
    makes every spawn fail with that reason.

    When this returns or raises, all processes of the universe have ended and all it held is gone.
    UniverseUnavailable if the system forbids it: then main was not run. An exception raised in the caller by
    a signal handler of its own ends the universe, and goes on.
    """
    return _run_in_fork(lambda caller, theirs: launcher.launch(caller, theirs, main, preload), _PASSED_ON)


def check() -> None:
    """Raise UniverseUnavailable where `run` would. Makes a universe to find out, and leaves nothing."""
    run(lambda: 0)


def first_pid() -> int:
    """The pid of this universe's first process, as whoever called `run` sees it: what `join` wants."""
    demand_universe("pid of the first process")
    return launcher.first_pid_outside()


def join(pid: int, main: Callable[[], int]) -> int:
    """Run main() inside the universe whose first process has the number `pid` out here; its exit status as in
    `run`.

    For a second terminal: main keeps its session, and so its terminal. It is not known to the fork server,
    ends with the universe, and the caller sees 128+SIGKILL then. ProcessLookupError if there is no such
    process; PermissionError if it belongs to another user; ValueError if it is not the first process of a pid
    namespace.
    """
    pidfd = os.pidfd_open(pid)
    try:
        flags = launcher.flags_to_join(pid)
        return _run_in_fork(
            lambda caller, theirs: launcher.launch_into(caller, theirs, pid, pidfd, flags, main), _TO_JOINED
        )
    finally:
        os.close(pidfd)


# ---- the caller


class _Relay:
    """Passes signals on to main. Those that come before main is there wait for it."""

    def __init__(self, routes: _Routes) -> None:
        self._routes = routes
        self._pidfd = -1
        self._waiting: list[signal.Signals] = []

    def handle(self, number: int, _frame: object) -> None:
        self._waiting.append(signal.Signals(number))
        self._deliver()

    @contextmanager
    def to(self, pidfd: int) -> Iterator[None]:
        """For the length of the block, main is what `pidfd` says."""
        self._pidfd = pidfd
        try:
            self._deliver()
            yield
        finally:
            self._pidfd = -1

    def _deliver(self) -> None:
        while self._pidfd >= 0 and self._waiting:
            passed = self._routes[self._waiting.pop(0)]
            if passed is not None:
                with suppress(ProcessLookupError):  # main has just ended by itself
                    signal.pidfd_send_signal(self._pidfd, passed)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handles the signals for the length of the block. Those that found no main are raised again after
        it.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle) for number in self._routes}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        for number in self._waiting:
            signal.raise_signal(number)


def _run_in_fork(launch: Callable[[int, socket.socket], int], routes: _Routes) -> int:
    """Fork; launch(pid of the caller, connection) in the fork; wait for the end of what it launches."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # else what is buffered would be written by each of the forks
    relay = _Relay(routes)
    caller = os.getpid()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, relay.installed():
        with theirs:
            child = os.fork()
            if child == 0:
                launcher.end(lambda: launch(caller, theirs))
        return _await(child, ours, relay)


def _await(child: int, connection: socket.socket, relay: _Relay) -> int:
    """The one place where the caller waits, and where the universe is taken down if it must not go on.

    The launcher says first either what has failed, or, in two pidfds, who is to be waited for and who is
    main.
    """
    with ExitStack() as undo:
        last = -1
        try:
            message, descriptors, _, _ = socket.recv_fds(connection, _MOST_BYTES, 2)
            for descriptor in descriptors:
                undo.callback(os.close, descriptor)
            if descriptors:
                last = descriptors[0]
                undo.enter_context(relay.to(descriptors[1]))
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        except BaseException:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            _wait_for_end(last if last >= 0 else connection.fileno())
            raise
        if last >= 0:
            _wait_for_end(last)
    if message and not descriptors:
        failure = json.loads(message)
        raise _unavailable(failure["step"], failure["errno"], failure["error"])
    return launcher.shell_status(status)


def _wait_for_end(descriptor: int) -> None:
    """A first process's pidfd becomes readable when the last process of its universe is gone."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.poll()


# ---- why not

_SWITCHES = (
    ("user.max_user_namespaces", 0, 10000),
    ("kernel.unprivileged_userns_clone", 0, 1),
    ("kernel.apparmor_restrict_unprivileged_userns", 1, 0),
)
"""Switches that forbid user namespaces: name, the value that forbids, one that allows."""


def _unavailable(step: str, number: int | None, error: str) -> UniverseUnavailable:
    return UniverseUnavailable(f"{step} was refused: {error}", _COST, _remedy(number))


def _remedy(number: int | None) -> str:
    """What to do about it, from what the kernel's switches say now."""
    to_set = [f"sysctl {name}={allow}" for name, forbid, allow in _SWITCHES if _sysctl(name) == forbid]
    if to_set:
        return f"run it as root, or let the machine's root allow it to users: {' and '.join(to_set)}"
    if os.geteuid() == 0:
        return "this root lacks CAP_SYS_ADMIN, as in a container: start the container privileged"
    if number == errno.ENOSPC:
        return "run it as root, or let root raise the limit that is reached: sysctl user.max_*_namespaces"
    return "run it as root; a container's seccomp profile, or a kernel without namespaces, forbids it"


def _sysctl(name: str) -> int | None:
    path = Path("/proc/sys", *name.split("."))
    try:
        return int(path.read_text())
    except (FileNotFoundError, PermissionError):
        return None  # this kernel has no such switch
