"""One shard of a cache: a plain function that reads a range of units and writes their images."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import operator
import os
import re
import shutil
import socket
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from joulecache.pipelines.building.config import BuildError, Recipe
from joulecache.pipelines.building.images import Draws, decoded, levels_of, make_pictures, working_bytes
from joulecache.pipelines.building.memory import MemoryBudget
from joulecache.pipelines.building.previous import OldShard, Previous, Reject
from joulecache.pipelines.cache.manifest import INDEX_SCHEMA, Manifest, write_index
from joulecache.pipelines.cache.shards import SPLITS, DataFile, Levels, Rows, ShardName, write_named, write_shard
from joulecache.pipelines.core.object_store import ObjectFolder, StoreError, is_remote
from joulecache.pipelines.source import Unit
from joulecache.transforms.chain import fixed_size, output_channels
from joulecache.transforms.randomness import key_hash
from joulecache.transforms.reference_kernels import read_header

WORK = ".building"  # what a running build keeps in the cache folder
UNITS = "units.arrow"
WORK_FILE = re.compile(r"\d{5,}\.(json|tmp)|index-\d{5,}\.arrow|energy\.(log|tmp)|units\.arrow|\.[0-9a-f]{32}\.tmp")
_DECODED = MemoryBudget()  # of this process, whose threads may be at work on several shards
_TASK_RECORDS = 16  # records a thread takes at once: enough to hide the cost of handing them out


@dataclass(frozen=True)
class ShardSpec:
    """One range of the hash of units, to be built into `folder`, which may be in an object store.

    `work` is the work folder in it; `launcher` the process whose meter is on, as `this_process` has it.
    """

    folder: str
    shard: int
    shards: int
    units: Sequence[Unit]
    classes: int
    recipe: Recipe
    workers: int
    previous: Previous | None = None
    rehash: bool = False
    launcher: str = ""
    work: str = WORK

    @property
    def digest(self) -> str:
        """SHA-256 of all that shapes the shard: two specs with one digest give the same bytes."""
        same = dataclasses.replace(self, units=tuple(self.units), folder="", workers=1, launcher="", work="")
        versions = [op.version for chain in (self.recipe.chain, self.recipe.val_chain) for op in chain.ops]
        return hashlib.sha256(repr((versions, same)).encode()).hexdigest()


@dataclass(frozen=True)
class ShardResult:
    """What a range became.

    `files` by split, in the order of the variants. `source_bytes` is what was read. `index` is the range's part of the index,
    an Arrow file in the work folder, `spec` the digest of the spec. `transformed` and `copied` count images, of every variant.
    `worker` is the process that built it, `metered` whether that was the launcher's own.
    """

    shard: int
    files: Mapping[str, tuple[DataFile, ...]]
    rejects: tuple[Reject, ...]
    source_bytes: int
    index: str
    spec: str
    transformed: int = 0
    copied: int = 0
    error: str | None = None
    worker: str = ""
    metered: bool = True


@dataclass(frozen=True)
class _Row:
    key: str
    hash: int
    label: int
    split: str
    slot: int
    source_bytes: int
    mtime_ns: int
    digest: bytes
    levels: list[Levels]  # of each variant
    old_row: int | None  # where the images before the new variants were copied from
    transformed: int


def build_shard(spec: ShardSpec) -> ShardResult:
    """Read and decode each unit of one range once, and write its shards for every split and variant.

    Of what the cache holds already the images of unchanged records are copied, and files that stay the same are left as they are.
    Needs no Beam. The result is also kept in the work folder of the cache. Raises OSError when the cache cannot be written.
    """
    with Workplace(spec) as place:
        return place.finish(transform_shard(place.spec))


@dataclass(frozen=True)
class TransformedShard:
    """A shard whose images lie in memory."""

    spec: ShardSpec
    rows: list[_Row]
    rejects: list[Reject]
    images: Mapping[str, list[Any]]
    old: OldShard | None


def transform_shard(spec: ShardSpec) -> TransformedShard:
    """Do the first half of `build_shard`: read, decode and transform, in threads."""
    slots: dict[str, tuple[str, int]] = {}
    counts = dict.fromkeys(SPLITS, 0)
    for unit in spec.units:
        for key in unit.record_keys():
            split = spec.recipe.split_of(key, unit.split)
            slots[key] = split, counts[split]
            counts[split] += 1
    images = {split: _new_images(spec.recipe, split, counts[split]) for split in SPLITS}
    old = OldShard(Path(spec.folder), spec.previous, spec.shard, spec.recipe.encoding) if spec.previous else None

    def task(units: Sequence[Unit]) -> tuple[list[_Row], list[Reject]]:
        return _transform(units, spec, slots, images, old)

    rows: list[_Row] = []
    rejects: list[Reject] = []
    with ThreadPoolExecutor(spec.workers) as pool:
        for done, refused in pool.map(task, _tasks(spec.units)):
            rows += done
            rejects += refused
    return TransformedShard(spec, rows, rejects, images, old)


def finish_shard(shard: TransformedShard) -> ShardResult:
    """Do the second half of `build_shard`: write the files, and keep the result."""
    spec, rows, images, old = shard.spec, shard.rows, shard.images, shard.old
    folder, work = Path(spec.folder), Path(spec.folder, WORK)
    files: dict[str, tuple[DataFile, ...]] = {}
    kept: list[tuple[_Row, int]] = []
    for split in SPLITS:
        in_split = sorted((row for row in rows if row.split == split), key=lambda row: row.slot)
        kept += [(row, position) for position, row in enumerate(in_split)]
        if in_split:
            there = old.files_of(split, [(row.key, row.label, row.old_row) for row in in_split]) if old else ()
            slots_kept = [row.slot for row in in_split]
            files[split] = tuple(
                there[variant]
                if variant < len(there)
                else write_shard(
                    folder,
                    ShardName(split, variant, spec.shard, spec.shards, "", spec.recipe.format),
                    Rows(
                        _choose(pixels, slots_kept),
                        np.array([row.label for row in in_split], np.int64),
                        [row.key for row in in_split],
                        np.array([row.hash for row in in_split], np.uint64),
                        functools.reduce(operator.add, (row.levels[variant] for row in in_split)),
                    ),
                )
                for variant, pixels in enumerate(images[split])
            )
    name = index_part(spec.shard)
    batch = _index_batch(kept, spec.shard)
    # Under a name of its own first: an engine may build a shard twice at once, when it takes the first worker for lost.
    write_named(work, lambda file: write_index(file, batch), lambda hashed: name)
    source_bytes = sum(row.source_bytes for row in rows)
    transformed = sum(row.transformed for row in rows)
    copied = sum(len(row.levels) for row in rows) - transformed
    result = ShardResult(
        spec.shard,
        files,
        tuple(shard.rejects),
        source_bytes,
        name,
        spec.digest,
        transformed,
        copied,
        worker=this_process(),
        metered=spec.launcher in ("", this_process()),
    )
    write_result(work, result)
    return result


class Workplace:
    """Where one shard is built: the cache's folder, or for a cache in an object store a folder of this machine, until it is finished.

    `spec` is the specification with that folder. It may be left by another thread than the one that entered it.
    """

    def __init__(self, spec: ShardSpec) -> None:
        """Fetch what the cache holds of the shard already, where it is in an object store. Raises StoreError."""
        self.spec, self._objects = spec, None
        if is_remote(spec.folder):
            self._objects, self._work = ObjectFolder(spec.folder), spec.work
            self._scratch = tempfile.TemporaryDirectory(prefix="joulecache-")
            folder = Path(self._scratch.name)
            (folder / WORK).mkdir()
            self.spec = dataclasses.replace(spec, folder=str(folder), work=WORK)
            if spec.previous:
                self._fetch(spec.previous.manifest, folder)

    def __enter__(self) -> Workplace:
        return self

    def __exit__(self, *of: object) -> None:
        self.leave()

    def finish(self, shard: TransformedShard) -> ShardResult:
        """Do the second half of `build_shard`; in an object store the result is written last."""
        result = finish_shard(shard)
        if self._objects:
            known = self.spec.previous.manifest.files() if self.spec.previous else ()
            fresh = {file.name for files in result.files.values() for file in files} - {file.name for file in known}
            for name in sorted(fresh):
                self._objects.write(name, Path(self.spec.folder, name))
            self._keep(result.index, result_name(result.shard))
        return result

    def fail(self, reason: str) -> None:
        """Keep that the shard could not be written. Raises OSError when not even that can be."""
        work = Path(self.spec.folder, WORK)
        write_result(work, ShardResult(self.spec.shard, {}, (), 0, "", self.spec.digest, error=reason))
        if self._objects:
            self._keep(result_name(self.spec.shard))

    def leave(self) -> None:
        """Delete what is only here."""
        if self._objects:
            self._scratch.cleanup()

    def _keep(self, *names: str) -> None:
        assert self._objects is not None
        for name in names:
            self._objects.write(f"{self._work}/{name}", Path(self.spec.folder, WORK, name))

    def _fetch(self, manifest: Manifest, folder: Path) -> None:
        assert self._objects is not None
        for split in manifest.splits.values():
            for file in split.files:
                self._objects.fetch(file.name, folder / file.name)
        index = manifest.index.name
        (folder / index).symlink_to(_fetched_index(self._objects, index).path)


class _FetchedIndex:
    """The index of a whole cache in an object store, in a folder that goes with it."""

    def __init__(self, objects: ObjectFolder, name: str) -> None:
        folder = tempfile.mkdtemp(prefix="joulecache-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.path = Path(folder, name)
        objects.fetch(name, self.path)


_fetched_index = functools.lru_cache(maxsize=1)(_FetchedIndex)  # once for all shards of this process


def _tasks(units: Sequence[Unit]) -> Iterator[list[Unit]]:
    task: list[Unit] = []
    for unit in units:
        task.append(unit)
        if sum(unit.count for unit in task) >= _TASK_RECORDS:
            yield task
            task = []
    if task:
        yield task


def _new_images(recipe: Recipe, split: str, count: int) -> list[Any]:
    """Make room for a split's images: one array (raw) or list (encoded) per variant."""
    chain, variants = recipe.of(split)
    if recipe.encoding != "raw":
        return [[b""] * count for _ in range(variants)]
    size = fixed_size(chain.prefix)
    assert size is not None
    return [np.empty((count, *size, output_channels(chain.prefix)), np.uint8) for _ in range(variants)]


