"""The manifest: the one file that says what a cache is. Written last and whole; nothing that it does not list is read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from joulecache.pipelines.shards import (
    ENCODINGS,
    FORMATS,
    SPLITS,
    DataFile,
    Encoding,
    Format,
    map_images,
    parse_shard_name,
    sync_folder,
)
from joulecache.transforms.chain import Chain, parse

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_LARGEST_MANIFEST = 1 << 30

INDEX_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("key_hash", pa.uint64(), nullable=False),
        pa.field("label", pa.int64(), nullable=False),
        pa.field("split", pa.int8(), nullable=False),  # 0 train, 1 val
        pa.field("source_bytes", pa.int64(), nullable=False),
        pa.field("mtime_ns", pa.int64(), nullable=False),
        pa.field("digest", pa.binary(16), nullable=False),  # the first half of the SHA-256 of the encoded source image
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
    ]
)
"""One row per cached record, ordered by split, shard and row: the order of a split's files, of every variant."""


class CacheError(ValueError):
    """A cache that cannot be read or written; the message says what was got, what is allowed and what to do."""


@dataclass(frozen=True)
class Split:
    """One split of a cache.

    `image_shape` is (H, W, C), H and W None when encoded images vary. `mean` and `std` are per channel, in levels 0 to 255, over
    the records of every variant. `files` are ordered by variant, then shard.
    """

    chain: str
    fingerprint: str
    variants: int
    records: int
    image_shape: tuple[int | None, int | None, int]
    class_counts: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    files: tuple[DataFile, ...]

    def variant_files(self, variant: int) -> tuple[DataFile, ...]:
        """Return the files of one variant, in the order of the index."""
        return tuple(file for file in self.files if _variant(file) == variant)


@dataclass(frozen=True)
class Manifest:
    """What a cache holds. `shards` is the number of ranges of the partition; `energy` that of the build, with its passport."""

    chain: str
    seed: int
    variants: int
    format: Format
    encoding: Encoding
    quality: int | None
    val_fraction: float
    shards: int
    class_names: tuple[str, ...]
    source: Mapping[str, Any]
    splits: Mapping[str, Split]
    index: DataFile
    rejected: DataFile
    versions: Mapping[str, str]
    energy: Mapping[str, Any] | None

    def split(self, name: str) -> Split:
        """Return a split; CacheError when it has no records."""
        found = self.splits.get(name)
        if found is None or not found.records:
            there = ", ".join(key for key, split in self.splits.items() if split.records)
            raise CacheError(f"no records in split {name!r}: this cache has {there or 'none at all'}")
        return found

    def files(self) -> tuple[DataFile, ...]:
        """Return every data file that belongs to the cache."""
        listed = [file for split in self.splits.values() for file in split.files]
        return (*listed, self.index, self.rejected)

    def parsed_chain(self, split: str = "train") -> Chain:
        """Return the chain of a split."""
        return parse(self.split(split).chain)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Commit a manifest: temporary file, fsync, rename, fsync of the folder. Readers see the old one or the new one."""
    body: dict[str, Any] = {"format_version": FORMAT_VERSION, **dataclasses.asdict(manifest)}
    body["digest"] = _digest(body)
    temporary = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(body, file, indent=1, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(folder)  # the data files' names first
        temporary.rename(folder / MANIFEST)
        sync_folder(folder)
    finally:
        temporary.unlink(missing_ok=True)


def open_manifest(cache: str | os.PathLike[str]) -> Manifest:
    """Read and check the manifest of a cache folder.

    Nothing in it is trusted: structure, digest, file names, sizes on disk and the place of the images are checked before it
    is returned. Raises CacheError.
    """
    folder = Path(cache)
    path = folder / MANIFEST
    if not folder.is_dir() or not path.is_file():
        raise CacheError(f"no cache at {str(folder)!r}: it has no {MANIFEST}; make one with `joulecache precompute`")
    try:
        if path.stat().st_size > _LARGEST_MANIFEST:
            raise CacheError(f"{path} has {path.stat().st_size} bytes: more than any manifest of ours")
        body = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CacheError(f"{path} is not readable as JSON ({error}): rebuild the cache") from error
    if not isinstance(body, dict):
        raise CacheError(f"{path} is not a manifest: it holds a {type(body).__name__}, not an object")
    version = body.get("format_version")
    if version != FORMAT_VERSION:
        raise CacheError(
            f"{path} has format version {version!r}, this joulecache reads {FORMAT_VERSION}: upgrade it or rebuild"
        )
    problem = _structural_problem(body)
    if problem:
        raise CacheError(f"{path}: {problem}")
    if body.pop("digest") != _digest(body):
        raise CacheError(f"{path} does not match its own digest: it was edited or damaged, rebuild the cache")
    del body["format_version"]
    try:
        manifest = _from_json(body)
        _check(folder, manifest)
    except CacheError:
        raise
    except (ValueError, OSError, OverflowError) as error:
        raise CacheError(f"{path}: {error}") from error
    return manifest


def read_index(folder: Path, manifest: Manifest) -> Any:
    """Map the index of a cache as a pyarrow RecordBatch of `INDEX_SCHEMA`."""
    try:
        with pa.ipc.open_file(pa.memory_map(str(folder / manifest.index.name))) as reader:
            if reader.schema != INDEX_SCHEMA or reader.num_record_batches != 1:
                raise CacheError(f"{folder / manifest.index.name} is not an index of ours: rebuild the cache")
            batch = reader.get_batch(0)
    except (pa.ArrowInvalid, OSError) as error:
        raise CacheError(f"cannot read {folder / manifest.index.name}: {error}") from error
    if batch.num_rows != sum(split.records for split in manifest.splits.values()):
        raise CacheError(f"{folder / manifest.index.name} has {batch.num_rows} rows, not those of the splits")
    return batch


def write_index(path: Path, batch: Any) -> None:
    """Write index rows of `INDEX_SCHEMA` as one uncompressed Arrow batch."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, INDEX_SCHEMA) as writer:
        writer.write_batch(batch)


