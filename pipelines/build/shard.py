"""One shard of a cache: a plain function that reads a range of units and writes their images."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from joulecache.pipelines.build.recipe import BuildError, Recipe
from joulecache.pipelines.manifest import INDEX_SCHEMA, write_index
from joulecache.pipelines.shards import SPLITS, DataFile, Levels, Rows, ShardName, write_shard
from joulecache.pipelines.source import Record, Unit
from joulecache.transforms import reference_kernels
from joulecache.transforms.chain import fixed_size, output_channels, output_size
from joulecache.transforms.ops import Decode, Op
from joulecache.transforms.randomness import key_hash, random_words

WORK = ".building"  # what a running build keeps in the cache folder
WORK_FILE = re.compile(r"\d{5,}\.(json|tmp)|index-\d{5,}\.arrow|energy\.jsonl")
_TASK_RECORDS = 16  # records a thread takes at once: enough to hide the cost of handing them out
_DRAWN_AT_ONCE = 256  # draws that are made in one go: enough to hide the cost of a go


@dataclass(frozen=True)
class ShardSpec:
    """One range of the hash of units, to be built into `folder`."""

    folder: str
    shard: int
    shards: int
    units: tuple[Unit, ...]
    classes: int
    recipe: Recipe
    workers: int

    @property
    def digest(self) -> str:
        """SHA-256 of all that shapes the shard: two specs with one digest give the same bytes."""
        versions = [op.version for chain in (self.recipe.chain, self.recipe.val_chain) for op in chain.ops]
        return hashlib.sha256(repr((versions, dataclasses.replace(self, folder="", workers=1))).encode()).hexdigest()


@dataclass(frozen=True)
class Reject:
    """A record that is not in the cache, and why."""

    key: str
    reason: str
    source_bytes: int | None = None
    mtime_ns: int | None = None


@dataclass(frozen=True)
class ShardResult:
    """What a range became.

    `files` by split, in the order of the variants. `source_bytes` is what was read. `index` is the range's part of the index,
    an Arrow file in the work folder, `spec` the digest of the spec.
    """

    shard: int
    files: Mapping[str, tuple[DataFile, ...]]
    rejects: tuple[Reject, ...]
    source_bytes: int
    index: str
    spec: str
    error: str | None = None


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
    levels: tuple[Levels, ...]  # of each variant


def build_shard(spec: ShardSpec) -> ShardResult:
    """Read and decode each unit of one range once, and write its shards for every split and variant.

    Needs no Beam. The result is also kept in the work folder of the cache. Raises OSError when the cache cannot be written.
    """
    folder, work = Path(spec.folder), Path(spec.folder, WORK)
    slots: dict[str, tuple[str, int]] = {}
    counts = dict.fromkeys(SPLITS, 0)
    for unit in spec.units:
        for key in unit.record_keys():
            split = spec.recipe.split_of(key)
            slots[key] = split, counts[split]
            counts[split] += 1
    images = {split: _new_images(spec.recipe, split, counts[split]) for split in SPLITS}

    def task(units: Sequence[Unit]) -> tuple[list[_Row], list[Reject]]:
        return _transform(units, spec, slots, images)

    rows: list[_Row] = []
    rejects: list[Reject] = []
    with ThreadPoolExecutor(spec.workers) as pool:
        for done, refused in pool.map(task, _tasks(spec.units)):
            rows += done
            rejects += refused
    files: dict[str, tuple[DataFile, ...]] = {}
    kept: list[tuple[_Row, int]] = []
    for split in SPLITS:
        in_split = sorted((row for row in rows if row.split == split), key=lambda row: row.slot)
        kept += [(row, position) for position, row in enumerate(in_split)]
        if in_split:
            slots_kept = [row.slot for row in in_split]
            files[split] = tuple(
                write_shard(
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
    with open(work / name, "wb") as file:
        write_index(file, _index_batch(kept, spec.shard))
    source_bytes = sum(row.source_bytes for row in rows)
    result = ShardResult(spec.shard, files, tuple(rejects), source_bytes, name, spec.digest)
    write_result(work, result)
    return result


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
) -> tuple[list[_Row], list[Reject]]:
    rows, rejects = [], []
    draws = _Draws([key for unit in units for key in unit.record_keys()], spec.recipe)
    for unit in units:
        waiting = dict.fromkeys(unit.record_keys())
        try:
            for record in unit.read():
                del waiting[record.key]
                split, slot = slots[record.key]
                try:
                    if not 0 <= record.label < spec.classes:
                        raise ValueError(f"label {record.label} is none of the {spec.classes} classes")
                    pictures, levels = _variants(record, draws.of(record.key, split), spec.recipe, split)
                except ValueError as error:  # a broken image, or one that an op cannot take
                    rejects.append(Reject(record.key, str(error), len(record.data), record.mtime_ns))
                    continue
                for variant, picture in enumerate(pictures):
                    images[split][variant][slot] = picture
                digest = hashlib.sha256(record.data).digest()[:16]
                size = len(record.data)
                rows.append(
                    _Row(
                        record.key,
                        key_hash(record.key),
                        record.label,
                        split,
                        slot,
                        size,
                        record.mtime_ns,
                        digest,
                        levels,
                    )
                )
        except (OSError, pa.ArrowInvalid) as error:
            reason = f"cannot be read: {error}".splitlines()[0]
            rejects += [Reject(key, reason) for key in waiting]
    return rows, rejects


class _Draws:
    """The random words of records, drawn for many records at once, in the order in which they are asked for."""

    def __init__(self, keys: Sequence[str], recipe: Recipe) -> None:
        self._keys, self._recipe = keys, recipe
        self._places = {key: place for place, key in enumerate(keys)}
        self._drawn: dict[str, list[list[int]]] = {}

    def of(self, key: str, split: str) -> list[list[int]]:
        """Return the words of a record's random ops, one list per variant."""
        if key not in self._drawn:
            chain, variants = self._recipe.of(split)
            place, records = self._places[key], max(1, _DRAWN_AT_ONCE // variants)
            keys = [other for other in self._keys[place : place + records] if self._recipe.split_of(other) == split]
            _, tail = _head_and_tail(chain.prefix)
            hashes = np.array([key_hash(other) for other in keys], np.uint64)
            words = random_words(
                tail,
                len(chain.prefix) - len(tail),
                self._recipe.seed,
                np.repeat(hashes, variants),
                np.tile(np.arange(variants), len(keys)),
            )
            for number, other in enumerate(keys):
                self._drawn[other] = words[number * variants : (number + 1) * variants]
        return self._drawn.pop(key)


def _head_and_tail(prefix: tuple[Op, ...]) -> tuple[tuple[Op, ...], tuple[Op, ...]]:
    """Cut the cached ops at the first that draws: what precedes it is the same in every variant."""
    steady = next((i for i, op in enumerate(prefix) if op.words), len(prefix))
    return prefix[:steady], prefix[steady:]


def _variants(
    record: Record, words: list[list[int]], recipe: Recipe, split: str
) -> tuple[list[Any], tuple[Levels, ...]]:
    """Return the record's cached images, one per variant, and their levels: what precedes the first random op is computed once."""
    chain, _ = recipe.of(split)
    head, tail = _head_and_tail(chain.prefix)
    base = reference_kernels.run(head, record.data, [])
    finished = [reference_kernels.apply(tail, base, drawn) for drawn in words]
    output_size(chain.suffix, *finished[0].shape[:2])  # reject here what the loader could not take
    if recipe.encoding == "raw":
        return finished, tuple(map(levels_of, finished))
    encoded = [_encode(pixels, recipe) for pixels in finished]
    if recipe.encoding == "jpeg":  # what was lost shows only when it is decoded
        decode = Decode(channels=finished[0].shape[2])
        finished = [reference_kernels.as_array(reference_kernels.decode(decode, data)) for data in encoded]
    return encoded, tuple(map(levels_of, finished))


def levels_of(image: NDArray[np.uint8]) -> Levels:
    """Return the exact sums over one image ``[H, W, C]``.

    In float32, where whole numbers below 2**24 are exact: 256 squares of levels stay below it. Twice as fast as integers.
    """
    height, width, channels = image.shape
    sums, squares = np.zeros(channels), np.zeros(channels)
    for top in range(0, height, 256):
        strip = image[top : top + 256].reshape(-1, width * channels).astype(np.float32)
        sums += strip.sum(axis=0).reshape(width, channels).sum(axis=0, dtype=np.float64)
        squares += np.einsum("ij,ij->j", strip, strip).reshape(width, channels).sum(axis=0, dtype=np.float64)
    return Levels(height * width, tuple(map(int, sums)), tuple(map(int, squares)))


def _encode(pixels: NDArray[np.uint8], recipe: Recipe) -> bytes:
    stream = io.BytesIO()
    image = reference_kernels.as_image(np.ascontiguousarray(pixels))
    try:
        if recipe.encoding == "jpeg":
            image.save(stream, "JPEG", quality=recipe.quality)
        else:
            image.save(stream, "PNG")
    except OSError as error:  # such as a side that JPEG cannot hold
        height, width = pixels.shape[:2]
        raise ValueError(f"its {height}x{width} pixels cannot be saved as {recipe.encoding}: {error}") from error
    return stream.getvalue()


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


def write_result(work: Path, result: ShardResult) -> None:
    """Keep a shard's result in the work folder."""
    temporary = work / f"{result.shard:05d}.tmp"
    temporary.write_text(json.dumps(dataclasses.asdict(result)))
    temporary.rename(work / f"{result.shard:05d}.json")


def read_result(work: Path, shard: int) -> ShardResult:
    """Read a shard's result from the work folder; BuildError when there is none."""
    try:
        body = json.loads((work / f"{shard:05d}.json").read_text())
    except OSError as error:
        raise BuildError(f"shard {shard} left no result: its worker ended early, run the command again") from error
    body["files"] = {split: tuple(map(DataFile.from_json, files)) for split, files in body["files"].items()}
    body["rejects"] = tuple(Reject(**reject) for reject in body["rejects"])
    return ShardResult(**body)
