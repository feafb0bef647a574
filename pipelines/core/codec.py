"""Dataclasses to JSON and back, and their JSON schema.

JSON is text between programs; inside, results stay dataclasses. Types that a field may have: bool, int, float, str, None, `Literal`,
`Any` (plain JSON), tuples, named tuples, lists, mappings with string keys, dataclasses, and unions of these, with `Limits` in `Annotated`.
Pydantic is imported on first use.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeAlias, TypeVar, cast, overload

from joulecache.pipelines.core.checks import shown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from pydantic import GetCoreSchemaHandler, ValidationError
    from pydantic_core import SchemaValidator
    from pydantic_core.core_schema import CoreSchema

T = TypeVar("T")
JSON: TypeAlias = "dict[str, JSON] | list[JSON] | str | int | float | bool | None"

_LONGEST_MESSAGE = 400
_Node = dict[str, Any]  # of pydantic's core schema
_NOT_NODES = ("cls", "config", "default", "expected", "metadata", "ref", "serialization")  # keys that hold no schema
_ALIAS = "joulecache.alias"
_OMITTED = "joulecache.omitted"
_UNCHECKED = "joulecache.unchecked"
OMITTED = {_OMITTED: True}
"""Metadata of a field with the default None that JSON leaves out while it is None."""
UNCHECKED = {_UNCHECKED: True}
"""Metadata of a derived field (`init=False`) that may differ in a file, or be missing, since its rule changes between versions."""


def alias(key: str) -> dict[str, str]:
    """Return the metadata of a field that JSON spells otherwise: ``images: int = field(metadata=alias("pictures"))``."""
    return {_ALIAS: key}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a field: ``Annotated[int, Limits(ge=0)]``, ``Annotated[str, Limits(pattern="[0-9a-f]{64}")] | None``.

    Attributes:
        ge: The smallest number.
        gt: A number below the smallest.
        le: The largest number.
        lt: A number above the largest.
        min_length: The fewest characters or items.
        max_length: The most characters or items.
        pattern: A regular expression that all of the text matches, in the syntax that Rust and JavaScript share.
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    pattern: str | None = None

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Add the limits to the schema of the type, as pydantic asks for."""
        limits = {name: value for name, value in vars(self).items() if value is not None}
        if self.pattern is not None:
            limits["pattern"] = f"^(?:{self.pattern})$"
        return cast("CoreSchema", {**handler(source), **limits})


# numbers of results
Amount = Annotated[float, Limits(ge=0)]
Positive = Annotated[float, Limits(gt=0)]
Share = Annotated[float, Limits(ge=0, le=1)]
Whole = Annotated[int, Limits(ge=0)]
Count = Annotated[int, Limits(ge=1)]


# Writing --------------------------------------------------------------------------------------------------------------


@overload
def to_json(value: DataclassInstance) -> dict[str, JSON]: ...
@overload
def to_json(value: object) -> JSON: ...
def to_json(value: object) -> JSON:
    """Return a value as JSON: dataclasses and mappings become objects, tuples become arrays.

    Raises:
        ValueError: Something in it has no JSON form, such as NaN or a NumPy number; the message names the place.
    """
    try:
        return cast("JSON", _plain(value))
    except _NoJsonError as error:
        raise ValueError(_message(error.place[::-1], error.problem)) from None


def dumps(value: object, *, indent: int | None = None) -> str:
    """Return the JSON text of a value. Raises ValueError as `to_json`."""
    return json.dumps(to_json(value), indent=indent, allow_nan=False)


def json_sha256(body: object) -> str:
    """Return the SHA-256, in hex, of the compact JSON text of a body with sorted keys."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class _NoJsonError(Exception):
    """What has no JSON form; `place` collects the keys from the inside out."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.place: list[str | int] = []


def _plain(value: Any) -> Any:
    found = type(value)
    if found is str or found is int or found is bool or value is None:
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        raise _NoJsonError(f"must be a finite number, got {value}")
    if isinstance(value, tuple | list):
        return _plain_list(value)
    if isinstance(value, Mapping):
        return _plain_items(value.items())
    if dataclasses.is_dataclass(found):
        items = ((key, getattr(value, name), omitted) for name, key, omitted in _spelled_fields(found))
        return _plain_items((key, item) for key, item, omitted in items if item is not None or not omitted)
    raise _NoJsonError(f"must be a value that JSON has, got {shown(value)} of type {found.__name__}")


