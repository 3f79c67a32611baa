"""Runs variants against each other, in turns, and writes down how they differ. Runs inside a universe."""

from __future__ import annotations

import random
import re
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from testbed.experiment.comparison import MEASURES, Circumstances, Finished, comparison
from testbed.experiment.run import Witness, run
from testbed.experiment.workers import Turn, beside_each_other
from testbed.measure.comparison import Comparison
from testbed.measure.result import Result
from testbed.scenario.units import format_duration_left
from testbed.scenario.variants import Contender

LONGEST_FOLDER_NAME = 100
COMPARISON = "comparison.json"


@dataclass(frozen=True)
class Request:
    """What is to be compared, how often each, under which name, and how many labs run beside each other."""

    contenders: Sequence[Contender]
    repeats: int
    name: str
    workers: int = 1


def compare(
    asked: Request,
    folder: Path,
    say: Callable[[str], None],
    witness: Witness,
    import_path: Sequence[str] = (),
) -> Comparison:
    """Run each contender so often; leaves ``comparison.json`` in `folder`, and in it a folder for each run.

    They take turns in blocks: each contender once in an order drawn anew, then each once again, so that what
    changes on the machine meanwhile strikes all of them alike, and none always comes after the same other.
    `say` is told of each run at its begin and its end, `witness` of what happens in it. A lab that fails is
    told as a run that failed, and the others go on; where the whole first block fails, so would the rest, and
    the last of its errors is raised. That and KeyboardInterrupt leave ``comparison.json`` of the runs that
    are over, as incomplete.
    """
    started_at = datetime.now().astimezone().isoformat(timespec="seconds")
    order = turns(asked.contenders, asked.repeats)
    finished: list[Finished] = []

    def written(*, complete: bool) -> Comparison:
        made = Circumstances(asked.repeats, complete, asked.workers)
        compared = comparison(asked.name, started_at, made, asked.contenders, in_order(finished))
        (folder / COMPARISON).write_text(compared.model_dump_json(indent=2) + "\n")
        return compared

    try:
        for one in _made(asked, order, folder, say, witness, import_path):
            finished.append(one)
            say(f"  {one.label}: {told(one)}" if asked.workers > 1 else f"  {told(one)}")
    except BaseException:
        if finished:
            written(complete=False)
        raise
    return written(complete=True)


def turns(contenders: Sequence[Contender], repeats: int) -> list[Turn]:
    """The order of the runs, a block for each repeat: drawn by the seed, so that it can be had again."""
    drawn = random.Random(contenders[0].seed)
    found: list[Turn] = []
    for repeat in range(repeats):
        block = list(contenders)
        drawn.shuffle(block)
        for one in block:
            number = len(found) + 1
            found.append(Turn(number, repeat + 1, one.repeated(repeat), folder_name(number, one.label)))
    return found


def in_order(finished: Iterable[Finished]) -> list[Finished]:
    """As they were begun, whichever was over first."""
    return sorted(finished, key=lambda one: one.folder)


def folder_name(number: int, label: str) -> str:
    """Of a run: its place in the order, and its variant as far as that can stand in a path."""
    return f"{number:04}-{re.sub(r'[^A-Za-z0-9=,:._-]', '_', label)}"[:LONGEST_FOLDER_NAME]


def told(one: Finished) -> str:
    """One line on what came out of a run."""
    if one.result is None:
        return f"the lab failed: {one.error}"
    if one.result.outcome != "completed":
        return one.result.outcome
    figures = [(measure, one.figure(measure)) for measure in MEASURES if not measure.is_count]
    return ", ".join(f"{measure.noun} {measure.show(it)}" for measure, it in figures if it is not None)


def _made(
    asked: Request,
    order: Sequence[Turn],
    folder: Path,
    say: Callable[[str], None],
    witness: Witness,
    import_path: Sequence[str],
) -> Iterator[Finished]:
    """Each run as it is over."""

    def attempt(turn: Turn) -> Exception | None:
        return attempted(turn, folder, witness, import_path)

    def begin(turn: Turn) -> None:
        say(f"run {turn.number} of {len(order)}: {turn.contender.label}{progress.left(turn.number)}")
        (folder / turn.folder).mkdir()

    progress = _Progress(len(order))
    if asked.workers > 1:
        for turn, lost in beside_each_other(order, asked.workers, attempt, begin):
            yield _finished(turn, folder, lost)
        return
    failed = 0
    for turn in order:
        begin(turn)
        error = attempt(turn)
        yield _finished(turn, folder, None if error is None else one_line(error))
        failed += error is not None
        if error is not None and turn.number == failed == len(asked.contenders):
            raise error


def attempted(turn: Turn, folder: Path, witness: Witness, import_path: Sequence[str]) -> Exception | None:
    """Make the run of a turn; what brought its lab down, whose traceback is left in its folder then."""
    one = turn.contender
    try:
        run(one.scenario, folder / turn.folder, witness, import_path, one.options)
    except Exception as error:
        (folder / turn.folder / "traceback.txt").write_text(traceback.format_exc())
        return error
    return None


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _finished(turn: Turn, folder: Path, error: str | None) -> Finished:
    path = folder / turn.folder / "result.json"
    result = Result.model_validate_json(path.read_text()) if error is None else None
    return Finished(turn.contender.label, turn.repeat, turn.folder, result, error)


class _Progress:
    """How long the rest will take, by what the runs so far took."""

    def __init__(self, of: int) -> None:
        self._of = of
        self._begun_s = time.monotonic()

    def left(self, number: int) -> str:
        """From the second run on: about how much is left before the last is over."""
        over = number - 1
        if not over:
            return ""
        left_s = (time.monotonic() - self._begun_s) / over * (self._of - over)
        return f" (about {format_duration_left(left_s)} left)"
