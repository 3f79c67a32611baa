"""Types of a scenario's values: as people write them in a file, and as numbers with units in Python.

A file says ``ram = "256MiB"``; the model has ``ram_bytes`` = 268435456 and writes ``"256MiB"`` again. From a
file (validation context :data:`WRITTEN`) a number without its unit is refused, since nobody could tell what
it means; from Python, where the unit is in the name, it is what is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, Strict, ValidationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from testbed.scenario.options import HIGHEST_RATE, LOWEST_RATE
from testbed.scenario.units import (
    parse_duration,
    parse_rate,
    parse_size,
    write_duration,
    write_rate,
    write_size,
)

WRITTEN = {"written": True}
"""The validation context of what comes from a file."""


def is_written(info: ValidationInfo) -> bool:
    """Whether what is validated comes from a file."""
    return bool(info.context and info.context.get("written"))


@dataclass(frozen=True)
class Quantity:
    """A whole number with a unit, `least` to `most` of it. `parse` raises ValueError; `write` undoes it."""

    what: str
    parse: Callable[[str], int]
    write: Callable[[int], str]
    example: str
    least: int
    most: int

    def read(self, value: Any, info: ValidationInfo) -> int:
        """ValueError, in one line that names what was given and what is allowed."""
        if isinstance(value, str):
            number = self.parse(value)
        elif type(value) is int and not is_written(info):
            number = value
        else:
            raise ValueError(
                f'{value!r} is not a {self.what}: a text with a number and its unit, as in "{self.example}"'
            )
        if not self.least <= number <= self.most:
            least, most = self.write(self.least), self.write(self.most)
            raise ValueError(f"{self.write(number)} is not between {least} and {most}")
        return number

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        written = core_schema.plain_serializer_function_ser_schema(
            self.write, return_schema=core_schema.str_schema()
        )
        return core_schema.with_info_plain_validator_function(self.read, serialization=written)

    def __get_pydantic_json_schema__(
        self, _core: CoreSchema, _handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"type": "string", "description": f"A {self.what}, as {self.example}."}


@dataclass(frozen=True)
class _Share:
    """A share of all: ``"0.1%"``, or a number from 0 to 1."""

    def read(self, value: Any) -> float:
        try:
            if isinstance(value, str) and value.strip().endswith("%"):
                share = float(Fraction(value.strip()[:-1].strip()) / 100)
            elif isinstance(value, int | float) and not isinstance(value, bool):
                share = float(value)
            else:
                raise ValueError(value)
        except ValueError:
            raise ValueError(f'{value!r} is not a share: a number from 0 to 1, or a text as "0.1%"') from None
        if not 0 <= share <= 1:
            raise ValueError(f"{value!r} is not between 0 and 1 (100%)")
        return share

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.read, serialization=core_schema.plain_serializer_function_ser_schema(float)
        )

    def __get_pydantic_json_schema__(
        self, _core: CoreSchema, _handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {
            "anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"type": "string", "pattern": "%$"}]
        }


def _size(least: int, most: int = 1 << 80) -> Quantity:
    return Quantity("size", parse_size, write_size, "256MiB", least, most)


def _duration(least_ns: int, most_ns: int) -> Quantity:
    return Quantity("duration", parse_duration, write_duration, "300ms", least_ns, most_ns)


Size = Annotated[int, _size(0)]
"""Bytes."""
Rate = Annotated[int, Quantity("rate", parse_rate, write_rate, "1gbit", LOWEST_RATE, HIGHEST_RATE)]
"""Bits per second."""
Duration = Annotated[int, _duration(0, 3600 * 10**9)]
"""Nanoseconds; at most an hour."""
Share = Annotated[float, _Share()]
"""From 0 to 1."""
Whole = Annotated[int, Strict()]
"""A whole number, and no text or truth value that could be taken for one."""
YesNo = Annotated[bool, Strict()]
