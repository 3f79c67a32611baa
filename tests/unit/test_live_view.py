"""The live picture as text: what stands in it, and that it fits, whatever the terminal."""

from __future__ import annotations

import io
from functools import cache

import pytest
from rich.console import Console

from testbed.report.glyphs import ASCII, UNICODE, Glyphs
from testbed.report.live_state import CELL_NS, Cast, LiveState
from testbed.report.live_view import LEAST_HEIGHT, LEAST_WIDTH, picture, plain
from testbed.report.waits import short_ms, wait_level, wait_style
from tests.unit.test_live_state import MS, event, mark, moving, round_of

SIZES = [(80, 24), (120, 40), (LEAST_WIDTH, LEAST_HEIGHT), (200, 60)]
QUICK = {"way": "out", "bytes": 1 << 20, "of_bytes": 4 << 20}


@cache
def crowd(hosts: int, guests: int, clients: int) -> LiveState:
    names = tuple(f"host-{'abcdefgh'[number]}" for number in range(hosts))
    placed = {f"vm{number + 1}": (names[number % hosts], 1 << 30) for number in range(guests)}
    asking = tuple(f"client{number}" for number in range(clients))
    cast = Cast("a name that is rather long, as names are", names, placed, asking)
    state = LiveState(cast, 0)
    for number, name in enumerate(placed):
        vm = None if guests == 1 else name
        state.migration(names[number % hosts], names[(number + 1) % hosts], 3, 17, vm)
        fields = {} if vm is None else {"vm": vm}
        state.event(event(names[number % hosts], "begin", phase="precopy", **fields), 0)
        for one in range(12):
            state.event(round_of(one + 1, 100_000 >> one, 5, **fields), 0)
    for number in range(clients):
        for cell in range(100):
            waits = {"closed-loop": cell * MS, "churn": 1}
            beat = event(f"client{number}", "beat", longest_wait_ns=cell * MS, each=waits)
            state.event(beat | {"t_ns": cell * CELL_NS}, 0)
    state.say("something was said, and at such length that it cannot stand on one line of any terminal " * 3)
    return state


def migrated() -> LiveState:
    state = moving()
    for phase in ("setup", "provision", "precopy", "pause"):
        state.event(event("host-a", "begin", phase=phase), 0)
    state.event(event("client1", "beat", 990, longest_wait_ns=7 * MS), 0)
    state.event(round_of(1, 8000, 40), 0)
    for name, t_ms in (("paused", 1000), ("cut", 1001), ("pages-sent", 1003), ("committed", 1004)):
        state.event(mark("host-a", name, t_ms), 0)
    state.event(mark("host-b", "resumed", 1004.5), 0)
    return state


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("glyphs", [UNICODE, ASCII])
@pytest.mark.parametrize("shape", [(2, 1, 1), (2, 3, 2), (3, 5, 3), (8, 16, 40)])
def test_it_fits_whatever_there_is(
    width: int, height: int, glyphs: Glyphs, shape: tuple[int, int, int]
) -> None:
    for state in (crowd(*shape), migrated(), LiveState(crowd(*shape).cast, 0)):
        lines = picture(state, 10**9, width, height, glyphs)
        assert len(lines) == height
        assert max(line.cell_len for line in lines) <= width
        if glyphs is ASCII:
            assert plain(lines).isascii()
        for host in state.cast.hosts:
            assert host in plain(lines)
        assert any(name in plain(lines) for name in state.strips)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_migration_can_be_read_from_it(width: int, height: int) -> None:
    shown = plain(picture(migrated(), 5 * 10**9, width, height))
    assert "vm1 host-a ▶ host-b" in shown
    assert "✓pre-copy" in shown
    assert "▶pause" in shown
    assert "8000 pages" in shown
    assert "blackout 4.5 ms" in shown
    assert "cut off 1" in shown
    assert "client1" in shown
    assert "7.0 ms" in shown
    assert "5.0 s" in shown


