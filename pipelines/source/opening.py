"""Open a source from its location."""

from __future__ import annotations

import dataclasses
import functools
import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from joulecache.pipelines.core.files import unexpanded_home
from joulecache.pipelines.core.object_store import is_remote, open_binary
from joulecache.pipelines.core.quantities import plural
from joulecache.pipelines.source.columns import Choice, Column, choose_columns
from joulecache.pipelines.source.config import SourceConfig
from joulecache.pipelines.source.folder import list_folder
from joulecache.pipelines.source.images import make_source
from joulecache.pipelines.source.labelling import without_files
from joulecache.pipelines.source.labels import LabelTable, read_labels
from joulecache.pipelines.source.listing import LABEL_SUFFIXES, ImageListing
from joulecache.pipelines.source.metadata import find_metadata
from joulecache.pipelines.source.naming import IMAGE_SUFFIXES, PACKED_SUFFIXES, UNREAD_SUFFIXES
from joulecache.pipelines.source.parquet import list_parquet, parquet_columns
from joulecache.pipelines.source.patterns import matched_paths, split_pattern
from joulecache.pipelines.source.records import Archive, Source, SourceError, local_archive
from joulecache.pipelines.source.rows import RowFile, join_files
from joulecache.pipelines.source.splits import file_splits
from joulecache.pipelines.source.stored import find_stored
from joulecache.pipelines.source.synthetic import SYNTHETIC, open_synthetic
from joulecache.pipelines.source.tar_listing import TarRequest, list_tars
from joulecache.pipelines.source.tfds import TFDS, open_tfds
from joulecache.pipelines.source.tfrecord import is_tfrecord, list_tfrecord, tfrecord_columns, with_content

_ALLOWED = "a folder of images, a .tar, Parquet or TFRecord file, a pattern of such files, synthetic:N or tfds:NAME"
_HEAD_BYTES = 1 << 12  # that tell the kind of a file
_ROWS: Mapping[str, tuple[Callable[[Archive], list[Column]], Callable[[Archive, str, Choice], RowFile]]] = {
    "parquet": (parquet_columns, list_parquet),
    "tfrecord": (tfrecord_columns, list_tfrecord),
}