def _transform(
    units: Sequence[Unit],
    spec: ShardSpec,
    slots: Mapping[str, tuple[str, int]],
    images: Mapping[str, list[Any]],
    old: OldShard | None,
) -> tuple[list[_Row], list[Reject]]:
    rows: list[_Row] = []
    rejects: list[Reject] = []
    draws = Draws([(key, slots[key][0]) for unit in units for key in unit.record_keys()], spec.recipe)
    for unit in units:
        if old and not spec.rehash and (known := old.unread(unit, spec.recipe)) is not None:
            kept, refused = known
            rejects += refused
            for row in kept:
                split, slot = slots[row.key]
                levels = _copy(old, split, row.row, images[split], slot, spec.recipe)
                rows.append(
                    _Row(
                        row.key,
                        row.hash,
                        row.label,
                        split,
                        slot,
                        row.size,
                        row.mtime_ns,
                        row.digest,
                        levels,
                        row.row,
                        0,
                    )
                )
            continue
        waiting = dict.fromkeys(unit.record_keys())
        try:
            for record in unit.read():
                del waiting[record.key]
                split, slot = slots[record.key]
                digest = hashlib.sha256(record.data).digest()[:16]
                before = old.same(record.key, split, digest) if old else None
                try:
                    if record.problem:
                        raise ValueError(record.problem)
                    if not 0 <= record.label < spec.classes:
                        raise ValueError(f"label {record.label} is none of the {spec.classes} classes")
                    levels = []
                    if old and before is not None:
                        levels = _copy(old, split, before, images[split], slot, spec.recipe)
                    words = draws.of(record.key, split)[len(levels) :]
                    if words:
                        decode = spec.recipe.of(split)[0].decode
                        header = read_header(decode, record.data)
                        with _DECODED.hold(working_bytes(header, decode.channels)):
                            pictures, new_levels = make_pictures(header, words, spec.recipe, split)
                        for variant, picture in enumerate(pictures, len(levels)):
                            images[split][variant][slot] = picture
                        levels += new_levels
                except ValueError as error:  # a broken image, or one that an op cannot take
                    rejects.append(Reject(record.key, str(error), len(record.data), record.mtime_ns))
                    continue
                hashed, size = key_hash(record.key), len(record.data)
                rows.append(
                    _Row(
                        record.key,
                        hashed,
                        record.label,
                        split,
                        slot,
                        size,
                        record.mtime_ns,
                        digest,
                        levels,
                        before,
                        len(words),
                    )
                )
        except StoreError:  # it may answer the next time: this is about no record
            raise
        except (OSError, pa.ArrowInvalid) as error:
            reason = f"cannot be read: {error}".splitlines()[0]
            rejects += [Reject(key, reason) for key in waiting]
    return rows, rejects


