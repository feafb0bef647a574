"""Shards: immutable files of records, written once and named by their content; one adapter per format.

Both formats keep raw images at ``image_offset + row * image_stride`` in the file, so that one NumPy view maps either.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from joulecache.pipelines.core import tfrecord

Format = Literal["arrow", "tfrecord"]
FORMATS: tuple[Format, ...] = ("arrow", "tfrecord")
Encoding = Literal["raw", "jpeg", "png"]
ENCODINGS: tuple[Encoding, ...] = ("raw", "jpeg", "png")
SPLITS = ("train", "val", "test")

PAGE = 4096
_PAD_LENGTH = 128  # bytes; from here to 16383 a protobuf length takes two bytes, so padding does not move anything
_HASH_DIGITS = 8
_HASHED_BYTES = 1 << 18  # written and hashed in turn, while they lie in the processor's cache: a tenth cheaper
_BUFFER_BYTES = 1 << 16  # of small writes; larger ones go straight through

_SHARD_NAME = re.compile(
    r"(?P<split>train|val|test)-v(?P<variant>\d{1,6})-(?P<shard>\d{5,8})-of-(?P<shards>\d{5,8})-(?P<hash>[0-9a-f]{8})"
    r"\.(?P<format>arrow|tfrecord)"
)
_OTHER_NAME = re.compile(r"(index-[0-9a-f]{8}\.arrow|rejected-[0-9a-f]{8}\.jsonl)")


class CacheError(ValueError):
    """A cache that cannot be read or written; the message says what was got, what is allowed and what to do."""


@dataclass(frozen=True)
class ShardName:
    """The name of a shard file: ``train-v0-00003-of-00016-1a2b3c4d.arrow``."""

    split: str
    variant: int
    shard: int
    shards: int
    hash: str
    format: Format

    def __str__(self) -> str:
        return f"{self.split}-v{self.variant}-{self.shard:05d}-of-{self.shards:05d}-{self.hash}.{self.format}"


def parse_shard_name(name: str) -> ShardName | None:
    """Read a shard file's name; None when it is none of ours."""
    match = _SHARD_NAME.fullmatch(name)
    if not match:
        return None
    parts = match.groupdict()
    kind: Format = "arrow" if parts["format"] == "arrow" else "tfrecord"
    parsed = ShardName(
        parts["split"], int(parts["variant"]), int(parts["shard"]), int(parts["shards"]), parts["hash"], kind
    )
    return parsed if str(parsed) == name else None


def is_data_file(name: str) -> bool:
    """Say whether a file name is one that a build gives to its data: only such files are ever deleted."""
    return parse_shard_name(name) is not None or _OTHER_NAME.fullmatch(name) is not None


@dataclass(frozen=True)
class Levels:
    """Exact sums over the levels of a file's images, from which mean and deviation of any set of files follow.

    `pixels` counts pixels, `sums` and `squares` add up the levels, and their squares, of each channel.
    """

    pixels: int
    sums: tuple[int, ...]
    squares: tuple[int, ...]

    def __add__(self, other: Levels) -> Levels:
        return Levels(
            self.pixels + other.pixels,
            tuple(map(sum, zip(self.sums, other.sums, strict=True))),
            tuple(map(sum, zip(self.squares, other.squares, strict=True))),
        )


@dataclass(frozen=True)
class DataFile:
    """A file of a cache as the manifest lists it. Offset and stride are None where images are encoded, `levels` without images."""

    name: str
    records: int
    bytes: int
    sha256: str
    image_offset: int | None = None
    image_stride: int | None = None
    levels: Levels | None = None

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> DataFile:
        """Return the file that `dataclasses.asdict` spelled."""
        levels = body["levels"]
        if levels is not None:
            levels = Levels(levels["pixels"], tuple(levels["sums"]), tuple(levels["squares"]))
        return cls(**{**body, "levels": levels})


@dataclass(frozen=True)
class Rows:
    """The records of one shard file: `images` is uint8 ``[N, H, W, C]``, or N encoded images; `levels` are theirs."""

    images: NDArray[np.uint8] | Sequence[bytes]
    labels: NDArray[np.int64]
    keys: Sequence[str]
    key_hashes: NDArray[np.uint64]
    levels: Levels

    def __len__(self) -> int:
        return len(self.keys)


