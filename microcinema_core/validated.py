"""Configurations whose every value is checked: pydantic dataclasses, with messages that name the cause and the cure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pydantic.dataclasses
from pydantic import ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema
from typing_extensions import dataclass_transform  # pydantic's own; in typing from Python 3.11 on


@dataclass_transform(frozen_default=True)
def validated(cls: type) -> type:
    """A frozen dataclass whose fields are checked when it is made; `dataclasses.replace` and `asdict` work on it."""
    return pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))(cls)


@dataclass(frozen=True)
class Range:
    """Of an int or a finite float: `least` (or above it) to `most`, in a unit, `such_as`. An int may be a float, else
    nothing is converted."""

    least: float
    most: float
    unit: str = ""
    such_as: float | None = None
    above: bool = False  # `least` itself is too little
    below: bool = False  # `most` itself is too much

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        bounds = {"gt" if self.above else "ge": self.least, "lt" if self.below else "le": self.most}
        if source is int:
            schema = core_schema.int_schema(strict=True, **bounds)
        else:
            schema = core_schema.float_schema(strict=True, allow_inf_nan=False, **bounds)
        return _with_cure(schema, f"give {self.words(source)}")

    def words(self, kind: type) -> str:
        """ "a number above 0 and up to 1, such as 0.001"."""
        kind = "a whole number" if kind is int else "a number"
        words = f"{kind} {'above' if self.above else 'from'} {self.least:.12g}"
        joint = " to below" if self.below else " and up to" if self.above else " to"
        words += f"{joint} {self.most:.12g}" + (f" ({self.unit})" if self.unit else "")
        return words if self.such_as is None else f"{words}, such as {self.such_as:.12g}"


@dataclass(frozen=True)
class Fits:
    """Of any type: what is wrong anywhere in the value, also its length, gets this cure."""

    cure: str
    least: int | None = None
    most: int | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        if self.most is not None:
            schema = schema | {"min_length": self.least, "max_length": self.most}
        return _with_cure(schema, f"give {self.cure}")


@dataclass(frozen=True)
class Printable:
    """A text of at most `most` characters, all of which a terminal shows."""

    most: int

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def check(text: str) -> str:
            if not text.isprintable():
                raise ValueError
            return text

        text = core_schema.str_schema(strict=True, min_length=1, max_length=self.most)
        schema = core_schema.no_info_after_validator_function(check, text)
        return _with_cure(schema, f"give a text of 1 to {self.most} printable characters")


def _with_cure(schema: CoreSchema, cure: str) -> CoreSchema:
    return core_schema.custom_error_schema(schema, custom_error_type="cure", custom_error_message=cure)


_CURES = {
    "missing": "is missing: give it a value",
    "missing_argument": "is missing: give it a value",
    "unexpected_keyword_argument": "is unknown: leave it out, or update this program",
    "dataclass_type": "is not an object: give one with fields",
}
_KINDS = {"bool": "give true or false", "string": "give a text in quotes"}


def sentence(error: ValidationError) -> str:
    """The first thing that is wrong, as one sentence: "learning_rate cannot be -1: give a number above 0 …"."""
    first = error.errors(include_url=False)[0]
    kind, name = first["type"], ".".join(map(str, first["loc"]))
    if kind == "value_error":  # ours, from a __post_init__
        words = str(first["ctx"]["error"])
        return f"{name}.{words}" if name else words
    if kind in _CURES:
        return f"{shown(name)} {_CURES[kind]}"
    if kind == "literal_error":
        cure = f"give {first['ctx']['expected']}"
    else:
        cure = _KINDS.get(kind.partition("_")[0], first["msg"])
    return f"{name} cannot be {shown(repr(first['input']))}: {cure}"


def shown(text: str, most: int = 60) -> str:
    """A stranger's text on one line, cut where it would fill the screen."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= most else text[: most - 1] + "…"
