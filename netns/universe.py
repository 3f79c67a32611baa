"""Private namespaces in which everything runs, and with which everything ends.

Why a universe. What a network simulation makes (namespaces, bridges, addresses, processes) belongs to the
kernel, and outlives whoever made it: after a crash it lies about, and a tool that tidies up by name destroys
what is not its own. So here everything is made inside namespaces that nobody else can see, and the kernel
takes them away with their first process, however that one ends. Four processes, each a child of the one
before:

    caller     waits; passes SIGINT, SIGTERM and SIGHUP on to main launcher   unshares; must be, because a
    process cannot enter a new pid namespace itself, only its children can first      pid 1 of the universe:
    mounts /proc and /run, forks main, then is the fork server (`first_process`) main       the function that
    was given to `run`, pid 2

SIGKILL to the caller ends the launcher (PR_SET_PDEATHSIG), that ends the first process (the same), and that
ends all (the kernel kills a pid namespace with its pid 1). With privilege no user namespace is made, without
privilege one is, in which the user is root. Nothing is shared between two universes, so there may be any
number at once.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import select
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from netns import first_process, syscalls
from netns.namespace import set_loopback_up
from netns.paths import NAMED_NAMESPACES, RUN, demand_universe
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
_PID = struct.Struct("=i")
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
    """Run main() in a new universe and return its exit status: 128+n if signal n ended it, 1 after an
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
    return _run_in_fork(lambda caller, theirs: _launch(caller, theirs, main, preload), _PASSED_ON)


def check() -> None:
    """Raise UniverseUnavailable where `run` would. Makes a universe to find out, and leaves nothing."""
    run(lambda: 0)


def first_pid() -> int:
    """The pid of this universe's first process, as whoever called `run` sees it: what `join` wants."""
    demand_universe("pid of the first process")
    return _first_pid_outside


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
        flags = _flags_to_join(pid)
        return _run_in_fork(lambda caller, theirs: _launch_into(caller, theirs, pid, pidfd, flags, main), _TO_JOINED)
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
            launcher = os.fork()
            if launcher == 0:
                _end(lambda: launch(caller, theirs))
        return _await(launcher, ours, relay)


def _await(launcher: int, connection: socket.socket, relay: _Relay) -> int:
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
            status = os.waitstatus_to_exitcode(os.waitpid(launcher, 0)[1])
        except BaseException:
            os.kill(launcher, signal.SIGKILL)
            os.waitpid(launcher, 0)
            _wait_for_end(last if last >= 0 else connection.fileno())
            raise
        if last >= 0:
            _wait_for_end(last)
    if message and not descriptors:
        failure = json.loads(message)
        raise _unavailable(failure["step"], failure["errno"], failure["error"])
    return _shell_status(status)


def _wait_for_end(descriptor: int) -> None:
    """A first process's pidfd becomes readable when the last process of its universe is gone."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.poll()


def _shell_status(status: int) -> int:
    return status if status >= 0 else 128 - status


# ---- the launcher


def _launch(caller: int, connection: socket.socket, main: Callable[[], int], preload: Sequence[str]) -> int:
    _ignore_signals()
    with _telling(connection):
        _unshare()
        _die_with(caller)
    lifeline, lifeline_write = os.pipe()
    first = os.fork()
    if first == 0:
        os.close(lifeline_write)
        _end(lambda: _be_first(lifeline, connection, main, preload))
    return _see_to_the_end(first, lifeline_write)


def _launch_into(caller: int, connection: socket.socket, pid: int, pidfd: int, flags: int,
                 main: Callable[[], int]) -> int:
    _ignore_signals()
    directory = Path.cwd()
    with _telling(connection):
        with _step("entering the universe"):
            syscalls.setns(pidfd, flags)
        _die_with(caller)
    with suppress(OSError):  # not there in the universe: main starts in / then, where setns has put us
        os.chdir(directory)
    lifeline, lifeline_write = os.pipe()
    joined = os.fork()
    if joined == 0:
        os.close(lifeline_write)
        _end(lambda: _be_joined(lifeline, pid, main))
    main_pidfd = os.pidfd_open(joined)
    socket.send_fds(connection, [b"{}"], [main_pidfd, main_pidfd])
    return _see_to_the_end(joined, lifeline_write)


def _see_to_the_end(child: int, lifeline: int) -> int:
    """Tell the child its number out here, hold its lifeline, and nothing else; its exit status."""
    gc.freeze()  # no Python object may come to close a descriptor number that is closed below and used again later
    os.write(lifeline, _PID.pack(child))
    syscalls.close_all_but([0, 1, 2, lifeline])
    return _shell_status(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _unshare() -> None:
    """New network, mount and pid namespaces, in a user namespace of their own where we have no privilege."""
    if not _privileged():
        user, group = os.geteuid(), os.getegid()
        with _step("a new user namespace"):
            syscalls.unshare(syscalls.CLONE_NEWUSER)
        with _step("the user's mapping to root in a new user namespace"):
            Path("/proc/self/setgroups").write_text("deny")  # user_namespaces(7): before gid_map, without privilege
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    with _step("new network, mount and pid namespaces"):
        syscalls.unshare(syscalls.CLONE_NEWNET | syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID)


def _privileged() -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> syscalls.CAP_SYS_ADMIN & 1)
    raise OSError(errno.ENODATA, "no CapEff line", "/proc/self/status")


def _flags_to_join(pid: int) -> int:
    """What is to be entered. The kernel refuses to enter the user namespace in which one is already."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("NSpid:") and line.split()[-1] != "1":
            raise ValueError(f"process {pid} is not the first of a universe")
    flags = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWNET | syscalls.CLONE_NEWPID
    if not os.path.samefile(f"/proc/{pid}/ns/user", "/proc/self/ns/user"):
        flags |= syscalls.CLONE_NEWUSER
    return flags


