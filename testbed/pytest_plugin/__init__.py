"""What a test gets of the testbed: fixtures `lab`, `vm`, `clients` and `continuity`, and markers and options.

    def test_nobody_notices(clients, vm, continuity):
        with continuity():
            vm.migrate("host-b")

A test that uses them runs in a universe of its own, in a forked process; beside it, in a process of its own,
a lab stands whose clients keep asking while the test does what it likes (testbed.standing). No root is
needed.

This module is loaded in every pytest run where the testbed is installed: it imports nothing but pytest, and
does nothing until a test asks for a lab.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from testbed.pytest_plugin.continuity import Watching
    from testbed.pytest_plugin.handles import Client, Lab, Vm

_MARKERS = (
    "testbed(**options): what the test's lab is like: options of testbed migrate (ram='1GiB', "
    "program='mine:Server', dirty_rate=2000), or scenario='FILE' or a name from the shelf",
    "testbed_needs(*features): skip the test where the machine lacks one of them: netem, userfaultfd, "
    "redis-cli, root, ... as testbed doctor calls them",
)
_FAILED = pytest.StashKey[bool]()
_PRELOAD = "testbed.pytest_plugin.beside"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("testbed", "live migration of a virtual machine under a test")
    group.addoption(
        "--testbed-runs", metavar="DIR", default=None,
        help="Where each test's run folder goes (result, events, logs). If not given: the test's tmp_path.",
    )  # fmt: skip
    group.addoption(
        "--testbed-keep", action="store_true",
        help="Keep the run folder of a test that passed, too.",
    )  # fmt: skip
    group.addoption(
        "--testbed-pcap", action="store_true", help="Capture every link of a test's lab into its run folder."
    )
    group.addoption(
        "--testbed-pause-on-failure", action="store_true",
        help="Leave the lab of a test that failed open until Enter is pressed: be in it with testbed shell.",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    for marker in _MARKERS:
        config.addinivalue_line("markers", marker)
    if config.getoption("--testbed-pause-on-failure") and config.getoption("numprocesses", None):
        raise pytest.UsageError(
            "--testbed-pause-on-failure: xdist's workers have no terminal to wait at; add -n 0"
        )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """A test with a lab runs in a universe."""
    if not _has_lab(item):
        return None
    from testbed.pytest_plugin.universes import run_in_universe

    waits = bool(item.config.getoption("--testbed-pause-on-failure"))
    run_in_universe(item, nextitem, (_PRELOAD,), may_wait=waits)
    return True


def _has_lab(item: pytest.Item) -> bool:
    """Whether the `lab` that the test asks for, itself or by another fixture, is ours."""
    info = getattr(item, "_fixtureinfo", None)
    definitions = None if info is None else info.name2fixturedefs.get("lab")
    return definitions is not None and definitions[-1].func.__module__ == __name__


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("testbed_needs"):
        from testbed.pytest_plugin.needs import require_by_name

        for name in marker.args:
            require_by_name(name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[None]:  # the wrapper's protocol: what is yielded is the report
    report: pytest.TestReport = yield  # type: ignore[assignment]
    if report.failed:
        item.stash[_FAILED] = True
        if call.when == "call" and _has_lab(item):
            from testbed.pytest_plugin.failing import after_failure

            after_failure(item)
    return report  # type: ignore[return-value]


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab that stands beside the test, as the marker `testbed` describes it."""
    from testbed.pytest_plugin.beside import lab_beside

    with lab_beside(request, lambda: request.node.stash.get(_FAILED, False)) as standing:
        yield standing


@pytest.fixture
def vm(lab: Lab) -> Vm:
    """The lab's guest; of several the first."""
    return lab.vm


@pytest.fixture
def clients(lab: Lab) -> list[Client]:
    """The lab's client machines. In the block of ``with clients[0]:`` this thread is on that machine: sockets
    that are made there belong to it, and stay its own."""
    return lab.clients


@pytest.fixture
def continuity(lab: Lab) -> Watching:
    """``with continuity(...) as c:`` fails the test if a connection breaks or waits too long in the block."""
    from testbed.pytest_plugin.continuity import Watching

    return Watching(lab)