def source_paths(location: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Return the local folder or files of a source; none for a remote, synthetic or TFDS source.

    Args:
        location: The source. With ``*``, ``?`` or ``[`` it is a pattern, unless a file has this name; ``**`` matches across folders.
    """
    text = os.fspath(location)
    if text.startswith((SYNTHETIC, TFDS)) or is_remote(text):
        return ()
    return matched_paths(text)


def open_source(location: str | os.PathLike[str], config: SourceConfig | None = None) -> Source:
    """List a source.

    Folders or files named train, val and test define the splits, also under other known names.

    Args:
        location: A folder of images, an uncompressed tar, a Parquet or TFRecord file, a pattern that several such files match,
            ``synthetic:N`` or ``tfds:NAME``. Folders and files may be in an object store, s3:// or gs://.
        config: How to read it. A `limit` takes the same fraction of each class, or of each Parquet or TFRecord file. Default:
            everything.

    Raises:
        SourceError: The source is missing, has no images, or is of an unknown kind.
        StoreError: The object store failed.
    """
    text, config = os.fspath(location), config or SourceConfig()
    if text.startswith(SYNTHETIC):
        _refuse_labels(config, text)
        return open_synthetic(text, config)
    if text.startswith(TFDS):
        _refuse_labels(config, text)
        return open_tfds(text, config)
    given = None if config.labels is None else read_labels(config.labels)
    folder, archives = find_stored(text) if is_remote(text) else _find(text)
    if folder is not None:
        listing = folder()
        alone = config.masks is None and config.coco is None and not config.is_unlabelled
        if given is None and (config.targets or alone):
            given = find_metadata(text, listing, config.targets)
        return make_source(text, [listing], config, given)
    if not archives:
        braces = "; braces are not expanded, use * or [0-9] in their place" if "{" in text else ""
        raise SourceError(f"no source at {text!r}{unexpanded_home(Path(text)) or f': expected {_ALLOWED}{braces}'}")
    return _open_files(text, archives, config, given)


def _open_files(location: str, archives: Sequence[Archive], config: SourceConfig, given: LabelTable | None) -> Source:
    kind = _common_kind(location, archives)
    keys = _keys(location, archives)
    splits = None if keys is None else file_splits(keys, config.splits)
    names = keys or [PurePosixPath(archive.name).name for archive in archives]
    used = {name: archive for name, archive in zip(names, archives, strict=True) if splits is None or name in splits}
    split_of = None if splits is None else [splits[name] for name in used]
    if kind == "tar":
        members = without_files(config)
        names_of_targets = tuple(members.target_names)
        listings = list_tars(
            [
                TarRequest(archive, "" if keys is None else f"{name}/", members.target_column, names_of_targets)
                for name, archive in used.items()
            ]
        )
        source = make_source(location, listings, config, given, split_of)
    else:
        _refuse_labels(config, location)
        if splits is None and config.splits is not None:
            raise SourceError(
                f"--splits must name the first folders or the first words of the files that {location!r} matches, such as "
                f"{names[0]!r}, got {dict(config.splits)}"
            )
        if kind == "tfrecord":
            used = {name: with_content(archive) for name, archive in used.items()}
        columns_of, list_rows = _ROWS[kind]
        choice = choose_columns(list(used.values()), columns_of, config)
        files = [list_rows(archive, name, choice) for name, archive in used.items()]
        source = join_files(location, files, choice, config.limit, split_of or [None] * len(files))
    if others := sorted(set(names) - set(used)):
        note = f"{plural(len(others), 'file')} outside the splits left out, such as {others[0]!r}"
        source = dataclasses.replace(source, notes=(note, *source.notes))
    return source


def _find(location: str) -> tuple[Callable[[], ImageListing] | None, list[Archive]]:
    """Return a function that lists a local folder, or None and the files; SourceError for a pattern that matches folders."""
    paths = [path for path in source_paths(location) if path.exists()]
    folders = [path for path in paths if path.is_dir()]
    if folders and paths == [Path(location)]:
        return functools.partial(list_folder, folders[0]), []
    if folders:
        raise SourceError(
            f"the pattern {location!r} matches the folder {str(folders[0])!r}: it may match only .tar, Parquet or TFRecord files"
        )
    return None, list(map(local_archive, paths))


def _refuse_labels(config: SourceConfig, location: str) -> None:
    given = {"a labels file": config.labels, "a folder of masks": config.masks, "a COCO file": config.coco}
    for what in (what for what, value in given.items() if value is not None):
        raise SourceError(f"{what} is for a folder or tar of images, but {location!r} has labels already")


def _keys(location: str, archives: Sequence[Archive]) -> list[str] | None:
    """Return the file names relative to the folders before a pattern's first wildcard; None if the source is not a pattern."""
    if [PurePosixPath(archive.name) for archive in archives] == [PurePosixPath(location)]:
        return None
    root, _ = split_pattern(location)
    return [PurePosixPath(archive.name).relative_to(root).as_posix() for archive in archives]


def _common_kind(location: str, archives: Sequence[Archive]) -> str:
    """Return the kind of the files of a source; SourceError if they differ or cannot be read."""
    kinds: dict[str, Archive] = {}
    for archive in archives:
        kinds.setdefault(_kind(archive), archive)
    if len(kinds) > 1:
        (one, first), (other, second) = list(kinds.items())[:2]
        raise SourceError(
            f"{location!r} matches files of two kinds, {first.name!r} ({one}) and {second.name!r} ({other}): use one kind"
        )
    [kind] = kinds
    return kind


def archive_kind(archive: Archive) -> str | None:
    """Return ``parquet``, ``tfrecord`` or ``tar``, None for another file; SourceError if it cannot be read."""
    if archive.name.endswith(".parquet"):
        return "parquet"
    try:
        with open_binary(archive.location) as file:
            if is_tfrecord(file.read(_HEAD_BYTES)):
                return "tfrecord"
            file.seek(0)
            return "tar" if tarfile.is_tarfile(file) else None
    except OSError as error:
        raise SourceError(f"cannot read {archive.name!r}: {error.strerror or error}") from error


def _kind(archive: Archive) -> str:
    kind = archive_kind(archive)
    if kind is not None:
        return kind
    suffix = PurePosixPath(archive.name).suffix.lower()
    if suffix in IMAGE_SUFFIXES | UNREAD_SUFFIXES:
        advice = "this is one image, give its folder"
    elif suffix in PACKED_SUFFIXES:
        advice = "unpack it, and give its folder"
    elif suffix in LABEL_SUFFIXES:
        advice = "give the folder of its images, and a table of their classes as --labels"
    else:
        advice = "a tar must not be compressed"
    raise SourceError(f"unsupported source {archive.name!r}: expected {_ALLOWED}; {advice}")
