"""A command or a shell in a node of a lab that stands: a process of its universe, with this terminal.

What is started there is in the node's network, and has the lab's own /proc, /run and process numbers; files
are those of the machine. It ends with the lab at the latest.

The terminal. A command stays in the process group of ``testbed``, as a command of a pipeline does: Ctrl-C
reaches it, Ctrl-Z stops both. An interactive shell gets a group of its own and the terminal with it, because
a shell that controls jobs gives the terminal away and takes it back; when it has ended, ``testbed`` takes it
back, with the settings that it had.
"""

from __future__ import annotations

import errno
import os
import pwd
import shutil
import signal
import sys
import termios
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from netns import universe
from netns.namespace import Namespace
from netns.syscalls import CLONE_NEWNET, setns

NOT_FOUND, NOT_RUN = 127, 126
"""Exit statuses of a command that is not there, or cannot be run: as a shell has them."""
LAB_ENDED = 128 + signal.SIGKILL
_ADMIN_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_RESET = (signal.SIGPIPE, signal.SIGXFSZ)
"""Signals that Python ignores, and what it starts would ignore too."""


def run(first_pid: int, namespace: str, command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run `command` in a node; its exit status (128+n: ended by signal n, 127: not found, 126: not runnable).

    ProcessLookupError or PermissionError where the lab is gone.
    """
    return universe.join(first_pid, lambda: _become(namespace, command, environment))


def shell(first_pid: int, namespace: str, lab: str, node: str) -> int:
    """An interactive shell in a node; its exit status. As :func:`run`."""
    command, environment, descriptor = shell_of(lab, node)
    try:
        with _terminal_lent():
            return universe.join(
                first_pid, lambda: _become(namespace, command, environment, descriptor, leads=True)
            )
    finally:
        if descriptor is not None:
            os.close(descriptor)


def environment_of(lab: str, node: str) -> dict[str, str]:
    """What a program in a node is told of where it is, and a path on which ``ip`` and ``tc`` are found."""
    path = os.environ.get("PATH", os.defpath).split(":")
    return {
        "TESTBED_LAB": lab,
        "TESTBED_NODE": node,
        "PATH": ":".join([*path, *(folder for folder in _ADMIN_FOLDERS if folder not in path)]),
    }


# ---- inside


def _become(
    namespace: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    descriptor: int | None = None,
    *,
    leads: bool = False,
) -> int:
    """This process enters the node and becomes the command; it returns only where it cannot."""
    with Namespace.open(namespace) as node:
        setns(node.fd, CLONE_NEWNET)
    if leads and os.isatty(0):
        os.setpgid(0, 0)
        _take_terminal()
    for number in _RESET:
        signal.signal(number, signal.SIG_DFL)
    if descriptor is not None:
        os.set_inheritable(descriptor, True)
    try:
        if not shutil.which(command[0], os.F_OK, environment.get("PATH")):
            # Not left to exec, which names the last folder that it could not look into.
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        os.execvpe(command[0], list(command), {**os.environ, **environment})
    except OSError as error:
        print(f"testbed: cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_RUN


# ---- the terminal


def _take_terminal() -> None:
    """Make this process's group the terminal's. From the background that would stop us, if it were not
    ignored."""
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        os.tcsetpgrp(0, os.getpgrp())
    finally:
        signal.signal(signal.SIGTTOU, before)


@contextmanager
def _terminal_lent() -> Iterator[None]:
    """Afterwards the terminal is this process's again, with its settings: a shell that was killed left its
    own."""
    if not os.isatty(0):
        yield
        return
    settings = termios.tcgetattr(0)
    try:
        yield
    finally:
        _take_terminal()
        termios.tcsetattr(0, termios.TCSADRAIN, settings)


# ---- which shell


def shell_of(lab: str, node: str) -> tuple[list[str], dict[str, str], int | None]:
    """The user's shell, its environment, and a descriptor that it is to inherit and that is the caller's to
    close. A bash reads its user's settings and then gets the prompt; of another shell the prompt is all that
    can be set."""
    path = os.environ.get("SHELL") or pwd.getpwuid(os.getuid()).pw_shell or "/bin/sh"
    environment = environment_of(lab, node)
    where = f"[{lab} {node}]"
    if Path(path).name != "bash":
        return [path, "-i"], environment | {"PS1": f"{where} $ ", "PROMPT": f"{where} %# "}, None
    descriptor = os.memfd_create("bashrc", 0)
    os.write(descriptor, _bashrc(where, descriptor).encode())
    return [path, "--rcfile", f"/proc/self/fd/{descriptor}", "-i"], environment, descriptor


def _bashrc(where: str, descriptor: int) -> str:
    """The user's own settings, then the place in front of the prompt, also of one that is made anew each
    time."""
    return f"""exec {descriptor}<&-
[ -r /etc/bash.bashrc ] && . /etc/bash.bashrc
[ -r ~/.bashrc ] && . ~/.bashrc
__testbed_prompt() {{
    local status=$?
    case "$PS1" in *{where!r}*) ;; *) PS1="\\[\\e[1;36m\\]"{where!r}"\\[\\e[0m\\] $PS1" ;; esac
    return $status
}}
PROMPT_COMMAND="${{PROMPT_COMMAND:+$PROMPT_COMMAND
}}__testbed_prompt"
"""
