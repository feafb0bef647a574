"""Dataclasses to JSON and back, and their JSON schema.

Pydantic builds the values and the schema. It is imported on first use, so limits of fields are written with `annotated_types`, which it
understands: ``Annotated[int, Ge(0)]``. A field may be a bool, int, float, str, None, `Literal`, `Any` (plain JSON), tuple, named tuple,
list, mapping with string keys, dataclass, or a union of these. `field(metadata={"alias": "pictures"})` renames it in JSON.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import math
import re
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias, TypeVar, cast, overload

from annotated_types import Ge, Gt, Le

from joulecache.pipelines.core.checks import shown
from joulecache.pipelines.core.quantities import clipped, visible

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from pydantic import TypeAdapter, ValidationError
    from pydantic_core.core_schema import DataclassSchema

T = TypeVar("T")
JSON: TypeAlias = "dict[str, JSON] | list[JSON] | str | int | float | bool | None"

Number: TypeAlias = float | int
"""A number that is written as it was read: a field of type float would turn 3 into 3.0."""
Amount = Annotated[float, Ge(0)]
Positive = Annotated[float, Gt(0)]
Share = Annotated[float, Ge(0), Le(1)]
Whole = Annotated[int, Ge(0)]
Count = Annotated[int, Ge(1)]

OMITTED = {"omitted": True}
"""Metadata of a field that JSON leaves out while it has its default."""
UNCHECKED = {"unchecked": True}
"""Metadata of a derived field (`init=False`) that may differ in a file, since its rule changes between versions."""

_LONGEST_MESSAGE = 400


class _Field(NamedTuple):
    name: str
    key: str  # in JSON
    omitted: bool
    default: Any
    unchecked: bool
    derived: bool


@functools.cache
def _fields(kind: type[DataclassInstance]) -> tuple[_Field, ...]:
    return tuple(
        _Field(
            each.name,
            each.metadata.get("alias", each.name),
            "omitted" in each.metadata,
            each.default,
            "unchecked" in each.metadata,
            not each.init,
        )
        for each in dataclasses.fields(kind)
    )


# Writing: plain Python, so that workers need no pydantic ---------------------------------------------------------------


@overload
def to_json(value: DataclassInstance) -> dict[str, JSON]: ...
@overload
def to_json(value: object) -> JSON: ...
def to_json(value: object) -> JSON:
    """Return a value as JSON: dataclasses and mappings become objects, tuples become arrays.

    Raises:
        ValueError: Part of it has no JSON form, such as NaN or a NumPy number; the message says where.
    """
    return cast("JSON", _plain(value, ""))


def dumps(value: object, *, indent: int | None = None) -> str:
    """Return the JSON text of a value. Raises ValueError like `to_json`."""
    return json.dumps(to_json(value), indent=indent)


def json_sha256(body: object) -> str:
    """Return the SHA-256, in hex, of the compact JSON text of a body with sorted keys."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any, place: str) -> Any:
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        raise _problem(place, f"must be a finite number, got {value}")
    if isinstance(value, tuple | list):
        return [_plain(item, f"{place}/{number}") for number, item in enumerate(value)]
    if isinstance(value, Mapping) and all(type(key) is str for key in value):
        return {key: _plain(item, f"{place}/{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(kind):
        items = ((each, getattr(value, each.name)) for each in _fields(kind))
        return {
            each.key: _plain(item, f"{place}/{each.key}")
            for each, item in items
            if not each.omitted or item != each.default
        }
    raise _problem(place, f"must be a value that JSON has, got {shown(value)} of type {kind.__name__}")


# Reading --------------------------------------------------------------------------------------------------------------


def parse_json(data: str | bytes) -> JSON:
    """Parse JSON text of unknown origin.

    Raises:
        ValueError: It is not JSON, or is nested too deeply. The message is one short line.
    """
    try:
        return cast("JSON", json.loads(data))
    except (ValueError, RecursionError) as error:
        raise ValueError(_one_line(f"not JSON: {error}")) from None


def from_json(cls: type[T], body: object, *, allow_unknown: bool = False) -> T:
    """Return the value that `to_json` wrote, identical to the last bit.

    Only an int is converted, where a float is expected: 24.0 and True are not integers, "1" is not a number. Fields with a default may be
    missing. Derived fields (`init=False`), where they are present, must agree with what the dataclass computes, unless their metadata is
    `UNCHECKED`.

    Args:
        cls: The dataclass to make, or another type that a field may have.
        body: Parsed JSON.
        allow_unknown: Ignore keys that the dataclasses do not have, which a later version may have written.

    Raises:
        ValueError: It does not match. The message is one short line that says where: ``at splits/train/records: must be 24, got 24.0``.
    """
    from pydantic import ValidationError

    try:
        value = _adapter(cast("Any", cls)).validate_python((body,))[0]
        _check_read(value, body, "", allow_unknown)
    except ValidationError as error:
        raise _first_problem(error) from None
    except (ArithmeticError, RecursionError) as error:  # raised by a dataclass that computes with its fields
        raise _problem("", f"cannot be read: {error or type(error).__name__}") from None
    return cast("T", value)


def loads(cls: type[T], data: str | bytes, *, allow_unknown: bool = False) -> T:
    """Parse JSON text into a dataclass. Raises ValueError like `parse_json` and `from_json`."""
    return from_json(cls, parse_json(data), allow_unknown=allow_unknown)


@functools.cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    from pydantic import ConfigDict, TypeAdapter

    # Pydantic accepts settings only for a type that wraps the dataclass.
    return TypeAdapter(tuple[cls], config=ConfigDict(allow_inf_nan=False))


def _check_read(value: Any, body: Any, place: str, allow_unknown: bool) -> None:
    """Check that writing a value gives the body that it was read from.

    Pydantic's strict mode refuses parsed JSON, which has no tuples and no dataclasses. Its lax mode converts "24", 24.0 and True to 24,
    and ignores derived and unknown keys: this check detects all of these.
    """
    if isinstance(body, dict) and (isinstance(value, Mapping) or dataclasses.is_dataclass(type(value))):
        items = value if isinstance(value, Mapping) else _checked_items(value, body)
        for key, item in body.items():
            if key in items:
                if items[key] is not item:
                    _check_read(items[key], item, f"{place}/{key}", allow_unknown)
            elif not allow_unknown:
                raise _problem(f"{place}/{key}", "unknown key")
    elif isinstance(body, list) and isinstance(value, tuple | list) and len(value) == len(body):
        for number, (found, item) in enumerate(zip(value, body, strict=True)):
            if found is not item:
                _check_read(found, item, f"{place}/{number}", allow_unknown)
    elif not _agree(value, body):
        raise _problem(place, f"must be {shown(value)}, got {shown(body)}")


def _agree(value: Any, body: Any) -> bool:
    if type(value) is float and type(body) in (float, int):
        # Derived floats may differ in the last bits: sum() is more accurate since Python 3.12.
        return math.isclose(value, body, rel_tol=1e-9)
    return type(value) is type(body) and bool(value == body)


def _checked_items(value: DataclassInstance, body: dict[str, Any]) -> dict[str, Any]:
    return {
        each.key: body.get(each.key) if each.unchecked else getattr(value, each.name) for each in _fields(type(value))
    }


def _first_problem(error: ValidationError) -> ValueError:
    first = error.errors(include_url=False)[0]
    problem = first["msg"].removeprefix("Value error, ").replace("Input should", "must", 1).replace("Field", "field", 1)
    if first["type"] not in ("missing", "value_error"):
        problem += f", got {shown(first['input'])}"
    return _problem("".join(f"/{key}" for key in first["loc"][1:]), problem)


def _problem(place: str, problem: str) -> ValueError:
    return ValueError(_one_line(f"at {clipped(place[1:], _LONGEST_MESSAGE // 2) or 'the top'}: {problem}"))


def _one_line(text: str) -> str:
    return clipped(visible(clipped(text, _LONGEST_MESSAGE)), _LONGEST_MESSAGE)


# The schema -----------------------------------------------------------------------------------------------------------


def json_schema(cls: type) -> dict[str, JSON]:
    """Return the JSON schema (draft 2020-12) of a dataclass; it allows additional keys.

    Descriptions come from the docstrings: the first paragraph, and the `Attributes:` section for the fields.
    """
    from pydantic import TypeAdapter
    from pydantic.json_schema import GenerateJsonSchema

    class Generator(GenerateJsonSchema):
        def dataclass_schema(self, schema: DataclassSchema) -> dict[str, Any]:
            """Describe the dataclass, and add its derived fields, which pydantic leaves out."""
            made = super().dataclass_schema(schema)
            kind: type[DataclassInstance] = schema["cls"]
            summary, texts = documented(kind)
            del made["title"]
            made |= {"description": summary} if summary else {}
            types = typing.get_type_hints(kind, include_extras=True)
            for each in _fields(kind):
                if each.derived:
                    made["properties"][each.key] = self.generate_inner(TypeAdapter(types[each.name]).core_schema)
                    made["required"] += [each.key] * (not each.unchecked)
                if each.name in texts:
                    made["properties"][each.key]["description"] = texts[each.name]
            return made

        def field_title_should_be_set(self, schema: object) -> bool:
            """Return False: titles would only repeat the names."""
            return False

    schema = TypeAdapter(cls).json_schema(schema_generator=Generator)
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema}


def documented(cls: type) -> tuple[str, dict[str, str]]:
    """Return the first paragraph of a docstring, and the texts of its and its bases' `Attributes:` sections."""
    inherited = {name: text for base in reversed(cls.__bases__) for name, text in documented(base)[1].items()}
    text = inspect.cleandoc(cls.__doc__ or "")
    if text.startswith(f"{cls.__name__}("):  # generated by `dataclass`: the class has no docstring
        return "", inherited
    section = re.search(r"^Attributes:\n((?:[ ]+.*\n?|\n)*)", text, re.MULTILINE)
    entries = re.finditer(r"^ {4}(\w+):((?:.|\n {8})*)", section[1] if section else "", re.MULTILINE)
    attributes = {entry[1]: " ".join(entry[2].split()) for entry in entries}
    return " ".join(text.split("\n\n")[0].split()), inherited | attributes
