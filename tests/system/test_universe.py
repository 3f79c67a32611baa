"""What lives in a universe is seen by nobody else, and ends with it, however it ends."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from netns import launcher, paths, syscalls, universe
from netns.forkserver import spawn
from netns.namespace import Namespace, names
from tests.conftest import require

NOBODY = 65534
PR_SET_DUMPABLE = 4  # <linux/prctl.h>
DEADLINE_S = 30.0


# ---- what main's end means


def _exits_with_text() -> int:
    raise SystemExit("a reason")


def _raises() -> int:
    raise ValueError("broken")


def _kills_itself() -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


@pytest.mark.parametrize(
    ("main", "status"),
    [
        (lambda: 0, 0),
        (lambda: 7, 7),
        (lambda: sys.exit(5), 5),
        (_exits_with_text, 1),
        (_raises, 1),
        (_kills_itself, 128 + signal.SIGKILL),
    ],
)
def test_the_status_is_mains(main: Callable[[], int], status: int) -> None:
    assert universe.run(main) == status


def test_main_prints_through_and_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "said").open("w") as said:
        monkeypatch.setattr(sys, "stdout", said)
        print("before")  # still in the buffer at the fork

        def main() -> int:
            print("inside")
            return 0

        universe.run(main)
        print("after")
        monkeypatch.undo()
    assert (tmp_path / "said").read_text().split() == ["before", "inside", "after"]


# ---- what is seen from inside, and from outside


def test_inside_everything_is_private() -> None:
    links_outside = sorted(name for _, name in socket.if_nameindex())

    def main() -> int:
        Namespace.create("seen-by-nobody")
        assert universe.inside()
        assert os.getpid() == 2
        assert os.getuid() == 0
        assert {int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()} == {1, 2}
        assert [name for _, name in socket.if_nameindex()] == ["lo"]
        assert sorted(path.name for path in Path("/run").iterdir()) == ["netns", "universe"]
        with socket.create_server(("127.0.0.1", 0)) as server:  # lo is up
            socket.create_connection(server.getsockname(), timeout=5).close()
        assert names() == ["seen-by-nobody"]
        return 0

    assert universe.run(main) == 0
    assert not universe.inside()
    assert not (paths.NAMED_NAMESPACES / "seen-by-nobody").exists()
    assert sorted(name for _, name in socket.if_nameindex()) == links_outside


def test_outside_a_universe_nothing_is_made() -> None:
    assert not universe.inside()
    for forbidden in (lambda: Namespace.create("x"), names, universe.first_pid,
                      lambda: spawn("m:f", None, namespace=None, name="x")):
        with pytest.raises(paths.NotInUniverse, match="only inside a universe"):
            forbidden()


def test_several_universes_at_once_do_not_meet() -> None:
    statuses: list[int] = []
    # Each main waits on its own pipe until all four have made what has the same name in each.
    pipes = [(os.pipe(), os.pipe()) for _ in range(4)]

    def live(ready: int, go: int) -> int:
        Namespace.create("host-a")
        os.write(ready, b"!")
        os.read(go, 1)
        return 0 if names() == ["host-a"] else 1

    def keep(number: int) -> None:
        (_, ready), (go, _) = pipes[number]
        statuses.append(universe.run(lambda: live(ready, go)))

    threads = [threading.Thread(target=keep, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for (ready, _), _ in pipes:
        assert os.read(ready, 1) == b"!"
    for _, (_, go) in pipes:
        os.write(go, b"!")
    for thread in threads:
        thread.join(DEADLINE_S)
    assert statuses == [0, 0, 0, 0]
    for ends in pipes:
        for end in (*ends[0], *ends[1]):
            os.close(end)


# ---- nothing is left


def sleeper(_argument: object, _fds: list[int]) -> int:
    """Lives for ever, in a process of its own, and holds the descriptor that it was given."""
    from netns.forkserver import ready

    ready()
    os.read(os.pipe()[0], 1)
    return 0


def _live(told: int, ballast_bytes: int) -> int:
    """Main of a universe that is full of life: says so on `told`, which all of it hold open, and goes on."""
    ballast = b"x" * ballast_bytes  # the kernel takes its time to free it
    assert len(ballast) == ballast_bytes
    namespace = Namespace.create("left-behind")
    kid = spawn("tests.system.test_universe:sleeper", None, namespace=namespace, fds=[told], name="kid")
    kid.wait_ready(DEADLINE_S)
    os.write(told, f"ready {universe.first_pid()}".encode())
    os.read(os.pipe()[0], 1)
    return 0


@dataclass(frozen=True)
class Caller:
    """A process that called `run`. `told` ends when no process of its universe is left."""

    pid: int
    first: int
    told: int


@contextmanager
def _caller(user: int | None = None, ballast_bytes: int = 0) -> Iterator[Caller]:
    """A fork of this process that keeps a universe full of life; as `user` if one is given."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            os.close(read)
            if user is not None:
                _become(user)
            status = universe.run(lambda: _live(write, ballast_bytes))
        finally:
            os._exit(status)
    os.close(write)
    try:
        words = os.read(read, 100).split()
        assert words[:1] == [b"ready"], "the universe did not come up"
        yield Caller(pid, int(words[1]), read)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read)


