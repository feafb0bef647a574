"""Sources: where encoded images come from, listed as units that can be read anywhere, in any order."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import stat
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageColor, ImageDraw

from joulecache.transforms.randomness import key_hash

IMAGE_SUFFIXES = frozenset(
    [
        ".avif",
        ".bmp",
        ".gif",
        ".jfif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".mpo",
        ".png",
        ".pbm",
        ".pgm",
        ".pnm",
        ".ppm",
        ".tga",
        ".tif",
        ".tiff",
        ".webp",
    ]
)

_NOT_UTF8 = "the name is not UTF-8"
MOST_CLASSES = 1_000_000  # a larger label in Parquet is no class

SYNTHETIC_CLASSES = ("bar", "cross", "disc", "square")
SYNTHETIC_SIZE = (500, 375)  # width, height
SYNTHETIC_LIMIT = 100_000_000


class SourceError(ValueError):
    """A source that cannot be used; the message says what was got, what is allowed and what to do."""


@dataclass(frozen=True)
class Record:
    """One encoded image with its key and label; `mtime_ns` is that of the file that holds it."""

    key: str
    label: int
    data: bytes
    mtime_ns: int


class Unit(Protocol):
    """What is read at once: a file, a tar member, a Parquet row group, a synthetic photo."""

    @property
    def name(self) -> str:
        """Stable inside the source; its hash says which shard the unit's records go to."""

    @property
    def count(self) -> int:
        """How many records it holds."""

    @property
    def mtime_ns(self) -> int:
        """When what holds it was last changed, 0 where nothing holds it."""

    @property
    def size_bytes(self) -> int | None:
        """The encoded size of its one record; None where that is not known without reading, or it holds many."""

    def record_keys(self) -> Iterator[str]:
        """Yield the records' keys without reading them."""

    def read(self) -> Iterator[Record]:
        """Yield the records, in the order of `record_keys`; OSError when what holds them is gone."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image in a folder."""

    name: str
    path: str
    label: int
    mtime_ns: int
    size_bytes: int
    count: int = 1

    def record_keys(self) -> Iterator[str]:
        """Yield the path inside the source."""
        yield self.name

    def read(self) -> Iterator[Record]:
        """Yield the file."""
        yield Record(self.name, self.label, Path(self.path).read_bytes(), self.mtime_ns)


@dataclass(frozen=True, slots=True)
class TarMember:
    """An image in an uncompressed tar, found by its offset."""

    name: str
    path: str
    offset: int
    size_bytes: int
    label: int
    mtime_ns: int
    count: int = 1

    def record_keys(self) -> Iterator[str]:
        """Yield the member's name."""
        yield self.name

    def read(self) -> Iterator[Record]:
        """Yield the member."""
        with open(self.path, "rb") as tar:
            tar.seek(self.offset)
            data = tar.read(self.size_bytes)
        if len(data) != self.size_bytes:
            raise OSError(f"{self.path} ended inside {self.name}: the tar is cut short")
        yield Record(self.name, self.label, data, self.mtime_ns)


@dataclass(frozen=True, slots=True)
class RowGroup:
    """The first `count` rows of a Parquet row group, in the ``image: struct<bytes, path>, label`` layout."""

    name: str
    path: str
    file_key: str
    index: int
    first_row: int
    mtime_ns: int
    count: int
    size_bytes: None = None

    def record_keys(self) -> Iterator[str]:
        """Yield ``file#row`` for each row."""
        return (f"{self.file_key}#{row}" for row in range(self.first_row, self.first_row + self.count))

    def read(self) -> Iterator[Record]:
        """Yield the rows."""
        with pq.ParquetFile(self.path) as parquet:
            table = parquet.read_row_group(self.index, columns=["image", "label"]).slice(0, self.count)
        images, labels = table["image"].combine_chunks(), table["label"].to_pylist()
        data = images.field("bytes")
        for row, key in enumerate(self.record_keys()):
            # An absent image becomes a reject like any other that does not decode, an absent label like one that is no class.
            label = -1 if labels[row] is None else int(labels[row])
            yield Record(key, label, data[row].as_py() or b"", self.mtime_ns)


