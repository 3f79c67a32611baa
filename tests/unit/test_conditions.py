"""What conditions a link can have, what is said of the rest, and who brings them about."""

from __future__ import annotations

import json
import struct
from dataclasses import asdict
from typing import Any

import pytest

from netns.conditions import Conditions, ConditionsError
from netns.kernel_queues import netem_limit, netem_of
from netns.link_figures import BackendMissing, DirectionFigures, choose
from netns.netem import Netem, message

NONE = Conditions.none()
MS = 1_000_000


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"delay_ns": -1}, "delay_ns -1: must be 0 to"),
        ({"delay_ns": 61_000 * MS}, "60 s"),
        ({"delay_ns": 5, "jitter_ns": 6}, "at most delay_ns, 5"),
        ({"delay_ns": 5, "distribution": "gauss"}, "must be uniform, normal, pareto"),
        ({"loss": 1.5}, "loss 1.5: must be 0 to 1"),
        ({"loss": float("nan")}, "loss nan"),
        ({"duplication": -0.1}, "duplication"),
        ({"reordering": 0.1}, "needs a delay"),
        ({"rate_bits_per_s": 0}, "rate"),
        ({"rate_bits_per_s": float("inf")}, "rate"),
        ({"queue_frames": 10}, "needs a rate"),
        ({"rate_bits_per_s": 1e6, "queue_frames": 10, "queue_bytes": 9000}, "not both"),
        ({"rate_bits_per_s": 1e6, "queue_frames": 0}, "must be 1 to"),
        ({"rate_bits_per_s": 1e6, "queue_bytes": 10}, "must be 1514 to"),
        ({"lost_announcements": -1}, "lost_announcements"),
    ],
)
def test_what_cannot_be_is_told_in_one_line_that_names_it(asked: dict[str, Any], word: str) -> None:
    with pytest.raises(ConditionsError, match=word) as told:
        Conditions(**asked)
    assert "\n" not in str(told.value)


def test_none_is_none_whatever_its_seed() -> None:
    assert NONE.is_none
    assert Conditions(seed=3).is_none
    assert not Conditions(lost_announcements=1).is_none
    assert NONE.describe() == "none"
    assert Conditions(delay_ns=5, loss=0.1).describe() == "delay_ns=5, loss=0.1"


def test_a_rate_alone_is_known() -> None:
    assert Conditions(rate_bits_per_s=1e9).is_rate_alone
    assert not Conditions(rate_bits_per_s=1e9, queue_frames=10).is_rate_alone
    assert not NONE.is_rate_alone


def test_conditions_travel_as_json() -> None:
    asked = Conditions(rate_bits_per_s=1e8, delay_ns=5 * MS, jitter_ns=MS, distribution="pareto", loss=0.25)
    assert Conditions(**json.loads(json.dumps(asdict(asked)))) == asked


DELAY = Conditions(delay_ns=10 * MS)
JITTER = Conditions(delay_ns=10 * MS, jitter_ns=MS)


@pytest.mark.parametrize(
    ("asked", "has_netem", "backend"),
    [
        (NONE, True, "none"),
        (Conditions(rate_bits_per_s=1e9), True, "tbf"),
        (DELAY, True, "netem"),
        (DELAY, False, "relay"),
        (JITTER, True, "relay"),
        (Conditions(delay_ns=10 * MS, jitter_ns=MS, jitter_reorders=True), True, "netem"),
        (Conditions(lost_announcements=2), True, "relay"),
        (Conditions(delay_ns=3000 * MS, jitter_ns=3000 * MS, jitter_reorders=True), True, "relay"),
        (Conditions(delay_ns=MS, jitter_ns=MS, jitter_reorders=True, rate_bits_per_s=1e8), True, "relay"),
        (Conditions(delay_ns=MS, reordering=0.1, rate_bits_per_s=1e8), True, "relay"),
        (Conditions(loss=0.1, duplication=0.1), True, "relay"),
        (Conditions(delay_ns=MS, loss=0.1), True, "relay"),
        (Conditions(delay_ns=MS, rate_bits_per_s=1e8), True, "relay"),
        (Conditions(delay_ns=MS, rate_bits_per_s=1e9), True, "netem"),
    ],
)
def test_auto_takes_the_kernels_way_where_it_does_all_that_is_asked(
    asked: Conditions, has_netem: bool, backend: str
) -> None:
    for both in ((asked, NONE), (NONE, asked)):
        choice = choose("auto", *both, has_netem=has_netem, has_tbf=True)
        assert choice.backend == backend
        assert choice.why


