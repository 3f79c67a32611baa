"""A conditioned link's entry in the result, and a scenario's words for conditions."""

from __future__ import annotations

import jsonschema
import pytest

from netns.conditions import Conditions
from netns.link_figures import DirectionFigures, LinkFigures
from netns.sounding import Sounded, Sounding
from testbed.experiment.link_figures import link
from testbed.measure.result import schema
from testbed.scenario.parts import Conditions as Part

MS = 1_000_000
ASKED = Conditions(delay_ns=10 * MS, loss=0.01, rate_bits_per_s=1e8)
FORWARD = DirectionFigures(
    ASKED,
    wire_frames=True,
    received_frames=1000,
    passed_frames=988,
    passed_bytes=1_000_000,
    lost=12,
    announcements_lost=0,
    queue_dropped=0,
    overrun=0,
    duplicated=0,
    reordered=0,
    delay_p50_ns=10_050_000,
    delay_p99_ns=10_500_000,
    late_p50_ns=50_000,
    late_p99_ns=500_000,
    active_ns=1_000_000_000,
)
FIGURES = LinkFigures(
    "relay", "netem is not in this kernel", FORWARD, DirectionFigures(Conditions(), wire_frames=False)
)
SOUNDING = Sounding(
    Sounded(200, 198, 10_020_000, 10_090_000, 99.5e6), Sounded(198, 198, 3000, 9000), 10_023_000
)


def test_what_was_measured_stands_beside_what_was_asked() -> None:
    entry = link("client1", FIGURES, SOUNDING)
    assert (entry.name, entry.backend, entry.why) == ("client1", "relay", "netem is not in this kernel")
    assert (entry.asked_round_trip_ms, entry.round_trip_ms) == (10.0, 10.023)
    forward = entry.forward
    assert (forward.asked.delay_ms, forward.delay_p50_ms) == (10.0, 10.05)
    assert (forward.asked.loss, forward.loss) == (0.01, 0.012)
    assert (forward.asked.rate_mbit, forward.throughput_mbit) == (100.0, 8.0)
    assert forward.measured is not None
    assert forward.measured.delay_p50_ms == 10.02
    assert forward.measured.loss == pytest.approx(0.01)
    assert forward.measured.throughput_mbit == 99.5


def test_what_was_measured_is_held_against_what_was_asked_then() -> None:
    """Since then a step has taken the conditions off."""
    nothing = DirectionFigures(Conditions(), wire_frames=False)
    entry = link("client1", LinkFigures("none", "nothing is asked", nothing, nothing), SOUNDING, FIGURES)
    assert (entry.asked_round_trip_ms, entry.round_trip_ms) == (10.0, 10.023)
    assert entry.forward.asked.delay_ms == 0.0
    assert entry.forward.measured is not None
    assert entry.forward.measured.asked is not None
    assert entry.forward.measured.asked.delay_ms == 10.0


def test_what_is_not_told_is_null_and_the_entry_fits_the_schema() -> None:
    entry = link("client1", FIGURES).model_dump(mode="json")
    assert entry["round_trip_ms"] is None
    assert entry["forward"]["measured"] is None
    assert entry["backward"]["passed_frames"] is None
    whole = schema()
    jsonschema.validate(entry, {"$ref": "#/$defs/LinkFigures", "$defs": whole["$defs"]})


def test_a_scenarios_conditions_are_those_of_a_wire() -> None:
    assert Part.model_validate({"delay": "10ms", "loss": 0.01, "rate": "100mbit"}).of_a_wire() == ASKED
    with pytest.raises(ValueError, match="reorder: needs a delay"):
        Part.model_validate({"reorder": 0.5})
