"""The gate that maintenance closes, and which disks are open."""

from __future__ import annotations

import threading

import pytest

from testbed.storage.open_disks import Gate, OpenDisks
from testbed.storage.paths import Offline

DEADLINE_S = 20.0


def nobody_goes() -> bool:
    return False


def test_a_gate_is_closed_when_the_last_who_was_in_is_out() -> None:
    gate = Gate()
    outcome: list[bool] = []
    closer = threading.Thread(target=lambda: outcome.append(gate.close(DEADLINE_S)))
    with gate.passing(nobody_goes):
        closer.start()
        closer.join(0.05)
        assert closer.is_alive()
    closer.join(DEADLINE_S)
    assert outcome == [True]
    assert gate.closed


def test_a_gate_that_cannot_be_closed_in_time_is_open() -> None:
    gate = Gate()
    with gate.passing(nobody_goes):
        assert not gate.close(0.01)
    assert not gate.closed
    with gate.passing(nobody_goes):
        pass


def test_who_waits_at_a_closed_gate_passes_when_it_opens_or_gives_up() -> None:
    gate = Gate()
    assert gate.close(0)
    with pytest.raises(Offline, match="maintenance"), gate.passing(lambda: True):
        pytest.fail("it was let through")
    passed = threading.Event()

    def pass_through() -> None:
        with gate.passing(nobody_goes):
            passed.set()

    waiting = threading.Thread(target=pass_through)
    waiting.start()
    assert not passed.wait(0.05)
    gate.open()
    assert passed.wait(DEADLINE_S)
    waiting.join(DEADLINE_S)


def test_a_disk_is_open_as_long_as_somebody_holds_it() -> None:
    disks = OpenDisks()
    with disks.holding("d"):
        with disks.holding("d"), disks.holding("e"):
            assert disks.counts() == {"d": 2, "e": 1}
        assert disks.counts() == {"d": 1}
    assert disks.counts() == {}
