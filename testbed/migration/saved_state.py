"""Quick Migration's channels: the guest's state crosses as a file on shared storage, the rest as always.

The engine is the same, and so are the messages; only where they travel differs. What the source sends from
its last RoundBegin to StateEnd is written to a file, message by message as it would go over the wire; then
the storage changes hands, and one message over the network says where the file lies::

    source  --- Hello ... Prepare ------------------- network ------------------->  target
    source  === Hello, RoundBegin, pages, devices, StateEnd  ===> file
            (storage dismounted here)
    source  --- Saved(file, size) ------------------- network ------------------->  target
                                                            (storage mounted there)
                        file ===> Hello, RoundBegin, pages, devices, StateEnd  ==>  target
    source  <-- Ready --- Commit, Resumed ... ------- network ------------------->  target

A file that was cut short or altered is refused like a message that was: by its digests, by StateEnd's root
over all of RAM, or because it ends too soon. So is one of another version, which its first message tells. The
source's guest then goes on as after any other failure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from testbed.memory.region import Region
from testbed.migration.channel import Channel
from testbed.migration.errors import ProtocolError
from testbed.migration.wire import (
    HEADER,
    NONCE,
    PAGE,
    VERSION,
    Abort,
    Hello,
    Message,
    Pages,
    RoundBegin,
    Saved,
    StateEnd,
    encode,
    parse,
    parse_header,
)

MEANWHILE_S = 1.0


class StateWriter(Protocol):
    """A file on shared storage that is being written. Methods raise LocalError: no room, no storage."""

    def write(self, data: bytes | memoryview) -> None: ...

    def finish(self) -> Saved:
        """All was written: put it on the medium, and let the target have the storage."""
        ...

    def give_up(self) -> None:
        """Remove what was written; the storage stays this host's. Does nothing after :meth:`finish`."""
        ...


class StateReader(Protocol):
    """A saved state on storage that is this host's now. LocalError where the storage fails."""

    def read_into(self, buffer: memoryview) -> int:
        """The next bytes, fewer only at the end; how many."""
        ...

    def close(self) -> None: ...


class _Peer:
    """A channel of which the messages over the network are another's."""

    def __init__(self, peer: Channel) -> None:
        self._peer = peer
        self._deadline_s = 0.0

    def limit_rate(self, bytes_per_s: int | None) -> None:
        self._peer.limit_rate(bytes_per_s)

    def set_deadline(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._peer.set_deadline(deadline_s)

    def wait(self, timeout_s: float) -> bool:
        return self._peer.wait(timeout_s)

    def drain(self) -> None:
        self._peer.drain()


class SavingChannel(_Peer):
    """The source's end. `begin` opens the file when the state begins to be sent; `meanwhile` is called about
    once a second while the target reads it, which may take as long as the writing.
    """

    def __init__(
        self, peer: Channel, begin: Callable[[], StateWriter], meanwhile: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(peer)
        self._begin = begin
        self._meanwhile = meanwhile
        self._file: StateWriter | None = None

    def send(self, *messages: Message) -> int:
        return sum(self._send(message) for message in messages)

    def _send(self, message: Message) -> int:
        if isinstance(message, Abort) and self._file is not None:
            file, self._file = self._file, None
            file.give_up()
        if self._file is None and isinstance(message, RoundBegin):
            self._file = self._begin()
            self._file.write(encode(Hello(VERSION, bytes(NONCE))))
        if self._file is None:
            return self._peer.send(message)
        data = encode(message)
        self._file.write(data)
        if isinstance(message, StateEnd):
            file, self._file = self._file, None
            self._peer.send(file.finish())
        return len(data)

    def send_pages(self, message: Pages, ram: Region) -> int:
        if self._file is None:
            return self._peer.send_pages(message, ram)
        head = encode(message)
        self._file.write(head)
        for start, count in message.runs:
            self._file.write(ram.view[start * PAGE : (start + count) * PAGE])
        return len(head) + message.pages * PAGE

    def receive(self) -> Message:
        for _ in range(int(self._deadline_s / MEANWHILE_S)):
            if self._peer.wait(MEANWHILE_S):
                break
            self._meanwhile()
        return self._peer.receive()

    def receive_pages(self, message: Pages, ram: Region) -> None:
        self._peer.receive_pages(message, ram)

    def close(self) -> None:
        if self._file is not None:
            self._file.give_up()
        self._peer.close()


class RestoringChannel(_Peer):
    """The target's end. `begin` takes the storage over and opens the file that the source has named."""

    def __init__(self, peer: Channel, begin: Callable[[Saved], StateReader]) -> None:
        super().__init__(peer)
        self._begin = begin
        self._file: StateReader | None = None

    def send(self, *messages: Message) -> int:
        return self._peer.send(*messages)

    def send_pages(self, message: Pages, ram: Region) -> int:
        return self._peer.send_pages(message, ram)

    def receive(self) -> Message:
        if self._file is None:
            message = self._peer.receive()
            if not isinstance(message, Saved):
                return message
            self._file = self._begin(message)
            self._check_version(self._next())
        message = self._next()
        if isinstance(message, StateEnd):
            self._file.close()
            self._file = None
        return message

    def _next(self) -> Message:
        header = parse_header(self._read(bytearray(HEADER.size)))
        return parse(header, self._read(bytearray(header.length)))

    @staticmethod
    def _check_version(first: Message) -> None:
        if not isinstance(first, Hello):
            raise ProtocolError("the saved state does not begin with its version")
        if first.version != VERSION:
            raise ProtocolError(f"the saved state is of version {first.version}, this is {VERSION}")

    def receive_pages(self, message: Pages, ram: Region) -> None:
        if self._file is None:
            self._peer.receive_pages(message, ram)
            return
        for start, count in message.runs:
            self._fill(ram.view[start * PAGE : (start + count) * PAGE])

    def _read(self, buffer: bytearray) -> bytearray:
        self._fill(memoryview(buffer))
        return buffer

    def _fill(self, buffer: memoryview) -> None:
        assert self._file is not None
        if len(buffer) and self._file.read_into(buffer) < len(buffer):
            raise ProtocolError("the saved state ends too soon")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._peer.close()
