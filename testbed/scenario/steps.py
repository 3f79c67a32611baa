"""What happens in a scenario, in order (:class:`Step`), and what must come of it (:class:`Check`)."""

from __future__ import annotations

import math
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from testbed.faults.kinds import Fault, FaultError
from testbed.measure.result import Result
from testbed.scenario.part import Command, Names, Part, key
from testbed.scenario.parts import Conditions, Settings
from testbed.scenario.quantities import Duration, YesNo
from testbed.scenario.units import parse_duration, parse_rate, parse_size

Verb = Literal["migrate", "drain", "wait", "link", "run"]
STANDARD_CHECKS = (
    "migrated",
    "verified",
    "deleted",
    "no connection broken",
    "no reset",
    "no connect failed",
    "no byte lost, duplicated or corrupted",
    "no held frame dropped",
    "no fault in the guest",
    "no acknowledged write lost",
)
"""The names of what is checked of every run (the last where there is a ledger):
:func:`testbed.experiment.checks.judge`."""

_SETTINGS = set(Settings.model_fields)
_CONDITIONS = set(Conditions.model_fields)
_TAKES: dict[str, set[str]] = {
    "migrate": {"to", "times", "fault", *_SETTINGS},
    "drain": {"to", "at_once", *_SETTINGS},
    "wait": set(),
    "link": {"reset", *_CONDITIONS},
    "run": {"on", "environment", "deadline_ns"},
}


