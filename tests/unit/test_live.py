"""The live view's manners: when it draws and when not, what it leaves on the terminal, who gets one."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from testbed.commands.showing import is_live
from testbed.report.live import COPYING_NS, DRAW_NS, Live
from testbed.report.live_state import HOLD_NS
from testbed.report.screen import Screen
from tests.unit.test_live_state import CAST, event, mark, round_of

LEAVE = "\x1b[?1049l"


class Clock:
    def __init__(self) -> None:
        self.now_ns = 10**9

    def __call__(self) -> int:
        return self.now_ns


def terminal(width: int = 80, height: int = 24) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=True, width=width, height=height, color_system=None), file


def viewed(tell: Callable[[Live, Clock, io.StringIO], None]) -> str:
    """What a terminal got when `tell` had told a view of things."""
    console, file = terminal()
    clock = Clock()
    with Live(console, CAST, clock) as live:
        tell(live, clock, file)
    return file.getvalue()


def beat(t_ms: float) -> dict[str, Any]:
    return event("client1", "beat", t_ms, longest_wait_ns=1000)


def test_it_draws_when_told_but_not_more_often_than_it_says() -> None:
    def tell(live: Live, clock: Clock, file: io.StringIO) -> None:
        sizes = []
        for number in range(30):
            clock.now_ns += DRAW_NS // 10
            live.event(beat(number * 50))
            sizes.append(len(file.getvalue()))
        assert len(set(sizes)) == 3

    viewed(tell)


def test_while_memory_is_copied_it_draws_less() -> None:
    def tell(live: Live, clock: Clock, file: io.StringIO) -> None:
        live.migration("host-a", "host-b", 1, 1)
        clock.now_ns += DRAW_NS
        live.event(event("host-a", "begin", phase="precopy"))
        clock.now_ns += DRAW_NS
        live.event(beat(0))
        before = len(file.getvalue())
        clock.now_ns += DRAW_NS
        live.event(beat(500))
        assert len(file.getvalue()) == before
        clock.now_ns += COPYING_NS
        live.event(beat(1000))
        assert len(file.getvalue()) > before

    viewed(tell)


def test_from_the_announced_switchover_to_its_end_nothing_is_drawn() -> None:
    def tell(live: Live, clock: Clock, file: io.StringIO) -> None:
        live.migration("host-a", "host-b", 1, 1)
        clock.now_ns += COPYING_NS
        live.event(event("host-a", "switching-over"))
        before = len(file.getvalue())
        for number in range(1, 7):
            clock.now_ns += HOLD_NS // 7
            live.event(beat(number * 100))
            live.say(f"line {number}")
        live.event(mark("host-a", "paused", 700))
        assert len(file.getvalue()) == before
        live.event(mark("host-b", "resumed", 704))
        assert "blackout" in file.getvalue()[before:]

    viewed(tell)


def test_what_drawing_takes_is_a_tenth_of_the_time_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    def tell(live: Live, clock: Clock, file: io.StringIO) -> None:
        slow = live._screen.draw

        def draw(lines: list[Text]) -> None:
            slow(lines)
            clock.now_ns += DRAW_NS

        monkeypatch.setattr(live._screen, "draw", draw)
        clock.now_ns += DRAW_NS
        live.event(beat(0))
        begun, drawn = clock.now_ns, 0
        for number in range(100):
            clock.now_ns += DRAW_NS // 4
            before = len(file.getvalue())
            live.event(beat(number * 50 + 50))
            drawn += len(file.getvalue()) > before
        assert drawn >= 1
        assert drawn * DRAW_NS * 9 <= clock.now_ns - begun

    viewed(tell)


def test_afterwards_the_lines_stand_there_as_without_it() -> None:
    def tell(live: Live, clock: Clock, file: io.StringIO) -> None:
        live.say("network: host-a, host-b")
        live.migration("host-a", "host-b", 1, 1)
        live.event(beat(0))
        live.event(event("host-a", "begin", phase="provision"))
        live.event(round_of(1, 8000, 40, map="long"))

    after = viewed(tell).split(LEAVE)[1]
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", after).splitlines()]
    assert lines[0] == "network: host-a, host-b"
    assert lines[1] == "migrating host-a → host-b"
    assert lines[2].startswith("provision")
    assert lines[4].startswith("round 1")


def test_left_by_an_error_it_gives_the_screen_back() -> None:
    console, file = terminal()
    with suppress(KeyboardInterrupt), Live(console, CAST, Clock()) as live:
        live.say("something")
        raise KeyboardInterrupt
    assert file.getvalue().index("\x1b[?1049h") < file.getvalue().index(LEAVE)
    assert "something" in file.getvalue().split(LEAVE)[1]


def test_a_terminal_that_became_too_small_is_left_alone() -> None:
    console, file = terminal(40, 10)
    with Live(console, CAST, Clock()) as live:
        before = file.getvalue()
        live.say("something")
        assert file.getvalue() == before


# ---- the screen


def test_only_lines_that_changed_are_written() -> None:
    console, file = terminal()
    with Screen(console) as screen:
        screen.draw([Text("first"), Text("second"), Text("third")])
        file.truncate(0)
        screen.draw([Text("first"), Text("other"), Text("third")])
        assert "other" in file.getvalue()
        assert "first" not in file.getvalue()
        file.truncate(0)
        screen.draw([Text("first"), Text("other"), Text("third")])
        assert file.getvalue().strip("\0") == ""
        screen.draw([Text("first"), Text("other", style="bold"), Text("third")])


def test_a_change_of_size_draws_all_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    console, file = terminal()
    with Screen(console) as screen:
        screen.draw([Text("first")])
        file.truncate(0)
        console.size = (100, 30)  # type: ignore[assignment]
        screen.draw([Text("first")])
        assert "\x1b[2J" in file.getvalue()
        assert "first" in file.getvalue()


# ---- who gets one


@pytest.mark.parametrize(
    ("size", "term", "plain", "quiet", "wanted"),
    [
        ((80, 24), "xterm", False, False, True),
        ((80, 24), "xterm", True, False, False),
        ((80, 24), "xterm", False, True, False),
        ((80, 24), "dumb", False, False, False),
        ((80, 24), None, False, False, False),
        ((50, 24), "xterm", False, False, False),
        ((80, 10), "xterm", False, False, False),
        (None, "xterm", False, False, False),
    ],
)
def test_a_terminal_gets_one_unless_it_cannot_or_nobody_wants(
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int] | None,
    term: str | None,
    plain: bool,
    quiet: bool,
    wanted: bool,
) -> None:
    def get_terminal_size(_: int) -> os.terminal_size:
        if size is None:
            raise OSError(25, "Inappropriate ioctl for device")
        return os.terminal_size(size)

    monkeypatch.setattr("sys.stdout", open(os.devnull, "w"))  # noqa: SIM115, PTH123 - lives as long as the test
    monkeypatch.setattr(os, "get_terminal_size", get_terminal_size)
    monkeypatch.delenv("TERM", raising=False)
    if term is not None:
        monkeypatch.setenv("TERM", term)
    assert is_live(plain=plain, quiet=quiet) is wanted
