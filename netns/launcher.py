"""The forks between the caller of `universe.run` and its main: they unshare, mount, and die with one another.

The launcher is a child of the caller, the first process a child of the launcher, main a child of the first
process. Each of these functions is the life of one process; none returns into the frames of its parent.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from netns import first_process, syscalls
from netns.namespace import set_loopback_up
from netns.paths import NAMED_NAMESPACES, RUN

_PID = struct.Struct("=i")
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def launch(caller: int, connection: socket.socket, main: Callable[[], int], preload: Sequence[str]) -> int:
    """The launcher's life for `universe.run`. It tells on `connection` what fails."""
    _ignore_signals()
    with _telling(connection):
        _unshare()
        _die_with(caller)
    lifeline, lifeline_write = os.pipe()
    first = os.fork()
    if first == 0:
        os.close(lifeline_write)
        end(lambda: _be_first(lifeline, connection, main, preload))
    return _see_to_theend(first, lifeline_write)


def launch_into(
    caller: int, connection: socket.socket, pid: int, pidfd: int, flags: int, main: Callable[[], int]
) -> int:
    """The launcher's life for `universe.join`."""
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
        end(lambda: _be_joined(lifeline, pid, main))
    main_pidfd = os.pidfd_open(joined)
    socket.send_fds(connection, [b"{}"], [main_pidfd, main_pidfd])
    return _see_to_theend(joined, lifeline_write)


def _see_to_theend(child: int, lifeline: int) -> int:
    """Tell the child its number out here, hold its lifeline, and nothing else; its exit status."""
    gc.freeze()  # else what is collected later might close a number that is another's by then
    os.write(lifeline, _PID.pack(child))
    syscalls.close_all_but([0, 1, 2, lifeline])
    return shell_status(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _unshare() -> None:
    """New network, mount and pid namespaces, in a user namespace of their own where we have no privilege."""
    if not privileged():
        user, group = os.geteuid(), os.getegid()
        with _step("a new user namespace"):
            syscalls.unshare(syscalls.CLONE_NEWUSER)
        with _step("the user's mapping to root in a new user namespace"):
            Path("/proc/self/setgroups").write_text("deny")  # for gid_map: user_namespaces(7)
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    with _step("new network, mount and pid namespaces"):
        syscalls.unshare(syscalls.CLONE_NEWNET | syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID)


def privileged() -> bool:
    """Whether this process may make namespaces without a user namespace of its own."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> syscalls.CAP_SYS_ADMIN & 1)
    raise OSError(errno.ENODATA, "no CapEff line", "/proc/self/status")


def flags_to_join(pid: int) -> int:
    """Which namespaces of `pid` to enter; ValueError if it is not the first process of a pid namespace.

    The kernel refuses to enter the user namespace in which one is already.
    """
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("NSpid:") and line.split()[-1] != "1":
            raise ValueError(f"process {pid} is not the first of a universe")
    flags = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWNET | syscalls.CLONE_NEWPID
    if not Path(f"/proc/{pid}/ns/user").samefile("/proc/self/ns/user"):
        flags |= syscalls.CLONE_NEWUSER
    return flags


def shell_status(status: int) -> int:
    """128+n for a status of -n."""
    return status if status >= 0 else 128 - status


# ---- the first process, and main

_first_pid_outside = -1


def first_pid_outside() -> int:
    """See `universe.first_pid`. Every process of the universe has it from the first, of which it is a
    fork.
    """
    return _first_pid_outside


def _be_first(
    lifeline: int, connection: socket.socket, main: Callable[[], int], preload: Sequence[str]
) -> int:
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
        end(main, flush=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    socket.send_fds(connection, [b"{}"], [os.pidfd_open(os.getpid()), os.pidfd_open(main_pid)])
    gc.freeze()  # see _see_to_the_end
    syscalls.close_all_but([0, 1, 2, lifeline, listener.fileno()])
    return shell_status(first_process.serve(listener, main_pid, preload))


def _be_joined(lifeline: int, first: int, main: Callable[[], int]) -> int:
    _await_lifeline(lifeline)
    _note_first_pid(first)
    _default_signals()
    end(main, flush=True)


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
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """KeyboardInterrupt, wherever it strikes. An object that was just being made then may complain when it is
    deleted (asyncio's event loops do): nobody is to hear of that.
    """
    sys.unraisablehook = _say_nothing
    signal.default_int_handler(number, frame)


def _say_nothing(_: object) -> None: ...


def end(life: Callable[[], int], *, flush: bool = False) -> NoReturn:
    """life() and no more: then this process ends, with its result as exit status.

    1 after an exception, which is printed; 128+SIGINT after KeyboardInterrupt. `flush`: what stdout and
    stderr have buffered is written first.
    """
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