def _copy(old: OldShard, split: str, row: int, images: list[Any], slot: int, recipe: Recipe) -> list[Levels]:
    """Copy the images that the cache holds of a record, of as many variants as are wanted; return their levels."""
    _, variants = recipe.of(split)
    levels = []
    for variant, picture in enumerate(old.pictures(split, row)[:variants]):
        images[variant][slot] = picture
        pixels = picture if isinstance(picture, np.ndarray) else decoded(picture, old.channels(split))
        levels.append(levels_of(pixels))
    return levels


def _choose(images: Any, slots: list[int]) -> Any:
    if len(slots) == len(images):
        return images
    return images[slots] if isinstance(images, np.ndarray) else [images[slot] for slot in slots]


def _index_batch(rows: Sequence[tuple[_Row, int]], shard: int) -> Any:
    columns = {
        "key": [row.key for row, _ in rows],
        "key_hash": [row.hash for row, _ in rows],
        "label": [row.label for row, _ in rows],
        "split": [SPLITS.index(row.split) for row, _ in rows],
        "source_bytes": [row.source_bytes for row, _ in rows],
        "mtime_ns": [row.mtime_ns for row, _ in rows],
        "digest": [row.digest for row, _ in rows],
        "shard": [shard] * len(rows),
        "row": [position for _, position in rows],
    }
    return pa.RecordBatch.from_pydict(columns, INDEX_SCHEMA)


def index_part(shard: int) -> str:
    """Return the name of a shard's part of the index in the work folder."""
    return f"index-{shard:05d}.arrow"


def result_name(shard: int) -> str:
    """Return the name of a shard's result in the work folder."""
    return f"{shard:05d}.json"


def write_result(work: Path, result: ShardResult) -> None:
    """Keep a shard's result in the work folder."""
    body = json.dumps(dataclasses.asdict(result)).encode()
    write_named(work, lambda file: _write(file, body), lambda hashed: result_name(result.shard))


def _write(file: BinaryIO, body: bytes) -> None:
    file.write(body)


def this_process() -> str:
    """Return a name of this process that no other one has, on any host of a cluster."""
    return f"{socket.gethostname()}:{os.getpid()}"


def read_result(work: Path, shard: int) -> ShardResult:
    """Read a shard's result from the work folder; BuildError when there is none."""
    try:
        body = json.loads((work / result_name(shard)).read_text())
    except OSError as error:
        raise BuildError(f"shard {shard} left no result: its worker ended early, run the command again") from error
    body["files"] = {split: tuple(map(DataFile.from_json, files)) for split, files in body["files"].items()}
    body["rejects"] = tuple(Reject(**reject) for reject in body["rejects"])
    return ShardResult(**body)
