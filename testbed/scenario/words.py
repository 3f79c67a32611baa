"""Options as words: what ``--ram 1GiB`` of a command and ``ram=1GiB`` of a comparison's variant mean. Pure.

An option's word is its name on the command line without the dashes. Its value is text that is read here, or
what a command line has read already; None stands for an option that was not given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from testbed.scenario.options import OptionError, Options
from testbed.scenario.units import parse_duration, parse_rate, parse_size

Words = Mapping[str, str | float | bool | None]

DURABLE_DISK_BYTES = 64 << 20
QUICK_DISK_BYTES = 16 << 20


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None


def _yes_or_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError(f"{text!r} is neither yes nor no")
    return text == "yes"


_READ: dict[str, tuple[str, Callable[[str], Any]]] = {
    "mode": ("mode", str),
    "ram": ("ram_bytes", parse_size),
    "fill": ("fill", _number),
    "program": ("program", str),
    "clients": ("clients", _whole),
    "connections": ("connections", _whole),
    "interval": ("interval_ns", parse_duration),
    "stream-rate": ("stream_rate_per_s", _whole),
    "churn": ("churn_per_s", _whole),
    "family": ("family", str),
    "dirty-rate": ("dirty_rate_pages_per_s", _whole),
    "working-set": ("working_set_bytes", parse_size),
    "pattern": ("pattern", str),
    "bandwidth": ("bandwidth_bits_per_s", parse_rate),
    "max-bandwidth": ("max_bandwidth_bits_per_s", parse_rate),
    "disk": ("disk_bytes", parse_size),
    "storage-rate": ("storage_rate_bits_per_s", parse_rate),
    "downtime-limit": ("downtime_limit_ns", parse_duration),
    "max-rounds": ("max_rounds", _whole),
    "on-stall": ("on_stall", str),
    "announce": ("announce", str),
    "hold": ("hold", _yes_or_no),
    "mac": ("mac", str),
    "tracker": ("tracker", str),
    "migrations": ("migrations", _whole),
    "baseline": ("baseline_ns", parse_duration),
    "seed": ("seed", _whole),
    "fault": ("fault", str),
    "storage-server": ("storage_server", str),
}
"""The field of :class:`Options` that a word fills, and how its text is read (ValueError)."""

_DURABLE = "durable"
KEYS = (*_READ, _DURABLE)
"""All words that there are."""


def options_from(words: Words) -> Options:
    """What `words` ask for, everything else at its default. Raises OptionError."""
    given = {key: value for key, value in words.items() if value is not None and key != _DURABLE}
    fields = {_READ[key][0]: _value(key, value) for key, value in given.items()}
    fields["program"] = _program(words)
    fields.setdefault("disk_bytes", default_disk_bytes(words))
    return Options(**fields)


def default_disk_bytes(words: Words) -> int:
    """The disk that a guest has where nobody says how large it is. Raises OptionError."""
    if _program(words) == "kv-durable":
        return DURABLE_DISK_BYTES
    return QUICK_DISK_BYTES if words.get("mode") == "quick" else 0


def _value(key: str, given: str | float | bool) -> Any:
    """What was given, read if it is still text."""
    if not isinstance(given, str):
        return given
    read = _yes_or_no if key == _DURABLE else _READ[key][1]
    try:
        return read(given)
    except ValueError as error:
        raise OptionError(f"--{key}: {error}") from error


def _program(words: Words) -> str:
    """The program, or where it is to be durable that one of its kind which keeps its data on the disk."""
    program = str(words.get("program") or Options.program)
    durable = _value(_DURABLE, words.get(_DURABLE) or False)
    if not durable or program == "kv-durable":
        return program
    if program != "kv":
        raise OptionError(f"--{_DURABLE}: {program} keeps nothing on a disk; only kv can: --program kv")
    return "kv-durable"
