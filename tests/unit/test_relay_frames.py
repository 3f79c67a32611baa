"""In what order a relay takes in what two rings hold."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from netns.packet import Captured
from netns.passage import Tally
from netns.relay import _Side, figures_of


class Ring:
    """A ring that holds what it was given once."""

    def __init__(self, frames: list[Captured]) -> None:
        self._frames = frames

    def take(self) -> list[Captured]:
        taken, self._frames = self._frames, []
        return taken


def side(small: list[Captured], large: list[Captured]) -> _Side:
    made = object.__new__(_Side)
    made._small = SimpleNamespace(ring=Ring(small))  # type: ignore[assignment]
    made._large = SimpleNamespace(ring=Ring(large))  # type: ignore[assignment]
    made._early = []
    return made


@pytest.fixture(autouse=True)
def looked_at_100(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 100)


def frames(*times: int) -> list[Captured]:
    return [Captured(t_ns, b"") for t_ns in times]


def test_small_and_large_frames_come_in_the_order_of_their_arrival() -> None:
    both = side(frames(10, 30, 50), frames(20, 40))
    assert [one.t_ns for one in both.take()] == [10, 20, 30, 40, 50]
    assert both.take() == []


def test_a_large_frame_newer_than_the_look_at_the_small_ones_waits_for_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A small one that came before it may not have been there yet."""
    both = side(frames(90), frames(95, 110))
    assert [one.t_ns for one in both.take()] == [90, 95]
    assert both.has_early
    both._small.ring = Ring(frames(105))  # type: ignore[assignment]
    monkeypatch.setattr(time, "time_ns", lambda: 200)
    assert [one.t_ns for one in both.take()] == [105, 110]
    assert not both.has_early


def test_figures_are_counts_and_three_points_of_each_distribution() -> None:
    tally = Tally(received_frames=3)
    for value in (100, 200, 300):
        tally.late.add(value)
    told = figures_of(tally)
    assert told["received_frames"] == 3
    assert told["late"] == {"p50": 200, "p99": 300, "max": 300}
    assert told["transit"] == {"p50": None, "p99": None, "max": None}
