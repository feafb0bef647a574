"""Files ``metadata.csv``, ``.jsonl`` and ``.parquet`` with a column ``file_name``, as Hugging Face's ImageFolder has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from joulecache.pipelines.source.classes import CLASS_KEYS, called
from joulecache.pipelines.source.labels import LabelTable, read_labels
from joulecache.pipelines.source.records import SourceError

_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_NAME = "file_name"


def find_metadata(root: Path, targets: Sequence[str]) -> LabelTable | None:
    """Return the metadata of a folder of images: of the folder itself, or of the folders in it.

    Args:
        root: The folder.
        targets: Columns that the user names.

    Returns:
        One table with names relative to `root`; None if there is none with these columns, or without a known target.

    Raises:
        SourceError: A file with the name of an image in its first line is damaged, or the folders have different columns.
    """
    folders = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
    tables = [(folder, table) for folder in folders if (table := _read(folder)) is not None]
    if not tables:
        return None
    first = tables[0][1]
    for _, other in tables[1:]:
        if list(other.header) != list(first.header):
            raise SourceError(
                f"{first.path!r} and {other.path!r} have different columns: use files with the same columns"
            )
    others = [name for name in first.header if name != _NAME]
    if not (all(name in others for name in targets) if targets else called(others, CLASS_KEYS) or len(others) == 1):
        return None
    if len(tables) == 1 and tables[0][0] == root:
        return first
    place = list(first.header).index(_NAME)
    rows = [
        [
            *cells[:place],
            f"{folder.relative_to(root).as_posix()}/{cells[place]}" if cells[place] else "",
            *cells[place + 1 :],
        ]
        for folder, table in tables
        for cells in table.rows
    ]
    return LabelTable(first.path, first.header, rows, [line for _, table in tables for line in table.lines])


def _read(folder: Path) -> LabelTable | None:
    """Return the metadata file of a folder; None without one that has names of images."""
    for name in _FILES:
        path = folder / name
        if not path.is_file():
            continue
        with open(path, "rb") as file:
            head = file.read(1 << 16)
        if path.suffix == ".parquet" or _NAME.encode() in head:
            table = read_labels(path)
            return table if _NAME in table.header else None
    return None
