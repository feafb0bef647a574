"""What the JSON of a manifest looks like."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from joulecache.pipelines.cache.shards import ENCODINGS, FORMATS, SPLITS

FORMAT_VERSION = 3


def structural_problem(body: dict[str, Any]) -> str | None:
    """Return where the JSON of a manifest is not as it must be, and how; None where it is."""
    import jsonschema

    error = jsonschema.exceptions.best_match(_validator().iter_errors(body))
    if error is None:
        return None
    return f"at {'/'.join(map(str, error.absolute_path)) or 'the top'}: {error.message[:200]}"


@lru_cache
def _validator() -> Any:
    import jsonschema

    # JSON Schema counts 24.0 as an integer: as a number of records it would fail far from here.
    draft = jsonschema.Draft202012Validator
    whole = draft.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    extend: Any = jsonschema.validators.extend
    return extend(draft, type_checker=whole)(_SCHEMA)


def _record(**properties: Any) -> dict[str, Any]:
    """A JSON object with exactly these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_count = {"type": "integer", "minimum": 0, "maximum": 2**53}
_sha256 = {"type": "string", "pattern": r"^[0-9a-f]{64}\Z"}
_text = {"type": "string", "maxLength": 1 << 20}
_counts = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "maxItems": 3}
_maybe_count = {"anyOf": [_count, {"type": "null"}]}
_side = {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 65535}, {"type": "null"}]}
_levels = {"type": "array", "items": {"type": "number"}, "maxItems": 4}


def _file_schema(pattern: str, levels: dict[str, Any]) -> dict[str, Any]:
    return _record(
        name={"type": "string", "pattern": pattern},
        records=_count,
        bytes=_count,
        sha256=_sha256,
        image_offset=_maybe_count,
        image_stride=_maybe_count,
        levels=levels,
    )


_split = _record(
    chain=_text,
    fingerprint=_sha256,
    variants={"type": "integer", "minimum": 1, "maximum": 999_999},
    records=_count,
    image_shape={
        "type": "array",
        "prefixItems": [_side, _side, {"type": "integer", "enum": [1, 3]}],
        "minItems": 3,
        "maxItems": 3,
    },
    class_counts={"type": "array", "items": _count},
    mean=_levels,
    std=_levels,
    files={
        "type": "array",
        "items": _file_schema(
            r"^(train|val|test)-v[0-9]+-[0-9]+-of-[0-9]+-[0-9a-f]{8}\.[a-z]+\Z",
            _record(pixels=_count, sums=_counts, squares=_counts),
        ),
    },
)

_SCHEMA = _record(
    format_version={"const": FORMAT_VERSION},
    chain=_text,
    seed={"type": "integer", "minimum": 0, "maximum": 2**64 - 1},
    variants={"type": "integer", "minimum": 1, "maximum": 999_999},
    format={"enum": list(FORMATS)},
    encoding={"enum": list(ENCODINGS)},
    quality={"anyOf": [{"type": "integer", "minimum": 1, "maximum": 100}, {"type": "null"}]},
    val_fraction={"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"type": "null"}]},
    shards={"type": "integer", "minimum": 1, "maximum": 99_999_999},
    class_names={"type": "array", "items": _text},
    source=_record(
        location=_text,
        records=_count,
        bytes=_count,
        skipped={"type": "object", "additionalProperties": _count},
    ),
    splits={
        "type": "object",
        "properties": dict.fromkeys(SPLITS, _split),
        "required": list(SPLITS),
        "additionalProperties": False,
    },
    index=_file_schema(r"^index-[0-9a-f]{8}\.arrow\Z", {"type": "null"}),
    rejected=_file_schema(r"^rejected-[0-9a-f]{8}\.jsonl\Z", {"type": "null"}),
    versions={"type": "object", "additionalProperties": _text},
    energy={"type": ["object", "null"]},
    digest=_sha256,
)
