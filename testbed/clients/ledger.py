"""The ledger: writes to a store, and never forgets what it was told. What a durable store must not lose.

Each connection sets keys of its own, one request at a time, and reads one back now and then. Where a
connection breaks it is counted as of any probe, and another is made in its place, which reads every key back
before it writes on. So it is in the end: the store is held to all that was ever acknowledged.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from time import monotonic_ns
from typing import Any

from testbed.clients.account import Account, Entry
from testbed.clients.codecs import resp, resp_length
from testbed.clients.loop import Loop
from testbed.clients.probe import Member, Probe, Samples
from testbed.clients.spec import LedgerSpec
from testbed.clients.stream import State
from testbed.measure.continuity import Waits, Window, closed_loop
from testbed.measure.trace import Trace

READ_EVERY = 8
"""One request in so many is a read."""
RETRY_NS = 50_000_000
"""From the end of a connection to the next in its place; doubled each time that it cannot be made, up to
MOST_RETRY_NS."""
MOST_RETRY_NS = 1_000_000_000
SUCCESSOR = 100_000
"""The connection in place of number n is n + 100000, the next one n + 200000."""


class LedgerProbe(Probe):
    """`connections` ledgers. `members` are all the connections that were ever made for them."""

    kind = "ledger"

    def __init__(
        self, spec: LedgerSpec, loop: Loop, trace: Trace, client: str, first_connection: int
    ) -> None:
        super().__init__(loop, trace, spec.target)
        self.interval_ns = spec.interval_us * 1000
        self.ending = False
        """Every key is being read back for the last time."""
        self.abandoned = False
        numbers = range(first_connection, first_connection + spec.connections)
        # Keys that no client before had: what it left in the store would be taken for never sent.
        owner = f"{client}.{os.getpid()}"
        self._ledgers = [
            Ledger(self, number, Account(f"{owner}:{number}", spec.keys, spec.size)) for number in numbers
        ]

    def members(self) -> Sequence[Member]:
        return [member for ledger in self._ledgers for member in ledger.connections]

    def open(self) -> None:
        for ledger in self._ledgers:
            ledger.connections[-1].connect()

    def begin(self, start_ns: int) -> None:
        self.asking = True
        for number, ledger in enumerate(self._ledgers):
            ledger.begin(start_ns + number * self.interval_ns // len(self._ledgers))

    def close(self) -> None:
        """Read every key back, then close."""
        self.ending = True
        for ledger in self._ledgers:
            ledger.connections[-1].check_all()

    def closing(self) -> bool:
        return super().closing() or not all(ledger.settled for ledger in self._ledgers)

    def abandon(self) -> None:
        self.abandoned = True
        super().abandon()

    def waits(self, samples: Samples) -> Waits:
        """One wait a request, from before it was sent until its whole reply had been read."""
        return closed_loop(samples.sent_ns, samples.received_ns, samples.connection)

    def report(self, windows: Sequence[Window]) -> dict[str, Any]:
        """As of every probe, `connections` counting every one that was made, and:

        `acknowledged` writes, `writes_lost` of them, `writes_phantom` (values that were never sent),
        `writes_refused` (answered with an error), `keys`, and `unsettled`: how many ledgers could not read
        all their keys back in the end, so that nobody knows.
        """
        accounts = [ledger.account for ledger in self._ledgers]
        return {
            **super().report(windows),
            "acknowledged": sum(account.acknowledged for account in accounts),
            "writes_lost": sum(account.writes_lost for account in accounts),
            "writes_phantom": sum(account.writes_phantom for account in accounts),
            "writes_refused": sum(account.refused for account in accounts),
            "keys": sum(len(account.entries) for account in accounts),
            "unsettled": sum(self.ending and not ledger.settled for ledger in self._ledgers),
        }


class Ledger:
    """One account, and the connections that were made for it, one after the other."""

    def __init__(self, probe: LedgerProbe, number: int, account: Account) -> None:
        self.probe = probe
        self.number = number
        self.account = account
        self.settled = False
        """All that was acknowledged has been looked for once more, in the end."""
        self.connections = [_Writer(self, number)]
        self.turn_ns = 0
        self._retry_ns = RETRY_NS

    def begin(self, turn_ns: int) -> None:
        self.turn_ns = turn_ns
        self.connections[-1].ask_at(turn_ns)

    def made(self) -> None:
        """A connection was made."""
        self._retry_ns = RETRY_NS

    def broken(self) -> None:
        """The connection broke, or could not be made: another, soon."""
        self.account.lose_touch()
        self.probe.loop.at(monotonic_ns() + self._retry_ns, self._connect_again)
        self._retry_ns = min(2 * self._retry_ns, MOST_RETRY_NS)

    def _connect_again(self) -> None:
        if not self.probe.abandoned:
            successor = _Writer(self, self.number + SUCCESSOR * len(self.connections))
            self.connections.append(successor)
            successor.connect()


class _Writer(Member):
    """One connection. It has read back what is in `to_check` before it writes."""

    def __init__(self, ledger: Ledger, number: int) -> None:
        super().__init__(ledger.probe.loop, ledger.probe.target, number)
        self._ledger = ledger
        self._probe = ledger.probe
        self._account = ledger.account
        self._to_check: deque[Entry] = deque()
        self._reading: Entry | None = None
        self._buffer = b""
        self._asked = 0
        self._timed = False

    # -- asking ------------------------------------------------------------------------------------------

    def established(self, t_ns: int) -> None:
        super().established(t_ns)
        self._ledger.made()
        if self._ledger.connections[0] is not self:
            self.check_all()

    def check_all(self) -> None:
        """Read every key back, from the next request on."""
        if self.state is State.OPEN:
            self._to_check = deque(self._account.entries)
            if not self.due:
                self._ask()

    def ask_at(self, turn_ns: int) -> None:
        if not self._timed and not self.due and self.state is State.OPEN:
            self._timed = True
            self._loop.at(turn_ns, self._turn)

    def _turn(self) -> None:
        self._timed = False
        if self.state is State.OPEN and not self.due and (self._probe.asking or self._to_check):
            now = monotonic_ns()
            self._probe.latest_ns = max(self._probe.latest_ns, now - self._ledger.turn_ns)
            self._ask()

    def _ask(self) -> None:
        """The next request: of a key to be checked, or now and then of any; else the next write."""
        self._asked += 1
        if self._to_check:
            self._reading = self._to_check.popleft()
        elif self._asked % READ_EVERY == 0:
            self._reading = self._account.entries[self._asked // READ_EVERY % len(self._account.entries)]
        if self._reading is not None:
            request = resp(b"GET", self._reading.key)
        else:
            request = resp(b"SET", *self._account.write())
        self.sent_ns.append(monotonic_ns())
        self.send(request)

    # -- answers -----------------------------------------------------------------------------------------

    def received(self, data: bytes, t_ns: int) -> None:
        self._buffer += data
        length = resp_length(self._buffer, len(self._buffer))
        if length is None or len(self._buffer) < length:
            return
        reply, self._buffer = self._buffer[:length], self._buffer[length:]
        if not self.due:
            self.integrity.duplicated += length
            self.complaint = self.complaint or f"{length} bytes came unasked: {reply[:64]!r}"
            return
        self._judge(reply)
        self.received_ns.append(t_ns)
        self._probe.answered(t_ns - self.sent_ns[-1])
        self._go_on(t_ns)

    def _judge(self, reply: bytes) -> None:
        account, reading = self._account, self._reading
        self._reading = None
        if reading is None:
            if reply == b"+OK\r\n":
                account.told()
                return
            account.refuse()
            if reply[:1] != b"-":
                self.integrity.corrupted += len(reply)
        elif reply[:1] == b"$":
            account.check(reading, None if reply == b"$-1\r\n" else reply.partition(b"\r\n")[2][:-2])
            self.complaint = self.complaint or account.complaint
            return
        else:
            self.integrity.corrupted += len(reply)
        self.complaint = self.complaint or f"answered with {reply[:64]!r}"

    def _go_on(self, now_ns: int) -> None:
        """After an answer: at once while keys are checked, else when it is time."""
        ledger = self._ledger
        if self._to_check:
            self._ask()
        elif self._probe.ending:
            ledger.settled = True
            self.finish()
        else:
            ledger.turn_ns += self._probe.interval_ns
            if ledger.turn_ns < now_ns:
                missed = (now_ns - ledger.turn_ns) // self._probe.interval_ns
                ledger.turn_ns += missed * self._probe.interval_ns
                self._probe.skipped += missed
            self.ask_at(max(ledger.turn_ns, now_ns))

    def ended(self) -> None:
        super().ended()
        self._probe.note_failure(self)
        if self.failure is not None and not self._ledger.settled and not self._probe.abandoned:
            self._ledger.broken()
