"""Dataclasses come back from JSON as they were; what does not fit is refused in one short line."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, NamedTuple

import jsonschema
import pytest
from annotated_types import Ge, Le, Len, Predicate
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import run_python

from joulecache.pipelines.core.codec import (
    OMITTED,
    UNCHECKED,
    Number,
    Share,
    dumps,
    from_json,
    json_schema,
    json_sha256,
    loads,
    parse_json,
    to_json,
)
from joulecache.pipelines.core.quantities import visible

Count = Annotated[int, Ge(0), Le(2**53)]
Sha256 = Annotated[str, Predicate(re.compile("[0-9a-f]{64}").fullmatch)]


@dataclass(frozen=True)
class Levels:
    """Sums over pixels.

    Attributes:
        pixels: How many.
        sums: One for each channel,
            exact.
    """

    pixels: Count
    sums: Annotated[tuple[Count, ...], Len(1, 3)]


@dataclass(frozen=True)
class DataFile:
    name: str
    sha256: Sha256
    offset: Count | None = None
    levels: Levels | None = None


@dataclass(frozen=True, kw_only=True)
class Joules:
    """An energy whose total is derived."""

    parts: Mapping[str, Number]
    measured: bool
    total: Number = field(init=False)
    flags: tuple[str, ...] = field(init=False, metadata=UNCHECKED)

    def __post_init__(self) -> None:
        if any(part < 0 for part in self.parts.values()):
            raise ValueError(f"parts are {dict(self.parts)}: give none below 0")
        object.__setattr__(self, "total", sum(self.parts.values()))
        object.__setattr__(self, "flags", ("large",) if self.total > 10 else ())


@dataclass(frozen=True)
class Cache:
    seed: Annotated[int, Ge(0), Le(2**64 - 1)]
    format: Literal["arrow", "tfrecord"]
    shape: tuple[int | None, int | None, Literal[1, 3]]
    fraction: Share | None
    files: tuple[DataFile, ...]
    splits: Mapping[str, tuple[DataFile, ...]]
    energy: Joules | None = None
    source: Mapping[str, Any] = field(default_factory=dict)
    ratio: Number = 1.0


numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70)
texts = st.text() | st.text(st.characters(), max_size=3)  # half characters too
counts = st.integers(0, 2**53)
plain = st.recursive(
    st.none() | st.booleans() | numbers | texts, lambda inner: st.lists(inner) | st.dictionaries(texts, inner)
)
levels = st.builds(Levels, counts, st.lists(counts, min_size=1, max_size=3).map(tuple))
data_files = st.builds(
    DataFile,
    texts,
    st.text("0123456789abcdef", min_size=64, max_size=64),
    st.none() | counts,
    st.none() | levels,
)
energies = st.builds(
    Joules,
    parts=st.dictionaries(texts, st.floats(0, 1e300) | st.integers(0, 10**30), max_size=4),
    measured=st.booleans(),
)
caches = st.builds(
    Cache,
    st.integers(0, 2**64 - 1),
    st.sampled_from(["arrow", "tfrecord"]),
    st.tuples(st.none() | st.integers(), st.none() | st.integers(), st.sampled_from([1, 3])),
    st.none() | st.floats(0, 0.999),
    st.lists(data_files, max_size=3).map(tuple),
    st.dictionaries(texts, st.lists(data_files, max_size=2).map(tuple), max_size=2),
    st.none() | energies,
    st.dictionaries(texts, plain, max_size=3),
    numbers,
)

CACHE = Cache(
    1,
    "arrow",
    (None, 4, 3),
    0.1,
    (DataFile("a", "0" * 64, 0, Levels(4, (1, 2, 3))), DataFile("b", "f" * 64)),
    {"train": (DataFile("c", "1" * 64),)},
    Joules(parts={"cpu": 1, "gpu": 0.1}, measured=True),
)
BODY: dict[str, Any] = json.loads(dumps(CACHE))


# ------------------------------------------------------------------------------------------ round trip


@given(caches)
@settings(deadline=None)
def test_a_value_comes_back_to_the_last_bit(cache: Cache) -> None:
    body = to_json(cache)
    back = from_json(Cache, body)
    assert back == cache
    assert dumps(back) == dumps(cache) == json.dumps(body)
    assert loads(Cache, dumps(cache, indent=1)) == cache
    assert json_sha256(body) == json_sha256(to_json(back))


def test_containers_and_numbers_keep_their_types() -> None:
    back = from_json(Cache, BODY)
    assert isinstance(back.files, tuple)
    assert isinstance(back.shape, tuple)
    assert back.energy is not None
    assert [type(part) for part in back.energy.parts.values()] == [int, float]
    assert math.copysign(1, from_json(Cache, BODY | {"ratio": -0.0}).ratio) == -1


def test_other_types_than_dataclasses_are_read() -> None:
    assert from_json(tuple[Levels, ...], to_json((CACHE.files[0].levels,))) == (CACHE.files[0].levels,)
    assert from_json(int, 3) == 3


def test_what_older_versions_did_not_write_has_its_default() -> None:
    old = {key: value for key, value in BODY.items() if key not in ("energy", "source", "ratio")}
    assert from_json(Cache, old) == replace(CACHE, energy=None)


def test_what_later_versions_write_is_ignored_on_request() -> None:
    later = {**BODY, "new": 1, "energy": {**BODY["energy"], "new": 2}}
    with pytest.raises(ValueError, match=r"new: unknown key"):
        from_json(Cache, later)
    assert from_json(Cache, later, allow_unknown=True) == CACHE


def test_derived_fields_are_written_and_checked() -> None:
    energy = Joules(parts={"cpu": 20.0}, measured=False)
    body = to_json(energy)
    assert body == {"parts": {"cpu": 20.0}, "measured": False, "total": 20.0, "flags": ["large"]}
    assert from_json(Joules, {**body, "flags": ["another rule"]}) == energy
    assert from_json(Joules, {key: body[key] for key in ("parts", "measured", "total")}) == energy
    assert from_json(Joules, {**body, "total": math.nextafter(20, 0)}) == energy  # as another version of Python adds


# ------------------------------------------------------------------------------------------ what is refused


def changed(path: str, value: object) -> dict[str, Any]:
    body: Any = json.loads(json.dumps(BODY))
    at = body
    *parents, last = path.split("/")
    for key in parents:
        at = at[int(key) if isinstance(at, list) else key]
    at[int(last) if isinstance(at, list) else last] = value
    return body  # type: ignore[no-any-return]


DELETED = {key: value for key, value in BODY.items() if key != "seed"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([BODY], "at the top: must be a dictionary"),
        (DELETED, "at seed: "),
        (changed("what", 1), "at what: unknown key"),
        (changed("files/0/what", 1), "at files/0/what: unknown key"),
        (changed("seed", 1.0), "at seed: must be 1, got 1.0"),
        (changed("seed", True), "at seed: must be 1, got True"),
        (changed("seed", "1"), "at seed: must be 1, got '1'"),
        (changed("seed", 2**64), "at seed: must be less than or equal to 18446744073709551615"),
        (changed("format", "zip"), "at format: must be 'arrow' or 'tfrecord', got 'zip'"),
        (changed("shape", [1, 2]), "at shape/2: "),
        (changed("shape", [1, 2, 3, 4]), "at shape: "),
        (changed("shape/2", 3.0), "at shape/2: must be 3, got 3.0"),
        (changed("fraction", True), "at fraction: must be 1.0, got True"),
        (changed("fraction", "0.5"), "at fraction: must be 0.5, got '0.5'"),
        (changed("fraction", 1.1), "at fraction: must be less than or equal to 1, got 1.1"),
        (changed("fraction", math.nan), "at fraction: must be a finite number, got nan"),
        (changed("fraction", 10**400), "at fraction: must be a"),
        (changed("files", {}), "at files: must be a valid tuple, got {}"),
        (changed("files", "ab"), "at files: must be a valid tuple, got 'ab'"),
        (changed("files/1", None), "at files/1: must be a dictionary"),
        (changed("files/0/levels/sums", []), "at files/0/levels/sums: "),
        (changed("files/0/sha256", "f" * 64 + "\n"), "at files/0/sha256: "),
        (changed("splits/train", [{}]), "at splits/train/0/name: "),
        (changed("energy/measured", 1), "at energy/measured: must be True, got 1"),
        (changed("energy/parts/cpu", -1), "at energy: parts are {'cpu': -1, 'gpu': 0.1}: give none below 0"),
        (changed("energy/parts/cpu", math.inf), "at energy/parts/cpu/float: must be a finite number, got inf"),
        (changed("energy/total", 99.0), "at energy/total: must be 1.1, got 99.0"),
        (changed("energy/total", math.nan), "at energy/total: must be 1.1, got nan"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(body: object, message: str) -> None:
    with pytest.raises(ValueError, match="at ") as caught:
        from_json(Cache, body)
    assert str(caught.value).startswith(message)


def test_a_derived_field_is_no_bool() -> None:
    with pytest.raises(ValueError, match="at total: must be 1, got True"):
        from_json(Joules, {"parts": {"cpu": 1}, "measured": True, "total": True})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"\xff\xfe\x00", "codec can't decode"),
        (b"[" * 100_000, "recursion depth exceeded"),
        (b'{"a":' * 100_000, "recursion depth exceeded"),
        (b'{"a": ' + b"9" * 5000 + b"}", "limit (4300 digits)"),
    ],
)
def test_hostile_text_is_refused_in_one_short_line(text: bytes, message: str) -> None:
    with pytest.raises(ValueError, match="not JSON: ") as caught:
        parse_json(text)
    assert message in str(caught.value)
    assert len(str(caught.value)) <= 500
    assert "\n" not in str(caught.value)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in items for place in [(*path, key), *places(item, (*path, key))]]


PLACES = places(BODY)
DEEP: Any = []
for _ in range(900):
    DEEP = [DEEP]
anything = plain | st.sampled_from([math.nan, math.inf, 10**400, 10**5000, "\ud800", "x" * 10**5, {"\udcff": 1}, DEEP])


@given(st.sampled_from(PLACES), anything, texts)
@settings(max_examples=200, deadline=None)
def test_any_lie_is_refused_in_one_short_line_or_comes_back(place: tuple[Any, ...], lie: object, key: str) -> None:
    body = json.loads(json.dumps(BODY))
    at = body
    for step in place[:-1]:
        at = at[step]
    at[place[-1]] = lie
    if isinstance(at, dict):
        at[key] = lie
    try:
        assert isinstance(from_json(Cache, body), Cache)
        message = "at"
    except ValueError as error:
        message = str(error) if type(error) is ValueError else repr(error)
    assert message.startswith("at")
    assert message == visible(message)
    assert len(message) <= 500


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (replace(CACHE, ratio=math.nan), "at ratio: must be a finite number, got nan"),
        (replace(CACHE, source={"a": [1, {"b": math.inf}]}), "at source/a/1/b: must be a finite number, got inf"),
        (replace(CACHE, source={"a": {1: 2}}), "at source/a: must be a value that JSON has, got {1: 2}"),
        ({"a": (1, {2})}, "at a/1: must be a value that JSON has, got {2} of type set"),
        (object, "at the top: must be a value that JSON has"),
    ],
)
def test_what_json_does_not_have_is_not_written(value: object, message: str) -> None:
    with pytest.raises(ValueError, match="at ") as caught:
        dumps(value)
    assert str(caught.value).startswith(message)


# ------------------------------------------------------------------------------------------ the schema


def test_the_schema_is_that_of_what_is_written() -> None:
    schema = json_schema(Cache)
    validator = jsonschema.Draft202012Validator(schema)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator.validate(BODY)
    assert validator.is_valid(changed("what", 1))
    for body in (DELETED, changed("seed", "1"), changed("files/0/levels/sums", []), changed("energy/total", "x")):
        assert not validator.is_valid(body)


@given(caches)
@settings(max_examples=50, deadline=None)
def test_every_value_follows_the_schema(cache: Cache) -> None:
    jsonschema.Draft202012Validator(json_schema(Cache)).validate(to_json(cache))


def test_the_schema_carries_the_docstrings() -> None:
    definitions: Any = json_schema(Cache)["$defs"]
    assert definitions["Levels"]["description"] == "Sums over pixels."
    sums = definitions["Levels"]["properties"]["sums"]
    assert sums["description"] == "One for each channel, exact."
    assert "description" not in definitions["DataFile"]
    assert definitions["Joules"]["required"] == ["parts", "measured", "total"]
    assert definitions["Joules"]["properties"]["flags"] == {"type": "array", "items": {"type": "string"}}


# ------------------------------------------------------------------------------------------ cost


def test_a_hundred_thousand_files_are_read_in_seconds() -> None:
    text = json.dumps({**BODY, "files": [{**BODY["files"][0], "offset": number} for number in range(100_000)]})
    started = time.process_time()
    assert len(loads(Cache, text).files) == 100_000
    assert time.process_time() - started < 10  # about 1 on a quiet machine


def test_importing_the_codec_does_not_import_pydantic() -> None:
    done = run_python("import sys, joulecache.pipelines.core.codec; print('pydantic' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


@dataclass(frozen=True)
class Album:
    """Images by another name.

    Attributes:
        images: Their names.
    """

    images: tuple[str, ...] = field(metadata={"alias": "pictures"})
    title: str | None = field(default=None, metadata=OMITTED)
    size: int = field(init=False, metadata={"alias": "count"})

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", len(self.images))


def test_fields_may_have_another_name_in_json_and_be_left_out() -> None:
    album = Album(("a", "b"))
    body = {"pictures": ["a", "b"], "count": 2}
    assert to_json(album) == body
    assert to_json(Album((), "c")) == {"pictures": [], "title": "c", "count": 0}
    assert from_json(Album, body) == album
    for wrong, problem in (
        ({"images": [], "count": 0}, "at pictures: "),
        ({"pictures": [1], "count": 1}, "at pictures/0: must be a valid string"),
        ({"pictures": [], "count": 1}, "at count: must be 0, got 1"),
        ({"pictures": [], "size": 0}, "unknown key"),
    ):
        with pytest.raises(ValueError, match=problem):
            from_json(Album, wrong)
    schema = json_schema(Album)
    properties: Any = schema["properties"]
    assert properties.keys() == {"pictures", "title", "count"}
    assert properties["pictures"]["description"] == "Their names."
    assert schema["required"] == ["pictures", "count"]
    jsonschema.validate(body, dict(schema))


class Range(NamedTuple):
    """Two numbers."""

    low: Annotated[float, Ge(0)]
    high: float


@dataclass(frozen=True)
class Measured:
    ends: Range | None


def test_named_tuples_are_arrays() -> None:
    assert to_json(Measured(Range(0.5, 2))) == {"ends": [0.5, 2]}
    assert from_json(Measured, {"ends": [0.5, 2.0]}).ends == Range(0.5, 2.0)
    assert from_json(Measured, {"ends": None}).ends is None
    for wrong in ([0.5], [0.5, 1.0, 2.0], [-1.0, 2.0], ["0", 1.0], {"low": 0.5, "high": 1.0}, 3):
        with pytest.raises(ValueError, match="at ends"):
            from_json(Measured, {"ends": wrong})
    found: Any = json_schema(Measured)
    validator = jsonschema.Draft202012Validator(found)
    assert validator.is_valid({"ends": [0.5, 2.0]})
    assert not validator.is_valid({"ends": [0.5]})
    assert not validator.is_valid({"ends": [-0.5, 1.0]})