def write_shard(folder: Path, name: ShardName, rows: Rows) -> DataFile:
    """Write one shard durably and return its entry; `name.hash` is replaced by that of the content."""
    layout: list[tuple[int, int] | None] = [None]

    def write(file: BinaryIO) -> None:
        layout[0] = _WRITERS[name.format](file, rows)

    def final(digest: str) -> str:
        return str(ShardName(name.split, name.variant, name.shard, name.shards, digest, name.format))

    size, digest, file_name = write_named(folder, write, final)
    offset, stride = layout[0] or (None, None)
    return DataFile(file_name, len(rows), size, digest, offset, stride, rows.levels)


def write_named(folder: Path, write: Callable[[BinaryIO], None], name: Callable[[str], str]) -> tuple[int, str, str]:
    """Write a file under a temporary name, make it durable and move it to the name its content gives it.

    `name` gets the first 8 hex digits of the SHA-256. Returns (bytes, SHA-256, name). A failure leaves nothing behind.
    """
    temporary = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "xb", buffering=0) as raw:
            hashing = _HashingFile(raw)
            file = io.BufferedWriter(hashing, _BUFFER_BYTES)
            write(file)
            file.flush()
            os.fsync(raw.fileno())
            size, digest = hashing.size, hashing.hash.hexdigest()
        file_name = name(digest[:_HASH_DIGITS])
        temporary.rename(folder / file_name)
        return size, digest, file_name
    finally:
        temporary.unlink(missing_ok=True)


class _HashingFile(io.RawIOBase):
    """A file that is hashed while it is written: to read it again would cost as much as the hash."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.hash = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        before = self.size
        for start in range(0, len(view), _HASHED_BYTES):
            piece = view[start : start + _HASHED_BYTES]
            written = self._file.write(piece)
            self.hash.update(piece[:written])
            self.size += written
            if written < len(piece):
                break
        return self.size - before


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def map_file(path: Path, size: int) -> NDArray[np.uint8]:
    """Map a file of `size` bytes read-only; CacheError when it has another size."""
    actual = path.stat().st_size
    if actual != size:
        raise CacheError(
            f"{path} has {actual} bytes, its manifest says {size}: the file was cut or changed, rebuild the cache"
        )
    return np.memmap(path, np.uint8, "r")


def map_images(path: Path, file: DataFile, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Map a shard's raw images as uint8 ``[N, H, W, C]`` without reading them; CacheError when they do not fit the file."""
    offset, stride = image_layout(file, shape)
    _, width, channels = shape
    return np.ndarray(
        (file.records, *shape),
        np.uint8,
        buffer=map_file(path, file.bytes),
        offset=offset,
        strides=(stride, width * channels, channels, 1),
    )


def image_layout(file: DataFile, shape: tuple[int, int, int]) -> tuple[int, int]:
    """Return the offset and stride of a shard's raw images; CacheError when images of that shape do not fit its bytes."""
    offset, stride, image_bytes = file.image_offset, file.image_stride, math.prod(shape)
    if offset is None or stride is None:
        raise CacheError(f"{file.name} holds encoded images: they cannot be mapped")
    end = offset + (file.records - 1) * stride + image_bytes
    if offset < 0 or stride < image_bytes or file.records < 1 or end > file.bytes:
        raise CacheError(
            f"{file.name}: {file.records} images of {shape} from byte {offset} do not fit its {file.bytes} bytes"
        )
    return offset, stride


def read_encoded(path: Path, file: DataFile) -> Sequence[Any]:
    """Map a shard's encoded images as a sequence of buffers; CacheError when the file does not hold them."""
    mapped = map_file(path, file.bytes)
    try:
        images = _arrow_column(mapped) if path.suffix == ".arrow" else _tfrecord_column(mapped)
    except (pa.ArrowException, ValueError, OSError, LookupError) as error:
        raise CacheError(f"{path} is damaged ({error}): rebuild the cache") from error
    if len(images) != file.records:
        raise CacheError(f"{path} holds {len(images)} images, its manifest says {file.records}: rebuild the cache")
    return images


def _arrow_column(mapped: NDArray[np.uint8]) -> Sequence[Any]:
    with pa.ipc.open_file(pa.py_buffer(mapped)) as reader:
        column = reader.get_batch(0).column("image")
    if column.type != pa.binary() or column.null_count:
        raise ValueError(f"its images are {column.type} with {column.null_count} nulls, not binary")
    column.validate(full=True)  # offsets that leave the file would crash the interpreter
    return _BinaryColumn(column)


