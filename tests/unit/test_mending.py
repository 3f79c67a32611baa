"""When what a fault did is undone: counted from the fault, not from the order to migrate."""

from __future__ import annotations

from typing import Any

from testbed.lab.migrations import MEND_AFTER_S, Mending


def test_a_fault_is_mended_so_long_after_it_happened_however_late_that_was() -> None:
    now_s, passed_on = [100.0], []
    mending = Mending(passed_on.append, lambda: now_s[0])
    other: dict[str, Any] = {"event": "begin", "phase": "provision"}
    mending.event(other)
    now_s[0] += 10 * MEND_AFTER_S
    assert not mending.is_due(), "nothing has happened yet"
    assert mending.patience_s(600.0) == 600.0
    fault: dict[str, Any] = {"event": "fault", "fault": "precopy:link-black-hole"}
    mending.event(fault)
    assert passed_on == [other, fault]
    assert mending.patience_s(600.0) == MEND_AFTER_S
    assert mending.patience_s(1.0) == 1.0
    assert not mending.is_due()
    now_s[0] += MEND_AFTER_S
    assert mending.is_due()
    assert not mending.is_due(), "once is enough"
