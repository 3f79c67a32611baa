"""Migrations foretold and then made: what is counted comes out as was said.

A token bucket bounds the wire, so that rounds and bytes follow from the guest's writes and not from how busy
the machine is; as long as it lets the guest run at all.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from netns import universe
from testbed.commands.ending import PASSED, WRONG_REQUEST
from testbed.measure.result import Migration, Predicted
from tests.conftest import require
from tests.system.commands import run
from tests.system.labs import PRELOAD, Witness, failed_checks, migrate

GBIT, SLOW = 10**9, 300 * 10**6
QUIET = {"baseline_ns": 800_000_000, "churn_per_s": 0, "stream_rate_per_s": 0}
BUSY = {"working_set_bytes": 8 << 20, "dirty_rate_pages_per_s": 40_000}
TIGHT = {"downtime_limit_ns": 20_000_000, "max_rounds": 3, "bandwidth_bits_per_s": SLOW}
PAGE, WORKING_SET_PAGES = 4096, 4096
MANY = 200
"""Pages that take 6.5 ms at 1 Gbit/s, in which the slower of the guests writes a dozen."""
ATTEMPTS = 5


class Listener(Witness):
    """Remembers what it was told before anything moved."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []
        self.before: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def migration(self, source: str, target: str, number: int, of: int, vm: str | None = None) -> None:
        self.before = list(self.said)


def moved(folder: Path, witness: Witness | None = None, **options: Any) -> tuple[Migration, Predicted]:
    result = migrate(folder, witness, **QUIET | options)
    assert failed_checks(result) == []
    (one,) = result.migrations
    assert one.predicted is not None
    return one, one.predicted


def moved_while_all_ran(folder: Path, dirty_rate: int) -> tuple[Migration, Predicted]:
    """A guest that a busy machine keeps from running writes less than its load asks for, and an agent that it
    keeps from sending has the guest write more: that was not to be foretold, and is made again."""
    for number in range(ATTEMPTS):
        (folder / str(number)).mkdir()
        one, foretold = moved(
            folder / str(number),
            dirty_rate_pages_per_s=dirty_rate,
            working_set_bytes=WORKING_SET_PAGES * PAGE,
            bandwidth_bits_per_s=GBIT,
        )
        if not dirty_rate or all_ran(one, foretold, dirty_rate):
            break
    return one, foretold


def all_ran(one: Migration, foretold: Predicted, dirty_rate: int) -> bool:
    """Whether the guest wrote what it was to, when it was sampled and in the rounds, and no agent kept the
    wire waiting for long."""
    told = [each for each in one.rounds if each.pages >= MANY]
    curve = [foretold.dirty_pages[-1], *((each.duration_ms, each.dirty_pages) for each in told)]
    waited_ms = sum(each.duration_ms - each.bytes * 8e3 / GBIT for each in told)
    return waited_ms < 70 and all(pages > 0.8 * written(dirty_rate, ms) for ms, pages in curve)


def written(dirty_rate: int, within_ms: float) -> float:
    """Distinct pages of the working set that `dirty_rate` uniform writes a second hit."""
    return WORKING_SET_PAGES * (1 - math.exp(-dirty_rate * within_ms / 1e3 / WORKING_SET_PAGES))


@pytest.mark.universe(preload=PRELOAD)
@pytest.mark.parametrize("dirty_rate", [0, 2000, 20_000])
def test_rounds_and_bytes_come_as_foretold(tmp_path: Path, dirty_rate: int) -> None:
    one, foretold = moved_while_all_ran(tmp_path, dirty_rate)
    assert foretold.basis == "sampled"
    assert foretold.rounds.low - 1 <= len(one.rounds) <= foretold.rounds.high + 1
    assert foretold.transferred_bytes.likely == pytest.approx(one.ram.transferred_bytes, rel=0.15)
    assert foretold.error is not None
    assert foretold.error.rounds == foretold.rounds.likely - len(one.rounds)


@pytest.mark.universe(preload=PRELOAD)
def test_one_that_will_not_converge_is_told_before_it_moves_and_does_not(tmp_path: Path) -> None:
    listener = Listener()
    one, foretold = moved(tmp_path, listener, **TIGHT | BUSY)
    assert foretold.converges is False
    told = [line for line in listener.before if line.startswith("will not converge: dirties ")]
    assert told == [foretold.sentence]
    assert one.decision == "3 rounds did not converge, switching anyway"


@pytest.mark.universe(preload=PRELOAD)
def test_one_that_will_converge_does_and_nobody_is_warned(tmp_path: Path) -> None:
    listener = Listener()
    one, foretold = moved(tmp_path, listener, **TIGHT, dirty_rate_pages_per_s=300, working_set_bytes=1 << 20)
    assert foretold.converges
    assert not [line for line in listener.said if "converge" in line]
    assert one.decision is not None
    assert "did not converge" not in one.decision


@pytest.mark.universe(preload=PRELOAD)
def test_a_tracker_that_is_too_dear_leaves_the_options(tmp_path: Path) -> None:
    _, foretold = moved(tmp_path, tracker="digest", dirty_rate_pages_per_s=500)
    assert foretold.basis == "options"
    assert foretold.why == "the digest tracker reads all of RAM for each look"


def test_the_command_foretells_and_moves_nothing(tmp_path: Path) -> None:
    require("universe", lambda: universe.check() is None)
    ended = run(
        tmp_path, "predict", "--ram", "32MiB", "--working-set", "4MiB", "--bandwidth", "1gbit", "--json"
    )
    assert ended.status == PASSED, ended.err
    told = Predicted.model_validate(json.loads(ended.out))
    assert (told.basis, told.why, told.converges, told.error) == ("sampled", None, True, None)
    assert 16 << 20 <= told.transferred_bytes.likely <= 32 << 20
    assert not list(tmp_path.rglob("result.json"))


def test_without_a_lab_it_goes_by_the_options(tmp_path: Path) -> None:
    asked = ("predict", "--from-options", "--bandwidth", "100mbit", "--dirty-rate", "50000")
    ended = run(tmp_path, *asked, "--max-rounds", "5")
    assert ended.status == PASSED, ended.err
    assert "will not converge: dirties " in ended.out
    assert "from the options only: the guest was not watched" in ended.out
    assert list(tmp_path.iterdir()) == []


def test_a_table_that_is_none_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text("{}")
    for name, reason in (("table.json", "is no table of overheads"), ("nowhere.json", "No such file")):
        ended = run(tmp_path, "predict", "--from-options", "--overheads", name)
        assert ended.status == WRONG_REQUEST
        assert ended.err.startswith("testbed: --overheads: ")
        assert reason in ended.err
        assert ended.err.count("\n") == 1
