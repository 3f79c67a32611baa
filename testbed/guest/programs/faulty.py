"""Programs that do wrong on purpose, a known number of times at known places, and count it in RAM.

What a probe says of them can be held against their own count, :meth:`stats`. For calibrations; a guest that
runs one of these is of no other use.

A stream is spoiled in its midst, with MIDST right bytes before and after: a reader needs some of them to tell
by how much a stream has jumped (testbed.measure.pattern.WINDOW).
"""

from __future__ import annotations

from typing import Any

from testbed.guest.connections import Connection
from testbed.guest.program import Sender
from testbed.guest.programs.bulk import SENT as BULK_SENT
from testbed.guest.programs.bulk import Bulk
from testbed.guest.programs.echo import Echo
from testbed.guest.programs.http import Http, Request
from testbed.guest.programs.kv import OK, KeyValue
from testbed.guest.programs.ramp import SENT, Ramp
from testbed.guest.programs.resp import Dialect
from testbed.measure.datagram import HEADER_BYTES, MARKER, parse
from testbed.measure.pattern import pattern

MIDST = 16
LOST, DOUBLED, ALTERED = 5, 7, 3
"""Bytes, each time."""
EVERY = 20
"""One handler's answer of so many is spoiled, in turn by a loss, a doubling and an alteration."""
EVERY_WRITE = 10

TURNS, LOSS, DOUBLING, ALTERATION = range(4)
"""Words of a spoiler's memory: pieces, and bytes of each fault."""
FORGOTTEN, GARBLED = 1, 2


class Spoiler:
    """Decides which pieces are spoiled, and how; `words` (four) are its memory, in RAM."""

    def __init__(self, words: memoryview, every: int) -> None:
        self._words = words
        self._every = every

    def due(self) -> int | None:
        """For each piece once: None to leave it alone, or LOSS, DOUBLING, ALTERATION."""
        turn = self._words[TURNS] = self._words[TURNS] + 1
        return None if turn % self._every else 1 + turn // self._every % 3

    def spoil(self, data: bytes, fault: int) -> bytes:
        """`data` (3 * MIDST bytes or more) with that fault, which counts as done."""
        before, after = data[:MIDST], data[MIDST:]
        self._words[fault] += (0, LOST, DOUBLED, ALTERED)[fault]
        if fault == LOSS:
            return before + after[LOST:]
        if fault == DOUBLING:
            return before + before[-DOUBLED:] + after
        return before + bytes(byte ^ 0x55 for byte in after[:ALTERED]) + after[ALTERED:]

    def stats(self) -> dict[str, int]:
        """Bytes that were `lost`, `doubled` and `altered`."""
        words = self._words
        return {"lost": words[LOSS], "doubled": words[DOUBLING], "altered": words[ALTERATION]}


class FaultyEcho(Echo):
    """An echo that spoils some of what comes back; of numbered datagrams it loses some, doubles some, and
    alters the last byte of some, in turn."""

    def attach(self) -> None:
        self._spoiler = Spoiler(self.memory.words("faulty", 4), EVERY)
        self._datagrams = self.memory.words("faulty.datagrams", 4)  # as a spoiler's

    def received(self, connection: Connection) -> None:
        data = bytes(connection.inbox)
        if len(data) >= 3 * MIDST and (fault := self._spoiler.due()) is not None:
            data = self._spoiler.spoil(data, fault)
        connection.send(data)
        connection.consume(len(connection.inbox))

    def datagram(self, data: bytes, sender: Sender) -> None:
        seen, words = parse(data), self._datagrams
        if seen is None or seen.number == MARKER or len(data) <= HEADER_BYTES:
            super().datagram(data, sender)  # nobody counts it
            return
        turn = words[TURNS] = words[TURNS] + 1
        fault = 0 if turn % EVERY else 1 + turn // EVERY % 3
        if fault:
            words[fault] += 1
        if fault == ALTERATION:
            data = data[:-1] + bytes([data[-1] ^ 0x55])
        for _ in range({LOSS: 0, DOUBLING: 2}.get(fault, 1)):
            super().datagram(data, sender)

    def stats(self) -> dict[str, Any]:
        """Bytes that were `lost`, `doubled` and `altered`; the same in datagrams."""
        words = self._datagrams
        return {
            **self._spoiler.stats(),
            "datagrams_lost": words[LOSS],
            "datagrams_doubled": words[DOUBLING],
            "datagrams_altered": words[ALTERATION],
        }


