"""Scenario files: TOML to :class:`Scenario`, and what is wrong with one, a line for each thing.

A line names the file, the key and what is allowed: ``drain.toml: vm[vm2].ram: '1' is not a size: ...``.
Tables of a list go by their name, or by their number from 1. The shelf is the folder of scenarios that ship
with the testbed; they go by their file's name alone.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from testbed.scenario import shelf
from testbed.scenario.fitting import Misfit
from testbed.scenario.model import Scenario
from testbed.scenario.options import OptionError
from testbed.scenario.quantities import WRITTEN

MOST_BYTES = 1 << 20
_BEGINS_WITH_KEY = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*: ")


class ScenarioError(OptionError):
    """A scenario that cannot be run. `problems` has a line for each thing; the text is the first of them."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems[0])


def load(path: Path) -> Scenario:
    """The scenario in a file. Its name is the file's where it does not give one. ScenarioError."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ScenarioError([f"{path}: cannot be read: {error.strerror}"]) from error
    if len(data) > MOST_BYTES:
        raise ScenarioError([f"{path}: is over {MOST_BYTES >> 20} MiB; a scenario is a page of text"])
    return parse(data, str(path), path.stem)


def parse(data: bytes, where: str, name: str = "scenario") -> Scenario:
    """The scenario in `data`; `where` is what errors call the file. ScenarioError."""
    try:
        said = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ScenarioError([f"{where}: is not TOML: {error}"]) from error
    return read({"name": name} | said, where)


def read(said: Mapping[str, Any], where: str) -> Scenario:
    """The scenario that `said` describes in the words of a file. ScenarioError."""
    try:
        return Scenario.model_validate(said, context=WRITTEN)
    except ValidationError as error:
        raise ScenarioError([line for one in _firsts(error) for line in _lines(where, one, said)]) from None


def found(word: str) -> Scenario:
    """What a command means by `word`: a file, or the name of a scenario on the shelf. ScenarioError."""
    path = Path(word)
    if path.suffix == ".toml" or (_may_be_there(path) and not _is_beside_a_folder(word)):
        return load(path)
    return load(on_shelf(word))


def _is_beside_a_folder(word: str) -> bool:
    """A run's folder may be called as what ran."""
    return word in shelf.names() and Path(word).is_dir()


def _may_be_there(path: Path) -> bool:
    """Also where nobody tells us (in a folder that is closed to us): opening it says why not."""
    try:
        return path.exists()
    except OSError:
        return True


def on_shelf(name: str) -> Path:
    """The file of a scenario of the shelf. ScenarioError."""
    if name not in shelf.names():
        there = ", ".join(shelf.names())
        raise ScenarioError([f"{name}: neither a file nor a scenario of the shelf, which has {there}"])
    return shelf.FOLDER / f"{name}.toml"


def _firsts(error: ValidationError) -> list[Any]:
    """What is wrong, without what is wrong only because something in it is."""
    found: list[Any] = list(error.errors(include_url=False))
    inner = [one["loc"] for one in found]

    def follows(one: Any) -> bool:
        loc = one["loc"]
        return one["type"] == "too_short" and any(
            len(of) > len(loc) and of[: len(loc)] == loc for of in inner
        )

    return [one for one in found if not follows(one)]


def _lines(where: str, error: Any, said: Any) -> list[str]:
    """Of a scenario whose parts do not fit together one for each thing; else the one."""
    reason = error.get("ctx", {}).get("error")
    if isinstance(reason, Misfit):
        return [f"{where}: {problem}" for problem in reason.problems]
    return [_line(where, error, said)]


def _line(where: str, error: Any, said: Any) -> str:
    location, what = _key(error["loc"], said), _what(error)
    separator = "." if _BEGINS_WITH_KEY.match(what) else ": "
    return f"{where}: {location}{separator}{what}" if location else f"{where}: {what}"


def _key(location: Sequence[int | str], said: Any) -> str:
    """The way to a key: tables of a list by their name, or else their number from 1."""
    words: list[str] = []
    inside = said
    for part in location:
        if isinstance(part, int):
            inside = inside[part] if isinstance(inside, list) and part < len(inside) else None
            named = inside.get("name") if isinstance(inside, Mapping) else None
            words.append(f"[{named if isinstance(named, str) else part + 1}]")
        elif "[" not in part:  # pydantic's own names of alternatives
            inside = inside.get(part) if isinstance(inside, Mapping) else None
            words.append(f".{part}" if words else part)
    return "".join(words)


_WORDS = {
    "int_type": "is not a whole number",
    "bool_type": "is neither true nor false",
    "float_type": "is not a number",
    "string_type": "is not a text",
    "tuple_type": "is not a list",
    "dict_type": "is not a table",
    "model_type": "is not a table",
    "model_attributes_type": "is not a table",
}


def _what(error: Any) -> str:
    kind, given, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        return f"{given!r} is none of {context['expected'].replace(chr(39), '').replace(' or ', ', ')}"
    if kind == "missing":
        return "is missing"
    if kind == "tuple_type" and isinstance(given, Mapping):
        return "is a list of tables: each begins with the name in [[double brackets]]"
    if kind in ("too_short", "too_long"):
        bound = (
            f"at least {context['min_length']}" if kind == "too_short" else f"at most {context['max_length']}"
        )
        return f"has {context['actual_length']}, and there must be {bound}"
    if kind in _WORDS:
        return f"{given!r} {_WORDS[kind]}"
    told = error["msg"][0].lower() + error["msg"][1:]
    return f"{given!r}: {told}" if isinstance(given, int | float | str) else told
