"""What is done when a test with a lab has failed, while the lab still stands: evidence, and a pause."""

from __future__ import annotations

import os
import sys

import pytest

from testbed.pytest_plugin.handles import Lab


def after_failure(item: pytest.Item) -> None:
    """Keep what the network looks like; wait for a person, if that is asked for and a terminal is there."""
    lab = getattr(item, "funcargs", {}).get("lab")
    if not isinstance(lab, Lab):
        return  # it failed before it had one
    if item.config.getoption("--testbed-pause-on-failure"):
        _pause(item, lab)


def _pause(item: pytest.Item, lab: Lab) -> None:
    capture = item.config.pluginmanager.getplugin("capturemanager")
    if capture is not None:
        capture.suspend(in_=True)
    try:
        print(f"\n{item.nodeid} has failed; its lab stands, and its folder is {lab.folder}", file=sys.stderr)
        if os.isatty(0):
            input("Enter ends it ")
    except EOFError:
        pass  # no answer is one
    finally:
        if capture is not None:
            capture.resume()
