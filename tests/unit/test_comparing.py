"""Turns, labs that fail, and workers, without a lab: what is run, in which order, and what is told."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from netns import universe
from testbed.experiment import compare as compare_module
from testbed.experiment.compare import Request, compare, folder_name, turns
from testbed.experiment.workers import Turn, beside_each_other
from testbed.report.figures import Silence
from testbed.scenario.variants import contenders, read_variants
from tests.conftest import require
from tests.unit.test_comparison import result

CONTENDERS = contenders({"seed": 7}, read_variants(["live", "stop-and-copy", "hold=no"]))


def request(repeats: int = 3) -> Request:
    return Request(CONTENDERS, repeats, "x")


def labels(repeats: int) -> list[str]:
    return [turn.contender.label for turn in turns(CONTENDERS, repeats)]


def test_each_block_has_each_variant_once_and_its_own_seed() -> None:
    order = turns(CONTENDERS, 8)
    for repeat in range(8):
        block = order[3 * repeat : 3 * repeat + 3]
        assert {turn.contender.label for turn in block} == {one.label for one in CONTENDERS}
        assert {(turn.repeat, turn.contender.seed) for turn in block} == {(repeat + 1, 7 + repeat)}
    assert [turn.number for turn in order] == list(range(1, 25))
    assert len({turn.folder for turn in order}) == 24


def test_blocks_are_in_an_order_of_their_own_which_the_seed_gives_again() -> None:
    order = labels(8)
    assert len({tuple(order[at : at + 3]) for at in range(0, 24, 3)}) > 1
    assert order == labels(8)
    assert order[:9] == labels(3)


def run_with(
    monkeypatch: pytest.MonkeyPatch, fails: Callable[[int], BaseException | None]
) -> list[tuple[str, int]]:
    """Labs that are over at once, or fail as `fails` says of the number of the run; returns who ran."""
    ran: list[tuple[str, int]] = []

    def run(scenario: object, folder: Path, *_: object) -> None:
        ran.append((folder.name, len(ran) + 1))
        if (error := fails(len(ran))) is not None:
            raise error
        (folder / "result.json").write_text(result(5).model_dump_json())

    monkeypatch.setattr(compare_module, "run", run)
    return ran


def read(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "comparison.json").read_text())
    return found


def test_a_lab_that_fails_does_not_end_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = run_with(monkeypatch, lambda number: RuntimeError("no\nroom") if number in (1, 5) else None)
    said: list[str] = []
    found = compare(request(), tmp_path, said.append, Silence())
    assert len(ran) == 9
    assert [run.error for run in found.runs] == [
        "RuntimeError: no room", None, None, None, "RuntimeError: no room", None, None, None, None,
    ]  # fmt: skip
    assert found.complete
    assert "  the lab failed: RuntimeError: no room" in said
    assert "no\nroom" in (tmp_path / found.runs[0].folder / "traceback.txt").read_text()
    assert read(tmp_path)["complete"] is True


def test_a_machine_on_which_no_variant_runs_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = run_with(monkeypatch, lambda number: OSError(28, "no room"))
    with pytest.raises(OSError, match="no room"):
        compare(request(), tmp_path, lambda _: None, Silence())
    assert len(ran) == len(CONTENDERS)
    assert read(tmp_path)["complete"] is False


@pytest.mark.parametrize("over", [0, 4])
def test_ctrl_c_leaves_what_is_there_as_incomplete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, over: int
) -> None:
    run_with(monkeypatch, lambda number: KeyboardInterrupt() if number > over else None)
    with pytest.raises(KeyboardInterrupt):
        compare(request(), tmp_path, lambda _: None, Silence())
    assert (tmp_path / "comparison.json").exists() == bool(over)
    if over:
        found = read(tmp_path)
        assert found["complete"] is False
        assert isinstance(found["runs"], list)
        assert len(found["runs"]) == over


def test_who_waits_is_told_how_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_with(monkeypatch, lambda number: None)
    said: list[str] = []
    compare(request(), tmp_path, said.append, Silence())
    begun = [line for line in said if line.startswith("run ")]
    assert "left" not in begun[0]
    assert all("(about " in line and " left)" in line for line in begun[1:])


def test_folders_lie_in_the_order_of_their_runs() -> None:
    assert folder_name(3, "mac=per-host,ram=1GiB") == "0003-mac=per-host,ram=1GiB"
    assert sorted(folder_name(number, "x") for number in (2, 10, 100)) == [
        "0002-x", "0010-x", "0100-x",
    ]  # fmt: skip
    assert folder_name(12, "program=../up:Server") == "0012-program=.._up:Server"
    assert len(folder_name(1, "x" * 300)) < 255


# ---- workers


@pytest.fixture
def possible() -> None:
    require("universe", lambda: universe.check() is None)


def worked(
    folder: Path, workers: int, attempt: Callable[[Turn], Exception | None]
) -> list[tuple[int, str | None]]:
    found: list[tuple[int, str | None]] = []

    def main() -> int:
        begun: list[int] = []
        for turn, error in beside_each_other(
            turns(CONTENDERS, 2), workers, attempt, lambda turn: begun.append(turn.number)
        ):
            found.append((turn.number, error))
        (folder / "found").write_text(json.dumps([begun, found]))
        return 0

    assert universe.run(main) == 0
    begun, over = json.loads((folder / "found").read_text())
    assert begun == [1, 2, 3, 4, 5, 6]
    return [(number, error) for number, error in over]


@pytest.mark.usefixtures("possible")
def test_workers_share_the_turns_each_in_a_universe_of_its_own(tmp_path: Path) -> None:
    def attempt(turn: Turn) -> Exception | None:
        namespace = str(Path("/proc/self/ns/net").readlink())
        (tmp_path / f"{turn.number}").write_text(namespace)
        return ValueError("three") if turn.number == 3 else None

    found = worked(tmp_path, 2, attempt)
    assert dict(found) == {1: None, 2: None, 3: "ValueError: three", 4: None, 5: None, 6: None}
    namespaces = Counter((tmp_path / f"{number}").read_text() for number in range(1, 7))
    assert len(namespaces) == 2
    assert str(Path("/proc/self/ns/net").readlink()) not in namespaces


@pytest.mark.usefixtures("possible")
def test_a_worker_that_dies_takes_its_run_down_and_no_other(tmp_path: Path) -> None:
    """Whoever works beside it is busy all the while, so all that waits is done by the one in its place."""
    last = tmp_path / "last"
    os.mkfifo(last)

    def attempt(turn: Turn) -> Exception | None:
        if turn.number == 1:
            os._exit(9)
        if turn.number == 2:
            last.read_bytes()
        if turn.number == 6:
            last.write_bytes(b"")
        return None

    found = dict(worked(tmp_path, 2, attempt))
    assert found.pop(1) == "its worker died"
    assert set(found.values()) == {None}
    assert sorted(found) == [2, 3, 4, 5, 6]


@pytest.mark.usefixtures("possible")
def test_if_every_worker_dies_every_turn_is_over_all_the_same(tmp_path: Path) -> None:
    found = dict(worked(tmp_path, 2, lambda _: os._exit(9)))
    assert found == dict.fromkeys(range(1, 7), "its worker died")
