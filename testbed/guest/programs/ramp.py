"""Ramp: the byte ramp of :mod:`testbed.measure.pattern` in both directions at once, on port 7001.

The program sends byte 0, 1, 2 ... of the ramp as fast as the peer reads, from the moment it connects, and
checks that what the peer sends is the ramp from byte 0 too. One lost, repeated or altered byte in either
direction is found by the side that receives it. The positions are the state of a connection, in RAM.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from testbed.guest.connections import Connection
from testbed.guest.program import Program
from testbed.measure.pattern import pattern

PIECE_BYTES = 16 << 10

SENT, RECEIVED, WRONG, FIRST_WRONG = range(4)
"""Words of a connection's state: bytes sent, bytes received, how many were wrong, place of the first plus
one.
"""


class Ramp(Program):
    port = 7001
    connection_state_bytes = 32
    send_buffer_bytes = 64 << 10  # bounds what is unsent, however slowly the peer reads

    def attach(self) -> None:
        self.totals = self.memory.words("ramp.totals", 4)  # as in a connection's state, over all connections

    def connected(self, connection: Connection) -> None:
        connection.stream(True)

    def writable(self, connection: Connection) -> None:
        state = connection.state.cast("Q")
        connection.send(pattern(state[SENT], PIECE_BYTES))
        state[SENT] += PIECE_BYTES
        self.totals[SENT] += PIECE_BYTES

    def received(self, connection: Connection) -> None:
        state = connection.state.cast("Q")
        got = bytes(connection.inbox)
        expected = pattern(state[RECEIVED], len(got))
        if got != expected:
            self._note_wrong(state, got, expected)
        state[RECEIVED] += len(got)
        self.totals[RECEIVED] += len(got)
        connection.consume(len(got))

    def _note_wrong(self, state: memoryview, got: bytes, expected: bytes) -> None:
        wrong = np.flatnonzero(np.frombuffer(got, np.uint8) != np.frombuffer(expected, np.uint8))
        for words in (state, self.totals):
            words[WRONG] += len(wrong)
            words[FIRST_WRONG] = words[FIRST_WRONG] or state[RECEIVED] + int(wrong[0]) + 1

    def stats(self) -> dict[str, Any]:
        """`bytes_sent` counts what was given to the connection, whether it has left or not."""
        sent, received, wrong, first = self.totals
        return {
            "bytes_sent": sent,
            "bytes_received": received,
            "bytes_wrong": wrong,
            "first_wrong_at": first - 1 if wrong else None,
        }
