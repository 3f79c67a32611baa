"""The variants of a comparison: what is to be compared with what. Pure.

A variant is a label and a change to the options that all variants share. On a command line it is a mode
(``quick``) or changes with a comma between them (``hold=no`` or ``live,ram=1GiB``), and that is its label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, get_args

from testbed.scenario.options import Mode, OptionError, Options
from testbed.scenario.words import KEYS, Words, default_disk_bytes, options_from

MOST = 20
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Variant:
    """`changes` are words of options (:mod:`testbed.scenario.words`)."""

    label: str
    changes: Mapping[str, str]


@dataclass(frozen=True)
class Contender:
    """A variant that can be run: its label, and all its options."""

    label: str
    options: Options

    def repeated(self, number: int) -> Options:
        """For the repeat of this number, from 0: no two repeats draw the same random numbers, and in one
        repeat all contenders do."""
        return replace(self.options, seed=self.options.seed + number)


def read_variant(word: str) -> Variant:
    """What one word of a command line asks for. Raises OptionError."""
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
                raise OptionError(f"compare: {part!r} is none of {modes}, nor KEY=VALUE")
        if key not in KEYS:
            raise OptionError(f"compare: {key!r} is none of {', '.join(KEYS)}")
        if key in changes:
            raise OptionError(f"compare: {text!r} sets {key} twice")
        changes[key] = value
    return changes


def contenders(shared: Words, variants: Sequence[Variant]) -> list[Contender]:
    """The variants, each with all its options.

    Where one variant needs shared storage all have it, so that all run on the same guest and network: a disk
    that is not asked for is as large as the largest that one of them has by default. Raises OptionError.
    """
    labels = [variant.label for variant in variants]
    if not 2 <= len(labels) <= MOST:
        raise OptionError(f"compare: from 2 to {MOST} variants can be compared, not {len(labels)}")
    for label in labels:
        if labels.count(label) > 1:
            raise OptionError(f"compare: {label!r} is given twice")
    whole = {variant.label: {**shared, **variant.changes} for variant in variants}
    disk_bytes = max(_told_of(label, default_disk_bytes, words) for label, words in whole.items())
    found = []
    for label, words in whole.items():
        if words.get("disk") is None:
            words["disk"] = disk_bytes
        found.append(Contender(label, _told_of(label, options_from, words)))
    return found


def _told_of(label: str, make: Callable[[Words], _Made], words: Words) -> _Made:
    """What `make` makes of the words; where they are wrong, the line says in which variant."""
    try:
        return make(words)
    except OptionError as error:
        raise OptionError(f"compare: {label}: {error}") from error