def _become(user: int) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    syscalls.prctl(PR_SET_DUMPABLE, 1)  # as an execve would: /proc/self is the user's own again


def _all_gone(read: int) -> bool:
    """Whether every process that held the other end of the pipe is gone, within the deadline."""
    return bool(select.select([read], [], [], DEADLINE_S)[0]) and os.read(read, 1) == b""


def _network_namespaces() -> set[str]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            found.add(str(path.readlink()))
        except OSError:
            continue  # it has ended, or is somebody else's
    return found


@pytest.mark.parametrize("victim", ["caller", "launcher", "first"])
def test_sigkill_leaves_nothing(victim: str) -> None:
    with _caller() as caller:
        assert _life_ends_with(victim, caller)


def test_sigkill_leaves_nothing_of_an_ordinary_users_universe() -> None:
    require("root", os.geteuid() == 0)
    require("user namespaces for ordinary users", _nobody_may)
    with _caller(NOBODY) as caller:
        assert Path(f"/proc/{caller.first}").stat().st_uid == NOBODY
        assert _life_ends_with("caller", caller)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def _life_ends_with(victim: str, caller: Caller) -> bool:
    namespace = Path(f"/proc/{caller.first}/ns/net").readlink()
    pids = {"caller": caller.pid, "launcher": _parent(caller.first), "first": caller.first}
    os.kill(pids[victim], signal.SIGKILL)
    return _all_gone(caller.told) and str(namespace) not in _network_namespaces()


def _nobody_may() -> bool:
    pid = os.fork()
    if pid == 0:
        try:
            _become(NOBODY)
            universe.check()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def test_all_is_gone_when_run_returns_though_the_launcher_was_killed() -> None:
    with _caller(ballast_bytes=256 << 20) as caller:
        os.kill(_parent(caller.first), signal.SIGKILL)
        os.waitid(os.P_PID, caller.pid, os.WEXITED | os.WNOWAIT)
        assert select.select([caller.told], [], [], 0)[0]
        assert os.read(caller.told, 1) == b""


def test_launcher_and_first_process_hold_nothing_of_the_callers() -> None:
    read, write = os.pipe()
    (ready_read, ready), (go, go_write) = os.pipe(), os.pipe()

    def main() -> int:
        os.close(write)
        os.write(ready, b"!")
        os.read(go, 1)
        return 0

    keeper = threading.Thread(target=lambda: universe.run(main))
    keeper.start()
    try:
        assert os.read(ready_read, 1) == b"!"
        os.close(write)
        assert _all_gone(read)  # though the universe lives
    finally:
        os.write(go_write, b"!")
        keeper.join(DEADLINE_S)
    for descriptor in (read, ready_read, ready, go, go_write):
        os.close(descriptor)