# ---- the first process, and main

_first_pid_outside = -1


def _be_first(lifeline: int, connection: socket.socket, main: Callable[[], int], preload: Sequence[str]) -> int:
    _note_first_pid(_await_lifeline(lifeline))
    os.setsid()
    with _telling(connection):
        _mount()
        with _step("the loopback device"):
            set_loopback_up()
        with _step("the fork server's socket"):
            listener = first_process.listen()
    _default_signals()  # before the fork: main must not lose a signal that is sent as soon as it is known
    main_pid = os.fork()
    if main_pid == 0:
        listener.close()
        connection.close()
        _end(main, flush=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    socket.send_fds(connection, [b"{}"], [os.pidfd_open(os.getpid()), os.pidfd_open(main_pid)])
    gc.freeze()  # see _see_to_the_end
    syscalls.close_all_but([0, 1, 2, lifeline, listener.fileno()])
    return _shell_status(first_process.serve(listener, main_pid, preload))


def _be_joined(lifeline: int, first: int, main: Callable[[], int]) -> int:
    _await_lifeline(lifeline)
    _note_first_pid(first)
    _default_signals()
    _end(main, flush=True)


def _mount() -> None:
    with _step("mounts that are seen by nobody else"):
        syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    with _step("a /proc of its own"):
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
        syscalls.mount("proc", "/proc", "proc", flags)
    with _step("a /run of its own"):
        syscalls.mount("tmpfs", str(RUN), "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=755")
        NAMED_NAMESPACES.mkdir()


def _note_first_pid(pid: int) -> None:
    global _first_pid_outside
    _first_pid_outside = pid


# ---- what all of them need


def _die_with(parent: int) -> None:
    """SIGKILL for this process when its parent ends; at once if it has ended already.

    Not before the user namespace is made: the kernel forgets the request where credentials grow
    (commit_creds).
    """
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def _await_lifeline(lifeline: int) -> int:
    """SIGKILL for this process when its parent ends. From another pid namespace the parent has no number
    here, so it is its word on a pipe that proves it alive; the word is this process's own number out
    there.
    """
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    word = os.read(lifeline, _PID.size)
    if len(word) < _PID.size:
        os._exit(128 + signal.SIGKILL)
    number: int = _PID.unpack(word)[0]
    return number


def _ignore_signals() -> None:
    """The terminal's Ctrl-C goes to the whole process group: it is the caller's to pass on, not ours to die
    of.
    """
    for number in _PASSED_ON:
        signal.signal(number, signal.SIG_IGN)


def _default_signals() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _end(life: Callable[[], int], *, flush: bool = False) -> NoReturn:
    """The whole life of a forked process. It never returns into the frames of what it was forked from."""
    status = 1
    try:
        status = life()
    except SystemExit as error:
        status = first_process.exit_status(error)
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        if flush:
            first_process.flush_and_exit(status)
        os._exit(status & 0xFF)


class _StepFailed(Exception):
    def __init__(self, step: str, cause: OSError) -> None:
        super().__init__(step, cause)
        self.step = step
        self.cause = cause


@contextmanager
def _step(step: str) -> Iterator[None]:
    """Names what is being tried, for the error."""
    try:
        yield
    except OSError as error:
        raise _StepFailed(step, error) from error


@contextmanager
def _telling(connection: socket.socket) -> Iterator[None]:
    """A step that fails in the block is told to the caller, and this process ends."""
    try:
        yield
    except _StepFailed as failed:
        cause = failed.cause
        told = {"step": failed.step, "errno": cause.errno, "error": f"{cause.strerror} ({cause.filename})"}
        connection.send(json.dumps(told).encode())
        os._exit(1)


# ---- why not


def _unavailable(step: str, number: int | None, error: str) -> UniverseUnavailable:
    return UniverseUnavailable(f"{step} was refused: {error}", _COST, _remedy(number))


def _remedy(number: int | None) -> str:
    """What to do about it, from what the kernel's switches say now."""
    if os.geteuid() == 0 and not _privileged():
        return "this root lacks CAP_SYS_ADMIN (a container?): start the container privileged"
    forbidding = [
        f"sysctl {name}={allowing}"
        for name, is_forbidding, allowing in (
            ("user.max_user_namespaces", lambda value: value == 0, "10000"),
            ("kernel.unprivileged_userns_clone", lambda value: value == 0, "1"),
            ("kernel.apparmor_restrict_unprivileged_userns", lambda value: value != 0, "0"),
        )
        if (value := _sysctl(name)) is not None and is_forbidding(value)
    ]
    if forbidding:
        return f"run it as root, or let root allow it to users: {' and '.join(forbidding)}"
    if number == errno.ENOSPC:
        return "the limit on namespaces is reached: raise sysctl user.max_user_namespaces and its like, or run as root"
    return "run it as root; a container's seccomp profile or a kernel without namespaces may be what forbids it"


def _sysctl(name: str) -> int | None:
    path = Path("/proc/sys", *name.split("."))
    try:
        return int(path.read_text())
    except (FileNotFoundError, PermissionError):
        return None  # this kernel has no such switch
