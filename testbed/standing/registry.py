"""The labs of this user that stand, by name.

Each has a folder in :func:`home`, which is this user's alone (0700), so that two users never meet:

    lock       locked (flock) by the lab's processes for as long as one of them lives
    lab.json   written when the lab stands: its processes, folder, nodes and links, see :class:`Entry`
    socket     where its server listens (testbed.standing.protocol)

The lock is the truth: the kernel lets go of it with the lab's last process, however that ended. An entry
whose lock is free is of a lab that died, and whoever comes upon it removes it. Pids are told, never trusted.
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from testbed.scenario.options import OptionError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
_LOCK, _ENTRY, _SOCKET = "lock", "lab.json", "socket"
_REGISTRY_LOCK = ".lock"
_BACKLOG = 16


@dataclass(frozen=True)
class Entry:
    """A lab that stands. `holder_pid` is the process to end if its server does not answer, `first_pid` the
    first of its universe (both as seen from outside); `nodes` gives each node its kind (host, client, switch,
    storage, vm), `links` are the names of its links.
    """

    name: str
    holder_pid: int
    first_pid: int
    started_at: str
    folder: str
    nodes: dict[str, str]
    links: tuple[str, ...]


class Claim:
    """A name that is taken by this process and its forks, until :meth:`give_up` or the end of the last of
    them.

    `listener` is the bound socket of the lab's server. What is written goes through descriptors that were
    opened before: a universe may have something else at the same path.
    """

    def __init__(self, name: str, folder: Path, lock: int) -> None:
        self.name = name
        self._folder = folder
        self._lock = lock
        self._directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(f"/proc/self/fd/{self._directory}/{_SOCKET}")  # however long the folder's path is
        self.listener.listen(_BACKLOG)

    def publish(self, entry: Entry) -> None:
        """The lab stands: from here on it is found. Also to tell what has changed."""
        text = json.dumps(asdict(entry)).encode()
        unfinished = f"{_ENTRY}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        with os.fdopen(os.open(unfinished, flags, 0o600, dir_fd=self._directory), "wb") as file:
            file.write(text)
        os.rename(unfinished, _ENTRY, src_dir_fd=self._directory, dst_dir_fd=self._directory)

    def give_up(self) -> None:
        """The name is free again. Outside the universe; the lab must have ended."""
        with _registry_locked(self._folder.parent):
            shutil.rmtree(self._folder, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Let go of it in this process; its forks still have it."""
        self.listener.close()
        for descriptor in (self._directory, self._lock):
            os.close(descriptor)


def home() -> Path:
    """Where this user's labs are registered: ``$XDG_STATE_HOME/live-migration-testbed/labs``, or below
    ``~/.local/state``. A HOME that belongs to somebody else (sudo may leave it) is not used.
    """
    given = os.environ.get("XDG_STATE_HOME", "")
    if given.startswith("/"):
        return Path(given) / "live-migration-testbed" / "labs"
    own = Path(os.environ.get("HOME") or "/nonexistent")
    if not own.is_dir() or own.stat().st_uid != os.geteuid():
        own = Path(pwd.getpwuid(os.geteuid()).pw_dir)
    return own / ".local" / "state" / "live-migration-testbed" / "labs"


def check_name(name: str) -> None:
    """Raises OptionError for what cannot be a lab's name."""
    if not _NAME.fullmatch(name):
        allowed = "letters, digits, '.', '_' and '-', at most 40, a letter or digit first"
        raise OptionError(f"--name: {name!r} cannot be a lab's name: {allowed}")


def claim(name: str) -> Claim:
    """Take a name for a lab that is about to be brought up. OptionError where one of that name stands;
    OSError where the registry cannot be written."""
    check_name(name)
    root = _made_home()
    folder = root / name
    with _registry_locked(root):
        if folder.exists() and not _removed_if_dead(folder):
            raise OptionError(
                f"--name: a lab named {name!r} stands already: use it (testbed ps --name {name}), bring it "
                f"down (testbed down --name {name}), or give this one another name"
            )
        folder.mkdir(mode=0o700)
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return Claim(name, folder, lock)


def bury() -> list[str]:
    """Remove the entries of labs that died; their names, sorted."""
    root = home()
    if not root.is_dir():
        return []
    with _registry_locked(root):
        return [name for name in _names(root) if _removed_if_dead(root / name)]


def standing() -> list[Entry]:
    """The labs that stand, by name. Does not look at labs that are still coming up. Quick: no server is
    asked."""
    root = home()
    if not root.is_dir():
        return []
    entries = (_read(root / name) for name in _names(root) if not _is_dead(root / name))
    return [entry for entry in entries if entry is not None]


def find(name: str | None) -> Entry:
    """The lab of that name; for None the only one that stands. OptionError says which there are."""
    if name is not None:
        check_name(name)
    there = {entry.name: entry for entry in standing()}
    if name is None and len(there) == 1:
        return next(iter(there.values()))
    if name in there:
        return there[name]
    if name is not None and (home() / name).is_dir() and not _is_dead(home() / name):
        raise OptionError(f"--name: lab {name!r} is still coming up, or going down")
    known = ", ".join(there)
    if name is None:
        raise OptionError(f"--name: which lab? There are {known}" if known else "no lab stands: testbed up")
    raise OptionError(
        f"--name: no lab named {name!r} stands; "
        + (f"there are {known}" if known else "none does: testbed up")
    )


def connect(name: str) -> socket.socket:
    """A connection to the lab's server. OSError if it is gone."""
    directory = os.open(home() / name, os.O_RDONLY | os.O_DIRECTORY)
    try:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(f"/proc/self/fd/{directory}/{_SOCKET}")
        except BaseException:
            connection.close()
            raise
        return connection
    finally:
        os.close(directory)


# ---- the folders


def _made_home() -> Path:
    root = home()
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    if root.stat().st_uid != os.geteuid():
        raise PermissionError(13, "belongs to another user", str(root))
    root.chmod(0o700)
    return root


@contextmanager
def _registry_locked(root: Path) -> Iterator[None]:
    """One command at a time makes or removes entries."""
    descriptor = os.open(root / _REGISTRY_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if _NAME.fullmatch(path.name) and path.is_dir())


def _is_dead(folder: Path) -> bool:
    """Whether nobody holds the lab's lock any more. An entry that is gone meanwhile is dead, too."""
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _removed_if_dead(folder: Path) -> bool:
    """With the registry locked."""
    if not _is_dead(folder):
        return False
    shutil.rmtree(folder, ignore_errors=True)
    return True


def _read(folder: Path) -> Entry | None:
    try:
        told: dict[str, Any] = json.loads((folder / _ENTRY).read_text())
    except FileNotFoundError:
        return None  # it does not stand yet
    return Entry(**(told | {"links": tuple(told["links"])}))