def _plain_list(values: Any) -> list[Any]:
    place, done = 0, []
    try:
        for place, value in enumerate(values):  # noqa: B007 - read when it fails
            done.append(_plain(value))
    except _NoJsonError as error:
        error.place.append(place)
        raise
    return done


def _plain_items(items: Any) -> dict[str, Any]:
    key, done = "", {}
    try:
        for key, value in items:
            if type(key) is not str:
                raise _NoJsonError("must have strings as keys")
            done[key] = _plain(value)
    except _NoJsonError as error:
        error.place.append(key)
        raise
    return done


@functools.cache
def _spelled_fields(kind: type[DataclassInstance]) -> tuple[tuple[str, str, bool], ...]:
    """Return each field's name, its key in JSON, and whether it is left out while it is None."""
    return tuple((field.name, _key(field), _OMITTED in field.metadata) for field in dataclasses.fields(kind))


def _key(field: dataclasses.Field[Any]) -> str:
    return str(field.metadata.get(_ALIAS, field.name))


# Reading --------------------------------------------------------------------------------------------------------------


def parse_json(data: str | bytes) -> JSON:
    """Parse JSON text of unknown origin.

    Raises:
        ValueError: In one short line: it is not JSON, has NaN, an infinite or an endless number, a key twice in one object, or is
            nested too deeply.
    """
    try:
        return cast(
            "JSON",
            json.loads(
                data, object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_int
            ),
        )
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {_one_line(str(error))}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for place, (key, _) in enumerate(pairs) if key in dict(pairs[:place]))
        raise ValueError(f"the key {shown(twice)} appears twice in one object")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"a number has {len(text):,} digits") from None


def from_json(cls: type[T], body: object, *, allow_unknown: bool = False) -> T:
    """Return the value that `to_json` gave as JSON, equal to the last bit.

    Nothing is converted: 24.0 and True are no integers, "1" is no number. An int where a float belongs stays an int, so that the value is
    written as it was read. Fields with a default may be missing. Derived fields (`init=False`) must agree with what the dataclass
    computes, unless their metadata is `UNCHECKED`.

    Args:
        cls: The dataclass to make, or another type that a field may have.
        body: Parsed JSON.
        allow_unknown: Ignore keys that the dataclasses do not have, which a later version may have written.

    Raises:
        ValueError: In one short line, with the place: ``at splits/train/records: must be an integer, got 24.0``.
    """
    from pydantic import ValidationError

    try:
        return cast("T", _validator(cast("Any", cls), allow_unknown).validate_python((body,))[0])
    except ValidationError as error:
        raise ValueError(_first_problem(error)) from None
    except (
        ArithmeticError,
        RecursionError,
        UnicodeError,
    ) as error:  # of a dataclass that computes with what it is given
        raise ValueError(_message((), f"cannot be read: {error or type(error).__name__}")) from None


def loads(cls: type[T], data: str | bytes, *, allow_unknown: bool = False) -> T:
    """Parse JSON text into a dataclass. Raises ValueError as `parse_json` and `from_json`."""
    return from_json(cls, parse_json(data), allow_unknown=allow_unknown)


@functools.cache
def _validator(cls: Any, allow_unknown: bool) -> SchemaValidator:
    from pydantic_core import SchemaValidator

    schema = _core_schema(cls, allow_unknown)
    return SchemaValidator(_rewritten(schema, _strict), _core_config(allow_unknown))


def _core_schema(cls: Any, allow_unknown: bool) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    # Pydantic takes no settings for a dataclass itself, but for what is around it.
    wrapped: Any = tuple[cls]
    settings = ConfigDict(extra="ignore" if allow_unknown else "forbid", allow_inf_nan=False)
    return TypeAdapter(wrapped, config=settings).core_schema


def _core_config(allow_unknown: bool) -> Any:
    return {"extra_fields_behavior": "ignore" if allow_unknown else "forbid", "allow_inf_nan": False}