def test_the_launcher_is_deaf_to_what_the_terminal_sends() -> None:
    with _caller() as caller:
        status = Path(f"/proc/{_parent(caller.first)}/status").read_text()
    ignored = int(status.split("SigIgn:")[1].split()[0], 16)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        assert ignored >> (number - 1) & 1


def test_all_is_gone_when_run_returns() -> None:
    read, write = os.pipe()

    def main() -> int:
        kid = spawn("tests.system.test_universe:sleeper", None, namespace=None, fds=[write], name="kid")
        kid.wait_ready(DEADLINE_S)
        os.write(write, str(Path('/proc/self/ns/net').readlink()).encode())
        return 0

    assert universe.run(main) == 0
    os.close(write)
    namespace = os.read(read, 100).decode()
    assert os.read(read, 1) == b""  # at once: nobody holds the other end
    os.close(read)
    assert namespace not in _network_namespaces()


# ---- signals


def _told_by_signal(received: signal.Signals) -> str:
    """What main says of it when this signal comes to the caller and, as from a terminal, to its whole
    group."""
    read, write = os.pipe()

    def main() -> int:
        signal.signal(signal.SIGTERM, lambda *_: os.write(write, b"terminated") and os._exit(1))
        try:
            os.write(write, b"up")
            os.read(os.pipe()[0], 1)
        except KeyboardInterrupt:
            os.write(write, b"interrupted")
        return 1

    caller = os.fork()
    if caller == 0:
        os.setsid()
        os._exit(universe.run(main))
    os.close(write)
    assert os.read(read, 100) == b"up"
    os.killpg(caller, received)
    said = os.read(read, 100).decode()
    assert os.waitstatus_to_exitcode(os.waitpid(caller, 0)[1]) == 1
    assert os.read(read, 1) == b""  # said once, and all are gone
    os.close(read)
    return said


