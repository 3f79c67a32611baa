"""What a client is asked to do, checked: the argument of its process as frozen data."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from testbed.clients.account import LEAST_VALUE_BYTES
from testbed.measure.datagram import HEADER_BYTES
from testbed.measure.pattern import PERIOD

PROGRAM_PORTS = {"echo": 7000, "kv": 6379, "kv-durable": 6379, "http": 80, "ramp": 7001, "bulk": 7002}

_MOST_CONNECTIONS = 50_000
_MOST_RATE = 1_000_000
_MOST_BYTES = 1 << 20
_MOST_VALUE_BYTES = 512 << 10


class SpecError(ValueError):
    """The request for a client is wrong. The text is one line that names the field and what is allowed."""


@dataclass(frozen=True)
class Target:
    """Where a probe connects to: an IPv4 or IPv6 address, and the port (the program's own unless given)."""

    address: str
    port: int


@dataclass(frozen=True)
class ClosedLoopSpec:
    """Each of `connections` asks, waits for the reply, and asks again `interval_us` after it asked before, or
    as soon as the reply is there if that is later. The connections take turns evenly within the interval."""

    target: Target
    program: str = "echo"
    connections: int = 1
    interval_us: int = 2000
    """Cheap by default: `testbed bench probing` says what it costs the guest. More connections, or a shorter
    interval, are a load besides; they tell the beginning of a pause more exactly."""
    size: int = 64
    path: str = "/counter"
    """Of http only."""


@dataclass(frozen=True)
class OpenLoopSpec:
    """Each of `connections` sends `rate_per_s` numbered messages of `size` bytes a second to an echo program,
    whatever comes back."""

    target: Target
    connections: int = 1
    rate_per_s: float = 500.0
    size: int = 64


@dataclass(frozen=True)
class RampSpec:
    """Byte-exact streams both ways at once, each at up to `rate_bytes_per_s`."""

    target: Target
    connections: int = 1
    rate_bytes_per_s: int = 4 << 20


@dataclass(frozen=True)
class ChurnSpec:
    """`rate_per_s` times a second: open a connection, ask the echo program once, close."""

    target: Target
    rate_per_s: float = 200.0
    size: int = 64


@dataclass(frozen=True)
class LedgerSpec:
    """Each of `connections` writes values of `size` bytes to `keys` keys of its own in a kv program, one each
    `interval_us`, and holds the guest to what it acknowledged, through broken connections too."""

    target: Target
    connections: int = 4
    interval_us: int = 1000
    size: int = 64
    keys: int = 16


@dataclass(frozen=True)
class HttpSpec:
    """Each of `connections` gets `path` once each `interval_us`: on a connection that is `kept`, in a closed
    loop, or on a new one each time, whatever became of those before."""

    target: Target
    connections: int = 1
    interval_us: int = 10_000
    path: str = "/counter"
    kept: bool = True


@dataclass(frozen=True)
class DownloadSpec:
    """Each of `connections` reads the ramp from a bulk program, as fast as it comes, or at up to
    `rate_bytes_per_s` where that is given."""

    target: Target
    connections: int = 1
    rate_bytes_per_s: int = 0


@dataclass(frozen=True)
class UploadSpec:
    """Each of `connections` sends the ramp to a bulk program, as fast as it is taken, or at up to
    `rate_bytes_per_s` where that is given."""

    target: Target
    connections: int = 1
    rate_bytes_per_s: int = 0


@dataclass(frozen=True)
class UdpSpec:
    """Each of `connections` flows sends `rate_per_s` numbered datagrams of `size` bytes a second to an echo
    program, whatever comes back."""

    target: Target
    connections: int = 1
    rate_per_s: float = 200.0
    size: int = 64


@dataclass(frozen=True)
class IcmpSpec:
    """Pings `rate_per_s` times a second, with `size` bytes of data, whatever comes back."""

    target: Target
    rate_per_s: float = 100.0
    size: int = 56


ProbeSpec = (
    ClosedLoopSpec
    | OpenLoopSpec
    | RampSpec
    | ChurnSpec
    | LedgerSpec
    | HttpSpec
    | DownloadSpec
    | UploadSpec
    | UdpSpec
    | IcmpSpec
)

KINDS: dict[str, type[ProbeSpec]] = {
    "closed-loop": ClosedLoopSpec,
    "open-loop": OpenLoopSpec,
    "ramp": RampSpec,
    "churn": ChurnSpec,
    "ledger": LedgerSpec,
    "http": HttpSpec,
    "download": DownloadSpec,
    "upload": UploadSpec,
    "udp": UdpSpec,
    "icmp": IcmpSpec,
}
_PROGRAMS = {
    "closed-loop": ("echo", "kv", "http", "kv-durable"),
    "open-loop": ("echo",),
    "ramp": ("ramp",),
    "churn": ("echo",),
    "ledger": ("kv-durable", "kv"),
    "http": ("http",),
    "download": ("bulk",),
    "upload": ("bulk",),
    "udp": ("echo",),
}
PORTLESS = ("icmp",)
"""Kinds that ask the guest's kernel, which has no ports."""
PACKET_BYTES = (HEADER_BYTES, 65_000)
"""How many bytes of data a packet may have: its number and times have room, and it is one packet of IP."""
_BOUNDS = {
    "connections": (1, _MOST_CONNECTIONS),
    "interval_us": (1, 3_600_000_000),
    "size": (1, _MOST_BYTES),
    "rate_per_s": (0.001, _MOST_RATE),
    "rate_bytes_per_s": (1000, 10 << 30),
    "keys": (1, 10_000),
}


@dataclass(frozen=True)
class ClientSpec:
    name: str
    probes: tuple[ProbeSpec, ...]
    trace: Path | None = None
    """The recorder's socket; without one the client's events are not recorded."""
    samples: Path | None = None
    """Where to save every sample when the client stops (.npz); without one they are not saved."""


def parse(argument: Mapping[str, Any]) -> ClientSpec:
    """The client that `argument` describes (`name`, `probes`, `trace`, `samples`, as in ClientSpec; each
    probe has `kind`, `address`, and, where the default will not do, `port`, `program` and the fields of its
    kind). SpecError if it describes none."""
    unknown = set(argument) - {field.name for field in fields(ClientSpec)}
    if unknown:
        raise SpecError(f"client: unknown field {sorted(unknown)[0]!r}")
    name, probes = argument.get("name"), argument.get("probes")
    if not isinstance(name, str) or not name:
        raise SpecError("client: `name` must be a text that is not empty")
    if not isinstance(probes, list) or not probes:
        raise SpecError(f"client {name}: `probes` must be a list with at least one probe")
    return ClientSpec(
        name,
        tuple(_probe(f"client {name}, probe {number}", probe) for number, probe in enumerate(probes)),
        _path(argument.get("trace")),
        _path(argument.get("samples")),
    )


def kind_of(spec: ProbeSpec) -> str:
    return next(kind for kind, of_kind in KINDS.items() if isinstance(spec, of_kind))


def programs_for(kind: str) -> tuple[str, ...]:
    """The guest programs that a kind of probe can talk to; empty where it needs none."""
    return _PROGRAMS.get(kind, ())


def _probe(where: str, probe: Any) -> ProbeSpec:
    if not isinstance(probe, dict) or probe.get("kind") not in KINDS:
        raise SpecError(f"{where}: `kind` must be one of {', '.join(KINDS)}")
    given = dict(probe)
    kind = given.pop("kind")
    spec, program, port = KINDS[kind], None, None
    if kind not in PORTLESS:
        programs = _PROGRAMS[kind]
        program = given.pop("program", programs[0])
        if program not in programs:
            raise SpecError(f"{where}: `program` of a {kind} probe must be one of {', '.join(programs)}")
        port = given.pop("port", PROGRAM_PORTS[program])
    target = _target(where, given.pop("address", None), port)
    wanted = {field.name: field for field in fields(spec) if field.name not in ("target", "program")}
    for name, value in given.items():
        if name not in wanted:
            raise SpecError(f"{where}: a {kind} probe has no field {name!r}, only {', '.join(wanted)}")
        _check_value(where, name, value, wanted[name].default)
    if spec is ClosedLoopSpec:
        given["program"] = program
    if program == "echo" and given.get("size") == PERIOD:
        raise SpecError(f"{where}: `size` must not be {PERIOD}, at which all messages are alike")
    size = given.get("size", LedgerSpec.size)
    if spec is LedgerSpec and not LEAST_VALUE_BYTES <= size <= _MOST_VALUE_BYTES:
        raise SpecError(f"{where}: `size` of a ledger must be {LEAST_VALUE_BYTES} to {_MOST_VALUE_BYTES}")
    if spec in (UdpSpec, IcmpSpec) and not PACKET_BYTES[0] <= given.get("size", 64) <= PACKET_BYTES[1]:
        least, most = PACKET_BYTES
        raise SpecError(f"{where}: `size` of a packet must be a number from {least} to {most}")
    return spec(target=target, **given)


def _target(where: str, address: Any, port: Any) -> Target:
    """`port` None where there is none."""
    try:
        address = str(ipaddress.ip_address(address if isinstance(address, str) else ""))
    except ValueError:
        raise SpecError(f"{where}: `address` must be an IPv4 or IPv6 address, not {address!r}") from None
    if port is None:
        return Target(address, 0)
    if not _is_number(port, int) or not 0 < port < 65536:
        raise SpecError(f"{where}: `port` must be 1 to 65535, not {port!r}")
    return Target(address, port)


def _check_value(where: str, name: str, value: Any, default: Any) -> None:
    assert default is not MISSING
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise SpecError(f"{where}: `{name}` must be true or false, not {value!r}")
        return
    if isinstance(default, str):
        if not isinstance(value, str) or not value.startswith("/") or not value.isprintable() or " " in value:
            raise SpecError(f"{where}: `{name}` must be a path that begins with /, not {value!r}")
        return
    least, most = _BOUNDS[name]
    right = _is_number(value, int) or (isinstance(default, float) and _is_number(value, float))
    if not right or not least <= value <= most:
        raise SpecError(f"{where}: `{name}` must be a number from {least} to {most}, not {value!r}")


_Number = TypeVar("_Number", int, float)


def _is_number(value: Any, of_type: type[_Number]) -> bool:
    return isinstance(value, of_type) and not isinstance(value, bool)


def _path(value: Any) -> Path | None:
    if value is not None and not isinstance(value, str | Path):
        raise SpecError(f"client: a path must be a text, not {value!r}")
    return Path(value) if value else None
