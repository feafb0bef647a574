"""Sources: where encoded images come from, listed as units that can be read anywhere, in any order."""

from __future__ import annotations

import glob
import itertools
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

from joulecache.pipelines.source.folder import list_folder
from joulecache.pipelines.source.images import ImageFile, ImageTable, labelled, store_images
from joulecache.pipelines.source.labels import read_labels
from joulecache.pipelines.source.naming import IMAGE_SUFFIXES
from joulecache.pipelines.source.parquet import list_parquet
from joulecache.pipelines.source.records import MOST_CLASSES, Record, Source, SourceError, Unit
from joulecache.pipelines.source.rows import joined
from joulecache.pipelines.source.synthetic import SYNTHETIC, SYNTHETIC_CLASSES, open_synthetic, synthetic_photo
from joulecache.pipelines.source.tar import list_tar
from joulecache.pipelines.source.tfds import TFDS, open_tfds
from joulecache.pipelines.source.tfrecord import list_tfrecord
from joulecache.pipelines.tfrecord import HEADER_BYTES, is_header

__all__ = [
    "IMAGE_SUFFIXES",
    "MOST_CLASSES",
    "SYNTHETIC",
    "SYNTHETIC_CLASSES",
    "ImageFile",
    "Record",
    "Source",
    "SourceError",
    "Unit",
    "open_source",
    "source_paths",
    "store_units",
    "synthetic_photo",
    "take",
]

_ALLOWED = "a folder of images, a .tar, Parquet or TFRecord file, a pattern of such files, synthetic:N or tfds:NAME"


def source_paths(location: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Return the folder or the files that a source lies in, as far as it is on this machine under its own name.

    A location that is no file and has ``*``, ``?`` or ``[`` in it is a pattern, in which ``**`` crosses folders.
    """
    text = os.fspath(location)
    if text.startswith((SYNTHETIC, TFDS)):
        return ()
    path = Path(text)
    if path.exists() or not glob.has_magic(text):
        return (path,)
    return tuple(sorted(map(Path, glob.glob(text, recursive=True))))  # noqa: PTH207 - keeps `**` and `[` as the shell has them


def open_source(
    location: str | os.PathLike[str], *, limit: int | None = None, labels: str | os.PathLike[str] | None = None
) -> Source:
    """List a source; at most `limit` records, spread over the classes, or over the files where their rows have the labels.

    A source is a folder of images, an uncompressed tar, a Parquet or TFRecord file, a pattern that several such files match,
    ``synthetic:N`` or ``tfds:NAME``. `labels` is a CSV file with the class of each image of a folder or tar. Folders or files called
    train, val and test give the splits.

    Raises SourceError when it is missing, holds no image or is of no known kind.
    """
    text = os.fspath(location)
    if limit is not None and (isinstance(limit, bool) or limit < 1):
        raise SourceError(f"limit must be at least 1, got {limit!r}")
    if text.startswith(SYNTHETIC):
        _refuse_labels(labels, text)
        return open_synthetic(text, limit)
    if text.startswith(TFDS):
        _refuse_labels(labels, text)
        return open_tfds(text, limit)
    paths = source_paths(location)
    if not paths or not paths[0].exists():
        raise SourceError(f"no source at {text!r}: give {_ALLOWED}")
    kind = _common_kind(text, paths)
    if kind in ("folder", "tar"):
        given = None if labels is None else read_labels(labels)
    if kind == "folder":
        return labelled(text, [list_folder(paths[0])], limit, given)
    if kind == "tar":
        prefixes = [""] if _is_alone(text, paths) else [key + "/" for key in _keys(text, paths)]
        return labelled(text, list(map(list_tar, paths, prefixes)), limit, given)
    _refuse_labels(labels, text)
    list_rows = list_parquet if kind == "parquet" else list_tfrecord
    return joined(text, list(map(list_rows, paths, _keys(text, paths))), limit)


def take(units: Sequence[Unit], rows: Sequence[int]) -> Sequence[Unit]:
    """Return some units of a source, holding nothing of the others."""
    return units.take(rows) if isinstance(units, ImageTable) else tuple(units[row] for row in rows)


def store_units(parts: Sequence[Sequence[Unit]], path: Path) -> list[Sequence[Unit]]:
    """Keep parts of a source's units in a file, where there are many: return parts that travel as their place in it."""
    tables = [part for part in parts if isinstance(part, ImageTable)]
    return [*store_images(tables, path)] if tables and len(tables) == len(parts) else list(parts)


def _refuse_labels(labels: str | os.PathLike[str] | None, location: str) -> None:
    if labels is not None:
        raise SourceError(f"labels in a file are for a folder or a tar of images; {location!r} has its own")


def _is_alone(location: str, paths: Sequence[Path]) -> bool:
    """Say whether a source is one folder or file, not a pattern, even one that a single file matches."""
    return list(paths) == [Path(location)]


def _keys(location: str, paths: Sequence[Path]) -> list[str]:
    """Return the names of files in their source: from the first folder of a pattern on that is not fixed."""
    if _is_alone(location, paths):
        return [paths[0].name]
    root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), Path(location).parts))
    return [path.relative_to(root).as_posix() for path in paths]


def _common_kind(location: str, paths: Sequence[Path]) -> str:
    """Return what all files of a source are. Raises SourceError where they differ, or are nothing that can be read."""
    kinds: dict[str, Path] = {}
    for path in paths:
        kinds.setdefault(_kind(path), path)
    if len(kinds) > 1:
        (one, first), (other, second) = list(kinds.items())[:2]
        raise SourceError(
            f"{location!r} matches a {one}, {str(first)!r}, and a {other}, {str(second)!r}: give one kind at a time"
        )
    [kind] = kinds
    if kind == "folder" and not _is_alone(location, paths):
        raise SourceError(
            f"{location!r} matches the folder {str(paths[0])!r}: a pattern is for .tar, Parquet or TFRecord files"
        )
    return kind


def _kind(path: Path) -> str:
    if path.is_dir():
        return "folder"
    if path.suffix == ".parquet":
        return "parquet"
    try:
        with open(path, "rb") as file:
            if is_header(file.read(HEADER_BYTES)):
                return "tfrecord"
        if tarfile.is_tarfile(path):
            return "tar"
    except OSError as error:
        raise SourceError(f"cannot read {str(path)!r}: {error.strerror}") from error
    raise SourceError(
        f"{str(path)!r} is a file but no source: give {_ALLOWED}; a tar or TFRecord file may not be compressed"
    )
