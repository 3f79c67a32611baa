"""What all parts of a scenario have in common: frozen, nothing unknown in them, keys that are a file's."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from testbed.scenario.quantities import is_written

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,14}")
"""Of a node: it becomes the name of an interface at the switch, which has 15 characters at most."""
RESERVED = ("switch", "storage", "migration-switch")


class Part(BaseModel):
    """Frozen, and nothing in it that nobody asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _keys_are_known(cls, value: Any, info: ValidationInfo) -> Any:
        """From a file only a file's keys; the error says what was perhaps meant."""
        if not isinstance(value, Mapping) or not is_written(info):
            return value
        known = cls.keys_beside(value)
        for given in value:
            if given not in known:
                near = difflib.get_close_matches(str(given), known, 1)
                meant = f"did you mean {near[0]}? " if near else ""
                raise ValueError(f"unknown key {given!r}; {meant}there are: {', '.join(known)}")
        return value

    @classmethod
    def keys(cls) -> list[str]:
        """The keys of a file that this part has."""
        return [str(field.validation_alias or name) for name, field in cls.model_fields.items()]

    @classmethod
    def keys_beside(cls, said: Mapping[Any, Any]) -> list[str]:  # noqa: ARG003 - a part with kinds reads it
        """Those of :meth:`keys` that can stand together with what is `said`: all, unless a part has kinds."""
        return cls.keys()

    def given(self) -> dict[str, Any]:
        """What was given and is not nothing, by the attribute's name."""
        return {
            name: getattr(self, name) for name in self.model_fields_set if getattr(self, name) is not None
        }


def key(alias: str, default: Any = None) -> Any:
    """A field whose key in a file is `alias`."""
    return Field(default, validation_alias=alias, serialization_alias=alias)


def _name(value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"{value!r} is not a name: 1 to 15 small letters, digits, dashes and dots")
    if value in RESERVED:
        raise ValueError(f"{value!r} is the testbed's own, as are {', '.join(RESERVED)}")
    return value


def _list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Name = Annotated[str, BeforeValidator(_name)]
_ONE_OR_MORE = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
Names = Annotated[
    tuple[str, ...], Field(min_length=1), BeforeValidator(_list), WithJsonSchema(_ONE_OR_MORE, "validation")
]
"""One name, or a list of them."""
Command = Annotated[tuple[str, ...], Field(min_length=1)]
"""A program and its arguments; no shell is between."""
