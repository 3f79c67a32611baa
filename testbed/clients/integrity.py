"""Whether the bytes that came are the bytes that were due: nothing missing, nothing twice, nothing
altered."""

from __future__ import annotations

from dataclasses import dataclass

from testbed.measure.pattern import WINDOW, displacement, pattern


@dataclass
class Integrity:
    """Bytes that went wrong, by what was wrong with them."""

    lost: int = 0
    """Were due and never came."""
    duplicated: int = 0
    """Came once more than they should have, or came when nothing was due."""
    corrupted: int = 0
    """Came in place, with another value."""

    def add(self, other: Integrity) -> None:
        self.lost += other.lost
        self.duplicated += other.duplicated
        self.corrupted += other.corrupted

    def whole(self) -> bool:
        return not (self.lost or self.duplicated or self.corrupted)


class StreamChecker:
    """Holds what is received against the byte ramp, and says what became of each byte.

    The first byte received should be that of `offset`; :attr:`position` is the offset of the next one due.
    Where the stream jumps, the ramp tells by how much: forward, and the bytes between are lost; backward, and
    what follows is a repetition. A byte that is wrong while its neighbours are in step is corrupted.
    """

    def __init__(self, offset: int = 0) -> None:
        self.position = offset
        self.integrity = Integrity()
        self._undecided = b""

    def feed(self, data: bytes, end: int | None = None) -> None:
        """Take in the next bytes. `end` is the offset beyond which the peer can send nothing yet (None: it
        can).

        Fewer than eight odd bytes at the end of `data` do not tell a jump from an altered byte. They wait for
        more, unless the stream could not go on beyond them (`end`).
        """
        if not self._undecided and data == pattern(self.position, len(data)):
            self.position += len(data)
            return
        data, at = self._undecided + data, 0
        self._undecided = b""
        while at < len(data):
            at = self._skip_right(data, at)
            window = data[at : at + WINDOW]
            if len(window) < WINDOW:
                if end is None or self.position + len(window) < end:
                    self._undecided = window
                    return
                self._count_altered(window)
                return
            jump = displacement(self.position, window)
            if jump is None:
                self._count_altered(window[:1])
                at += 1
            else:
                self.integrity.lost += max(jump, 0)
                self.integrity.duplicated += max(-jump, 0)
                self.position += jump

    def finish(self, end: int | None = None) -> None:
        """Nothing more will come. With `end`, bytes up to that offset were due, and what is missing is
        lost."""
        self._count_altered(self._undecided)
        self._undecided = b""
        if end is not None and end > self.position:
            self.integrity.lost += end - self.position
            self.position = end

    def _skip_right(self, data: bytes, at: int) -> int:
        """The index of the first byte from `at` on that is not as due; the position moves along."""
        due = pattern(self.position, len(data) - at)
        if data[at:] == due:
            right = len(due)
        else:
            right = next(i for i, byte in enumerate(due) if data[at + i] != byte)
        self.position += right
        return at + right

    def _count_altered(self, data: bytes) -> None:
        due = pattern(self.position, len(data))
        self.integrity.corrupted += sum(a != b for a, b in zip(data, due, strict=True))
        self.position += len(data)
