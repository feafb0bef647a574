"""The manifest: the one file that says what a cache is. Written last and whole; nothing that it does not list is read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from joulecache.pipelines.cache.manifest_schema import FORMAT_VERSION as FORMAT_VERSION
from joulecache.pipelines.cache.manifest_schema import structural_problem
from joulecache.pipelines.cache.shards import (
    SPLITS,
    DataFile,
    Encoding,
    Format,
    image_layout,
    parse_shard_name,
    sync_folder,
)
from joulecache.pipelines.cache.shards import CacheError as CacheError
from joulecache.pipelines.core.notebook import Displayed
from joulecache.pipelines.core.object_store import ObjectFolder, StoredObject, StoreError, is_remote, open_binary
from joulecache.transforms.chain import Chain, UnknownOpError, fixed_size, output_channels, parse
from joulecache.transforms.ops import Op

MANIFEST = "manifest.json"
_LARGEST_MANIFEST = 1 << 30
_LONGEST_MESSAGE = 500  # of what a hostile manifest can make long

INDEX_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("key_hash", pa.uint64(), nullable=False),
        pa.field("label", pa.int64(), nullable=False),
        pa.field("split", pa.int8(), nullable=False),  # 0 train, 1 val, 2 test
        pa.field("source_bytes", pa.int64(), nullable=False),
        pa.field("mtime_ns", pa.int64(), nullable=False),
        pa.field("digest", pa.binary(16), nullable=False),  # the first half of the SHA-256 of the encoded source image
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
    ]
)
"""One row per cached record, ordered by split, shard and row: the order of a split's files, of every variant."""


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
class Manifest(Displayed):
    """What a cache holds.

    `shards` is the number of ranges of the partition, `val_fraction` None where the source said what is held out, `energy` that of all
    builds that went into it, with the passport of the last.
    """

    chain: str
    seed: int
    variants: int
    format: Format
    encoding: Encoding
    quality: int | None
    val_fraction: float | None
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

    def first_row(self, name: str) -> int:
        """Return where the rows of a split begin in the index."""
        return sum(self.splits[before].records for before in SPLITS[: SPLITS.index(name)])

    def files(self) -> tuple[DataFile, ...]:
        """Return every data file that belongs to the cache."""
        listed = [file for split in self.splits.values() for file in split.files]
        return (*listed, self.index, self.rejected)

    def parsed_chain(self, split: str = "train", ops: Mapping[str, type[Op]] | None = None) -> Chain:
        """Return the chain of a split; `ops` are the ops of your own that it names.

        Raises CacheError for an op that is not given, or is of another version than the one that built the cache.
        """
        found = self.split(split)
        try:
            chain = parse(found.chain, ops)
            _check_chain(self, split, found, chain)
        except UnknownOpError as error:
            raise CacheError(
                f"{error}; the cache was built with an op of somebody's own: give it as `ops`, or by --ops"
            ) from error
        except ValueError as error:
            raise CacheError(str(error)) from error
        return chain


def write_stored_manifest(objects: ObjectFolder, manifest: Manifest, before: StoredObject | None) -> None:
    """Commit a manifest to an object store, by one write, if the one there is still that of `before`, None: there is none.

    Raises ConflictError where it is not, StoreError.
    """
    objects.write_if(MANIFEST, _spell(manifest), before)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Commit a manifest: temporary file, fsync, rename, fsync of the folder. Readers see the old one or the new one."""
    temporary = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(_spell(manifest))
            file.flush()
            os.fsync(file.fileno())
        sync_folder(folder)  # the data files' names first
        temporary.rename(folder / MANIFEST)
        sync_folder(folder)
    finally:
        temporary.unlink(missing_ok=True)


def open_manifest(cache: str | os.PathLike[str]) -> Manifest:
    """Read the manifest of a cache, a folder or one in an object store, and check it and its files.

    Nothing in it is trusted: structure, digest, file names, sizes on disk and the place of the images are checked before it
    is returned. Raises CacheError.
    """
    if is_remote(cache):
        with _store_as_cache():
            objects = ObjectFolder(os.fspath(cache))
            return read_stored_manifest(objects, {stored.name: stored for stored in objects.list()})[0]
    folder = Path(cache)
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read a manifest and check it in itself; the files that it names may be missing or damaged. Raises CacheError."""
    path = folder / MANIFEST
    try:
        if not path.is_file():
            raise CacheError(_no_cache(folder))
        if path.stat().st_size > _LARGEST_MANIFEST:
            raise CacheError(f"{path} has {path.stat().st_size} bytes: more than any manifest of ours")
        data = path.read_bytes()
    except OSError as error:
        raise CacheError(f"cannot read {str(path)!r}: {error.strerror}") from error
    return parse_manifest(data, path)