def test_rich_shows_it_as_it_is() -> None:
    """The lines through a real console: nothing wraps, nothing is taken for markup."""
    console = Console(file=io.StringIO(), record=True, width=80, height=24, force_terminal=True)
    lines = picture(migrated(), 10**9, 80, 24)
    for line in lines:
        console.print(line, no_wrap=True, crop=True)
    told = console.export_text().splitlines()
    assert [line.rstrip() for line in told] == [line.plain.rstrip() for line in lines]


def test_the_guest_is_in_the_box_where_it_is() -> None:
    state = moving()
    state.event(event("client1", "probes-begin"), 0)
    before = picture(state, 0, 80, 24)[2].plain
    assert before.index("vm1 runs") < 40
    assert before.index("expected") > 40
    state.event(event("host-a", "begin", phase="provision"), 0)
    assert "in place, silent" in picture(state, 0, 80, 24)[2].plain
    state.event(event("host-a", "switching-over"), 0)
    assert "stands still" in picture(state, 10**9, 80, 24)[2].plain
    state.event(mark("host-b", "resumed", 1), 0)
    after = picture(state, 10**9, 80, 24)[2].plain
    assert after.index("vm1 runs") > 40
    assert "copy to delete" in after[:40]
    state.event(event("host-a", "end", phase="delete"), 0)
    assert "vm1" not in picture(state, 10**9, 80, 24)[2].plain[:40]


def test_before_it_serves_a_guest_is_not_said_to_run() -> None:
    assert "vm1 boots" in plain(picture(LiveState(moving().cast, 0), 0, 80, 24))


def test_what_takes_long_shows_how_far_it_is() -> None:
    state = moving()
    state.event(event("host-a", "sending", number=1, bytes=1 << 20, of_bytes=4 << 20), 0)
    assert "1 MiB of 4 MiB" in plain(picture(state, 0, 80, 24))
    state.event(event("host-a", "lun", **QUICK), 0)
    assert "to the LUN" in plain(picture(state, 0, 80, 24))


def test_a_pause_is_marked_above_the_strips() -> None:
    state = migrated()
    state.event(event("client1", "beat", 1200, longest_wait_ns=MS), 0)
    head = next(line for line in picture(state, 0, 80, 24) if "now" in line.plain and "longest" in line.plain)
    strip = next(line for line in picture(state, 0, 80, 24) if line.plain.startswith(" client1"))
    cell = state.end - 1 - 1000 * MS // CELL_NS
    right = head.plain.index("▼")
    assert strip.plain[right + cell] != " ", "the strip's last cell is as many cells to the right"
    assert strip.plain[right + cell + 1] == " "


def test_of_many_clients_those_that_waited_longest_are_shown() -> None:
    cast = Cast("x", ("host-a", "host-b"), {"vm1": ("host-a", 1)}, tuple(f"c{n}" for n in range(50)))
    state = LiveState(cast, 0)
    for number in range(50):
        state.event(event(f"c{number}", "beat", 1, longest_wait_ns=(900 if number == 33 else number) * MS), 0)
    shown = plain(picture(state, 0, 80, 24))
    assert " c33 " in shown
    assert " c49 " in shown
    assert "more clients, of which none waited longer than" in shown
    assert "900 ms" in shown


def test_a_broken_connection_is_told_in_place_of_the_longest_wait() -> None:
    state = migrated()
    state.event(event("client2", "beat", 1000, longest_wait_ns=MS), 0)
    state.event(event("client2", "broken"), 0)
    assert "1 broken" in plain(picture(state, 0, 80, 24))


def test_waits_grow_and_change_colour() -> None:
    levels = [wait_level(ms * MS) for ms in (0, 1, 2, 4, 8, 30, 100, 300)]
    assert levels == sorted(levels)
    assert (levels[0], levels[-1]) == (0, 7)
    styles = [wait_style(ms * MS) for ms in (1, 10, 100, 205)]
    assert len(set(styles)) == 4
    assert wait_style(205 * MS) == "bold red", "a retransmission is to be seen at once"


@pytest.mark.parametrize(
    ("ms", "told"), [(0.04, "0.0 ms"), (7.64, "7.6 ms"), (212.3, "212 ms"), (35_920, "35.9 s")]
)
def test_waits_are_short_words(ms: float, told: str) -> None:
    assert short_ms(round(ms * MS)) == told
