"""A test in a universe of its own: run as pytest would, in a forked process, its reports come back as JSON
lines.

The test, its fixtures and their teardown run there; reports, captured output and the time limit are as usual.
A fixture of wider scope that is first asked for in such a test is made anew in each universe and ends with
it, untold.
"""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.runner import runtestprotocol

from testbed.pytest_plugin.needs import demanded

if TYPE_CHECKING:
    from netns.universe import UniverseUnavailable

_GRACE_S = 10.0
"""How much longer than the test itself its keeper waits: the test reports where it hung."""


def run_in_universe(
    item: pytest.Item, nextitem: pytest.Item | None, preload: tuple[str, ...], *, may_wait: bool = False
) -> None:
    """Run `item`, whose turn it is (pytest_runtest_protocol), in a universe. The fork server imports the
    modules `preload` first. `may_wait`: it may wait for a person, so that no time limit holds."""
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = _reports_from_universe(item, preload, may_wait=may_wait)
    for report in (*reports, *_end_what_only_this_one_shared(item, nextitem)):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)


def _reports_from_universe(
    item: pytest.Item, preload: tuple[str, ...], *, may_wait: bool
) -> list[pytest.TestReport]:
    from netns import universe

    began_s = time.time()
    with os.fdopen(os.memfd_create("reports"), "w+b") as told:
        # pytest-timeout's; no fork inherits it
        seconds_left = 0.0 if may_wait else signal.getitimer(signal.ITIMER_REAL)[0]
        if may_wait:
            signal.setitimer(signal.ITIMER_REAL, 0)
        elif seconds_left:
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
) -> list[pytest.TestReport]:
    """Tear down here, outside the universe, what tests before this one in its module have set up, if it was
    the module's last. The test's own fork cannot do that. A report if it fails."""
    began_s = time.time()
    try:
        item.session._setupstate.teardown_exact(nextitem)
    except Exception as error:
        return [_failure(item, began_s, f"in the teardown of its module: {type(error).__name__}: {error}")]
    return []


def _report(item: pytest.Item, line: bytes) -> pytest.TestReport:
    data = json.loads(line)
    report: Any = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
    if isinstance(report.longrepr, list):  # a skip's (path, line, reason): JSON knows no tuples
        report.longrepr = tuple(report.longrepr)
    report.user_properties = [tuple(pair) for pair in report.user_properties]
    assert isinstance(report, pytest.TestReport)
    return report


def _outcome_without_test(
    item: pytest.Item, began_s: float, error: UniverseUnavailable
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
    keywords: Any = dict.fromkeys(item.keywords, 1)
    return pytest.TestReport(
        item.nodeid, item.location, keywords, outcome, longrepr,
        when="call", start=began_s, stop=now_s, duration=now_s - began_s,
    )  # fmt: skip
