"""A run folder: what a run left, read as far as it can be read.

Nothing here raises for what is missing or cut short: a run that crashed is the one that people look at. Each
thing that is not there is told in `missing`, a sentence each.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from testbed.measure.result import SCHEMA_VERSION
from testbed.report.page import words
from testbed.report.page.sieve import Event, Events, Sieve

RESULT = "result.json"
EVENTS = "events.jsonl"
CHUNK_BYTES = 1 << 23
MOST_LOG_BYTES = 20_000
"""Of each log so much of its end is shown."""

LISTS = ("migrations", "checks", "links", "programs", "captures")
OBJECTS = ("clients", "network", "ram", "guest", "options", "environment", "scenario", "instrument")
"""The parts of a result that are lists of objects, and those that are objects."""

Arrays = dict[str, "np.ndarray[Any, Any]"]


class NotARun(Exception):
    """There is nothing of a run in this folder. Its text is one line."""


@dataclass
class RunFolder:
    """`result` is None where there is none; `samples` are the arrays of each client's .npz; `logs` the end of
    every log that is not empty."""

    path: Path
    result: dict[str, Any] | None
    events: Events
    samples: dict[str, Arrays]
    logs: dict[str, str]
    missing: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path.resolve().name


def read(path: Path) -> RunFolder:
    """What lies in `path`. Raises NotARun where there is neither a result, nor events, nor samples."""
    if not path.is_dir():
        raise NotARun(f"{path}: no such folder" if not path.exists() else f"{path}: is no folder")
    archives = sorted(path.glob("*.npz"))
    if not (path / RESULT).exists() and not (path / EVENTS).exists() and not archives:
        inside = sorted(one.parent.name for one in path.glob(f"*/{RESULT}"))
        hint = f"; the newest of the {len(inside)} runs in it is {path / inside[-1]}" if inside else ""
        raise NotARun(
            f"{path}: no run: there is no {RESULT}, no {EVENTS} and no samples of a client (*.npz){hint}"
        )
    missing: list[str] = []
    result = _read_result(path / RESULT, missing)
    events = _read_events(path / EVENTS, missing)
    samples = {one.stem: arrays for one in archives if (arrays := _read_samples(one, missing)) is not None}
    _tell_absent_clients(result, events, samples, missing)
    return RunFolder(path, result, events, samples, _read_logs(path), missing)


def _read_result(path: Path, missing: list[str]) -> dict[str, Any] | None:
    try:
        result = json.loads(path.read_text())
    except FileNotFoundError:
        missing.append(f"{RESULT} is not there: the run did not come to its end. Figures are missing.")
        return None
    except (OSError, ValueError) as error:
        missing.append(f"{RESULT} cannot be read ({error}). Figures are missing.")
        return None
    if not isinstance(result, dict):
        missing.append(f"{RESULT} is not a result. Figures are missing.")
        return None
    version = result.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        missing.append(
            f"{RESULT} is of schema {version}, this testbed knows up to {SCHEMA_VERSION}: what is new in it "
            "is not shown."
        )
    return _in_shape(result)


def _in_shape(result: dict[str, Any]) -> dict[str, Any]:
    """The result with lists of dictionaries and dictionaries where there are to be such: null and what else
    another version may have put there is left out."""
    shaped = {key: value for key, value in result.items() if key not in (*LISTS, *OBJECTS)}
    shaped |= {key: words.dicts(result.get(key)) for key in LISTS if result.get(key) is not None}
    shaped |= {key: result[key] for key in OBJECTS if isinstance(result.get(key), dict)}
    return shaped


def _read_events(path: Path, missing: list[str]) -> Events:
    sieve = Sieve()
    broken = 0
    try:
        for lines, last in _chunks(path):
            events, unread = _parsed(lines)
            if last and unread and (not events or not _is_whole(lines[-1])):
                missing.append(f"{EVENTS} ends in the middle of a line: the run was cut short.")
                unread -= 1
            broken += unread
            sieve.take(events)
    except FileNotFoundError:
        missing.append(f"{EVENTS} is not there: no timeline, no replay.")
    except OSError as error:
        missing.append(f"{EVENTS} cannot be read to its end ({error.strerror}).")
    if broken:
        missing.append(f"{EVENTS}: {broken} lines are no events and were left out.")
    return sieve.events()


def _chunks(path: Path) -> Iterator[tuple[list[bytes], bool]]:
    """The file's lines some megabytes at a time, and whether these are its last."""
    with path.open("rb") as file:
        lines = file.readlines(CHUNK_BYTES)
        while lines:
            following = file.readlines(CHUNK_BYTES)
            yield lines, not following
            lines = following


def _parsed(lines: list[bytes]) -> tuple[list[Event], int]:
    """The events of the lines, and how many lines are none. All at once, which is what makes a million
    bearable; one by one only where that fails."""
    try:
        found = json.loads(b"[" + b",".join(lines) + b"]")
    except ValueError:
        found = [_parsed_line(line) for line in lines]
    events = _events(found)
    return events, len(lines) - len(events)


def _parsed_line(line: bytes) -> object:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _is_whole(line: bytes) -> bool:
    return line.endswith(b"\n") and _is_event(_parsed_line(line))


def _is_event(one: object) -> bool:
    return bool(_events([one]))


def _events(found: list[Any]) -> list[Event]:
    """Those that are events. One comprehension: it is walked a million times."""
    return [
        one
        for one in found
        if type(one) is dict
        and type(one.get("t_ns")) is int
        and type(one.get("event")) is str
        and type(one.get("source")) is str
    ]


def _read_samples(path: Path, missing: list[str]) -> Arrays | None:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        missing.append(f"{path.name} cannot be read ({error}): the requests of {path.stem} are not shown.")
        return None
    if not {"sent_ns", "received_ns", "connection"} <= arrays.keys():
        missing.append(f"{path.name} holds no samples: the requests of {path.stem} are not shown.")
        return None
    return arrays


def _tell_absent_clients(
    result: dict[str, Any] | None, events: Events, samples: dict[str, Arrays], missing: list[str]
) -> None:
    named = {str(row.get("client")) for row in words.dicts(((result or {}).get("clients") or {}).get("each"))}
    named |= {one["source"] for one in events.of("probes-begin")}
    untold = sorted(
        one for one in named - samples.keys() if not any(f"{one}.npz" in line for line in missing)
    )
    if untold:
        missing.append(f"No samples of {', '.join(untold)}: their requests are not shown one by one.")


def _read_logs(path: Path) -> dict[str, str]:
    logs = {}
    for one in sorted(path.glob("*.log")):
        with one.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - MOST_LOG_BYTES))
            text = file.read().decode(errors="replace").strip()
        if text:
            logs[one.name] = text
    return logs
