"""What the names of images say: which files are images, their classes, and their splits."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
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


def inner_parts(names: Sequence[str]) -> list[list[str]]:
    """Split names at their slashes, without the folders that all of them share, except each name's last."""
    parts = [name.split("/") for name in names]
    depth = 0
    while all(len(p) > depth + 2 for p in parts) and len({p[depth] for p in parts}) == 1:
        depth += 1
    return [p[depth:] for p in parts] if depth else parts


def folder_splits(names: Sequence[str]) -> tuple[list[str | None], list[str]] | None:
    """Return each name's split, and what follows it, where the first folders that differ are splits, train among them; else None."""
    parts = inner_parts(names)
    splits = as_splits([p[0] if len(p) > 1 else "" for p in parts])
    return None if splits is None else (splits, ["/".join(p[1:]) for p in parts])


def file_splits(names: Sequence[str]) -> list[str | None] | None:
    """Return the split of each data file where all their names begin with one, as in ``train-00000-of-00010``; else None."""
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


def folder_classes(names: Sequence[str], keys: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """Return each name's label and the class names, from the first folder after those that all names share.

    Raises SourceError for images beside class folders, of which it tells the key.
    """
    parts = inner_parts(names)
    folders = [p[0] if len(p) > 1 else "" for p in parts]
    class_names = tuple(sorted(set(folders)))
    if len(class_names) > 1 and "" in class_names:
        loose = keys[folders.index("")]
        raise SourceError(f"{loose!r} lies beside class folders: move it into one of {list(class_names[1:6])}")
    index = {name: label for label, name in enumerate(class_names)}
    return [index[folder] for folder in folders], tuple(name or "all" for name in class_names)


def spread(labels: Mapping[str, int], limit: int | None) -> list[str]:
    """Return at most `limit` keys, the same share of every class, chosen by hash: a sample no sort order can bias."""
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