@pytest.mark.parametrize(
    ("received", "said"),
    [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated"), (signal.SIGHUP, "terminated")],
)
def test_main_alone_hears_of_a_signal_and_ends_in_its_own_way(received: signal.Signals, said: str) -> None:
    assert _told_by_signal(received) == said


def test_ctrl_c_that_main_does_not_catch_leaves_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        os.kill(os.getpid(), signal.SIGINT)
        os.read(os.pipe()[0], 1)
        return 0

    assert universe.run(main) == 128 + signal.SIGINT
    assert capfd.readouterr() == ("", "")


def test_ctrl_c_while_an_object_is_being_made_leaves_without_a_word(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """What was not made whole fails where it is deleted; asyncio's event loop is such an object."""

    class Half:
        def __init__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            os.read(os.pipe()[0], 1)
            self.whole = True

        def __del__(self) -> None:
            assert self.whole

    def main() -> int:
        # As they are where pytest gathers nothing.
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        sys.unraisablehook = sys.__unraisablehook__
        Half()
        return 0

    assert universe.run(main) == 128 + signal.SIGINT
    assert capfd.readouterr() == ("", "")


def test_an_exception_in_the_callers_signal_handler_ends_the_universe_and_goes_on() -> None:
    read, write = os.pipe()

    def give_up(_number: int, _frame: object) -> None:
        raise InterruptedError("given up")

    def main() -> int:
        os.write(write, b"!")
        os.read(os.pipe()[0], 1)
        return 0

    def signal_the_caller() -> None:
        os.read(read, 1)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, give_up)
    threading.Thread(target=signal_the_caller).start()
    try:
        with pytest.raises(InterruptedError, match="given up"):
            universe.run(main)
    finally:
        signal.signal(signal.SIGUSR1, before)
    os.close(write)
    assert os.read(read, 1) == b""  # at once: main, which held the other end too, is gone
    os.close(read)


def test_the_callers_handlers_are_as_before() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    universe.run(lambda: 0)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


# ---- a second terminal


def test_join_enters_the_same_universe(tmp_path: Path) -> None:
    with _caller() as caller:
        def main() -> int:
            assert universe.first_pid() == caller.first
            assert names() == ["left-behind"]
            (tmp_path / "pids").write_text(Path("/proc/1/comm").read_text())
            kid = spawn("tests.system.test_universe:sleeper", None, namespace=None, name="second")
            with kid:
                kid.wait_ready(DEADLINE_S)
            return 9

        assert universe.join(caller.first, main) == 9
        assert not universe.inside()
        assert (tmp_path / "pids").exists()


def test_join_ends_with_the_universe() -> None:
    with _caller() as caller:
        def main() -> int:
            os.kill(1, 0)
            os.write(told, b"!")
            os.read(os.pipe()[0], 1)
            return 0

        inside, told = os.pipe()
        ended: list[int] = []
        joined = threading.Thread(target=lambda: ended.append(universe.join(caller.first, main)))
        joined.start()
        assert os.read(inside, 1) == b"!"
        os.kill(caller.pid, signal.SIGKILL)
        joined.join(DEADLINE_S)
        assert ended == [128 + signal.SIGKILL]
        os.close(inside)
        os.close(told)


def test_join_refuses_what_is_no_universe() -> None:
    with pytest.raises(ValueError, match="not the first of a universe"):
        universe.join(os.getpid(), lambda: 0)
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    with pytest.raises(ProcessLookupError):
        universe.join(gone.pid, lambda: 0)


# ---- where there can be none


def test_a_limit_of_none_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a user namespace of our own, whose limit is ours to lower; then ask as one without privilege."""
    monkeypatch.setattr(launcher, "privileged", lambda: False)

    def main() -> int:
        assert Path("/proc/self/uid_map").read_text().split()[2] == "1"  # the limit is not the machine's
        Path("/proc/sys/user/max_user_namespaces").write_text("0")
        with pytest.raises(universe.UniverseUnavailable) as refused:
            universe.check()
        assert refused.value.what.startswith("a new user namespace was refused: No space left")
        assert "sysctl user.max_user_namespaces=10000" in refused.value.remedy
        assert "\n" not in str(refused.value)
        return 0

    require("user namespaces", lambda: universe.check() is None)
    assert universe.run(main) == 0


@pytest.mark.parametrize(
    ("switch", "value", "remedy"),
    [
        ("kernel.unprivileged_userns_clone", 0, "kernel.unprivileged_userns_clone=1"),
        ("kernel.apparmor_restrict_unprivileged_userns", 1, "kernel.apparmor_restrict_unprivileged_userns=0"),
        ("none", 0, "seccomp"),
    ],
)
def test_each_switch_that_forbids_is_named(
    monkeypatch: pytest.MonkeyPatch, switch: str, value: int, remedy: str
) -> None:
    def refuse(_flags: int) -> None:
        raise PermissionError(1, "Operation not permitted", "unshare")

    monkeypatch.setattr(launcher, "privileged", lambda: False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(syscalls, "unshare", refuse)
    monkeypatch.setattr(universe, "_sysctl", {switch: value}.get)
    with pytest.raises(universe.UniverseUnavailable) as refused:
        universe.check()
    assert refused.value.what == "a new user namespace was refused: Operation not permitted (unshare)"
    assert remedy in refused.value.remedy


def test_a_universe_that_fails_half_way_names_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_source: str, target: str, *_: object) -> None:
        if target == "/proc":
            raise PermissionError(1, "Operation not permitted", target)

    monkeypatch.setattr(syscalls, "mount", refuse)
    with pytest.raises(universe.UniverseUnavailable, match=r"a /proc of its own was refused: Operation not"):
        universe.check()


@pytest.mark.universe
def test_the_name_of_a_namespace_that_was_made_half_way_can_be_deleted() -> None:
    """Its maker was ended before anything was mounted there."""
    paths.NAMED_NAMESPACES.mkdir(exist_ok=True)
    (paths.NAMED_NAMESPACES / "half").touch()
    Namespace.open("half").delete()
    assert "half" not in names()