class FaultyRamp(Ramp):
    """A ramp that leaves bytes out, sends some twice, and alters some."""

    def attach(self) -> None:
        super().attach()
        self._spoiler = Spoiler(self.memory.words("faulty", 4), EVERY)

    def writable(self, connection: Connection) -> None:
        fault = self._spoiler.due()
        if fault is None:
            super().writable(connection)
            return
        state = connection.state.cast("Q")
        piece = pattern(state[SENT], 4 * MIDST)
        connection.send(self._spoiler.spoil(piece, fault))
        state[SENT] += len(piece)
        self.totals[SENT] += len(piece)

    def stats(self) -> dict[str, Any]:
        return {**super().stats(), **self._spoiler.stats()}


class FaultyBulk(Bulk):
    """A bulk program that spoils some of a download, and takes some of an upload for other than it was."""

    def attach(self) -> None:
        super().attach()
        self._spoiler = Spoiler(self.memory.words("faulty", 4), EVERY)

    def writable(self, connection: Connection) -> None:
        fault = self._spoiler.due()
        if fault is None:
            super().writable(connection)
            return
        state = connection.state.cast("Q")
        piece = pattern(state[BULK_SENT], 4 * MIDST)
        connection.send(self._spoiler.spoil(piece, fault))
        state[BULK_SENT] += len(piece)
        self.totals[BULK_SENT] += len(piece)

    def _take(self, connection: Connection, state: memoryview) -> None:
        inbox = connection.inbox
        if len(inbox) >= 3 * MIDST and self._spoiler.due() is not None:
            inbox[:] = self._spoiler.spoil(bytes(inbox), ALTERATION)
        super()._take(connection, state)

    def stats(self) -> dict[str, Any]:
        return {**super().stats(), **self._spoiler.stats()}


class FaultyHttp(Http):
    """A web server that forgets, for some requests, that there were any before: what it then answers counts
    as altered, with all its bytes."""

    def attach(self) -> None:
        super().attach()
        self._faults = self.memory.words("faulty", 2)  # requests; bytes of answers that forgot

    def _serve(self, connection: Connection, request: Request) -> None:
        turn = self._faults[0] = self._faults[0] + 1
        if turn % EVERY:
            super()._serve(connection, request)
            return
        self.requests.add()
        body = b'{"requests": 0}\n'
        self._faults[1] += len(body)
        self._answer(connection, 200, body, kind="application/json", keep_alive=request.keep_alive)

    def stats(self) -> dict[str, Any]:
        return {**super().stats(), "altered": self._faults[1]}


class FaultyStore(KeyValue):
    """A key-value store that acknowledges some writes and forgets them, and stores others altered, in turn.

    Its own count is what was lost for good only as long as no key is written twice.
    """

    def attach(self) -> None:
        super().attach()
        self._faults = self.memory.words("faulty", 3)  # writes; of them forgotten, and garbled

    def _execute(self, name: bytes, words: list[bytes], dialect: Dialect) -> bytes:
        if name == b"SET" and len(words) == 3:
            turn = self._faults[0] = self._faults[0] + 1
            fault = 0 if turn % EVERY_WRITE else 1 + turn // EVERY_WRITE % 2
            if fault:
                self._faults[fault] += 1
            if fault == FORGOTTEN:
                return OK
            if fault == GARBLED:
                words = [*words[:2], bytes(byte ^ 0x55 for byte in words[2])]
        return super()._execute(name, words, dialect)

    def stats(self) -> dict[str, Any]:
        """Besides the store's: writes that were `forgotten`, and those that were stored `garbled`."""
        return {
            **super().stats(),
            "forgotten": self._faults[FORGOTTEN],
            "garbled": self._faults[GARBLED],
        }