@dataclass(frozen=True, slots=True)
class SyntheticPhoto:
    """A photo that is drawn when it is read."""

    index: int
    count: int = 1
    mtime_ns: int = 0
    size_bytes: None = None

    @property
    def name(self) -> str:
        """Class folder and number, as if it were a file."""
        return f"{SYNTHETIC_CLASSES[self.index % len(SYNTHETIC_CLASSES)]}/{self.index:08d}.jpg"

    def record_keys(self) -> Iterator[str]:
        """Yield the name."""
        yield self.name

    def read(self) -> Iterator[Record]:
        """Draw it (some 15 ms)."""
        yield Record(self.name, self.index % len(SYNTHETIC_CLASSES), synthetic_photo(self.index), 0)


@dataclass(frozen=True)
class Source:
    """A listed source.

    `units` come in one order on every machine: by name, or as they are numbered. `skipped` counts sidecar files by suffix.
    `refused` are (key, reason) of members that are never read, such as links out of a tar.
    """

    location: str
    class_names: tuple[str, ...]
    units: tuple[Unit, ...]
    skipped: Counter[str]
    refused: tuple[tuple[str, str], ...] = ()

    @property
    def records(self) -> int:
        """How many records the units hold."""
        return sum(unit.count for unit in self.units)


def open_source(location: str | os.PathLike[str], *, limit: int | None = None) -> Source:
    """List a source: a folder, ``.tar``, ``.parquet`` or ``synthetic:N``; at most `limit` records, spread over the classes.

    Of Parquet a limit takes the first rows, whatever their classes.

    Raises SourceError when it is missing, holds no image or is of no known kind.
    """
    text = os.fspath(location)
    if limit is not None and (isinstance(limit, bool) or limit < 1):
        raise SourceError(f"limit must be at least 1, got {limit!r}")
    if text.startswith("synthetic:"):
        return _open_synthetic(text, limit)
    path = Path(text)
    if not path.exists():
        raise SourceError(f"no source at {text!r}: give a folder of images, a .tar, a .parquet or synthetic:N")
    if path.is_dir():
        return _open_folder(path, limit)
    if path.suffix == ".parquet":
        return _open_parquet(path, limit)
    if tarfile.is_tarfile(path):
        return _open_tar(path, limit)
    raise SourceError(
        f"{text!r} is a file but no source: give a folder of images, an uncompressed .tar, a .parquet or synthetic:N"
    )


def _is_sidecar(name: PurePosixPath) -> bool:
    hidden = any(part.startswith(".") and part != ".." for part in name.parts)
    return hidden or name.suffix.lower() not in IMAGE_SUFFIXES


def _unfit(name: str) -> str | None:
    """Return why a name cannot be a key, or None."""
    if not _is_utf8(name):
        return _NOT_UTF8
    path = PurePosixPath(name)
    return "the name leaves the archive" if path.is_absolute() or ".." in path.parts else None