def _rewritten(schema: Any, change: Callable[[_Node], _Node]) -> Any:
    """Return a core schema with every node changed, inner ones first."""
    if isinstance(schema, list):
        return [_rewritten(item, change) for item in schema]
    if isinstance(schema, tuple):  # a choice of a union, with its label
        return tuple(_rewritten(item, change) for item in schema)
    if not isinstance(schema, dict):
        return schema
    node = {key: value if key in _NOT_NODES else _rewritten(value, change) for key, value in schema.items()}
    return change(node) if "type" in node else node


def _strict(node: _Node) -> _Node:
    """Take scalars as they are written; containers have to stay lax, since JSON has no tuples and no dataclasses."""
    from pydantic_core import core_schema

    kind = node["type"]
    if kind in ("int", "bool"):
        return {**node, "strict": True}
    if kind == "float":
        checked = cast("CoreSchema", {**node, "strict": True, "allow_inf_nan": False})
        return cast("_Node", core_schema.no_info_wrap_validator_function(_as_written, checked))
    if kind == "literal" and not all(isinstance(value, str) for value in node["expected"]):
        check_type = functools.partial(_check_literal, node["expected"])  # 3.0 and True are no 3 and no 1
        return cast("_Node", core_schema.no_info_wrap_validator_function(check_type, cast("CoreSchema", node)))
    if kind in ("tuple", "list"):
        return {**node, "fail_fast": True}  # only the first problem is told
    if kind == "dataclass":
        node = _with_aliases(node)
        if derived := _derived_fields(node["cls"]):
            reference = node.pop("ref", None)
            check = functools.partial(_check_derived, derived)
            return cast(
                "_Node", core_schema.no_info_wrap_validator_function(check, cast("CoreSchema", node), ref=reference)
            )
    return node


def _with_aliases(node: _Node) -> _Node:
    """Return the schema of a dataclass that spells its fields as JSON does."""
    keys = {name: key for name, key, _ in _spelled_fields(node["cls"]) if name != key}
    if not keys:
        return node
    fields = [
        {**field, "validation_alias": keys[field["name"]]} if field["name"] in keys else field
        for field in node["schema"]["fields"]
    ]
    return {**node, "schema": {**node["schema"], "fields": fields}}


def _as_written(value: Any, check: Callable[[Any], Any]) -> Any:
    check(value)
    return value


def _check_literal(expected: list[Any], value: Any, check: Callable[[Any], Any]) -> Any:
    found = check(value)
    if not any(type(value) is type(one) and value == one for one in expected):
        raise ValueError(f"must be {' or '.join(map(repr, expected))}, got {shown(value)}")
    return found


def _derived_fields(cls: type[DataclassInstance]) -> tuple[dataclasses.Field[Any], ...]:
    return tuple(field for field in dataclasses.fields(cls) if not field.init)


def _check_derived(derived: typing.Sequence[dataclasses.Field[Any]], body: Any, make: Callable[[Any], Any]) -> Any:
    if not isinstance(body, dict):
        return make(body)
    keys = {_key(field) for field in derived}
    made = make({key: value for key, value in body.items() if key not in keys})
    for field in derived:
        if _UNCHECKED in field.metadata:
            continue
        key = _key(field)
        if key not in body:
            raise ValueError(f"{key} is missing")
        told, computed = body[key], to_json(getattr(made, field.name))
        if told != computed or isinstance(told, bool) != isinstance(computed, bool):
            raise ValueError(f"{key} is {shown(told)}, the other fields give {shown(computed)}")
    return made


# What is wrong --------------------------------------------------------------------------------------------------------

_PROBLEMS = {
    "missing": "missing",
    "unexpected_keyword_argument": "unknown key",
    "int_type": "must be an integer",
    "bool_type": "must be true or false",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be a string",
    "none_required": "must be null",
    "tuple_type": "must be an array",
    "list_type": "must be an array",
    "dict_type": "must be an object",
    "mapping_type": "must be an object",
    "dataclass_type": "must be an object",
}
_WITHOUT_INPUT = ("missing", "unexpected_keyword_argument", "value_error", "assertion_error")


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = [key for key in first["loc"][1:] if not str(key).startswith("function-")]
    kind = first["type"]
    problem = _PROBLEMS.get(kind) or re.sub(r"^\w+ should ", "must ", first["msg"])
    if kind in ("value_error", "assertion_error"):
        problem = str(first["ctx"]["error"])
    if kind not in _WITHOUT_INPUT:
        problem += f", got {shown(first['input'])}"
    return _message(place, problem)


