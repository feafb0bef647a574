"""Image files, classes and splits by file name."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

from joulecache.pipelines.source.records import SourceError
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

NOT_UTF8 = "the name is not UTF-8"

_SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation"), "val"
)
_FIRST_WORD = re.compile("[a-z]*")


def is_sidecar(name: PurePosixPath) -> bool:
    """Return whether a file is hidden or has no image suffix."""
    return is_hidden(name) or name.suffix.lower() not in IMAGE_SUFFIXES


def is_hidden(name: PurePosixPath) -> bool:
    """Return whether a file or one of its folders is hidden."""
    return any(part.startswith(".") and part != ".." for part in name.parts)


def key_problem(name: str) -> str | None:
    """Return why a name cannot be a key, or None if it can."""
    if not is_utf8(name):
        return NOT_UTF8
    path = PurePosixPath(name)
    return "the name leaves the archive" if path.is_absolute() or ".." in path.parts else None


def is_utf8(name: str) -> bool:
    """Return whether a file name is valid UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str) -> str:
    """Return a file name with invalid bytes escaped."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def first_folders(names: Sequence[str]) -> tuple[list[str], int]:
    """Return each name's first folder that is not shared by all names, and the number of shared folders.

    The folder is "" for a name without one. The innermost folder of a file never counts as shared.
    """
    first, last = min(names).split("/"), max(names).split("/")  # what these share, all names share
    shared = sum(
        1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first[:-1], last[:-1], strict=False))
    )
    depth = max(0, min(shared, min(name.count("/") for name in names) - 1))
    interned: dict[str, str] = {}  # one object for each folder, not for each name
    folders = []
    for name in names:
        parts = name.split("/", depth + 1)
        folder = parts[depth] if len(parts) > depth + 1 else ""
        folders.append(interned.setdefault(folder, folder))
    return folders, depth


def file_splits(names: Sequence[str]) -> list[str | None] | None:
    """Return the split of each data file by its first folder, or by the first word of its name: ``train-00000-of-00010``.

    Return None if these are not all splits.
    """
    by_folder = as_splits(first_folders(names)[0])
    if by_folder:
        return by_folder
    firsts = [_FIRST_WORD.match(name.rpartition("/")[2].lower()) for name in names]
    return as_splits([first.group() if first else "" for first in firsts])


def as_split(word: str) -> str | None:
    """Return the split that a word means: train, val or test; None for any other word."""
    return _SPLIT_NAMES.get(word.lower())


def as_splits(words: Sequence[str]) -> list[str | None] | None:
    """Return the splits that words mean; None unless every word is a split, and they include train and another one.

    Without val, train becomes None: a hash of the keys then holds out a part of it.
    """
    splits = list(map(as_split, words))
    found = set(splits)
    if None in found or "train" not in found or len(found) < 2:
        return None
    return splits if "val" in found else [None if split == "train" else split for split in splits]


def folder_classes(folders: Sequence[str], keys: Sequence[str]) -> tuple[Sequence[int], tuple[str, ...]]:
    """Return a label for each key by its first folder, and the class names; SourceError for images next to class folders."""
    class_names = tuple(sorted(set(folders)))
    if len(class_names) > 1 and "" in class_names:
        loose = min(key for key, folder in zip(keys, folders, strict=True) if not folder)
        raise SourceError(f"{loose!r} is next to class folders: move it into one of {list(class_names[1:6])}")
    index = {name: label for label, name in enumerate(class_names)}
    return [index[folder] for folder in folders], tuple(name or "all" for name in class_names)


def sample_evenly(keys: Sequence[str], labels: Sequence[int | None], limit: int | None) -> list[int]:
    """Return the rows of at most `limit` labelled keys, the same fraction of each class, sorted by key.

    Rows are chosen by the hash of the key, so that the order of the keys does not bias the sample.
    """
    rows = [row for row, label in enumerate(labels) if label is not None]
    if limit is not None and limit < len(rows):
        by_hash = sorted(rows, key=lambda row: (key_hash(keys[row]), keys[row]))
        ranked: Counter[int | None] = Counter()
        rank = {}
        for row in by_hash:
            rank[row] = (ranked[labels[row]], labels[row])
            ranked[labels[row]] += 1
        rows = sorted(sorted(rows, key=keys.__getitem__), key=rank.__getitem__)[:limit]
    return sorted(rows, key=keys.__getitem__)
