"""What one run is asked to do: every option, its default and its limits.

:class:`Options` is what the command line fills in and what stands in the result as ``options``: it has been
checked once it exists.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from testbed.faults.kinds import Fault, FaultError
from testbed.scenario.units import format_ms, format_rate

if TYPE_CHECKING:
    from testbed.migration.strategy import Policy

Mode = Literal["live", "stop-and-copy", "quick"]
Announce = Literal["garp-request", "garp-reply", "rarp", "none"]
MacPolicy = Literal["keep", "per-host"]
Neighbours = Literal["move", "forget", "stale"]
OnStall = Literal["switch", "give-up"]
Family = Literal["both", "ipv4", "ipv6"]
Pattern = Literal["uniform", "hot-cold", "sequential"]
StorageServer = Literal["testbed", "nbdkit"]
Tracker = Literal["auto", "userfaultfd", "soft-dirty", "digest"]

PAGE = 4096
SECTOR = 512
SMALLEST_DURABLE_BYTES = 4 << 20
MIN_RAM_BYTES = 8 << 20
LOWEST_RATE, HIGHEST_RATE = 100_000, 34 * 10**9  # bit/s; a token bucket's rate is 32 bits of bytes
PROGRAMS = ("echo", "kv", "kv-durable", "http", "ramp", "bulk")


class OptionError(ValueError):
    """An option has a value that is not allowed; the text names the option and what is allowed."""


@dataclass(frozen=True)
class Options:
    """Sizes in bytes, rates in bits per second unless the name says otherwise, durations in nanoseconds."""

    mode: Mode = "live"
    ram_bytes: int = 256 << 20
    fill: float = 0.5
    program: str = "echo"
    clients: int = 3
    connections: int = 8
    interval_ns: int = 1_000_000
    stream_rate_per_s: int = 200
    churn_per_s: int = 50
    family: Family = "both"
    dirty_rate_pages_per_s: int = 2000
    working_set_bytes: int = 16 << 20
    pattern: Pattern = "uniform"
    bandwidth_bits_per_s: int | None = None
    max_bandwidth_bits_per_s: int | None = None
    disk_bytes: int = 0
    storage_rate_bits_per_s: int | None = None
    storage_server: StorageServer = "testbed"
    downtime_limit_ns: int = 300_000_000
    max_rounds: int = 30
    on_stall: OnStall = "switch"
    announce: Announce = "garp-request"
    hold: bool = True
    mac: MacPolicy = "keep"
    tracker: Tracker = "auto"
    migrations: int = 1
    baseline_ns: int = 1_000_000_000
    seed: int = 1
    fault: str | None = None

    def __post_init__(self) -> None:
        _choice("--mode", self.mode, Mode)
        _choice("--family", self.family, Family)
        _choice("--pattern", self.pattern, Pattern)
        _choice("--on-stall", self.on_stall, OnStall)
        _choice("--announce", self.announce, Announce)
        _choice("--mac", self.mac, MacPolicy)
        _choice("--tracker", self.tracker, Tracker)
        _choice("--storage-server", self.storage_server, StorageServer)
        if self.ram_bytes % PAGE:
            raise OptionError(f"--ram: {self.ram_bytes} bytes are not whole pages of {PAGE} bytes")
        if self.ram_bytes < MIN_RAM_BYTES:
            raise OptionError(
                f"--ram: {self.ram_bytes} bytes; a guest needs at least {MIN_RAM_BYTES >> 20} MiB"
            )
        if not 0 <= self.fill <= 0.9:
            raise OptionError(f"--fill: {self.fill} is not between 0 and 0.9")
        if self.program not in PROGRAMS and ":" not in self.program:
            allowed = ", ".join(PROGRAMS)
            raise OptionError(f"--program: {self.program!r} is none of {allowed}, nor package.module:Class")
        if not 0 <= self.working_set_bytes <= self.ram_bytes // 2:
            raise OptionError(f"--working-set: {self.working_set_bytes} bytes are over half of RAM")
        if self.dirty_rate_pages_per_s and self.working_set_bytes < PAGE:
            raise OptionError("--working-set: a memory load needs at least one page")
        _range("--clients", self.clients, 1, 100)
        _range("--connections", self.connections, 0, 20_000)
        _duration("--interval", self.interval_ns, 100_000, 60 * 10**9)
        _range("--stream-rate", self.stream_rate_per_s, 0, 100_000)
        _range("--churn", self.churn_per_s, 0, 10_000)
        _range("--dirty-rate", self.dirty_rate_pages_per_s, 0, 10_000_000)
        _duration("--downtime-limit", self.downtime_limit_ns, 0, 600 * 10**9)
        _range("--max-rounds", self.max_rounds, 1, 1000)
        _range("--migrations", self.migrations, 1, 100_000)
        _duration("--baseline", self.baseline_ns, 0, 3600 * 10**9)
        _rate("--bandwidth", self.bandwidth_bits_per_s)
        _rate("--max-bandwidth", self.max_bandwidth_bits_per_s)
        _rate("--storage-rate", self.storage_rate_bits_per_s)
        self._check_disk()
        self._check_fault()

    def _check_fault(self) -> None:
        if self.fault is None:
            return
        try:
            fault = Fault.parse(self.fault)
        except FaultError as error:
            raise OptionError(f"--fault: {error}") from error
        if fault.kind.needs_storage and not self.has_storage:
            raise OptionError(f"--fault: {self.fault} needs shared storage: give the guest a --disk")

    def _check_disk(self) -> None:
        if self.disk_bytes % SECTOR:
            raise OptionError(f"--disk: {self.disk_bytes} bytes are not whole sectors of {SECTOR} bytes")
        if self.program == "kv-durable" and self.disk_bytes < SMALLEST_DURABLE_BYTES:
            least = SMALLEST_DURABLE_BYTES >> 20
            raise OptionError(f"--disk: {self.disk_bytes} bytes; kv-durable needs at least {least} MiB")
        if self.mode == "quick" and not self.disk_bytes:
            raise OptionError("--disk: a Quick Migration moves a LUN, so the guest needs a disk on it")
        if self.storage_rate_bits_per_s is not None and not self.has_storage:
            raise OptionError("--storage-rate: there is no storage without --disk or --mode quick")
        if self.storage_server != "testbed" and not self.has_storage:
            raise OptionError("--storage-server: there is no storage without --disk")
        if self.storage_server == "nbdkit" and self.mode == "quick":
            raise OptionError("--storage-server: nbdkit has no LUN that moves; --mode quick needs testbed")

    @property
    def has_storage(self) -> bool:
        """Whether the hosts share storage, and (unless nbdkit serves it) ownership is decided there."""
        return self.disk_bytes > 0

    @property
    def policy(self) -> Policy:
        from testbed.migration.strategy import Policy  # late: it brings the whole wire format with it

        return Policy(self.downtime_limit_ns, self.max_rounds, self.on_stall)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, for the result."""
        return asdict(self)


def _choice(option: str, value: str, kind: Any) -> None:
    if value not in get_args(kind):
        raise OptionError(f"{option}: {value!r} is none of {', '.join(get_args(kind))}")


def _range(option: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise OptionError(f"{option}: {value} is not between {least} and {most}")


def _duration(option: str, value_ns: int, least_ns: int, most_ns: int) -> None:
    if not least_ns <= value_ns <= most_ns:
        least, most = format_ms(least_ns / 1e6), format_ms(most_ns / 1e6)
        raise OptionError(f"{option}: {format_ms(value_ns / 1e6)} is not between {least} and {most}")


def _rate(option: str, bits_per_s: int | None) -> None:
    if bits_per_s is not None and not LOWEST_RATE <= bits_per_s <= HIGHEST_RATE:
        least, most = format_rate(LOWEST_RATE), format_rate(HIGHEST_RATE)
        raise OptionError(f"{option}: {format_rate(bits_per_s)} is not between {least} and {most}")
