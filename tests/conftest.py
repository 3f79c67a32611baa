"""How tests get a universe, and how they say what they cannot do without.

`@pytest.mark.universe` (or `pytestmark = pytest.mark.universe`): the test, its fixtures and their teardown
run inside a universe of their own, in a forked process; reports, captured output and the time limit are as
usual. A fixture of wider scope that is first asked for in such a test is made anew in each universe and ends
with it, untold. With `@pytest.mark.universe(preload=("numpy",))` the fork server imports these modules first.

`require(feature, probe)`: skips the test where the machine lacks the feature. TESTBED_REQUIRE in the
environment turns such skips into failures: `all`, or features separated by commas; `all,-netem` excepts one.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

from netns import universe

_GRACE_S = 10.0
"""How much longer than the test itself its keeper waits: the test reports where it hung."""


def require(feature: str, probe: bool | Callable[[], object]) -> None:
    """Go on if the feature is there; else skip, naming it (where TESTBED_REQUIRE demands it: fail).

    `probe` is the answer, or a function that tries: a false result or an exception means that the feature is
    missing, and the exception's text is told.
    """
    reason = ""
    try:
        there = bool(probe() if callable(probe) else probe)
    except Exception as error:
        there, reason = False, f" ({type(error).__name__}: {error})"
    if not there:
        message = f"{feature} is not there{reason}"
        if demanded(feature):
            pytest.fail(f"{message}, and TESTBED_REQUIRE demands it", pytrace=False)
        pytest.skip(f"{message}; TESTBED_REQUIRE={feature} turns this skip into a failure")


def demanded(feature: str) -> bool:
    """Whether TESTBED_REQUIRE forbids to skip for want of `feature`."""
    words = os.environ.get("TESTBED_REQUIRE", "").split(",")
    return f"-{feature}" not in words and ("all" in words or feature in words)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "universe(preload=()): the test runs in a universe of its own")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a marked test as pytest would, but in a universe; its reports come back as JSON lines."""
    marker = item.get_closest_marker("universe")
    if marker is None:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _reports_from_universe(item, tuple(marker.kwargs.get("preload", ()))):
        item.ihook.pytest_runtest_logreport(report=report)
    if (report := _end_what_only_this_one_shared(item, nextitem)) is not None:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _reports_from_universe(item: pytest.Item, preload: tuple[str, ...]) -> list[pytest.TestReport]:
    began_s = time.time()
    with os.fdopen(os.memfd_create("reports"), "w+b") as told:
        seconds_left, _ = signal.getitimer(signal.ITIMER_REAL)  # pytest-timeout's; no fork inherits it
        if seconds_left:
            signal.setitimer(signal.ITIMER_REAL, seconds_left + _GRACE_S)

        def main() -> int:
            if seconds_left:
                signal.setitimer(signal.ITIMER_REAL, seconds_left)
            # With its own parent as the "next item", all of the item is torn down, and nothing wider.
            for report in runtestprotocol(item, log=False, nextitem=item.parent):  # type: ignore[arg-type]
                data = item.config.hook.pytest_report_to_serializable(config=item.config, report=report)
                told.write(json.dumps(data, default=str).encode() + b"\n")
            told.flush()
            return 0

        try:
            status = universe.run(main, preload=preload)
        except universe.UniverseUnavailable as error:
            return [_outcome_without_test(item, began_s, error)]
        except pytest.fail.Exception as error:
            return [_failure(item, began_s, f"{error}\n(it did not even end when its own time was over)")]
        finally:
            if seconds_left:
                signal.setitimer(signal.ITIMER_REAL, max(0.01, seconds_left - (time.time() - began_s)))
        if status == 128 + signal.SIGINT:
            raise KeyboardInterrupt
        told.seek(0)
        reports = [_report(item, line) for line in told]
    if status != 0 or not reports:
        reports.append(_failure(item, began_s, f"the test's process ended: status {status} (128+n: signal)"))
    return reports


def _end_what_only_this_one_shared(
    item: pytest.Item, nextitem: pytest.Item | None
) -> pytest.TestReport | None:
    """Tear down here, outside the universe, what tests before this one in its module have set up, if it was
    the module's last. The test's own fork cannot do that. A report if it fails.
    """
    began_s = time.time()
    try:
        item.session._setupstate.teardown_exact(nextitem)
    except Exception as error:
        return _failure(item, began_s, f"in the teardown of its module: {type(error).__name__}: {error}")
    return None


def _report(item: pytest.Item, line: bytes) -> pytest.TestReport:
    data = json.loads(line)
    report: Any = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
    if isinstance(report.longrepr, list):  # a skip's (path, line, reason): JSON knows no tuples
        report.longrepr = tuple(report.longrepr)
    assert isinstance(report, pytest.TestReport)
    return report


def _outcome_without_test(
    item: pytest.Item, began_s: float, error: universe.UniverseUnavailable
) -> pytest.TestReport:
    if demanded("universe"):
        return _failure(item, began_s, f"{error}\nand TESTBED_REQUIRE demands it")
    path, line, _ = item.location
    reason = f"Skipped: {error}; TESTBED_REQUIRE=universe turns this skip into a failure"
    return _made(item, began_s, "skipped", (path, line or 0, reason))


def _failure(item: pytest.Item, began_s: float, text: str) -> pytest.TestReport:
    return _made(item, began_s, "failed", text)


def _made(item: pytest.Item, began_s: float, outcome: Any, longrepr: Any) -> pytest.TestReport:
    now_s = time.time()
    keywords = dict.fromkeys(item.keywords, 1)
    return pytest.TestReport(
        item.nodeid, item.location, keywords, outcome, longrepr,
        when="call", start=began_s, stop=now_s, duration=now_s - began_s,
    )
