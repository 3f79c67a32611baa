"""Bulk: a download or an upload on each connection, as fast as it goes, on port 7002.

The first byte that a client sends chooses. After ``D`` the program sends the byte ramp of
:mod:`testbed.measure.pattern` from byte 0 without end. After ``U`` it takes the ramp from byte 0, holds each
byte against it, and says after each piece how far it has come: u64 bytes taken, u64 of them wrong (little
endian). The positions are the state of a connection, in RAM.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from testbed.guest.connections import Connection
from testbed.guest.program import Program
from testbed.measure.pattern import pattern

DOWNLOAD, UPLOAD = b"D", b"U"
PIECE_BYTES = 64 << 10

MODE, SENT, TAKEN, WRONG = range(4)
"""Words of a connection's state: what it is for (0: not chosen yet), and how far it has come."""


class Bulk(Program):
    port = 7002
    connection_state_bytes = 32

    def attach(self) -> None:
        self.totals = self.memory.words("bulk.totals", 4)

    def received(self, connection: Connection) -> None:
        state = connection.state.cast("Q")
        if not state[MODE]:
            self._choose(connection, state)
            if not connection.inbox:
                return
        if state[MODE] == UPLOAD[0]:
            self._take(connection, state)
        else:
            connection.consume(len(connection.inbox))

    def _choose(self, connection: Connection, state: memoryview) -> None:
        chosen = bytes(connection.inbox[:1])
        connection.consume(1)
        if chosen not in (DOWNLOAD, UPLOAD):
            connection.close()
            return
        state[MODE] = chosen[0]
        if chosen == DOWNLOAD:
            connection.stream(True)

    def writable(self, connection: Connection) -> None:
        state = connection.state.cast("Q")
        connection.send(pattern(state[SENT], PIECE_BYTES))
        state[SENT] += PIECE_BYTES
        self.totals[SENT] += PIECE_BYTES

    def _take(self, connection: Connection, state: memoryview) -> None:
        got = bytes(connection.inbox)
        expected = pattern(state[TAKEN], len(got))
        if got != expected:
            wrong = np.frombuffer(got, np.uint8) != np.frombuffer(expected, np.uint8)
            state[WRONG] += int(np.count_nonzero(wrong))
            self.totals[WRONG] += int(np.count_nonzero(wrong))
        state[TAKEN] += len(got)
        self.totals[TAKEN] += len(got)
        connection.consume(len(got))
        connection.send(state[TAKEN].to_bytes(8, "little") + state[WRONG].to_bytes(8, "little"))

    def stats(self) -> dict[str, Any]:
        """`bytes_sent` counts what was given to connections, whether it has left or not."""
        _, sent, taken, wrong = self.totals
        return {"bytes_sent": sent, "bytes_received": taken, "bytes_wrong": wrong}
