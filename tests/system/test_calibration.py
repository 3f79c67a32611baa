"""The calibration against a real guest, and that it finds a probe whose clock or whose counting is wrong."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from netns import universe
from testbed.commands.ending import CHECK_FAILED, INTERRUPTED, PASSED, WRONG_REQUEST
from testbed.experiment import machine
from testbed.experiment.calibration import Request, calibrate
from testbed.experiment.stand import Stand
from testbed.experiment.trials import CONDITIONS, COUNTS, PAUSES
from testbed.host.control import CommandFailed
from testbed.lab.lab import PRELOAD
from testbed.measure import calibration as model
from tests.conftest import require
from tests.system.commands import SMALL, Running, adopting, left_behind, run
from tests.unit.test_calibration import made

MS = 1_000_000
LONG_NS = 500 * MS
"""Longer than a busy machine keeps anybody waiting, and than what buffers hold lasts."""
WIDE_MS = 40.0
"""On a machine that does many other things the error of one pause may be larger, but not of half of them."""


class Silence:
    def say(self, text: str) -> None: ...
    def advance(self, done: int, of: int) -> None: ...


def calibrated(folder: Path, **request: Any) -> model.Calibration:
    """With no trials but those that are given, and few pauses."""
    few: dict[str, Any] = {"pauses": (), "counts": (), "conditions": (), "repeats": 5}
    return calibrate(Request(**few | {"lengths_ns": (0, LONG_NS)} | request), "test", folder, Silence())


def named(trials: Sequence[Any], name: str) -> tuple[Any, ...]:
    return tuple(trial for trial in trials if trial.name == name)


def of_long_pauses(calibration: model.Calibration, name: str) -> model.Length:
    (pauses,) = [one for one in calibration.pauses if one.name == name]
    (length,) = [one for one in pauses.lengths if one.asked_ms * MS == LONG_NS]
    return length


@pytest.mark.universe(preload=PRELOAD)
def test_a_known_pause_is_measured_and_every_wrong_byte_counted(tmp_path: Path) -> None:
    calibration = calibrated(
        tmp_path, pauses=named(PAUSES, "closed-loop"), counts=named(COUNTS, "closed-loop")
    )
    length = of_long_pauses(calibration, "closed-loop")
    assert length.true_ms * MS >= LONG_NS
    assert length.unnoticed == 0
    assert length.error is not None
    assert length.error.count == 5
    assert length.error.low >= 0, "nothing is answered before the guest runs on"
    assert length.error.median < WIDE_MS
    assert length.own is not None
    assert length.own.count == 5
    assert -WIDE_MS < length.own.median < WIDE_MS
    assert length.of_pause.high >= -1, "who asks each 250 us does not begin late each time"
    assert length.of_pause.median < WIDE_MS
    assert [(one.what, one.done) for one in calibration.counts if not one.holds] == []
    assert {one.what for one in calibration.counts} == {"bytes lost", "bytes duplicated", "bytes corrupted"}
    written = json.loads((tmp_path / "calibration.json").read_text())
    jsonschema.validate(written, json.loads(model.SCHEMA_FILE.read_text()))


@pytest.mark.universe(preload=PRELOAD)
def test_known_loss_is_counted_as_the_link_counts_it(tmp_path: Path) -> None:
    (trial,) = [one for one in named(CONDITIONS, "icmp") if one.readings[0].what == "lost"]
    calibration = calibrated(tmp_path, conditions=(trial,))
    require("a link that says what it lost", lambda: not calibration.left_out)
    (lost,) = calibration.conditions
    assert lost.true > 0
    assert abs(lost.error) <= 10, (lost.true, lost.measured)


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.universe(preload=PRELOAD)
def test_pings_wait_while_the_way_to_the_guest_stands_still_and_none_is_lost(
    tmp_path: Path, family: model.Family
) -> None:
    """Its kernel would answer them while its program is stopped. They come so rarely that a socket has room
    for all that are held, also where somebody else keeps the kernel's network lock for seconds."""
    with Stand("echo", 1, tmp_path / "stand") as stand:
        stand.start("client1", [{"kind": "icmp", "rate_per_s": 25.0}], family)
        stand.rest(0.1)
        stall = stand.stall(500 * MS, "way")
        assert stall.length_ns >= 500 * MS
        stand.rest(0.1)
        seen = stand.stop("client1", [stall.window])
    assert (seen["lost"], seen["duplicated"]) == (0, 0)
    (during,) = seen["during"]
    assert during["longest_ns"] > 400 * MS
    assert seen["round_trip"]["max_ns"] > 400 * MS > seen["round_trip"]["p50_ns"]


