"""The variants of a comparison: what is to be compared with what. Pure, but for the files that are asked for.

A word of a command line is changes with a comma between them (``hold=no`` or ``live,ram=1GiB``), a mode
alone (``quick``), or a scenario's file or name (``drain-a-host,hold=no``): a variant. Where a value has
slashes in it (``hold=yes/no``), the word is a factor, and every one of its levels is combined with every
level of the other factors and with every plain word: a grid::

    live quick                        two variants
    hold=yes/no mac=keep/per-host     2 x 2 = four
    live quick ram=64MiB/256MiB       2 x 2 = four
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TypeVar, get_args

from testbed.scenario.changes import NO_OPTIONS, changed
from testbed.scenario.files import found
from testbed.scenario.from_options import scenario_of
from testbed.scenario.model import Scenario
from testbed.scenario.options import Mode, OptionError, Options
from testbed.scenario.shelf import names
from testbed.scenario.words import KEYS, Words, default_disk_bytes, options_from

MOST = 20
PLAIN = "variant"
"""What the plain words of a grid are called together, where there are several."""
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Variant:
    """`changes` are words of options (:mod:`testbed.scenario.words`) and of scenarios
    (:mod:`testbed.scenario.changes`), over the scenario `base` where there is one. `levels` says for each
    factor of a grid which level this is."""

    label: str
    changes: Mapping[str, str]
    levels: Mapping[str, str] = field(default_factory=dict)
    base: str | None = None


@dataclass(frozen=True)
class Contender:
    """A variant that can be run: its label and levels, its scenario, and the options that this comes of, None
    where it comes of a file."""

    label: str
    options: Options | None
    scenario: Scenario
    levels: Mapping[str, str] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        return self.scenario.seed

    def repeated(self, number: int) -> Contender:
        """For the repeat of this number, from 0: no two repeats draw the same random numbers, and in one
        repeat all contenders do."""
        seed = self.seed + number
        options = None if self.options is None else replace(self.options, seed=seed)
        return replace(self, options=options, scenario=self.scenario.seeded(seed))


def read_variants(words: Sequence[str]) -> list[Variant]:
    """What the words of a command line ask for, in their order, grids written out. Raises OptionError."""
    plain = [read_variant(word) for word in words if not _is_factor(word)]
    factors = [one for word in words if _is_factor(word) for one in _factors(word)]
    if not factors:
        return plain
    twice = [name for name, _ in factors if [other for other, _ in factors].count(name) > 1]
    if twice:
        raise OptionError(f"compare: {twice[0]} has levels twice")
    found = []
    for base in plain or [Variant("", {})]:
        for chosen in product(*(levels for _, levels in factors)):
            levels = {name: level for (name, _), level in zip(factors, chosen, strict=True)}
            both = base.changes.keys() & levels.keys()
            if both:
                raise OptionError(f"compare: {base.label!r} sets {min(both)}, which has levels too")
            label = ",".join([*([base.label] if base.label else []), *map("=".join, levels.items())])
            named = {PLAIN: base.label} if len(plain) > 1 else {}
            found.append(Variant(label, {**base.changes, **levels}, {**named, **levels}, base.base))
    return found


def _is_factor(word: str) -> bool:
    """A path has slashes too, but before any equals sign."""
    if _begins_with_scenario(word):
        return False
    return any("/" in part.partition("=")[2] or "/" in part.partition("=")[0] for part in word.split(","))


def _factors(word: str) -> list[tuple[str, list[str]]]:
    """Each key of the word with its levels. One level is a factor too, of which there is nothing to tell."""
    found = []
    for part in word.split(","):
        key, equals, values = part.partition("=")
        if not equals:
            key, values = "mode", part
        levels = values.split("/")
        if len(set(levels)) != len(levels):
            raise OptionError(f"compare: {part!r} has a level twice")
        for level in levels:
            read_changes(f"{key}={level}")
        if key == "mode":
            _check_modes(levels)
        found.append((key, levels))
    return found


def _check_modes(levels: Sequence[str]) -> None:
    for level in levels:
        if level not in get_args(Mode):
            raise OptionError(f"compare: {level!r} is none of {', '.join(get_args(Mode))}")


def _begins_with_scenario(word: str) -> bool:
    first = word.partition(",")[0]
    return "=" not in first and (first.endswith(".toml") or first in names())


def read_variant(word: str) -> Variant:
    """What one word of a command line asks for. Raises OptionError."""
    if _begins_with_scenario(word):
        base, _, rest = word.partition(",")
        return Variant(word, read_changes(rest) if rest else {}, base=base)
    return Variant(word, read_changes(word))


def read_changes(text: str) -> dict[str, str]:
    """Modes and KEY=VALUE, with a comma between them. Raises OptionError."""
    changes: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals:
            key, value = "mode", part
            if part not in get_args(Mode):
                modes = ", ".join(get_args(Mode))
                raise OptionError(
                    f"compare: {part!r} is none of {modes}, nor KEY=VALUE, nor a scenario (FILE.toml, or "
                    f"{', '.join(names())})"
                )
        if key not in KEYS and key not in NO_OPTIONS:
            raise OptionError(f"compare: {key!r} is none of {', '.join((*KEYS, *NO_OPTIONS))}")
        if key in changes:
            raise OptionError(f"compare: {text!r} sets {key} twice")
        changes[key] = value
    return changes


def contenders(
    shared: Words,
    variants: Sequence[Variant],
    check: Callable[[Sequence[Options]], object] = lambda _: None,
) -> list[Contender]:
    """The variants, each with all that it runs with. What is `shared` does not change a scenario from a file.
    `check` sees all options before scenarios are made of them.

    Where one variant needs shared storage all have it, so that all run on the same guest and network: a disk
    that is not asked for is as large as the largest that one of them has by default. Raises OptionError.
    """
    labels = [variant.label for variant in variants]
    if not 2 <= len(labels) <= MOST:
        raise OptionError(f"compare: from 2 to {MOST} variants can be compared, not {len(labels)}")
    for label in labels:
        if labels.count(label) > 1:
            raise OptionError(f"compare: {label!r} is given twice")
    own = [variant for variant in variants if variant.base is None]
    whole = {one.label: {**shared, **_options_only(one.changes)} for one in own}
    disk_bytes = max(
        (_told_of(label, default_disk_bytes, words) for label, words in whole.items()), default=0
    )
    for words in whole.values():
        if words.get("disk") is None:
            words["disk"] = disk_bytes
    options = {label: _told_of(label, options_from, words) for label, words in whole.items()}
    check(list(options.values()))
    return [_contender(variant, options.get(variant.label), shared) for variant in variants]


def _contender(variant: Variant, options: Options | None, shared: Words) -> Contender:
    where = f"compare: {variant.label}"
    if options is None:
        assert variant.base is not None
        seed = shared.get("seed")
        base = found(variant.base)
        base = base if seed is None else base.seeded(int(seed))
        return Contender(variant.label, None, changed(base, variant.changes, where), variant.levels)
    besides = {key: str(shared[key]) for key in NO_OPTIONS if shared.get(key) is not None}
    besides |= {key: value for key, value in variant.changes.items() if key in NO_OPTIONS}
    scenario = changed(scenario_of(options, "compare"), besides, where)
    return Contender(variant.label, options, scenario, variant.levels)


def _options_only(changes: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in changes.items() if key not in NO_OPTIONS}


def _told_of(label: str, make: Callable[[Words], _Made], words: Words) -> _Made:
    """What `make` makes of the words; where they are wrong, the line says in which variant."""
    known = {key: value for key, value in words.items() if key not in NO_OPTIONS}
    try:
        return make(known)
    except OptionError as error:
        raise OptionError(f"compare: {label}: {error}") from error
