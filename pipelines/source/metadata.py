"""Files ``metadata.csv``, ``.jsonl`` and ``.parquet`` with a column ``file_name``, as Hugging Face's ImageFolder has them."""

from __future__ import annotations

from collections.abc import Sequence

from joulecache.pipelines.core.object_store import open_binary
from joulecache.pipelines.source.classes import CLASS_KEYS, called
from joulecache.pipelines.source.config import Wanted
from joulecache.pipelines.source.labels import LabelTable, has_columns, is_unnamed, read_labels, spatial_columns
from joulecache.pipelines.source.listing import METADATA, ImageListing
from joulecache.pipelines.source.records import SourceError

_NAME = "file_name"


def find_metadata(location: str, listing: ImageListing, targets: Sequence[Wanted]) -> LabelTable | None:
    """Return the metadata of a local or remote folder of images: of the folder itself, or of the folders in it.

    Args:
        location: The folder.
        listing: What is in it.
        targets: Targets that the user names.

    Returns:
        One table with names relative to the folder; None if there is none with these columns, or without a known target.

    Raises:
        SourceError: A file with the name of an image in its first line is damaged, or the folders have different columns.
    """
    found: dict[str, str] = {}
    for name in sorted(listing.beside, key=lambda name: (name.rpartition("/")[0], _rank(name)), reverse=True):
        folder, _, file = name.rpartition("/")
        if file in METADATA and "/" not in folder:
            found[folder] = name  # the first of `METADATA` comes last
    root = location.rstrip("/") or "/"
    tables = [
        (folder, table) for folder, name in sorted(found.items()) if (table := _read(f"{root}/{name}")) is not None
    ]
    if not tables:
        return None
    first = tables[0][1]
    for _, other in tables[1:]:
        if list(other.header) != list(first.header):
            raise SourceError(
                f"{first.path!r} and {other.path!r} have different columns: use files with the same columns"
            )
    others = [name for name in first.header if name != _NAME and not is_unnamed(name)]
    if targets:
        known = has_columns(first, targets)
    else:
        known = bool(called(others, CLASS_KEYS) or spatial_columns(first)) or len(others) == 1
    if not known:
        return None
    if [folder for folder, _ in tables] == [""]:
        return first
    paths = [place for place, name in enumerate(first.header) if name.endswith(_NAME)]
    rows = [
        [f"{folder}/{cell}" if folder and cell and place in paths else cell for place, cell in enumerate(cells)]
        for folder, table in tables
        for cells in table.rows
    ]
    lines = [line for _, table in tables for line in table.lines]
    return LabelTable(first.path, first.header, rows, lines, root, tuple(table.path for _, table in tables[1:]))


def _rank(name: str) -> int:
    file = name.rpartition("/")[2]
    return METADATA.index(file) if file in METADATA else len(METADATA)


def _read(path: str) -> LabelTable | None:
    """Return a metadata file; None if it has no names of images."""
    with open_binary(path) as file:
        head = file.read(1 << 16)
    if not path.endswith(".parquet") and _NAME.encode() not in head:
        return None
    table = read_labels(path)
    return table if _NAME in table.header else None
