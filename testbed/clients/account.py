"""What one connection has written into a store, what it was told, and whether the store keeps to it. No I/O.

Keys are the connection's own, numbers rise, and a value is made of its key and number, so whatever is read
says which write it came from. Of a key whose write was not answered before the connection broke, nobody knows
whether it was or will be carried out: it is written no more, another takes its place, and it is only held to
what was told.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from testbed.measure.pattern import PERIOD, pattern

LEAST_VALUE_BYTES = 32
"""A number, a colon, and enough of the pattern to tell values apart."""


@dataclass
class Entry:
    """One key: the numbers of the last write that was sent, and of the last acknowledged one (0: none)."""

    key: bytes
    sent: int = 0
    acknowledged: int = 0
    phantom_seen: bool = False


class Account:
    """Writes and reads back `keys` keys that begin with `name`, in values of `size` bytes."""

    def __init__(self, name: str, keys: int, size: int) -> None:
        self.acknowledged = 0
        """Writes that were acknowledged."""
        self.refused = 0
        """Writes that were answered with an error: they count for nothing."""
        self.writes_lost = 0
        """Acknowledged writes that the store has forgotten: it holds an older value, or none."""
        self.writes_phantom = 0
        """Keys with a value that was never sent."""
        self.complaint: str | None = None
        """The first that was wrong, in words."""
        self.entries: list[Entry] = []
        """Every key there ever was."""
        self._name = name
        self._size = size
        self._turn = 0
        self._active = [self._new_key() for _ in range(keys)]
        self._writing: Entry | None = None

    def write(self) -> tuple[bytes, bytes]:
        """The key and the value of the next write, which counts as sent."""
        entry = self._active[self._turn % len(self._active)]
        self._turn += 1
        entry.sent += 1
        self._writing = entry
        return entry.key, value_of(entry.key, entry.sent, self._size)

    def told(self) -> None:
        """The write that was sent last is acknowledged."""
        entry = self._under_way()
        entry.acknowledged, entry.phantom_seen = entry.sent, False
        self.acknowledged += 1

    def refuse(self) -> None:
        """The write that was sent last is answered with an error."""
        self._under_way()
        self.refused += 1

    def lose_touch(self) -> None:
        """The connection broke: what became of a write under way is not known."""
        if self._writing is not None:
            self._active[self._active.index(self._under_way())] = self._new_key()

    def check(self, entry: Entry, value: bytes | None) -> None:
        """The store says that `entry` has this value (None: that there is none)."""
        number = 0 if value is None else number_of(entry.key, value, self._size)
        if number is None or number > entry.sent:
            self.writes_phantom += not entry.phantom_seen
            entry.phantom_seen = True
            self._note(f"{entry.key!r} holds what was never sent: {value!r:.60}")
        elif number < entry.acknowledged:
            self.writes_lost += entry.acknowledged - number
            self._note(f"{entry.key!r} is at {number}, and {entry.acknowledged} was acknowledged")
            entry.acknowledged = number  # told once

    def _under_way(self) -> Entry:
        entry, self._writing = self._writing, None
        if entry is None:
            raise ValueError("no write is under way")
        return entry

    def _new_key(self) -> Entry:
        self.entries.append(Entry(b"%b:%d" % (self._name.encode(), len(self.entries))))
        return self.entries[-1]

    def _note(self, complaint: str) -> None:
        self.complaint = self.complaint or complaint


def value_of(key: bytes, number: int, size: int) -> bytes:
    """The value of write `number` of `key`."""
    head = b"%d:" % number
    return head + pattern((zlib.crc32(key) + number * 7919) % PERIOD, size - len(head))


def number_of(key: bytes, value: bytes, size: int) -> int | None:
    """The number of the write that `value` came from; None when it is none of this key's."""
    digits = value.partition(b":")[0]
    if not digits.isdigit() or len(digits) > 18:
        return None
    number = int(digits)
    return number if number > 0 and value == value_of(key, number, size) else None