class Step(Settings, Conditions):
    """One thing that happens, and it is over before the next begins. Exactly one verb, which says what:

    - `migrate`: guests by name, all at once; `to` a host (else the next one), `times` over, there and back;
      `fault` (PHASE:KIND) is made in the first of them. What says how it is to go (`mode`, ...) holds for
      this step alone.
    - `drain`: all guests of a host leave it, one after the other, or `at_once`.
    - `wait`: the clients go on for so long.
    - `link`: the conditions of a link are these from now on; or it is `reset` to none.
    - `run`: a command `on` a node, until it has ended or the `deadline` has passed.
    """

    migrate: Names | None = None
    to: str | None = None
    times: Annotated[int, Field(strict=True, ge=1, le=100_000)] = 1
    fault: str | None = None
    drain: str | None = None
    at_once: YesNo = False
    wait_ns: Duration | None = key("wait")
    link: str | None = None
    reset: YesNo = False
    run: Command | None = None
    on: str | None = None
    environment: dict[str, str] = Field(default_factory=dict)
    deadline_ns: Duration = key("deadline", 60 * 10**9)

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        verbs = [verb for verb in get_args(Verb) if self._value(verb) is not None]
        if len(verbs) != 1:
            found = " and ".join(verbs) or "none"
            raise ValueError(f"a step has exactly one of {', '.join(get_args(Verb))}; here {found}")
        given = {name for name in self.model_fields_set if getattr(self, name) is not None}
        alien = given - _TAKES[verbs[0]] - {verbs[0], f"{verbs[0]}_ns"}
        if alien:
            takes = ", ".join(sorted(map(_key, _TAKES[verbs[0]]))) or "nothing else"
            raise ValueError(f"{_key(min(alien))}: does not belong to {verbs[0]}, which takes {takes}")
        self._check()
        return self

    def _check(self) -> None:
        if self.fault is not None:
            try:
                Fault.parse(self.fault)
            except FaultError as error:
                raise ValueError(f"fault: {error}") from None
            if len(self.migrate or ()) != 1:
                raise ValueError("fault: is made in the migration of one guest, not of several at once")
        if self.link is not None and self.reset and self.conditions_given:
            raise ValueError("reset: takes all conditions off, so none can be given with it")
        if self.run is not None and self.on is None:
            raise ValueError("on: is missing: the node in which the command runs")
        if self.times > 1 and len(self.migrate or ()) == 0:
            raise ValueError("times: belongs to migrate")

    @model_serializer(mode="wrap")
    def _only_what_it_says(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A step has many keys, and most belong to another verb."""
        said = self.model_fields_set | {_key(name) for name in self.model_fields_set}
        return {name: value for name, value in write(self).items() if name in said}

    def _value(self, verb: str) -> Any:
        return self.wait_ns if verb == "wait" else getattr(self, verb)

    @property
    def verb(self) -> Verb:
        found: Verb = next(verb for verb in get_args(Verb) if self._value(verb) is not None)
        return found

    @property
    def conditions_given(self) -> bool:
        return bool(_CONDITIONS & self.model_fields_set)

    @property
    def conditions(self) -> Conditions:
        """Of a `link` step: what it sets; what is not given is as on a link without conditions."""
        return Conditions.model_validate({name: getattr(self, name) for name in _CONDITIONS})


def _key(name: str) -> str:
    field = Step.model_fields.get(name)
    return str(field.validation_alias or name) if field is not None else name


BoundName = Literal["at_most", "at_least", "equals"]
_BOUNDS: tuple[BoundName, ...] = get_args(BoundName)
Bound = float | str
"""A number in the figure's own unit, or a text with a unit that becomes it."""


class Check(Part):
    """A figure of the result and what it must be. `figure` is the way to it: ``clients.gap_ms.max``,
    ``migrations.0.blackout_ms``, ``migrations.*.rounds.*.pages`` (every one of them). `why` is told where it
    is not so."""

    figure: str
    at_most: Bound | None = None
    at_least: Bound | None = None
    equals: bool | float | str | None = None
    why: str | None = None

    @model_validator(mode="after")
    def _can_be_checked(self) -> Self:
        if all(getattr(self, name) is None for name in _BOUNDS):
            raise ValueError("a check needs at_most, at_least or equals")
        check_figure(self.figure)
        for name in _BOUNDS:
            value = self.bound(name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name}: {value} is not a finite number; nothing can be held against it")
        return self

    def bound(self, name: BoundName) -> bool | float | str | None:
        """What the figure is held against, in the figure's unit. ValueError for a text that has none of
        it."""
        value: bool | float | str | None = getattr(self, name)
        if not isinstance(value, str):
            return value
        if name == "equals" and unit_of(self.figure) is None:
            return value
        try:
            return in_unit_of(self.figure, value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


_UNITS = {
    "ms": (parse_duration, 1e6),
    "s": (parse_duration, 1e9),
    "mbit": (parse_rate, 1e6),
    "bytes": (parse_size, 1),
}


def unit_of(figure: str) -> str | None:
    """The unit of a figure of the result, by the last name on the way to it that ends in one."""
    for name in reversed(figure.split(".")):
        last = name.rpartition("_")[2]
        if last in _UNITS and (last != name or last == "bytes"):
            return last
    return None


def in_unit_of(figure: str, text: str) -> float:
    """`text` as a number in the unit of `figure`. ValueError."""
    unit = unit_of(figure)
    if unit is None:
        raise ValueError(f"{text!r}: {figure} has no unit; give a number")
    parse, factor = _UNITS[unit]
    return parse(text) / factor


def check_figure(figure: str) -> None:
    """ValueError where no result can have a figure there; the text names what there is instead."""
    kinds: list[Any] = [Result]
    for name in figure.split("."):
        kinds = [inner for kind in kinds for inner in _inside(kind, name)]
        if not kinds:
            raise ValueError(f"figure: {figure!r}: the result has no {name!r} there{_there(figure, name)}")


def _alternatives(kind: Any) -> list[Any]:
    if get_origin(kind) in (Union, UnionType):
        return [
            one
            for alternative in get_args(kind)
            if alternative is not NoneType
            for one in _alternatives(alternative)
        ]
    return [kind]


def _inside(kind: Any, name: str) -> list[Any]:
    if kind is Any:
        return [Any]
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        field = kind.model_fields.get(name)
        return [] if field is None else _alternatives(field.annotation)
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (list, tuple):
        return _alternatives(inner[0]) if name == "*" or name.lstrip("-").isdigit() else []
    return _alternatives(inner[1]) if origin is dict else []


def _there(figure: str, missing: str) -> str:
    """What there is in place of the name that is missing."""
    kinds: list[Any] = [Result]
    for name in figure.split("."):
        if name == missing:
            break
        kinds = [inner for kind in kinds for inner in _inside(kind, name)]
    models = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    names = [name for model in models for name in model.model_fields]
    if names:
        return f"; there are: {', '.join(names)}"
    return "; a number (from 0) or * stands there" if any(get_origin(kind) is list for kind in kinds) else ""


def _known_check(value: Any) -> Any:
    if value not in STANDARD_CHECKS:
        raise ValueError(f"{value!r} is none of the standard checks: {'; '.join(STANDARD_CHECKS)}")
    return value


StandardCheck = Annotated[str, BeforeValidator(_known_check)]
