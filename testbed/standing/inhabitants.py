"""Who lives in a lab: every process of its universe, with the node that it is in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from netns.paths import NAMED_NAMESPACES

ELSEWHERE = "-"
"""In the place of a node: the universe itself, or a namespace that somebody made."""


def inhabitants(namespaces: Mapping[str, str]) -> list[dict[str, Any]]:
    """`node`, `pid` (in the universe), `name`, `command`, `memory_bytes` (resident) of every process, by node
    and pid. `namespaces` gives each node's network namespace. A process that ends meanwhile is left out."""
    by_inode = {
        path.stat().st_ino: node
        for node, name in namespaces.items()
        if (path := NAMED_NAMESPACES / name).exists()
    }
    found = []
    for process in psutil.process_iter():
        try:
            inode = Path(f"/proc/{process.pid}/ns/net").stat().st_ino
            found.append(
                {
                    "node": by_inode.get(inode, ELSEWHERE),
                    "pid": process.pid,
                    "name": process.name(),
                    "command": process.cmdline(),
                    "memory_bytes": process.memory_info().rss,
                }
            )
        except (psutil.NoSuchProcess, FileNotFoundError, PermissionError):
            continue
    order = [*namespaces, ELSEWHERE]
    return sorted(found, key=lambda one: (order.index(str(one["node"])), int(str(one["pid"]))))