def _tfrecord_column(mapped: NDArray[np.uint8]) -> Sequence[Any]:
    data = mapped.data
    found = [tfrecord.features(data, start, stop)["image"] for start, stop in tfrecord.records(data)]
    return [mapped[image.start : image.stop] for image in found]


class _BinaryColumn(Sequence[Any]):
    """An Arrow binary column, whose items are buffers into the map."""

    def __init__(self, column: Any) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, row: Any) -> Any:
        return self._column[row].as_buffer()


# Arrow ----------------------------------------------------------------------------------------------------------------


def _write_arrow(file: BinaryIO, rows: Rows) -> tuple[int, int] | None:
    if not isinstance(rows.images, np.ndarray):
        _write_arrow_to(file, rows, len(rows), 0)
        return None
    # The image buffer follows the schema and the batch's header, whose sizes do not depend on the rows: measure them on
    # one row, then pad the schema so that the buffer starts on a page. A misaligned one given to TensorFlow aborts.
    pad = -_image_offset(_arrow_stream(rows, 1, 0)) % PAGE
    _write_arrow_to(file, rows, len(rows), pad)
    offset = _image_offset(_arrow_stream(rows, 1, pad))
    if offset % PAGE:
        raise RuntimeError(f"the image buffer starts at byte {offset}, not on a page of {PAGE}")
    return offset, int(np.prod(rows.images.shape[1:]))


def _arrow_stream(rows: Rows, count: int, pad: int) -> Any:
    sink = pa.BufferOutputStream()
    _write_arrow_to(sink, rows, count, pad)
    return sink.getvalue()


def _write_arrow_to(sink: Any, rows: Rows, count: int, pad: int) -> None:
    if isinstance(rows.images, np.ndarray):
        images = pa.FixedShapeTensorArray.from_numpy_ndarray(rows.images[:count])
    else:
        images = pa.array(rows.images[:count], pa.binary())
    columns = {
        "image": images,
        "label": pa.array(rows.labels[:count]),
        "key": pa.array(rows.keys[:count], pa.string()),
        "key_hash": pa.array(rows.key_hashes[:count]),
    }
    fields = [pa.field(name, column.type, nullable=False) for name, column in columns.items()]
    schema = pa.schema(fields, {"pad": " " * pad})
    batch = pa.record_batch(list(columns.values()), schema=schema)
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(batch)


def _image_offset(buffer: Any) -> int:
    with pa.ipc.open_file(buffer) as reader:
        values = reader.get_batch(0).column("image").storage.values
    return int(values.buffers()[1].address - buffer.address)


# TFRecord -------------------------------------------------------------------------------------------------------------


def _write_tfrecord(file: BinaryIO, rows: Rows) -> tuple[int, int] | None:
    def example(row: int, image: bytes, pad: int | None) -> bytes:
        features: dict[str, bytes | int] = {
            "image": image,
            "key": rows.keys[row].encode(),
            "key_hash": int(rows.key_hashes[row]),
            "label": int(rows.labels[row]),
        }
        if pad is not None:
            features["pad"] = bytes(pad)
        return tfrecord.make_example(features)

    raw = isinstance(rows.images, np.ndarray)
    pads: list[int | None] = [None] * len(rows)
    if raw:
        # Without its image a record is between 128 and 16383 bytes, where every length takes the same room.
        sizes = [len(example(row, b"", _PAD_LENGTH)) for row in range(len(rows))]
        pads = [_PAD_LENGTH + max(sizes) - size for size in sizes]
    record = b""
    for row, pad in enumerate(pads):
        image, before = rows.images[row], len(record)
        record = example(row, image.tobytes() if isinstance(image, np.ndarray) else image, pad)
        if raw and row and len(record) != before:
            raise RuntimeError(f"record {rows.keys[row]!r} has {len(record)} bytes, the ones before it {before}")
        tfrecord.write_record(file, record)
    if not raw:
        return None
    return tfrecord.features(record, 0, len(record))["image"].start + 12, len(record) + 16


_WRITERS: dict[Format, Callable[[BinaryIO, Rows], tuple[int, int] | None]] = {
    "arrow": _write_arrow,
    "tfrecord": _write_tfrecord,
}