def test_a_rate_is_the_relays_where_there_is_no_token_bucket() -> None:
    rate = Conditions(rate_bits_per_s=1e9)
    assert choose("auto", rate, NONE, has_netem=False, has_tbf=False).backend == "relay"


def test_netem_by_name_is_refused_where_it_is_not_or_cannot() -> None:
    with pytest.raises(BackendMissing, match="take the relay"):
        choose("netem", DELAY, NONE, has_netem=False, has_tbf=True)
    with pytest.raises(ConditionsError, match="overtake"):
        choose("netem", NONE, JITTER, has_netem=True, has_tbf=True)


def test_netem_by_name_is_given_what_auto_leaves_to_the_relay_for_the_size_of_frames() -> None:
    loss = Conditions(delay_ns=MS, loss=0.1, rate_bits_per_s=1e8)
    assert choose("netem", loss, NONE, has_netem=True, has_tbf=True).backend == "netem"
    assert "64 KiB" in choose("auto", loss, NONE, has_netem=True, has_tbf=True).why


def test_netems_limit_holds_what_is_under_way_and_the_queue() -> None:
    """Its own default of 1000 would turn 50 ms at 1 Gbit/s into loss: 4128 long frames are under way."""
    assert netem_limit(Conditions(delay_ns=50 * MS, rate_bits_per_s=1e9)) > 4128
    assert netem_limit(Conditions(delay_ns=50 * MS, rate_bits_per_s=1e9, queue_frames=100)) == 4228
    assert netem_limit(Conditions(delay_ns=50 * MS)) > 100_000
    assert netem_limit(NONE) == 1000


def test_conditions_are_told_to_netem_in_its_terms() -> None:
    asked = Conditions(
        delay_ns=10 * MS, loss=0.01, duplication=0.5, reordering=0.25, rate_bits_per_s=8e6, queue_frames=5
    )
    told = netem_of(asked)
    assert (told.delay_ns, told.loss, told.duplication, told.reordering) == (10 * MS, 0.01, 0.5, 0.25)
    assert told.rate_bytes_per_s == 1_000_000
    assert told.limit_frames == netem_limit(asked)


def test_netems_message_is_what_the_kernel_reads() -> None:
    """Decoded by pyroute2, which reads netem right."""
    from pyroute2.netlink.rtnl.tcmsg import tcmsg

    asked = Netem(500, 10 * MS, MS, loss=0.5, duplication=1.0, reordering=0.25, rate_bytes_per_s=125_000)
    data = message(7, asked)
    assert struct.unpack_from("=IHH", data) == (len(data), 36, 0x505)
    decoded = tcmsg(data)
    decoded.decode()
    assert (decoded["index"], decoded["parent"]) == (7, 0xFFFFFFFF)
    assert decoded.get_attr("TCA_KIND") == "netem"
    options = decoded.get_attr("TCA_OPTIONS")
    assert (options["limit"], options["gap"], options["duplicate"]) == (500, 1, 0xFFFFFFFF)
    assert options["delay"] == 10 * MS >> 6
    assert options.get_attr("TCA_NETEM_RATE")["rate"] == 125_000
    assert options.get_attr("TCA_NETEM_REORDER")["prob_reorder"] == round(0.25 * 0xFFFFFFFF)


def test_loss_and_throughput_are_told_only_where_they_are_known() -> None:
    told = DirectionFigures(
        NONE, wire_frames=True, received_frames=1000, lost=10, passed_bytes=1000, active_ns=8000
    )
    assert told.loss == 0.01
    assert told.throughput_bits_per_s == 1e9
    untold = DirectionFigures(NONE, wire_frames=False)
    assert untold.loss is None
    assert untold.throughput_bits_per_s is None
