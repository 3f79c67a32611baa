"""What is done when a test with a lab has failed, while the lab still stands: evidence, and a pause."""

from __future__ import annotations

import os
import sys

import pytest

from testbed.pytest_plugin.handles import Lab
from testbed.standing.protocol import ProtocolError, Refused


def after_failure(item: pytest.Item) -> None:
    """Keep what the network looks like; wait for a person, if that is asked for and a terminal is there."""
    lab = getattr(item, "funcargs", {}).get("lab")
    if not isinstance(lab, Lab):
        return  # it failed before it had one
    try:
        lab.ask({"do": "evidence"})
    except (ProtocolError, Refused, TimeoutError) as error:
        item.add_report_section("call", "testbed", f"no evidence could be gathered: {error}")
    if item.config.getoption("--testbed-pause-on-failure"):
        _pause(item, lab)


def _pause(item: pytest.Item, lab: Lab) -> None:
    capture = item.config.pluginmanager.getplugin("capturemanager")
    if capture is not None:
        capture.suspend(in_=True)
    try:
        print(f"\n{item.nodeid} has failed, and its lab stands: {lab.folder}", file=sys.stderr)
        print(f"  testbed ps --name {lab.name}", file=sys.stderr)
        print(f"  testbed shell --name {lab.name} {lab.clients[0].name}", file=sys.stderr)
        if os.isatty(0):
            input("Enter brings it down ")
    except EOFError:
        pass  # no answer is one
    finally:
        if capture is not None:
            capture.resume()
