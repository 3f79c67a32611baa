"""What became of each numbered packet: sent, come back, lost, come twice, overtaken. Pure."""

from __future__ import annotations

from array import array


class PacketLog:
    """The packets of one flow, by number from 0. `sent_ns`, `handled_ns` and `received_ns` are parallel, one
    entry a packet from number `first` on; `received_ns` is 0 of a packet that has not come back, `handled_ns`
    where nobody said.
    """

    def __init__(self) -> None:
        self.first = 0
        self.sent_ns = array("q")
        self.handled_ns = array("q")
        self.received_ns = array("q")
        self.duplicated = 0
        """Came back once more than they should have."""
        self.reordered = 0
        """Came back after one that was sent later (RFC 4737, 3.3)."""
        self.late = 0
        """Came back after they had been given up."""
        self.foreign = 0
        """Numbers that were never sent."""
        self.highest = -1
        """The highest number that has come back."""
        self.due = 0
        """How many may still come back."""
        self._final = 0
        self._lost_before = 0

    @property
    def next(self) -> int:
        """The number of the next packet: so many have been sent."""
        return self.first + len(self.sent_ns)

    @property
    def lost(self) -> int:
        """How many were given up and have not come since."""
        final = self._final - self.first
        return self._lost_before + self.received_ns[:final].count(0)

    def note_sent(self, t_ns: int) -> None:
        self.sent_ns.append(t_ns)
        self.handled_ns.append(0)
        self.received_ns.append(0)
        self.due += 1

    def note_received(self, number: int, t_ns: int, handled_ns: int = 0) -> int | None:
        """Packet `number` has come back; returns when it was sent, or None where that is no news of it."""
        index = number - self.first
        if index < 0:
            self.late += 1
            return None
        if index >= len(self.sent_ns):
            self.foreign += 1
            return None
        if self.received_ns[index]:
            self.duplicated += 1
            return None
        self.received_ns[index] = t_ns
        self.handled_ns[index] = handled_ns
        if number < self._final:
            self.late += 1
        else:
            self.due -= 1
        if number < self.highest:
            self.reordered += 1
        else:
            self.highest = number
        return self.sent_ns[index]

    def give_up(self) -> None:
        """What has not come back by now is lost, unless it comes after all."""
        self._final = self.next
        self.due = 0

    def is_final(self, index: int) -> bool:
        """Whether the packet at `index` of the arrays has come back, or was given up."""
        return index < self._final - self.first or self.received_ns[index] != 0

    def forget(self) -> None:
        """Let go of all packets; the counts go on. What is still due counts as lost."""
        self.give_up()
        self._lost_before = self.lost
        self.first = self._final = self.next
        self.sent_ns, self.handled_ns, self.received_ns = array("q"), array("q"), array("q")
