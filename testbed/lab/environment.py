"""What a run's figures depend on and the options do not say: machine, kernel, versions, load."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib import metadata
from typing import Any

import psutil

PACKAGES = ("live-migration-testbed", "numpy", "pyroute2", "scapy", "xxhash")


def environment(congestion_control: Iterable[str], tracker: str) -> dict[str, Any]:
    """JSON-able. `congestion_control` is what the lab's namespaces use; `tracker` what tracked the guest's
    writes."""
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "packages": {package: metadata.version(package) for package in PACKAGES},
        "user": "root" if _is_real_root() else "rootless",
        "congestion_control": sorted(set(congestion_control)),
        "tracker": tracker,
    }


def _is_real_root() -> bool:
    """Whether user 0 here is user 0 of the machine, and not one mapped to it (user_namespaces(7))."""
    with open("/proc/self/uid_map", encoding="ascii") as uid_map:  # noqa: PTH123 - a proc file, not a path of ours
        inside, outside, _ = uid_map.readline().split()
    return inside == outside == "0"
