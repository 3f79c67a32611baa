"""iperf3 as a measure: what a wire carries, or one line on why that is not known."""

from __future__ import annotations

import shutil

import psutil
import pytest

from netns.conditions import Conditions
from testbed.experiment import relay_bench, yardstick
from tests.conftest import require

pytestmark = pytest.mark.universe(preload=["netns.relay"])


def carried(loss: float = 0.0, address: str = relay_bench.FAR_ADDRESS) -> float:
    require(yardstick.PROGRAM, bool(shutil.which(yardstick.PROGRAM)))
    conditions = Conditions(rate_bits_per_s=50_000_000, loss=loss)
    with relay_bench.standing() as (topology, link):
        link.set(conditions, conditions)
        near, far = topology.namespace("near"), topology.namespace("far")
        return yardstick.bulk_mbit(near, far, address, 1)


def test_it_tells_what_a_wire_carries() -> None:
    assert 1 < carried() < 60


def test_a_wire_that_carries_nothing_is_told_in_time_and_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(yardstick, "DEADLINE_S", 0.5)
    with pytest.raises(yardstick.YardstickFailed, match=r"iperf3 was not done after 1\.5 s"):
        carried(loss=1.0)
    assert [one for one in psutil.process_iter() if one.name() == yardstick.PROGRAM] == []


def test_what_iperf3_complains_of_is_told() -> None:
    with pytest.raises(yardstick.YardstickFailed, match=r"iperf3: .*unable to connect"):
        carried(address="192.0.2.1")