def find_manifest(folder: Path) -> Manifest | None:
    """Read the manifest of a folder as `read_manifest` does; return None if it has none."""
    return read_manifest(folder) if (folder / MANIFEST).exists() else None


def read_stored_manifest(
    objects: ObjectFolder, there: Mapping[str, StoredObject], *, damaged: bool = False
) -> tuple[Manifest, StoredObject]:
    """Read the manifest of a cache in an object store, and which version of it that is; `there` are the objects, by name.

    They are checked against it, unless they may be `damaged`. Raises CacheError, StoreError.
    """
    try:
        data, version = objects.read(MANIFEST)
    except FileNotFoundError as error:
        raise CacheError(_no_cache(objects.url)) from error
    manifest = parse_manifest(data, f"{objects.url}/{MANIFEST}")
    wrong = next(
        (file for file in manifest.files() if file.name not in there or there[file.name].size_bytes != file.bytes), None
    )
    if wrong and not damaged:
        found = there[wrong.name].size_bytes if wrong.name in there else "no"
        raise CacheError(
            f"{objects.url}/{wrong.name} has {found} bytes, the manifest says {wrong.bytes}: restore it or build the cache again"
        )
    return manifest, version


def _no_cache(where: object) -> str:
    return f"no cache at {str(where)!r}: it has no {MANIFEST}; make one with `joulecache precompute`"


@contextmanager
def _store_as_cache() -> Iterator[None]:
    """Raise what an object store fails with as a CacheError."""
    try:
        yield
    except StoreError as error:
        raise CacheError(str(error)) from error


