"""The scenario that the options of a command stand for. Pure."""

from __future__ import annotations

from typing import Any

from testbed.scenario.model import Scenario
from testbed.scenario.options import Options
from testbed.scenario.units import write_duration, write_rate, write_size

Words = dict[str, Any]


def scenario_of(options: Options, name: str = "migrate") -> Scenario:
    """One guest, vm1, on host-a; it goes there and back as often as is asked, under the eyes of the
    clients."""
    quick = options.mode == "quick"
    said: Words = {
        "name": name[:100],
        "seed": options.seed,
        "baseline": write_duration(options.baseline_ns),
        "network": {},
        "storage": {"server": options.storage_server} if options.has_storage else {},
        "vm": [_vm(options)],
        "client": [
            {"name": client} | ({"probe": probes} if probes else {"idle": True})
            for client, probes in client_probes(options).items()
        ],
        "migration": {
            "mode": options.mode,
            "downtime_limit": write_duration(options.downtime_limit_ns),
            "max_rounds": options.max_rounds,
            "on_stall": options.on_stall,
        },
        "step": _steps(options),
    }
    _rate(said["network"], "bandwidth", options.bandwidth_bits_per_s)
    _rate(said["storage"], "rate", options.storage_rate_bits_per_s)
    _rate(said["migration"], "max_bandwidth", options.max_bandwidth_bits_per_s)
    assert quick <= options.has_storage
    return Scenario.model_validate(said)


def _rate(part: Words, key: str, bits_per_s: int | None) -> None:
    if bits_per_s is not None:
        part[key] = write_rate(bits_per_s)


def _vm(options: Options) -> Words:
    load = {
        "dirty_rate": options.dirty_rate_pages_per_s,
        "working_set": write_size(options.working_set_bytes),
        "pattern": options.pattern,
    }
    return {
        "ram": write_size(options.ram_bytes),
        "fill": options.fill,
        "program": options.program,
        "disk": write_size(options.disk_bytes),
        "mac": options.mac,
        "announce": options.announce,
        "hold": options.hold,
        "tracker": options.tracker,
        "load": load,
    }


def _steps(options: Options) -> list[Words]:
    step: Words = {"migrate": ["vm1"], "times": options.migrations}
    return [step if options.fault is None else step | {"fault": options.fault}]


def client_probes(options: Options) -> dict[str, list[Words]]:
    """The probes of each client. Connections are dealt out in turn; with both families every other one is
    IPv6's."""
    families = {"both": ("ipv4", "ipv6"), "ipv4": ("ipv4",), "ipv6": ("ipv6",)}[options.family]
    clients = [f"client{number}" for number in range(1, options.clients + 1)]
    result: dict[str, list[Words]] = {client: [] for client in clients}
    counts: dict[tuple[str, str], int] = {}
    for number in range(options.connections):
        place = (clients[number % len(clients)], families[number // len(clients) % len(families)])
        counts[place] = counts.get(place, 0) + 1
    for (client, family), count in counts.items():
        result[client].append(_main_probe(options, count) | {"family": family})
    for number, client in enumerate(clients):
        family = families[number % len(families)]
        result[client] += [extra | {"family": family} for extra in _extra_probes(options)]
    return result


def _main_probe(options: Options, connections: int) -> Words:
    if options.program == "ramp":
        return {"kind": "ramp", "connections": connections}
    if options.program == "bulk":
        return {"kind": "download", "connections": connections}
    kind = "ledger" if options.program == "kv-durable" else "closed-loop"
    interval = f"{options.interval_ns // 1000}us"
    return {"kind": kind, "connections": connections, "interval": interval}


def _extra_probes(options: Options) -> list[Words]:
    """What the echo program lets clients do besides: a steady stream on each, and new connections all the
    time."""
    if options.program != "echo":
        return []
    extra: list[Words] = []
    if options.stream_rate_per_s:
        extra.append({"kind": "open-loop", "connections": 1, "rate": options.stream_rate_per_s})
    share = options.churn_per_s / options.clients
    if share:
        extra.append({"kind": "churn", "rate": share})
    return extra
