"""A scenario's own checks, and those that it waives. Pure: a result and what was asked for in, verdicts
out."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from testbed.measure.result import Check, Result
from testbed.scenario.steps import Check as Asked
from testbed.scenario.steps import unit_of

Value = bool | float | str | None
_UNITS = {None: "", "ms": " ms", "s": " s", "mbit": " Mbit/s", "bytes": " bytes"}


def held(asked: Sequence[Asked], result: Result) -> list[Check]:
    """Each check that a scenario asks for, as it came out."""
    document = result.model_dump(mode="json")
    return [_held(one, document) for one in asked]


def _held(asked: Asked, document: Any) -> Check:
    unit = _UNITS[unit_of(asked.figure)]
    given = (("≤", asked.bound("at_most")), ("≥", asked.bound("at_least")), ("=", asked.bound("equals")))
    bounds = [(sign, bound) for sign, bound in given if bound is not None]
    found = list(figures(document, asked.figure))
    wrong = [one for one in found if not all(_fits(one[1], sign, bound) for sign, bound in bounds)]
    passed = bool(found) and not wrong
    detail = _detail(found, wrong, unit)
    if not passed and asked.why:
        detail += f"; {asked.why}"
    said = " and ".join(f"{sign} {_text(bound, unit)}" for sign, bound in bounds)
    return Check(name=f"{asked.figure} {said}", passed=passed, detail=detail)


def _detail(found: Sequence[tuple[str, Value]], wrong: Sequence[tuple[str, Value]], unit: str) -> str:
    if not found:
        return "the result has no such figure"
    if wrong:
        path, value = wrong[0]
        more = f", and {len(wrong) - 1} more of {len(found)}" if len(wrong) > 1 else ""
        return f"{path} is {_text(value, unit)}{more}"
    return _text(found[0][1], unit) if len(found) == 1 else f"all {len(found)} of them"


def figures(document: Any, figure: str) -> Iterator[tuple[str, Value]]:
    """The figures at the end of the way, each with its own way; none where a part of it is not there."""
    found: list[tuple[str, Any]] = [("", document)]
    for name in figure.split("."):
        inside = [(path, inner) for path, outer in found for inner in _in(outer, name)]
        found = [(f"{path}.{step}".lstrip("."), value) for path, (step, value) in inside]
    yield from found


def _in(outer: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(outer, dict) and name in outer:
        yield name, outer[name]
    elif isinstance(outer, list) and name == "*":
        yield from ((str(number), inner) for number, inner in enumerate(outer))
    elif isinstance(outer, list) and name.lstrip("-").isdigit() and -len(outer) <= int(name) < len(outer):
        yield name, outer[int(name)]


def _fits(value: Value, sign: str, bound: Value) -> bool:
    if sign == "=":
        return value == bound
    if isinstance(value, bool) or not isinstance(value, int | float) or not isinstance(bound, int | float):
        return False
    return value <= bound if sign == "≤" else value >= bound


def _text(value: Value, unit: str) -> str:
    if value is None:
        return "not known"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{int(value) if value == int(value) else f'{value:.6g}'}{unit}"


def waived(checks: Sequence[Check], names: Collection[str]) -> list[Check]:
    """The checks; of those that the scenario means to fail it is told whether they did, and they have
    passed."""
    return [_waive(check) if check.name in names else check for check in checks]


def _waive(check: Check) -> Check:
    how = "waived, and yet it held" if check.passed else "waived, for this is what is shown"
    return check.model_copy(update={"passed": True, "waived": True, "detail": f"{check.detail} ({how})"})
