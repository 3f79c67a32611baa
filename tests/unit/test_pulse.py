"""A client's pulse: what it tells and how often, and that it waits for nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from testbed.clients import pulse
from testbed.clients.loop import Loop
from testbed.clients.pulse import Pulse
from testbed.measure.trace import OFFER_BYTES, Recorder, Trace

MS = 1_000_000


class FakeProbe:
    """Waits as it is told to."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.wait_ns = 0

    def beat_ns(self) -> int:
        return self.wait_ns


@pytest.fixture
def loop() -> Iterator[Loop]:
    with closing(Loop()) as made:
        yield made


def beats(trace: Trace) -> list[dict[str, Any]]:
    return [event for event in trace.pending if event["event"] == "beat"]


def beating(loop: Loop, *probes: FakeProbe, every_ms: int = 10) -> tuple[Pulse, Trace]:
    trace = Trace("client1")
    made = Pulse(loop, trace, probes)  # type: ignore[arg-type]
    made.beat_every(every_ms * MS)
    return made, trace


def test_a_beat_has_the_longest_wait_of_each_kind(loop: Loop) -> None:
    asking, again, churn = FakeProbe("closed-loop"), FakeProbe("closed-loop"), FakeProbe("churn")
    asking.wait_ns, again.wait_ns, churn.wait_ns = 3, 9, 5
    _, trace = beating(loop, asking, again, churn)
    assert loop.run(lambda: beats(trace), 10**18)
    (beat,) = beats(trace)
    assert (beat["longest_wait_ns"], beat["each"]) == (9, {"closed-loop": 9, "churn": 5})


def test_beats_come_in_a_grid_that_all_clients_share(loop: Loop) -> None:
    _, trace = beating(loop, FakeProbe("churn"))
    assert loop.run(lambda: len(beats(trace)) >= 5, 10**18)
    times = [beat["t_ns"] for beat in beats(trace)]
    cells = [time // (10 * MS) for time in times]
    assert cells == sorted(set(cells)), "two in one cell"


def test_it_stops_and_starts_when_it_is_told(loop: Loop) -> None:
    made, trace = beating(loop, FakeProbe("churn"))
    assert loop.run(lambda: beats(trace), 10**18)
    made.beat_every(0)
    count = len(beats(trace))
    passed: list[int] = []
    loop.at(beats(trace)[-1]["t_ns"] + 60 * MS, lambda: passed.append(1))
    assert loop.run(lambda: passed, 10**18)
    assert len(beats(trace)) == count
    made.beat_every(20 * MS)
    made.beat_every(10 * MS)  # the first of the two is forgotten
    assert loop.run(lambda: len(beats(trace)) >= count + 3, 10**18)
    later = [beat["t_ns"] // (10 * MS) for beat in beats(trace)[count:]]
    assert later == sorted(set(later))


def test_what_takes_long_is_done_seldom(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A beat of a millisecond of the processor's time: five a second, whatever was asked for."""
    spent = iter(range(0, 10**12, MS))
    monkeypatch.setattr(pulse, "thread_time_ns", lambda: next(spent))
    _, trace = beating(loop, FakeProbe("churn"))
    assert loop.run(lambda: len(beats(trace)) >= 3, 10**18)
    times = [beat["t_ns"] for beat in beats(trace)]
    assert times[2] - times[1] >= 190 * MS


def test_nobody_listening_is_no_reason_to_gather_without_end(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "_MOST_PENDING", 3)
    looks_at_the_clock: list[int] = []  # two in every beat, told or not

    def no_time() -> int:
        looks_at_the_clock.append(1)
        return 0

    monkeypatch.setattr(pulse, "thread_time_ns", no_time)
    _, trace = beating(loop, FakeProbe("churn"))
    assert loop.run(lambda: len(looks_at_the_clock) >= 2 * 6, 10**18)
    assert len(beats(trace)) == 3


# ---- on their way


def test_a_recorder_gives_beats_on_and_keeps_the_rest(tmp_path: Path) -> None:
    with closing(Recorder(tmp_path / "recorder")) as recorder:
        trace = Trace("client1", tmp_path / "recorder")
        trace.event("beat", longest_wait_ns=1)
        trace.event("broken")
        assert trace.offer()
        assert [event["event"] for event in recorder.receive()] == ["beat", "broken"]
        assert [event["event"] for event in recorder.events] == ["broken"]
        trace.close()


def test_an_offer_that_finds_no_room_waits_for_nobody_and_loses_nothing(tmp_path: Path) -> None:
    with closing(Recorder(tmp_path / "recorder")) as recorder:
        trace = Trace("client1", tmp_path / "recorder")
        sent = 0
        while True:
            trace.event("beat", number=sent)
            if not trace.offer():
                break
            sent += 1
            assert sent < 1_000_000, "the buffer has no end"
        assert [event["number"] for event in trace.pending] == [sent]
        got = [event["number"] for event in recorder.receive()]
        assert trace.offer()
        got += [event["number"] for event in recorder.receive()]
        assert got == list(range(sent + 1))
        trace.close()


def test_more_than_an_offer_can_be_is_left_to_a_flush(tmp_path: Path) -> None:
    with closing(Recorder(tmp_path / "recorder")) as recorder:
        trace = Trace("client1", tmp_path / "recorder")
        trace.event("beat", text="x" * OFFER_BYTES)
        assert not trace.offer()
        trace.flush()
        assert len(recorder.receive()) == 1
        trace.close()


@pytest.mark.parametrize("send", [Trace.flush, Trace.offer])
def test_that_nobody_records_any_more_is_told_and_is_no_error(
    tmp_path: Path, send: Callable[[Trace], bool]
) -> None:
    with closing(Recorder(tmp_path / "recorder")):
        trace = Trace("client1", tmp_path / "recorder")
        trace.event("beat", number=1)
        assert send(trace)
    for number in (2, 3):
        trace.event("beat", number=number)
        assert not send(trace)
    trace.close()


def test_without_a_recorder_an_offer_is_not_taken() -> None:
    trace = Trace("client1")
    trace.event("beat")
    assert not trace.offer()
    assert len(trace.pending) == 1