def verify(cache: str | os.PathLike[str]) -> list[str]:
    """Check every byte of a cache against its manifest; return one line per problem, none when it is whole.

    Raises CacheError when the manifest itself cannot be trusted.
    """
    folder = Path(cache)
    manifest = open_manifest(folder)
    problems = []
    for file in manifest.files():
        try:
            with open(folder / file.name, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            problems.append(f"{file.name}: {error.strerror}")
            continue
        if digest != file.sha256:
            problems.append(f"{file.name}: its bytes changed (SHA-256 {digest[:8]}, expected {file.sha256[:8]})")
    if not problems:
        read_index(folder, manifest)
    return problems


def _digest(body: Mapping[str, Any]) -> str:
    spelled = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(spelled.encode()).hexdigest()


def _variant(file: DataFile) -> int:
    name = parse_shard_name(file.name)
    assert name is not None
    return name.variant


def _data_file(body: Mapping[str, Any]) -> DataFile:
    return DataFile(**body)


def _from_json(body: dict[str, Any]) -> Manifest:
    splits = {
        name: Split(
            **{
                **split,
                "image_shape": tuple(split["image_shape"]),
                "class_counts": tuple(split["class_counts"]),
                "mean": tuple(split["mean"]),
                "std": tuple(split["std"]),
                "files": tuple(_data_file(file) for file in split["files"]),
            }
        )
        for name, split in body["splits"].items()
    }
    return Manifest(
        **{
            **body,
            "class_names": tuple(body["class_names"]),
            "splits": splits,
            "index": _data_file(body["index"]),
            "rejected": _data_file(body["rejected"]),
        }
    )


def _check(folder: Path, manifest: Manifest) -> None:
    """Check that the parts agree with each other and with the files; ValueError says where they do not."""
    parse(manifest.chain)
    names = [file.name for file in manifest.files()]
    if len(set(names)) != len(names):
        raise ValueError("a file is listed twice")
    for split_name, split in manifest.splits.items():
        if parse(split.chain).fingerprint != split.fingerprint:
            raise ValueError(f"the fingerprint of {split_name} is not that of its chain {split.chain!r}")
        if len(split.class_counts) != len(manifest.class_names) or sum(split.class_counts) != split.records:
            raise ValueError(f"the class counts of {split_name} do not add up to its {split.records} records")
        _check_files(folder, manifest, split_name, split)
    for file in (manifest.index, manifest.rejected):
        _check_size(folder, file)


def _check_files(folder: Path, manifest: Manifest, split_name: str, split: Split) -> None:
    records, places = [0] * split.variants, []
    for file in split.files:
        name = parse_shard_name(file.name)
        if (
            name is None
            or name.split != split_name
            or name.format != manifest.format
            or name.variant >= split.variants
            or name.shards != manifest.shards
            or name.shard >= manifest.shards
        ):
            raise ValueError(f"{file.name!r} is no file of split {split_name}")
        records[name.variant] += file.records
        places.append((name.variant, name.shard, file.records))
        _check_size(folder, file)
        if manifest.encoding == "raw":
            height, width, channels = split.image_shape
            if height is None or width is None:
                raise ValueError(f"raw images of {split_name} have no fixed shape: {split.image_shape}")
            if math.prod((height, width, channels)) > file.bytes:
                raise ValueError(f"{file.name}: an image of {split.image_shape} does not fit its {file.bytes} bytes")
            map_images(folder / file.name, file, (height, width, channels))
    if places != sorted(places):
        raise ValueError(f"the files of {split_name} are out of order")
    by_variant = [[place[1:] for place in places if place[0] == variant] for variant in range(split.variants)]
    if any(count != split.records for count in records) or any(other != by_variant[0] for other in by_variant):
        raise ValueError(f"the files of {split_name} do not hold its {split.records} records in every variant")


def _check_size(folder: Path, file: DataFile) -> None:
    if not file.name.rpartition(".")[0].endswith(file.sha256[:8]):
        raise ValueError(f"{file.name} does not carry its SHA-256 {file.sha256[:8]}")
    path = folder / file.name
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ValueError(f"{file.name} is missing: restore it or rebuild the cache") from error
    if size != file.bytes or not path.is_file():
        raise ValueError(
            f"{file.name} has {size} bytes, the manifest says {file.bytes}: it was cut or changed, rebuild the cache"
        )


def _structural_problem(body: dict[str, Any]) -> str | None:
    import jsonschema

    error = jsonschema.exceptions.best_match(_validator().iter_errors(body))
    if error is None:
        return None
    return f"at {'/'.join(map(str, error.absolute_path)) or 'the top'}: {error.message[:200]}"


@lru_cache
def _validator() -> Any:
    import jsonschema

    return jsonschema.Draft202012Validator(_SCHEMA)


def _record(**properties: Any) -> dict[str, Any]:
    """A JSON object with exactly these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_count = {"type": "integer", "minimum": 0, "maximum": 2**53}
_sha256 = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_text = {"type": "string", "maxLength": 1 << 20}
_maybe_count = {"anyOf": [_count, {"type": "null"}]}
_side = {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 65535}, {"type": "null"}]}
_levels = {"type": "array", "items": {"type": "number"}, "maxItems": 4}


def _file_schema(pattern: str) -> dict[str, Any]:
    return _record(
        name={"type": "string", "pattern": pattern},
        records=_count,
        bytes=_count,
        sha256=_sha256,
        image_offset=_maybe_count,
        image_stride=_maybe_count,
    )


_split = _record(
    chain=_text,
    fingerprint=_sha256,
    variants={"type": "integer", "minimum": 1, "maximum": 999_999},
    records=_count,
    image_shape={
        "type": "array",
        "prefixItems": [_side, _side, {"enum": [1, 3]}],
        "minItems": 3,
        "maxItems": 3,
    },
    class_counts={"type": "array", "items": _count},
    mean=_levels,
    std=_levels,
    files={
        "type": "array",
        "items": _file_schema(r"^(train|val)-v[0-9]+-[0-9]+-of-[0-9]+-[0-9a-f]{8}\.[a-z]+$"),
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
    val_fraction={"type": "number", "minimum": 0, "maximum": 1},
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
    index=_file_schema(r"^index-[0-9a-f]{8}\.arrow$"),
    rejected=_file_schema(r"^rejected-[0-9a-f]{8}\.jsonl$"),
    versions={"type": "object", "additionalProperties": _text},
    energy={"type": ["object", "null"]},
    digest=_sha256,
)