def parse_manifest(data: bytes, path: object) -> Manifest:
    """Read a manifest from the bytes of the file at `path`, and check it in itself. Raises CacheError."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CacheError(f"{path} is not readable as JSON ({error}): make the cache anew in another folder") from error
    if not isinstance(body, dict):
        raise CacheError(f"{path} is not a manifest: it holds a {type(body).__name__}, not an object")
    version = body.get("format_version")
    if version != FORMAT_VERSION:
        raise CacheError(
            f"{path} has format version {version!r}, this joulecache reads {FORMAT_VERSION}: upgrade it, or make the "
            f"cache anew in another folder"
        )
    problem = structural_problem(body)
    if problem:
        raise CacheError(f"{path}: {problem}")
    try:
        if body.pop("digest") != _digest(body):
            raise ValueError(
                "it does not match its own digest: it was edited or damaged, make the cache anew elsewhere"
            )
        del body["format_version"]
        manifest = _from_json(body)
        _check(manifest)
    except (ValueError, OverflowError) as error:
        raise CacheError(f"{path}: {str(error)[:_LONGEST_MESSAGE]}") from error
    return manifest


def check_files(folder: Path, manifest: Manifest) -> None:
    """Raise CacheError unless every file that a manifest names is there, in its size."""
    for file in manifest.files():
        path = folder / file.name
        try:
            found = path.stat()
        except OSError as error:
            raise CacheError(
                f"{path} cannot be read ({error.strerror}): restore it or build the cache again"
            ) from error
        if found.st_size != file.bytes or not stat.S_ISREG(found.st_mode):
            raise CacheError(
                f"{path} has {found.st_size} bytes, the manifest says {file.bytes}: it was cut or changed, build the "
                f"cache again"
            )


def read_index(folder: Path, manifest: Manifest) -> Any:
    """Map the index of a cache as a pyarrow RecordBatch of `INDEX_SCHEMA`. Raises CacheError.

    Numbers can be read from it at once; keys and digests only after ``validate(full=True)``, which reads it all: in a
    damaged file their offsets may point anywhere.
    """
    path = folder / manifest.index.name
    try:
        with pa.ipc.open_file(pa.memory_map(str(path))) as reader:
            if reader.schema != INDEX_SCHEMA or reader.num_record_batches != 1:
                raise CacheError(f"{path} is not an index of ours: build the cache again")
            batch = reader.get_batch(0)
        batch.validate()
    except (pa.ArrowException, OSError) as error:
        raise CacheError(f"cannot read {path}: {error}") from error
    if batch.num_rows != sum(split.records for split in manifest.splits.values()):
        raise CacheError(f"{path} has {batch.num_rows} rows, not those of the splits: build the cache again")
    return batch


def write_index(file: BinaryIO, batch: Any) -> None:
    """Write index rows of `INDEX_SCHEMA` as one uncompressed Arrow batch."""
    with pa.ipc.new_file(file, INDEX_SCHEMA) as writer:
        writer.write_batch(batch)


def find_problems(cache: str | os.PathLike[str]) -> list[str]:
    """Check every byte of a cache against its manifest; return one line per problem, none when it is whole.

    One in an object store is read from there. Raises CacheError when the manifest itself cannot be trusted.
    """
    where = os.fspath(cache).rstrip("/")
    manifest = open_manifest(where)
    problems = []
    with _store_as_cache(), open_binary(f"{where}/{MANIFEST}") as stream:
        if stream.read() != _spell(manifest):
            problems.append(f"{MANIFEST}: says what it said, in other bytes")
    for file in manifest.files():
        try:
            digest = _digest_of(where, file.name)
        except OSError as error:
            problems.append(f"{file.name}: {error.strerror or error}")
            continue
        if digest != file.sha256:
            problems.append(f"{file.name}: its bytes changed (SHA-256 {digest[:8]}, expected {file.sha256[:8]})")
    if not problems and not is_remote(where):
        read_index(Path(where), manifest)
    return problems


def _digest_of(folder: str, name: str) -> str:
    if not is_remote(folder):
        with open(Path(folder, name), "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    digest = hashlib.sha256()
    for chunk in ObjectFolder(folder).chunks(name):
        digest.update(chunk)
    return digest.hexdigest()


def _spell(manifest: Manifest) -> bytes:
    """Return the manifest as it stands in its file, digest included; ValueError for a number that JSON does not have."""
    body: dict[str, Any] = {"format_version": FORMAT_VERSION, **dataclasses.asdict(manifest)}
    body["digest"] = _digest(body)
    return json.dumps(body, indent=1).encode()


def _digest(body: Mapping[str, Any]) -> str:
    spelled = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(spelled.encode()).hexdigest()


def _variant(file: DataFile) -> int:
    name = parse_shard_name(file.name)
    assert name is not None
    return name.variant


def _from_json(body: dict[str, Any]) -> Manifest:
    splits = {
        name: Split(
            **{
                **split,
                "image_shape": tuple(split["image_shape"]),
                "class_counts": tuple(split["class_counts"]),
                "mean": tuple(split["mean"]),
                "std": tuple(split["std"]),
                "files": tuple(DataFile.from_json(file) for file in split["files"]),
            }
        )
        for name, split in body["splits"].items()
    }
    return Manifest(
        **{
            **body,
            "class_names": tuple(body["class_names"]),
            "splits": splits,
            "index": DataFile.from_json(body["index"]),
            "rejected": DataFile.from_json(body["rejected"]),
        }
    )


def _check(manifest: Manifest) -> None:
    """Check that the parts agree with each other; ValueError says where they do not."""
    files = manifest.files()
    if len({file.name for file in files}) != len(files):
        raise ValueError("a file is listed twice")
    for file in files:
        if not file.name.rpartition(".")[0].endswith(f"-{file.sha256[:8]}"):
            raise ValueError(f"{file.name} does not carry its SHA-256 {file.sha256[:8]}")
    train, *others = (manifest.splits[name] for name in SPLITS)
    if (manifest.chain, manifest.variants, {1}) != (train.chain, train.variants, {split.variants for split in others}):
        raise ValueError("chain and variants are not those of its splits")
    for name, split in manifest.splits.items():
        # An op of somebody's own need not be at hand to look at a cache. What keeps reading safe does not depend on the chain.
        with suppress(UnknownOpError):
            _check_chain(manifest, name, split, parse(split.chain))
        if len(split.class_counts) != len(manifest.class_names) or sum(split.class_counts) != split.records:
            raise ValueError(f"the class counts of {name} do not add up to its {split.records} records")
        channels = split.image_shape[2]
        if {len(split.mean), len(split.std)} != {channels if split.records else 0}:
            raise ValueError(f"mean and std of {name} are not of {channels} channels")
        _check_files(manifest, name, split)


def _check_chain(manifest: Manifest, split_name: str, split: Split, chain: Chain) -> None:
    if chain.fingerprint != split.fingerprint:
        raise ValueError(f"the fingerprint of {split_name} is not that of its chain {split.chain!r}")
    made = (*(fixed_size(chain.prefix) or (None, None)), output_channels(chain.prefix))
    if manifest.encoding == "raw" and split.image_shape != made:
        raise ValueError(
            f"the raw images of {split_name} are {split.image_shape}, its chain {split.chain!r} makes {made}"
        )


def _check_files(manifest: Manifest, split_name: str, split: Split) -> None:
    places: list[list[tuple[int, int]]] = [[] for _ in range(split.variants)]
    last = (-1, -1)
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
        if (name.variant, name.shard) <= last:
            raise ValueError(f"the files of {split_name} are out of order")
        last = name.variant, name.shard
        places[name.variant].append((name.shard, file.records))
        if manifest.encoding == "raw":
            height, width, channels = split.image_shape
            if height is None or width is None:
                raise ValueError(f"the raw images of {split_name} have no size")
            image_layout(file, (height, width, channels))
    if any(other != places[0] for other in places) or sum(records for _, records in places[0]) != split.records:
        raise ValueError(f"the files of {split_name} do not hold its {split.records} records in every variant")
