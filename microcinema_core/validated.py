"""Configurations whose every value is checked: pydantic dataclasses, with messages that name the cause and the cure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, get_type_hints

import pydantic.dataclasses
from pydantic import ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema
from typing_extensions import dataclass_transform  # pydantic's own; in typing from Python 3.11 on


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def validated(cls: type) -> type:
    """A frozen dataclass whose fields are checked when it is made; `dataclasses.replace` and `asdict` work on it."""
    # Without strings as annotations: pydantic 2.0 evaluates inherited ones in the module of the subclass.
    hints = get_type_hints(cls, include_extras=True)
    cls.__annotations__ = {name: hints[name] for name in cls.__annotations__}
    return pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))(cls)


@dataclass(frozen=True)
class Range:
    """The range of an int or a finite float: `minimum` to `maximum`, in `unit`, with `such_as` as the example in
    messages. An int is accepted as a float; nothing else is converted."""

    minimum: float
    maximum: float
    unit: str = ""
    such_as: float | None = None
    above: bool = False  # excludes `minimum` itself
    below: bool = False  # excludes `maximum` itself

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        bounds: dict[str, Any] = {
            "gt" if self.above else "ge": self.minimum,
            "lt" if self.below else "le": self.maximum,
        }
        if source is int:
            schema = core_schema.int_schema(strict=True, **bounds)
        else:
            schema = core_schema.float_schema(strict=True, allow_inf_nan=False, **bounds)
        return _with_cure(schema, f"give {self.words(source)}")

    def words(self, kind: type) -> str:
        """The range in words for a message: "a number above 0 and up to 1, such as 0.001"."""
        noun = "a whole number" if kind is int else "a number"
        words = f"{noun} {'above' if self.above else 'from'} {self.minimum:.12g}"
        joint = " to below" if self.below else " and up to" if self.above else " to"
        words += f"{joint} {self.maximum:.12g}" + (f" ({self.unit})" if self.unit else "")
        return words if self.such_as is None else f"{words}, such as {self.such_as:.12g}"


@dataclass(frozen=True)
class Fits:
    """A value of any type, with one message for every error in it: "give " and `cure`. `minimum` and `maximum` bound
    the length of a tuple."""

    cure: str
    minimum: int | None = None
    maximum: int | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        if schema["type"] == "custom-error":  # pydantic 2.0 calls this method twice for the field of a dataclass
            return schema
        if self.maximum is not None:
            bounds: Any = {"min_length": self.minimum, "max_length": self.maximum}
            schema = schema | bounds
        return _with_cure(schema, f"give {self.cure}")


@dataclass(frozen=True)
class Printable:
    """A text of 1 to `maximum` characters, all of them printable."""

    maximum: int

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def check(text: str) -> str:
            if not text.isprintable():
                raise ValueError
            return text

        text = core_schema.str_schema(strict=True, min_length=1, max_length=self.maximum)
        schema = core_schema.no_info_after_validator_function(check, text)
        return _with_cure(schema, f"give a text of 1 to {self.maximum} printable characters")


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
    """The first of pydantic's errors as one sentence: "learning_rate cannot be -1: give a number above 0 …"."""
    first = error.errors(include_url=False)[0]
    kind, name = first["type"], ".".join(map(str, first["loc"]))
    if kind == "value_error":  # ours, from a __post_init__
        words = str(first.get("ctx", {})["error"])
        return f"{name}.{words}" if name else words
    if kind in _CURES:
        return f"{shown(name)} {_CURES[kind]}"
    if kind == "literal_error":
        cure = f"give {first.get('ctx', {})['expected']}"
    else:
        cure = _KINDS.get(kind.partition("_")[0], first["msg"])
    return f"{name} cannot be {shown(repr(first['input']))}: {cure}"


def shown(text: str, maximum: int = 60) -> str:
    """Untrusted text for a message: unprintable characters become "?", and it is cut to `maximum` characters."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= maximum else text[: maximum - 1] + "…"
