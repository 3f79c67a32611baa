"""The live view on a real terminal: it is there, it ends, and the terminal is as it was, however it ends."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import psutil
import pytest

from netns import universe
from tests.conftest import require
from tests.system.commands import SMALL, adopting, left_behind
from tests.system.terminals import ECHO, OnTerminal, on_terminal

ENTER, LEAVE, SHOW_CURSOR = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?25h"
QUICK = ("migrate", *SMALL, "--no-report")


@pytest.fixture(autouse=True)
def _possible() -> None:
    require("universe", lambda: universe.check() is None)


def assert_as_it_was(terminal: OnTerminal) -> None:
    """Out of the alternate screen and with a cursor, last of all; and every setting as before."""
    written = terminal.written
    assert written.count(ENTER) == 1
    assert written.rfind(LEAVE) > written.rfind(ENTER)
    assert written.rfind(SHOW_CURSOR) > written.rfind(b"\x1b[?25l")
    assert terminal.settings_now() == terminal.settings


def without_codes(written: bytes) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode())


def test_a_terminal_gets_the_picture_and_then_the_summary(tmp_path: Path) -> None:
    """A machine that was slow to draw is spared for a while, which may be all of one migration."""
    with on_terminal(tmp_path, *QUICK, "--baseline", "2s", "--migrations", "3") as terminal:
        terminal.wait_for("longest wait in each 50 ms")
        assert not terminal.settings_now()[3] & ECHO, "what is typed would stand in the picture"
        seen = len(terminal.written)
        terminal.resize(120, 30)
        terminal.wait_for("\x1b[30;1H", seen)  # the last line of the larger one
        assert terminal.end() == 0
        assert_as_it_was(terminal)
        picture, after = terminal.written.rsplit(LEAVE, 1)[0], terminal.written.split(LEAVE)[1]
    seen, story = without_codes(picture), without_codes(after)
    for told in ("host-a", "host-b", "switch", "client1", "provision", "round 1", "blackout"):
        assert told in seen
    for told in ("migrating host-a", "round 1", "resume ", "live migration host-a", "result.json"):
        assert told in story
    (result,) = (tmp_path / "testbed-runs").glob("*/result.json")
    assert json.loads(result.read_text())["outcome"] == "completed"
    events = [json.loads(line) for line in (result.parent / "events.jsonl").read_text().splitlines()]
    assert not [event for event in events if event["event"] == "beat"], "nobody asked to keep them"


def test_no_color_and_no_unicode_are_heeded(tmp_path: Path) -> None:
    environment = {"NO_COLOR": "1", "PYTHONIOENCODING": "ascii"}
    with on_terminal(tmp_path, *QUICK, **environment) as terminal:
        terminal.wait_for("longest wait in each 50 ms")
        terminal.press(b"\x03")
        terminal.end()
        picture = terminal.written.split(LEAVE)[0]
    assert picture.isascii()
    assert not re.search(rb"\x1b\[[0-9;]*(3[0-7]|38|9[0-7])[;m]", picture), "a colour"


@pytest.mark.parametrize("how", ["ctrl-c", "terminated", "the one who draws is killed"])
def test_however_it_ends_the_terminal_is_as_it_was(tmp_path: Path, how: str) -> None:
    with adopting(), on_terminal(tmp_path, *QUICK, "--baseline", "20s") as terminal:
        terminal.wait_for("longest wait in each 50 ms")
        if how == "ctrl-c":
            terminal.press(b"\x03")
        elif how == "terminated":
            terminal.process.terminate()
        else:
            os.kill(main_of(terminal), signal.SIGKILL)
        status = terminal.end()
        assert status == 128 + {"ctrl-c": 2, "terminated": 15}.get(how, 9)
        assert_as_it_was(terminal)
        assert "nothing of the lab is left" in without_codes(terminal.written.split(LEAVE)[-1])
        assert left_behind() == []
    assert not (tmp_path / "testbed-runs").exists() or list((tmp_path / "testbed-runs").iterdir())


def main_of(terminal: OnTerminal) -> int:
    """The process in the universe that conducts the run: the first process's first child."""
    caller = psutil.Process(terminal.process.pid)
    (launcher,) = caller.children()
    (first,) = launcher.children()
    return min(child.pid for child in first.children())
