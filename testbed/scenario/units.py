"""Sizes, rates and durations as people write them, and back.

A size is a number with B, KiB, MiB, GiB (powers of 1024) or kB, MB, GB (powers of 1000); a rate has kbit,
mbit, gbit (powers of 1000, as in tc); a duration has us, ms, s, min. Upper and lower case are the same. Every
parser raises ValueError with one line that names what was given and what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

_SIZES = {
    "b": 1,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
}
_RATES = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_DURATIONS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "min": 60 * 10**9}
_QUANTITY = re.compile(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([a-z]*)\s*", re.ASCII)


def _parse(text: str, units: Mapping[str, int], what: str, example: str) -> int:
    match = _QUANTITY.fullmatch(text.lower())
    if match is None or match[2] not in units:
        raise ValueError(f"{text!r} is not a {what}: a number and one of {', '.join(units)}, as in {example}")
    value = Fraction(match[1]) * units[match[2]]
    return round(value)


def parse_size(text: str) -> int:
    """Bytes."""
    return _parse(text, _SIZES, "size", "256MiB")


def parse_rate(text: str) -> int:
    """Bits per second."""
    return _parse(text, _RATES, "rate", "1gbit")


def parse_duration(text: str) -> int:
    """Nanoseconds."""
    return _parse(text, _DURATIONS, "duration", "300ms")


def format_size(size_bytes: int) -> str:
    """With the largest binary unit that leaves at least one, for people."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.4g} {unit}"
    return f"{size_bytes} B"


def format_rate(bits_per_s: float) -> str:
    """For people: Gbit/s, Mbit/s or kbit/s with three digits."""
    for unit, factor in (("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3)):
        if bits_per_s >= factor:
            return f"{bits_per_s / factor:.3g} {unit}"
    return f"{bits_per_s:.3g} bit/s"


def format_ms(milliseconds: float) -> str:
    """For people: three digits, in seconds from one second on."""
    return f"{milliseconds / 1000:.3g} s" if milliseconds >= 1000 else f"{milliseconds:.3g} ms"


def write_size(size_bytes: int) -> str:
    """As :func:`parse_size` reads it back, to the byte."""
    return _write(size_bytes, {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "B": 1})


def write_rate(bits_per_s: int) -> str:
    """As :func:`parse_rate` reads it back."""
    return _write(bits_per_s, {"gbit": 10**9, "mbit": 10**6, "kbit": 10**3, "bit": 1})


def write_duration(duration_ns: int) -> str:
    """As :func:`parse_duration` reads it back."""
    return _write(duration_ns, {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1})


def _write(value: int, units: Mapping[str, int]) -> str:
    """With the largest unit of which it is a whole number; zero in the smallest."""
    for unit, factor in units.items():
        if value and value % factor == 0:
            return f"{value // factor}{unit}"
    return f"0{list(units)[-1]}"


def format_duration_left(seconds: float) -> str:
    """For people who wait: whole seconds, from two minutes on whole minutes."""
    return f"{round(seconds / 60)} min" if seconds >= 120 else f"{round(seconds)} s"


def format_count(count: int, one: str, many: str = "") -> str:
    """``1 reset``, ``3 resets``; `many` where an s does not do."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
