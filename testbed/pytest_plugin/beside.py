"""The lab beside a test: a server's process in the test's universe, and the fixture's way to it and from
it."""

from __future__ import annotations

import re
import shutil
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from netns import universe
from netns.forkserver import ready, spawn
from testbed.pytest_plugin.handles import Lab
from testbed.scenario.files import found
from testbed.scenario.from_options import scenario_of
from testbed.scenario.model import Scenario
from testbed.scenario.options import OptionError
from testbed.scenario.pcap import ALL, DEFAULT_LIMIT, Pcap
from testbed.scenario.words import KEYS, options_from
from testbed.standing import registry
from testbed.standing.background import StarterGone, Voice
from testbed.standing.client import Conversation
from testbed.standing.protocol import LabGone, Refused
from testbed.standing.registry import Entry

ENTRY = f"{__name__}:main"
SOCKET = Path("/run/lab-under-test")
SMALL: dict[str, Any] = {
    "ram": "64MiB",
    "working-set": "4MiB",
    "clients": 2,
    "connections": 4,
    "churn": 20,
    "stream-rate": 50,
    "baseline": "0ms",
}
"""What a test's lab is like unless its marker says else: quick to bring up, and with every kind of client."""
DOWN_DEADLINE_S = 60.0
END_DEADLINE_S = 10.0


@contextmanager
def lab_beside(request: pytest.FixtureRequest, has_failed: Callable[[], bool]) -> Iterator[Lab]:
    """The lab for the test of `request`. Its folder is kept where the test failed, or that is asked for, and
    told as the property `testbed_run`."""
    config, node = request.config, request.node
    folder = _folder(request)
    with ExitStack() as stack:
        keeps, pcap = config.getoption("--testbed-keep"), config.getoption("--testbed-pcap")
        stack.callback(_keep_or_remove, folder, node, lambda: keeps or has_failed())
        pauses = config.getoption("--testbed-pause-on-failure")
        yield stack.enter_context(_started(_scenario(node), folder, node, pcap=pcap, pauses=pauses))


def _folder(request: pytest.FixtureRequest) -> Path:
    runs = request.config.getoption("--testbed-runs")
    if runs is None:
        folder: Path = request.getfixturevalue("tmp_path") / "testbed-run"
    else:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", request.node.nodeid)[-100:].strip("-")
        folder = Path(runs).resolve() / name
        if folder.exists():
            shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def _keep_or_remove(folder: Path, node: pytest.Item, is_wanted: Callable[[], bool]) -> None:
    if is_wanted():
        node.user_properties.append(("testbed_run", str(folder)))
    else:
        shutil.rmtree(folder)


def _scenario(node: pytest.Item) -> Scenario:
    """What the test's marker asks for. Fails the test where it asks for what there is not."""
    words: dict[str, Any] = {}
    for marker in reversed(list(node.iter_markers("testbed"))):  # the closest last
        words |= {key.replace("_", "-"): value for key, value in marker.kwargs.items()}
    try:
        if "scenario" in words:
            alien = ", ".join(words.keys() - {"scenario"})
            if alien:
                raise OptionError(f"{alien}: the scenario says what the lab is like")
            return found(str(words["scenario"]))
        for unknown in words.keys() - set(KEYS):
            raise OptionError(f"{unknown}: no option of a lab; there are scenario, {', '.join(KEYS)}")
        if isinstance(words.get("program"), type):
            words["program"] = f"{words['program'].__module__}:{words['program'].__qualname__}"
        return scenario_of(options_from(SMALL | words), node.name)
    except OptionError as error:
        pytest.fail(f"testbed(...): {error}", pytrace=False)


@contextmanager
def _started(
    scenario: Scenario, folder: Path, node: pytest.Item, *, pcap: bool, pauses: bool
) -> Iterator[Lab]:
    """Where it `pauses` on failure the lab can be found from outside, by the commands."""
    import_path = [str(node.path.parent), str(node.config.rootpath)]
    argument = {
        "scenario": scenario.as_json(),
        "folder": str(folder),
        "import_path": import_path,
        "pcap": pcap,
    }
    with ExitStack() as stack:
        claim = None
        if pauses:
            claim = registry.claim(f"pytest-{universe.first_pid()}")
            stack.callback(claim.give_up)
        listener = stack.enter_context(_listening()) if claim is None else claim.listener
        ours, theirs = socket.socketpair()
        told = stack.enter_context(Conversation(ours))
        log = folder / "lab.log"
        fds = [listener.fileno(), theirs.fileno()]
        process = spawn(ENTRY, argument, namespace=None, fds=fds, name="lab", stderr=log)
        stack.enter_context(process)
        theirs.close()
        try:
            standing = told.answer(None)
        except Refused as refused:
            pytest.fail(f"the lab does not come up: {refused}", pytrace=False)
        except LabGone:
            pytest.fail(f"the lab ended before it stood:\n{process.stderr_tail()}", pytrace=False)
        if claim is not None:
            claim.publish(_entry(claim.name, standing))
        name = None if claim is None else claim.name
        line = stack.enter_context(Conversation(_connected(name)))
        yield Lab(scenario, standing, line, name)
        line.ask({"do": "down"}, DOWN_DEADLINE_S)
        process.wait(END_DEADLINE_S)


@contextmanager
def _listening() -> Iterator[socket.socket]:
    """Where the lab's server listens when nobody outside is to find it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(SOCKET))
        listener.listen()
        try:
            yield listener
        finally:
            SOCKET.unlink()


def _connected(name: str | None) -> socket.socket:
    if name is not None:
        return registry.connect(name)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(str(SOCKET))
    return connection


def _entry(name: str, standing: dict[str, Any]) -> Entry:
    first = universe.first_pid()
    started_at = datetime.now().astimezone().isoformat(timespec="seconds")
    links = tuple(standing["links"])
    return Entry(name, first, first, started_at, standing["folder"], standing["nodes"], links)


def main(argument: dict[str, Any], fds: Sequence[int]) -> int:
    """Entry for the fork server: be the server of a test's lab. `argument`: scenario (in the words of a
    file), folder, import_path, pcap; `fds`: the listener, and the voice to the test."""
    from testbed.commands.ending import explanation
    from testbed.standing.serving import serve
    from testbed.standing.wanted import Wanted

    folder = Path(argument["folder"])
    sys.path[:0] = argument["import_path"]
    pcap = Pcap.asked(ALL, None, DEFAULT_LIMIT) if argument["pcap"] else None
    scenario = Scenario.model_validate(argument["scenario"])
    wanted = Wanted(scenario, folder, argument["import_path"], {}, pcap)
    with socket.socket(fileno=fds[0]) as listener:
        voice = Voice(socket.socket(fileno=fds[1]))
        try:
            ready()
            serve(wanted, listener, voice, lambda _: None)
        except StarterGone:
            return 1
        except Exception as error:
            traceback.print_exc()
            try:
                text, status = explanation(error, folder)
            except Exception:
                text, status = f"{type(error).__name__}: {error}", 1
            voice.fail(text, status)
            return 1
    return 0

