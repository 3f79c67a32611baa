"""Which links are captured, and how much of them: what ``--pcap`` and its companions ask for. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from testbed.scenario.options import OptionError
from testbed.scenario.units import format_size, parse_size

ALL = "all"
SMALLEST_SNAP_BYTES, LARGEST_SNAP_BYTES = 64, 256 << 10
SMALLEST_LIMIT_BYTES = 1 << 20
DEFAULT_LIMIT = "1GiB"
HEADERS_BYTES = 256
"""What is kept of a frame that carries a guest's memory, or its disk, unless another length is asked for: its
headers and those of what it carries. To copy RAM once more than the migration does would slow it."""
HEADERS_ONLY = ("migration", "storage")
"""The networks whose frames are those: a link's name is one of these, or ends with a dot and one."""


@dataclass(frozen=True)
class Pcap:
    """`links` by name, None: all of them. `snap_bytes` of each frame are kept: 0 for all, None: all, but of
    memory and disks on their way the headers only. A link's file stops at `limit_bytes`."""

    links: tuple[str, ...] | None
    snap_bytes: int | None
    limit_bytes: int

    @classmethod
    def asked(cls, links: str | None, snap: str | None, limit: str) -> Pcap | None:
        """From the words of a command line; None where nothing is to be captured. OptionError."""
        if links is None:
            if snap is not None:
                raise OptionError("--pcap-snap: nothing is captured without --pcap")
            return None
        names = tuple(dict.fromkeys(name.strip() for name in links.split(",")))
        chosen = None if ALL in names else names
        return cls(chosen, _snap(snap), _size("--pcap-limit", limit, SMALLEST_LIMIT_BYTES, 1 << 50))

    def chosen(self, there: Collection[str]) -> tuple[str, ...]:
        """The links to capture, of those that are `there`. OptionError for one that is not."""
        for name in self.links or ():
            if name not in there:
                those = ", ".join(there)
                raise OptionError(f"--pcap: there is no link {name!r}; there are {those}, or {ALL}")
        return tuple(there) if self.links is None else self.links

    def snap_of(self, link: str) -> int | None:
        """How many bytes of each of its frames are kept, None: all."""
        if self.snap_bytes is not None:
            return self.snap_bytes or None
        return HEADERS_BYTES if link.rpartition(".")[2] in HEADERS_ONLY else None


def _snap(text: str | None) -> int | None:
    if text is None:
        return None
    if text.strip() == "0":
        return 0
    return _size("--pcap-snap", text, SMALLEST_SNAP_BYTES, LARGEST_SNAP_BYTES, ", or 0 for whole frames")


def _size(option: str, text: str, least: int, most: int, besides: str = "") -> int:
    try:
        size = parse_size(text)
    except ValueError as error:
        raise OptionError(f"{option}: {error}") from error
    if not least <= size <= most:
        allowed = f"{format_size(least)} to {format_size(most)}"
        raise OptionError(f"{option}: {text!r} is not {allowed}{besides}")
    return size
