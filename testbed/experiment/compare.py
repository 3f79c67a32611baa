"""Runs variants against each other, in turns, and writes down how they differ. Runs inside a universe."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from testbed.experiment.comparison import MEASURES, Finished, comparison
from testbed.experiment.run import Witness, run_options
from testbed.measure.comparison import Comparison
from testbed.scenario.variants import Contender

LONGEST_FOLDER_NAME = 100


def compare(
    contenders: Sequence[Contender],
    repeats: int,
    name: str,
    folder: Path,
    say: Callable[[str], None],
    witness: Witness,
    import_path: Sequence[str] = (),
) -> Comparison:
    """Run each contender `repeats` times; leaves ``comparison.json`` in `folder`, and in it a folder for each
    run.

    They take turns (ABC ABC ABC), so that what changes on the machine meanwhile strikes all of them alike.
    `say` is told of each run at its begin and its end, `witness` of what happens in it. Raises what
    :func:`testbed.experiment.run.run` does; the runs that are over have left their results then.
    """
    started_at = datetime.now().astimezone().isoformat(timespec="seconds")
    finished: list[Finished] = []
    turns = [(repeat, one) for repeat in range(repeats) for one in contenders]
    for number, (repeat, contender) in enumerate(turns, 1):
        say(f"run {number} of {len(turns)}: {contender.label}")
        below = folder / folder_name(number, contender.label)
        below.mkdir()
        result = run_options(contender.repeated(repeat), below.name, below, witness, import_path)
        finished.append(Finished(contender.label, repeat + 1, below.name, result))
        say(f"  {_told(finished[-1])}")
    compared = comparison(name, started_at, repeats, contenders, finished)
    (folder / "comparison.json").write_text(compared.model_dump_json(indent=2) + "\n")
    return compared


def folder_name(number: int, label: str) -> str:
    """Of a run: its place in the order, and its variant as far as that can stand in a path."""
    return f"{number:02}-{re.sub(r'[^A-Za-z0-9=,:._-]', '_', label)}"[:LONGEST_FOLDER_NAME]


def _told(run: Finished) -> str:
    """One line on what came out of a run."""
    if run.result.outcome != "completed":
        return run.result.outcome
    figures = [(measure, run.figure(measure)) for measure in MEASURES if not measure.is_count]
    return ", ".join(f"{measure.noun} {measure.show(it)}" for measure, it in figures if it is not None)
