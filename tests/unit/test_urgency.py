"""Urgent and ordinary again, for whomever the system allows it."""

from __future__ import annotations

import os

import pytest

from testbed.host.urgency import Urgency


def test_who_may_be_urgent_by_a_limit_alone_becomes_ordinary_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user of the group `audio` or `realtime`, say: no privilege, but RLIMIT_RTPRIO. The kernel's rule
    (kernel/sched/syscalls.c, user_check_sched_setscheduler) is played here: a test would need the privilege
    to raise that limit.
    """
    policy = os.SCHED_OTHER

    def set_scheduler(pid: int, new: int, param: os.sched_param) -> None:
        nonlocal policy
        if policy & os.SCHED_RESET_ON_FORK and not new & os.SCHED_RESET_ON_FORK:
            raise PermissionError(1, "Operation not permitted")
        policy = new

    monkeypatch.setattr(os, "sched_setscheduler", set_scheduler)
    urgency = Urgency()
    urgency.raise_for([0])
    assert urgency.granted
    urgency.lower()
    assert policy & ~os.SCHED_RESET_ON_FORK == os.SCHED_OTHER


def test_who_gives_way_is_ordinary_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    policies = {1: os.SCHED_OTHER, 2: os.SCHED_OTHER}
    monkeypatch.setattr(os, "sched_setscheduler", lambda pid, new, _: policies.__setitem__(pid, new))
    urgency = Urgency()
    urgency.raise_for(policies)
    assert {one & ~os.SCHED_RESET_ON_FORK for one in policies.values()} == {os.SCHED_RR}
    assert not urgency.given_up
    urgency.give_way()
    assert {one & ~os.SCHED_RESET_ON_FORK for one in policies.values()} == {os.SCHED_OTHER}
    assert (urgency.granted, urgency.given_up) == (True, True)
