"""How a test says what it cannot do without, and what becomes of it where the machine lacks that."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest


def demanded(feature: str) -> bool:
    """Whether TESTBED_REQUIRE forbids to skip for want of `feature`: `all`, or features separated by commas;
    `all,-netem` excepts one."""
    words = os.environ.get("TESTBED_REQUIRE", "").split(",")
    return f"-{feature}" not in words and ("all" in words or feature in words)


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


def require_by_name(name: str) -> None:
    """As :func:`require`, of what ``testbed doctor`` knows: a feature of the kernel (netem, userfaultfd,
    IPv6...), a tool in PATH, or `root`. A wrong name fails the test."""
    import shutil

    from testbed.doctor.features import KERNEL, TOOLS

    probes: dict[str, Callable[[], object]] = {one.name: one.probe for one in KERNEL}
    probes |= {tool.name: lambda tool=tool: shutil.which(tool.name) for tool in TOOLS}  # type: ignore[misc]
    probes["root"] = lambda: _is_real_root()
    if name not in probes:
        pytest.fail(f"testbed_needs({name!r}): there are {', '.join(sorted(probes))}", pytrace=False)
    require(name, lambda: probes[name]() is not False and probes[name]() is not None)


def _is_real_root() -> bool:
    """Not one that a user namespace has made of a user (user_namespaces(7))."""
    with open("/proc/self/uid_map", encoding="ascii") as uid_map:  # noqa: PTH123 - a proc file
        inside, outside, _ = uid_map.readline().split()
    return os.geteuid() == 0 and inside == outside == "0"
