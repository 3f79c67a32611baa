"""What a connection of the kv program remembers: its protocol version, and the commands of an open MULTI.

Commands between MULTI and EXEC are kept as they came, in a block of the heap; the connection's state holds
its place.
"""

from __future__ import annotations

from testbed.guest.heap import OutOfMemory
from testbed.guest.memory import Memory
from testbed.guest.programs.resp import RESP2, RESP3, Dialect

STATE_BYTES = 40
QUEUE_LIMIT_BYTES = 1 << 20
_FIRST_QUEUE_BYTES = 1024

_VERSION, _MODE, _OFFSET, _USED, _COUNT = range(5)
_CLOSED, _OPEN, _SPOILT = range(3)


class Session:
    """The facts in `state`, the bytes of one connection."""

    def __init__(self, memory: Memory, state: memoryview) -> None:
        self._memory = memory
        self._words = state.cast("Q")

    @property
    def dialect(self) -> Dialect:
        return RESP3 if self._words[_VERSION] == RESP3.version else RESP2

    @dialect.setter
    def dialect(self, dialect: Dialect) -> None:
        self._words[_VERSION] = dialect.version

    @property
    def queueing(self) -> bool:
        """MULTI was said and neither EXEC nor DISCARD."""
        return bool(self._words[_MODE])

    @property
    def spoilt(self) -> bool:
        """A command after MULTI was refused: EXEC must carry out none."""
        return bool(self._words[_MODE] == _SPOILT)

    def begin(self) -> None:
        self._words[_MODE] = _OPEN

    def spoil(self) -> None:
        self._words[_MODE] = _SPOILT

    def add(self, command: bytes) -> None:
        """Keep `command`. Raises OutOfMemory, also when there are more than a megabyte of them: it is not
        kept then.
        """
        words, heap = self._words, self._memory.heap
        offset, used = words[_OFFSET], words[_USED]
        if used + len(command) > QUEUE_LIMIT_BYTES:
            raise OutOfMemory(f"a transaction has at most {QUEUE_LIMIT_BYTES} bytes")
        if not offset or used + len(command) > heap.usable(offset):
            wider = heap.alloc(max(_FIRST_QUEUE_BYTES, 2 * (used + len(command))))
            if offset:
                self._memory.view[wider : wider + used] = self._memory.view[offset : offset + used]
                heap.free(offset)
            words[_OFFSET] = offset = wider
        self._memory.view[offset + used : offset + used + len(command)] = command
        words[_USED] = used + len(command)
        words[_COUNT] += 1

    def take(self) -> tuple[int, bytes]:
        """How many commands were kept, and they; MULTI is over."""
        words = self._words
        count, offset = int(words[_COUNT]), words[_OFFSET]
        commands = bytes(self._memory.view[offset : offset + words[_USED]])
        self.discard()
        return count, commands

    def discard(self) -> None:
        """MULTI is over, and what was kept is forgotten."""
        words = self._words
        if words[_OFFSET]:
            self._memory.heap.free(words[_OFFSET])
        words[_MODE] = words[_OFFSET] = words[_USED] = words[_COUNT] = 0
