"""What a scenario leaves out, filled in: names, addresses, hosts, disks, what clients ask and what happens.
Pure.

Works on what a file says before it is checked, so nothing here may take it for granted: what is of a wrong
type is left for the check to find.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

DURABLE_DISK, QUICK_DISK = "64MiB", "16MiB"
"""What a guest's disk is where nobody says how large it is."""

_Part = Mapping[str, Any]


def filled_in(said: Any) -> Any:
    """What is said of a scenario, with what it leaves out."""
    if not isinstance(said, Mapping):
        return said
    filled = dict(said)
    hosts = filled.get("hosts")
    first = hosts[0] if isinstance(hosts, list | tuple) and hosts else "host-a"
    quick = _asks_for_quick(filled)
    filled["vm"] = _numbered(filled.get("vm", [{}]), lambda n: _vm_defaults(n, first), _disk(quick))
    usual = _probe_of(filled["vm"])
    filled["client"] = _numbered(filled.get("client", [{}]), lambda n: {"name": f"client{n}"}, usual)
    filled.setdefault("step", [{"migrate": _first_name(filled["vm"])}])
    return filled


def _numbered(parts: Any, defaults: Callable[[int], _Part], more: Callable[[_Part], _Part]) -> Any:
    """The tables of a list, each with what `defaults` says of its number, and `more` of itself."""
    if not isinstance(parts, list | tuple):
        return parts
    filled = []
    for number, part in enumerate(parts, 1):
        if isinstance(part, Mapping):
            part = {**defaults(number), **part}
            part |= more(part)
        filled.append(part)
    return filled


def _vm_defaults(number: int, host: Any) -> dict[str, Any]:
    return {
        "name": f"vm{number}",
        "host": host,
        "mac_address": f"02:00:00:00:00:{0x41 + number:02x}",
        "ipv4": f"10.7.0.{9 + number}",
        "ipv6": f"fd07::{9 + number}",
    }


def _disk(quick: bool) -> Callable[[_Part], _Part]:
    def disk(vm: Mapping[str, Any]) -> dict[str, Any]:
        if "disk" in vm or "disk_bytes" in vm:
            return {}
        if vm.get("durable") or vm.get("program") == "kv-durable":
            return {"disk": DURABLE_DISK}
        return {"disk": QUICK_DISK} if quick else {}

    return disk


def _probe_of(vms: Any) -> Callable[[_Part], _Part]:
    """A client that is told nothing asks the first guest, in the way of its program."""
    first = _first(vms)
    kinds = {"ramp": "ramp", "kv-durable": "ledger", "bulk": "download"}
    kind = "ledger" if first.get("durable") else kinds.get(str(first.get("program")), "closed-loop")

    def probe(client: Mapping[str, Any]) -> dict[str, Any]:
        named = {"probe", "probes", "program", "programs", "idle"} & client.keys()
        return {} if named else {"probe": [{"kind": kind}]}

    return probe


def _first_name(vms: Any) -> Any:
    return _first(vms).get("name", "vm1")


def _asks_for_quick(filled: Mapping[str, Any]) -> bool:
    steps = filled.get("step")
    parts = [filled.get("migration"), *(steps if isinstance(steps, list | tuple) else [])]
    return any(isinstance(part, Mapping) and part.get("mode") == "quick" for part in parts)


def _first(parts: Any) -> _Part:
    """The first table of a list; an empty one where there is none."""
    first = parts[0] if isinstance(parts, list | tuple) and parts else {}
    return first if isinstance(first, Mapping) else {}
