"""Sources: where encoded images come from, listed as units that can be read anywhere, in any order."""

from __future__ import annotations

import functools
import glob
import itertools
import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from joulecache.pipelines.core.object_store import is_remote, open_binary
from joulecache.pipelines.core.tfrecord import HEADER_BYTES, is_header
from joulecache.pipelines.source.folder import list_folder
from joulecache.pipelines.source.images import ImageFile, Images, ImageTable, labelled, store_images
from joulecache.pipelines.source.labels import read_labels
from joulecache.pipelines.source.naming import IMAGE_SUFFIXES
from joulecache.pipelines.source.parquet import list_parquet
from joulecache.pipelines.source.records import MOST_CLASSES, Archive, Record, Source, SourceError, Unit, local_archive
from joulecache.pipelines.source.rows import joined
from joulecache.pipelines.source.stored import find_stored
from joulecache.pipelines.source.synthetic import SYNTHETIC, SYNTHETIC_CLASSES, open_synthetic, synthetic_photo
from joulecache.pipelines.source.tar import list_tar
from joulecache.pipelines.source.tfds import TFDS, open_tfds
from joulecache.pipelines.source.tfrecord import list_tfrecord

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
    if text.startswith((SYNTHETIC, TFDS)) or is_remote(text):
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
    ``synthetic:N`` or ``tfds:NAME``; folders and files may be in an object store, s3:// or gs://. `labels` is a CSV file with the class
    of each image of a folder or tar. Folders or files called train, val and test give the splits.

    Raises SourceError when it is missing, holds no image or is of no known kind, StoreError.
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
    if is_remote(text):
        folder, archives = find_stored(text)
    else:
        folder, archives = _find(text)
    if folder is not None:
        return labelled(text, [folder()], limit, None if labels is None else read_labels(labels))
    if not archives:
        raise SourceError(f"no source at {text!r}: give {_ALLOWED}")
    kind = _common_kind(text, archives)
    keys = _keys(text, archives)
    if kind == "tar":
        prefixes = [""] if keys is None else [key + "/" for key in keys]
        given = None if labels is None else read_labels(labels)
        return labelled(text, list(map(list_tar, archives, prefixes)), limit, given)
    _refuse_labels(labels, text)
    list_rows = list_parquet if kind == "parquet" else list_tfrecord
    names = keys or [PurePosixPath(archive.name).name for archive in archives]
    return joined(text, list(map(list_rows, archives, names)), limit)


def _find(location: str) -> tuple[Callable[[], Images] | None, list[Archive]]:
    """Return how to list a folder of this machine, or the files that there are. Raises SourceError for a pattern that folders match."""
    paths = [path for path in source_paths(location) if path.exists()]
    folders = [path for path in paths if path.is_dir()]
    if folders and paths == [Path(location)]:
        return functools.partial(list_folder, folders[0]), []
    if folders:
        raise SourceError(
            f"{location!r} matches the folder {str(folders[0])!r}: a pattern is for .tar, Parquet or TFRecord files"
        )
    return None, list(map(local_archive, paths))


def take(units: Sequence[Unit], rows: Sequence[int]) -> Sequence[Unit]:
    """Return some units of a source, holding nothing of the others."""
    return units.take(rows) if isinstance(units, ImageTable) else tuple(units[row] for row in rows)


def store_units(parts: Sequence[Sequence[Unit]], path: Path, where: str) -> list[Sequence[Unit]]:
    """Keep parts of a source's units in a file, where there are many: return parts that travel as their place in it.

    `where` is where those who look at them find the file.
    """
    tables = [part for part in parts if isinstance(part, ImageTable)]
    return [*store_images(tables, path, where)] if tables and len(tables) == len(parts) else list(parts)


def _refuse_labels(labels: str | os.PathLike[str] | None, location: str) -> None:
    if labels is not None:
        raise SourceError(f"labels in a file are for a folder or a tar of images; {location!r} has its own")


def _keys(location: str, archives: Sequence[Archive]) -> list[str] | None:
    """Return the names of the files of a pattern: from its first folder on that is not fixed. None for a source that is no pattern."""
    if [PurePosixPath(archive.name) for archive in archives] == [PurePosixPath(location)]:
        return None
    parts = PurePosixPath(location).parts
    root = PurePosixPath(*itertools.takewhile(lambda part: not glob.has_magic(part), parts))
    return [PurePosixPath(archive.name).relative_to(root).as_posix() for archive in archives]


def _common_kind(location: str, archives: Sequence[Archive]) -> str:
    """Return what all files of a source are. Raises SourceError where they differ, or are nothing that can be read."""
    kinds: dict[str, Archive] = {}
    for archive in archives:
        kinds.setdefault(_kind(archive), archive)
    if len(kinds) > 1:
        (one, first), (other, second) = list(kinds.items())[:2]
        raise SourceError(
            f"{location!r} matches a {one}, {first.name!r}, and a {other}, {second.name!r}: give one kind at a time"
        )
    [kind] = kinds
    return kind


def _kind(archive: Archive) -> str:
    if archive.name.endswith(".parquet"):
        return "parquet"
    try:
        with open_binary(archive.location) as file:
            if is_header(file.read(HEADER_BYTES)):
                return "tfrecord"
            file.seek(0)
            if tarfile.is_tarfile(file):
                return "tar"
    except OSError as error:
        raise SourceError(f"cannot read {archive.name!r}: {error.strerror or error}") from error
    raise SourceError(
        f"{archive.name!r} is a file but no source: give {_ALLOWED}; a tar or TFRecord file may not be compressed"
    )