@pytest.mark.slow
@pytest.mark.universe(preload=PRELOAD)
@pytest.mark.parametrize("name", dict.fromkeys(trial.name for trial in (*PAUSES, *COUNTS)))
def test_every_probe_sees_a_long_pause_and_counts_exactly(name: str, tmp_path: Path) -> None:
    calibration = calibrated(tmp_path, pauses=named(PAUSES, name), counts=named(COUNTS, name))
    for pauses in calibration.pauses:
        length = of_long_pauses(calibration, pauses.name)
        assert length.unnoticed == 0, pauses.name
        assert length.error is not None
        assert abs(length.error.median) < WIDE_MS, pauses.name
    assert [(one.name, one.what, one.done, one.found) for one in calibration.counts if not one.holds] == []


@pytest.mark.universe(preload=(*PRELOAD, "tests.system.wrong_clients"))
def test_a_probe_whose_clock_is_ahead_is_found(tmp_path: Path) -> None:
    ahead = "tests.system.wrong_clients:ahead"
    calibration = calibrated(tmp_path, pauses=named(PAUSES, "closed-loop"), client=ahead)
    length = of_long_pauses(calibration, "closed-loop")
    assert length.error is not None
    assert length.error.low >= 20, "its clock is 20 ms ahead"
    assert not calibration.pauses[0].holds
    assert not calibration.holds


@pytest.mark.universe(preload=(*PRELOAD, "tests.system.wrong_clients"))
def test_a_probe_that_does_not_look_at_what_comes_is_found(tmp_path: Path) -> None:
    blind = "tests.system.wrong_clients:blind"
    calibration = calibrated(tmp_path, counts=named(COUNTS, "closed-loop"), client=blind)
    (altered,) = [one for one in calibration.counts if one.what == "bytes corrupted"]
    assert altered.done > altered.found == 0
    assert not calibration.holds


@pytest.mark.universe(preload=PRELOAD)
def test_a_stalled_guest_serves_nothing_and_then_goes_on(tmp_path: Path) -> None:
    with Stand("echo", 1, tmp_path / "stand") as stand:
        before_ns = time.monotonic_ns()
        stall = stand.stall(20 * MS)
        after_ns = time.monotonic_ns()
        assert before_ns <= stall.paused_ns
        assert stall.paused_ns + 20 * MS <= stall.running_ns <= after_ns
        assert (stand.lab.vm.stats() or {})["guest"]["state"] == "running"
        assert stand.stall(0).length_ns == 0
        for wrong in (-1, 10**12, "1ms"):
            with pytest.raises(CommandFailed, match="is stalled for 0 to"):
                stand.lab.vm.line(stand.lab.vm.owner).ask({"do": "stall", "duration_ns": wrong}, 10)


# ---- the command


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command keeps what later runs want to know."""
    require("universe", lambda: universe.check() is None)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


def printed(folder: Path, *words: str) -> dict[str, Any]:
    """``calibration.json`` of `testbed calibrate WORDS --json`, which prints nothing else."""
    ended = run(folder, "calibrate", *words, "--json")
    assert ended.status in (PASSED, CHECK_FAILED), ended.err
    assert ended.err == ""
    found: dict[str, Any] = json.loads(ended.out)
    assert (ended.status == PASSED) == found["holds"]
    (written,) = (folder / "testbed-runs").glob("*-calibrate/calibration.json")
    assert written.read_text() == ended.out
    return found


def test_of_one_kind_the_command_prints_json_and_keeps_nothing(home: Path) -> None:
    found = printed(home, "--probe", "open-loop", "--repeats", "1")
    assert {one["kind"] for one in (*found["pauses"], *found["counts"])} == {"open-loop"}
    assert [one["asked_ms"] for one in found["pauses"][0]["lengths"]] == [0, 1, 2, 5, 10, 50, 200]
    assert [one["what"] for one in found["counts"] if not one["holds"]] == []
    assert not (home / "state").exists(), "a part says nothing of the whole"


def test_a_run_carries_what_was_kept(home: Path) -> None:
    machine.keep(made())
    ended = run(home, "migrate", *SMALL, "--json")
    carried = json.loads(ended.out)["instrument"]
    assert (carried["gap_error_ms"], carried["gap_bound_ms"], carried["holds"]) == (0.1, 0.2, True)


@pytest.mark.parametrize(
    ("words", "allowed"),
    [(("--repeats", "0"), "not between 1 and"), (("--probe", "telepathy"), "is none of closed-loop, ")],
)
def test_what_cannot_be_asked_for(home: Path, words: tuple[str, ...], allowed: str) -> None:
    ended = run(home, "calibrate", *words)
    assert ended.status == WRONG_REQUEST
    (line,) = ended.err.splitlines()
    assert allowed in line
    assert list(home.iterdir()) == []


def test_ctrl_c_leaves_nothing(home: Path) -> None:
    with adopting():
        running = Running(home, "calibrate", "--repeats", "50")
        running.wait_for("pauses: closed-loop")
        running.send(signal.SIGINT, group=True)
        ended = running.end()
        assert left_behind() == []
    assert ended.status == INTERRUPTED
    assert ended.err.splitlines() == ["testbed: ended by Ctrl-C; nothing of the lab is left"]
    assert not (home / "state").exists()
