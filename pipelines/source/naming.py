"""What the names of images say: which files are images, their classes, and their splits."""

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
    """Say whether a file is none of the images: hidden, or of another suffix."""
    hidden = any(part.startswith(".") and part != ".." for part in name.parts)
    return hidden or name.suffix.lower() not in IMAGE_SUFFIXES


def unfit(name: str) -> str | None:
    """Return why a name cannot be a key, or None."""
    if not is_utf8(name):
        return NOT_UTF8
    path = PurePosixPath(name)
    return "the name leaves the archive" if path.is_absolute() or ".." in path.parts else None


def is_utf8(name: str) -> bool:
    """Say whether a name that the system gave is text."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str) -> str:
    """Return a name as text, with escapes for what is none."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def first_folders(names: Sequence[str]) -> tuple[list[str], int]:
    """Return each name's first folder after those that all names share ("" for a loose file), and how many are shared.

    The folder that a file lies in is not taken for a shared one.
    """
    first, last = min(names).split("/"), max(names).split("/")  # what these share, all share
    shared = sum(
        1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first[:-1], last[:-1], strict=False))
    )
    depth = max(0, min(shared, min(name.count("/") for name in names) - 1))
    known: dict[str, str] = {}  # one object for each folder, not for each name
    folders = []
    for name in names:
        parts = name.split("/", depth + 1)
        folder = parts[depth] if len(parts) > depth + 1 else ""
        folders.append(known.setdefault(folder, folder))
    return folders, depth


def file_splits(names: Sequence[str]) -> list[str | None] | None:
    """Return the split of each data file where the first folders that differ, or all names of files, are of one; else None.

    A file's is the first word of its name, as in ``train-00000-of-00010``.
    """
    by_folder = as_splits(first_folders(names)[0])
    if by_folder:
        return by_folder
    firsts = [_FIRST_WORD.match(name.rpartition("/")[2].lower()) for name in names]
    return as_splits([first.group() if first else "" for first in firsts])


def as_split(word: str) -> str | None:
    """Return the split that a word stands for: train, val or test; None where it stands for none."""
    return _SPLIT_NAMES.get(word.lower())


def as_splits(words: Sequence[str]) -> list[str | None] | None:
    """Return the splits that words stand for; None unless all do, and train is one of several.

    A train split beside which there is no val is left to the hash, that holds a part of it out.
    """
    splits = list(map(as_split, words))
    found = set(splits)
    if None in found or "train" not in found or len(found) < 2:
        return None
    return splits if "val" in found else [None if split == "train" else split for split in splits]


def folder_classes(folders: Sequence[str], keys: Sequence[str]) -> tuple[Sequence[int], tuple[str, ...]]:
    """Return the labels of keys whose first folders these are, and the class names.

    Raises SourceError for images beside class folders, of which it tells the key.
    """
    class_names = tuple(sorted(set(folders)))
    if len(class_names) > 1 and "" in class_names:
        loose = min(key for key, folder in zip(keys, folders, strict=True) if not folder)
        raise SourceError(f"{loose!r} lies beside class folders: move it into one of {list(class_names[1:6])}")
    index = {name: label for label, name in enumerate(class_names)}
    return [index[folder] for folder in folders], tuple(name or "all" for name in class_names)


def spread(keys: Sequence[str], labels: Sequence[int | None], limit: int | None) -> list[int]:
    """Return the rows of at most `limit` labelled keys, the same share of every class, in the order of the keys.

    They are chosen by hash: a sample that no sort order can bias.
    """
    rows = [row for row, label in enumerate(labels) if label is not None]
    if limit is not None and limit < len(rows):
        by_hash = sorted(rows, key=lambda row: (key_hash(keys[row]), keys[row]))
        turn: Counter[int | None] = Counter()
        rank = {}
        for row in by_hash:
            rank[row] = (turn[labels[row]], labels[row])
            turn[labels[row]] += 1
        rows = sorted(sorted(rows, key=keys.__getitem__), key=rank.__getitem__)[:limit]
    return sorted(rows, key=keys.__getitem__)
