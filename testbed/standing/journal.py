"""events.jsonl of a lab that stands: written as events come, read by whoever wants to know."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

Event = dict[str, Any]

FILE = "events.jsonl"


class Journal:
    """The lab's events on disk, each a line, in the order in which they came; nothing of it is kept in
    memory.

    `length` is how many bytes are whole lines: what a reader may read.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._file = self._path.open("ab", buffering=0)
        self.length = 0

    def write(self, events: Iterable[Event]) -> None:
        lines = b"".join(json.dumps(event, separators=(",", ":")).encode() + b"\n" for event in events)
        self._file.write(lines)
        self.length += len(lines)

    def since(self, position: int) -> list[Event]:
        """The events from that byte on, sorted by their times."""
        with self._path.open("rb") as file:
            events = read(file, position, self.length)
            return sorted(events, key=lambda event: int(event["t_ns"]))

    def close(self) -> None:
        """Nothing more comes. The file is sorted by time now, as that of a run is."""
        self._file.close()
        events = self.since(0)
        sorted_file = self._path.with_suffix(".sorted")
        write(sorted_file, events)
        sorted_file.replace(self._path)


def read(file: BinaryIO, begin: int, end: int) -> Iterator[Event]:
    """The events in the bytes from `begin` to `end`, which are whole lines."""
    file.seek(begin)
    left = end - begin
    while left > 0:
        line = file.readline()
        left -= len(line)
        yield json.loads(line)


def write(path: Path, events: Iterable[Event]) -> None:
    with path.open("w") as file:
        for event in events:
            file.write(json.dumps(event, separators=(",", ":")) + "\n")
