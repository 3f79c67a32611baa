"""Probes as a scenario writes them, and as a client's process wants them (:mod:`testbed.clients.spec`).

What kinds there are, their fields and bounds are that module's; here a key of a file becomes a field of it,
by the unit in which the field's name ends::

    interval = "1ms"    interval_us = 1000          rate = 200        rate_per_s = 200
    size = "64B"        size = 64                   rate = "32mbit"   rate_bytes_per_s = 4000000
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from testbed.clients.spec import KINDS
from testbed.scenario.part import Part
from testbed.scenario.units import parse_duration, parse_rate, parse_size

_OWN = ("target", "program")
"""Fields of every kind, which the probe has keys of its own for."""


class Probe(Part):
    """What a client does all the time, and measures. Besides these keys the probe has those of its `kind`.
    `vm` is the guest that it asks: the first unless named. `program` says of a closed loop what it speaks;
    not given, it is what the guest runs, as far as that kind of probe can speak it."""

    model_config = ConfigDict(extra="allow")

    kind: str
    vm: str | None = None
    family: Literal["ipv4", "ipv6"] = "ipv4"
    port: Annotated[int, Field(strict=True, ge=1, le=65535)] | None = None
    program: str | None = None

    @classmethod
    def keys(cls) -> list[str]:
        of_kinds = (name for kind in KINDS for name in _written_fields(kind))
        return list(dict.fromkeys((*super().keys(), *of_kinds)))

    @classmethod
    def keys_beside(cls, said: Mapping[Any, Any]) -> list[str]:
        """Where the kind is said, and is one, only that kind's."""
        kind = said.get("kind")
        if not isinstance(kind, str) or kind not in KINDS:
            return cls.keys()
        return list(dict.fromkeys((*super().keys(), *_written_fields(kind))))

    @model_validator(mode="after")
    def _is_a_kind(self) -> Self:
        if self.kind not in KINDS:
            raise ValueError(f"kind: {self.kind!r} is none of {', '.join(KINDS)}")
        known = _written_fields(self.kind)
        for name in self.__pydantic_extra__ or {}:
            if name not in known:
                raise ValueError(f"{name}: the probe {self.kind} has no such key, only {', '.join(known)}")
        self.of_its_kind()
        return self

    def of_its_kind(self) -> dict[str, Any]:
        """What only this kind of probe has, as fields of its class in testbed.clients.spec. ValueError."""
        known, found = _written_fields(self.kind), {}
        for name, value in (self.__pydantic_extra__ or {}).items():
            field, read = known[name]
            try:
                found[field] = read(value)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return found

    def fields_written(self) -> dict[str, str]:
        """The fields of its class in testbed.clients.spec, and for each the key of a file."""
        return {field: name for name, (field, _) in _written_fields(self.kind).items()}


def _written_fields(kind: str) -> dict[str, tuple[str, Callable[[Any], Any]]]:
    """The keys of a file that a kind of probe has: for each the field, and how its value is read."""
    names = [field.name for field in fields(KINDS[kind]) if field.name not in _OWN]
    return dict(_written(name) for name in names)


def _written(field: str) -> tuple[str, tuple[str, Callable[[Any], Any]]]:
    for ending, read in _ENDINGS.items():
        if field.endswith(ending):
            return field.removesuffix(ending).removesuffix("_"), (field, read)
    return field, (field, _size if field == "size" else _as_it_is)


def _text(value: Any, example: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f'{value!r} lacks its unit: a text as "{example}"')
    return value


def _microseconds(value: Any) -> int:
    return parse_duration(_text(value, "1ms")) // 1000


def _nanoseconds(value: Any) -> int:
    return parse_duration(_text(value, "1ms"))


def _size(value: Any) -> int:
    return parse_size(_text(value, "64B"))


def _bytes_per_s(value: Any) -> int:
    return parse_rate(_text(value, "32mbit")) // 8


def _as_it_is(value: Any) -> Any:
    return value


_ENDINGS: dict[str, Callable[[Any], Any]] = {
    "_bytes_per_s": _bytes_per_s,
    "_per_s": _as_it_is,
    "_us": _microseconds,
    "_ns": _nanoseconds,
    "_bytes": _size,
}