def _printable(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _classes(names: Sequence[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return each name's label and the class names, from the first folder after those that all names share."""
    parts = [name.split("/") for name in names]
    depth = 0
    while all(len(p) > depth + 2 for p in parts) and len({p[depth] for p in parts}) == 1:
        depth += 1
    folders = [p[depth] if len(p) > depth + 1 else "" for p in parts]
    class_names = tuple(sorted(set(folders)))
    if len(class_names) > 1 and "" in class_names:
        loose = names[folders.index("")]
        raise SourceError(f"{loose!r} lies beside class folders: move it into one of {list(class_names[1:6])}")
    index = {name: label for label, name in enumerate(class_names)}
    labels = {name: index[folder] for name, folder in zip(names, folders, strict=True)}
    return labels, tuple(name or "all" for name in class_names)


def _spread(labels: dict[str, int], limit: int | None) -> list[str]:
    """Return at most `limit` names, the same share of every class, chosen by hash: a sample no sort order can bias."""
    names = sorted(labels)
    if limit is None or limit >= len(names):
        return names
    by_hash = sorted(names, key=lambda name: (key_hash(name), name))
    turn: Counter[int] = Counter()
    rank = {}
    for name in by_hash:
        rank[name] = (turn[labels[name]], labels[name])
        turn[labels[name]] += 1
    return sorted(sorted(names, key=rank.__getitem__)[:limit])


def _open_folder(root: Path, limit: int | None) -> Source:
    found: dict[str, os.stat_result] = {}
    skipped: Counter[str] = Counter()
    refused: list[tuple[str, str]] = []
    # Plain strings: an object for every path costs ten times as much as the listing itself.
    for folder, folders, files in os.walk(root, onerror=_refuse_unlisted):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if links := sum(os.path.islink(os.path.join(folder, name)) for name in folders):  # noqa: PTH114, PTH118
            skipped["(link to a folder)"] += links
        inside = os.path.relpath(folder, root)
        prefix = "" if inside == "." else inside + "/"
        for file in files:
            suffix = os.path.splitext(file)[1].lower()  # noqa: PTH122
            if file.startswith(".") or suffix not in IMAGE_SUFFIXES:
                skipped[suffix if len(suffix) > 1 else file] += 1
                continue
            status = _status(f"{folder}/{file}")
            if status is None:
                skipped["(no regular file)"] += 1
            elif _is_utf8(file) and _is_utf8(prefix):
                found[prefix + file] = status
            else:
                refused.append((_printable(prefix + file), _NOT_UTF8))
    if not found:
        raise SourceError(f"{str(root)!r} holds no image ({sum(skipped.values())} other files): {_allowed()}")
    labels, class_names = _classes(sorted(found))
    base = root.absolute()
    units = tuple(
        ImageFile(name, f"{base}/{name}", labels[name], found[name].st_mtime_ns, found[name].st_size)
        for name in _spread(labels, limit)
    )
    return Source(str(root), class_names, units, skipped, tuple(refused))


def _status(path: str) -> os.stat_result | None:
    """Return what is known of a regular file, or of one that a link points to; None for anything else."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path for every file costs more than this
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        raise
    return status if stat.S_ISREG(status.st_mode) else None


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_unlisted(error: OSError) -> None:
    raise SourceError(
        f"cannot list {error.filename!r} ({error.strerror}): make it readable, or move it away"
    ) from error


def _open_tar(path: Path, limit: int | None) -> Source:
    found: dict[str, tarfile.TarInfo] = {}
    skipped: Counter[str] = Counter()
    refused: list[tuple[str, str]] = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                if member.isdir():
                    continue
                if _is_sidecar(name):
                    skipped[name.suffix.lower() or name.name] += 1
                elif reason := _unfit(member.name):
                    refused.append((_printable(member.name), reason))
                elif not member.isreg() or member.issparse():
                    refused.append((member.name, "a link, device or sparse file, not a plain one"))
                elif name.as_posix() in found:
                    raise SourceError(f"{str(path)!r} holds {name.as_posix()!r} twice: a key must be unique")
                else:
                    found[name.as_posix()] = member
            with open(path, "rb") as data:
                data.seek(tar.offset)
                if data.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                    raise tarfile.ReadError("no end mark where its members end")  # tarfile itself would stop in silence
    except tarfile.TarError as error:
        raise SourceError(
            f"cannot read {str(path)!r} as an uncompressed tar ({error}): decompress it if it is compressed, "
            f"so that members can be read at random; copy it again if it is cut short"
        ) from error
    if not found:
        raise SourceError(f"{str(path)!r} holds no image ({sum(skipped.values())} other files): {_allowed()}")
    labels, class_names = _classes(sorted(found))
    mtime_ns, where = path.stat().st_mtime_ns, str(path.absolute())
    units = tuple(
        TarMember(name, where, found[name].offset_data, found[name].size, labels[name], mtime_ns)
        for name in _spread(labels, limit)
    )
    return Source(str(path), class_names, units, skipped, tuple(refused))


def _open_parquet(path: Path, limit: int | None) -> Source:
    try:
        with pq.ParquetFile(path) as parquet:
            schema, groups = parquet.schema_arrow, parquet.metadata
            rows = [groups.row_group(i).num_rows for i in range(groups.num_row_groups)]
            if not _holds_images(schema):
                raise SourceError(
                    f"{str(path)!r} has columns {schema.names}: a Parquet source has `image: struct<bytes, path>` and an integer `label`"
                )
            names = _parquet_class_names(schema)
            if names is None:
                labels = parquet.read(columns=["label"])["label"].unique().to_pylist()
                last = max((label for label in labels if label is not None and label < MOST_CLASSES), default=-1)
                names = tuple(str(label) for label in range(last + 1))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise SourceError(f"cannot read {str(path)!r} as Parquet: {error}") from error
    units: list[RowGroup] = []
    first, left = 0, math.inf if limit is None else limit
    for index, count in enumerate(rows):
        taken = int(min(count, left))
        if taken:
            name = f"{path.name}#{index}"
            mtime_ns = path.stat().st_mtime_ns
            units.append(RowGroup(name, str(path.absolute()), path.name, index, first, mtime_ns, taken))
        first, left = first + count, left - taken
    if not units:
        raise SourceError(f"{str(path)!r} holds no rows")
    return Source(str(path), names, tuple(units), Counter())


def _holds_images(schema: Any) -> bool:
    if not {"image", "label"} <= set(schema.names):
        return False
    image, label = schema.field("image").type, schema.field("label").type
    place = image.get_field_index("bytes") if pa.types.is_struct(image) else -1
    return place >= 0 and image[place].type in (pa.binary(), pa.large_binary()) and pa.types.is_integer(label)


def _parquet_class_names(schema: Any) -> tuple[str, ...] | None:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features["label"]["names"])
    except (KeyError, ValueError, TypeError):
        return None


def _allowed() -> str:
    return f"images end in {', '.join(sorted(IMAGE_SUFFIXES))}"


def _open_synthetic(text: str, limit: int | None) -> Source:
    digits = text.removeprefix("synthetic:")
    number = digits.isascii() and digits.isdigit() and len(digits) <= len(str(SYNTHETIC_LIMIT))
    if not number or not 1 <= int(digits) <= SYNTHETIC_LIMIT:
        raise SourceError(f"synthetic:N takes a count from 1 to {SYNTHETIC_LIMIT}, got {text!r}")
    count = int(digits) if limit is None else min(int(digits), limit)
    return Source(text, SYNTHETIC_CLASSES, tuple(SyntheticPhoto(index) for index in range(count)), Counter())


def synthetic_photo(index: int) -> bytes:
    """Draw photo number `index` as a JPEG of about 500x375 and 40 kB: noise as in nature, one shape whose kind is the class.

    Its spectrum falls as in photographs (octaves of noise, each half as strong as the one before), so that it costs what a
    photo costs to decode. The shape's place and size vary; its class is ``index % 4``, to which its hue leans.
    """
    rng = np.random.Generator(np.random.Philox(key=index))
    width, height = (side + int(rng.integers(-24, 25)) for side in SYNTHETIC_SIZE)
    canvas = np.zeros((height, width, 3), np.float32)
    for octave in range(1, 8):
        cells = rng.normal(0, 38 * 0.62 ** (octave - 1), (2**octave, 2**octave, 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(cells[:, :, channel]).resize((width, height), Image.Resampling.BICUBIC)
            canvas[:, :, channel] += np.asarray(layer)
    canvas = canvas * (0.6, 0.5, 0.7) + canvas.mean(axis=2, keepdims=True) * 0.5 + rng.uniform(90, 150)
    photo = Image.fromarray(np.clip(canvas + rng.normal(0, 7, (height, width, 1)), 0, 255).astype(np.uint8))
    mask = Image.new("L", (width, height))
    _draw_shape(ImageDraw.Draw(mask), SYNTHETIC_CLASSES[index % len(SYNTHETIC_CLASSES)], width, height, rng)
    hue = 360 * (index % len(SYNTHETIC_CLASSES)) / len(SYNTHETIC_CLASSES) + rng.normal(0, 30)
    colour = ImageColor.getrgb(f"hsv({hue % 360:.0f},{rng.uniform(40, 100):.0f}%,{rng.uniform(40, 100):.0f}%)")
    mixed = Image.blend(photo, Image.new("RGB", (width, height), colour), 0.75)
    photo.paste(mixed, mask=mask)
    stream = io.BytesIO()
    photo.save(stream, "JPEG", quality=85)
    return stream.getvalue()


def _draw_shape(draw: ImageDraw.ImageDraw, kind: str, width: int, height: int, rng: np.random.Generator) -> None:
    reach = float(rng.uniform(0.22, 0.36)) * height
    x = float(rng.uniform(reach, width - reach))
    y = float(rng.uniform(reach, height - reach))
    thin = reach / 4
    if kind == "disc":
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=255)
    if kind == "square":
        draw.rectangle((x - 0.85 * reach, y - 0.85 * reach, x + 0.85 * reach, y + 0.85 * reach), fill=255)
    if kind in ("bar", "cross"):
        draw.rectangle((x - reach, y - thin, x + reach, y + thin), fill=255)
    if kind == "cross":
        draw.rectangle((x - thin, y - reach, x + thin, y + reach), fill=255)