def _message(place: typing.Sequence[str | int], problem: str) -> str:
    where = "/".join(map(str, place))
    if len(where) > _LONGEST_MESSAGE // 2:
        where = where[: _LONGEST_MESSAGE // 2] + "..."
    return _one_line(f"at {where or 'the top'}: {problem}")


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    line = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)
    return line if len(line) <= _LONGEST_MESSAGE else line[: _LONGEST_MESSAGE - 3] + "..."


# The schema -----------------------------------------------------------------------------------------------------------


def json_schema(cls: type, *, allow_unknown: bool = False) -> dict[str, JSON]:
    """Return the JSON schema (draft 2020-12) of a dataclass.

    Descriptions come from the docstrings: the first paragraph, and the `Attributes:` section for the fields.

    Args:
        cls: The dataclass.
        allow_unknown: Do not forbid further keys.
    """
    from pydantic.json_schema import GenerateJsonSchema

    dataclasses_by_name: dict[str, type] = {}

    def complete(node: _Node) -> _Node:
        if node["type"] == "dataclass":
            dataclasses_by_name[node["cls"].__name__] = node["cls"]
            return _with_aliases(_with_derived(node, allow_unknown))
        return node

    schema = _rewritten(_core_schema(cls, allow_unknown), complete)
    generated = GenerateJsonSchema().generate(schema)
    definitions = generated.pop("$defs", {})
    for name, definition in definitions.items():
        if name in dataclasses_by_name:
            _describe(definition, dataclasses_by_name[name])
    top = generated["prefixItems"][0]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **top, "$defs": definitions}


def _with_derived(node: _Node, allow_unknown: bool) -> _Node:
    """Return the schema of a dataclass with its derived fields, which pydantic leaves out."""
    from pydantic_core import core_schema

    derived = _derived_fields(node["cls"])
    if not derived:
        return node
    types = typing.get_type_hints(node["cls"], include_extras=True)
    names = {field.name for field in derived}
    fields = [field for field in node["schema"]["fields"] if field["name"] not in names]
    for field in derived:
        schema = _core_schema(types[field.name], allow_unknown)["items_schema"][0]
        if _UNCHECKED in field.metadata:
            schema = core_schema.with_default_schema(schema, default_factory=tuple)
        fields.append(core_schema.dataclass_field(field.name, schema))
    return {**node, "schema": {**node["schema"], "fields": fields}}


def _describe(definition: dict[str, Any], cls: type) -> None:
    """Put the texts of a docstring into a definition, and drop titles that repeat names."""
    summary, attributes = documented(cls)
    definition.pop("title", None)
    definition.pop("description", None)
    if summary:
        definition["description"] = summary
    names = {key: name for name, key, _ in _spelled_fields(cast("Any", cls))}
    for key, schema in definition.get("properties", {}).items():
        schema.pop("title", None)
        if names.get(key) in attributes:
            schema["description"] = attributes[names[key]]


def documented(cls: type) -> tuple[str, dict[str, str]]:
    """Return the first paragraph of a docstring, and what its `Attributes:` section says of each."""
    import inspect

    text = inspect.cleandoc(cls.__doc__ or "")
    if text.startswith(f"{cls.__name__}("):  # made by dataclasses, where there is none
        return "", {}
    section = re.search(r"^Attributes:\n((?:[ ]+.*\n?|\n)*)", text, re.MULTILINE)
    lines = section[1] if section else ""
    entries = re.finditer(r"^ {4}(\w+):((?:.|\n {8})*)", lines, re.MULTILINE)
    attributes = {entry[1]: " ".join(entry[2].split()) for entry in entries}
    return " ".join(text.split("\n\n")[0].split()), attributes
