"""iperf3 as a measure: what a wire carries, or one line on why that is not known."""

from __future__ import annotations

import shutil

import psutil
import pytest

from netns.conditions import Conditions
from testbed.experiment import relay_bench, yardstick
from tests.conftest import require

pytestmark = pytest.mark.universe(preload=["netns.relay"])


def carried(loss: float) -> float:
    require(yardstick.PROGRAM, bool(shutil.which(yardstick.PROGRAM)))
    conditions = Conditions(rate_bits_per_s=50_000_000, loss=loss)
    with relay_bench.standing() as (topology, link):
        link.set(conditions, conditions)
        near, far = topology.namespace("near"), topology.namespace("far")
        return yardstick.bulk_mbit(near, far, relay_bench._FAR_ADDRESS, 1)


def test_it_tells_what_a_wire_carries() -> None:
    assert 1 < carried(0.0) < 60


def test_a_wire_that_carries_nothing_is_told_in_time_and_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(yardstick, "DEADLINE_S", 0.5)
    with pytest.raises(yardstick.YardstickFailed, match=r"iperf3 was not done after 1\.5 s"):
        carried(1.0)
    assert [one for one in psutil.process_iter() if one.name() == yardstick.PROGRAM] == []
