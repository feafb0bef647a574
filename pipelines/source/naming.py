"""Image files, classes and splits by file name."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from joulecache.pipelines.source.names import Keys
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

UNREAD_SUFFIXES = frozenset(
    [
        *(".arw", ".cr2", ".cr3", ".dcm", ".dng", ".exr", ".hdr", ".heic", ".heif", ".ico"),
        *(".jxl", ".nef", ".orf", ".psd", ".raf", ".raw", ".rw2", ".svg", ".xcf"),
    ]
)
"""Images in formats that are not read."""

PACKED_SUFFIXES = frozenset([".7z", ".bz2", ".gz", ".rar", ".tgz", ".xz", ".zip", ".zst"])

SYSTEM_FOLDERS = frozenset(
    ["$RECYCLE.BIN", "#recycle", "@eaDir", "System Volume Information", "__MACOSX", "__pycache__", "lost+found"]
)
"""Folders of operating systems and tools, which may hold thumbnails; they are not listed."""

HIDDEN = "(hidden)"

IMAGE_WORDS = re.compile(r"(.+)[ ._-](im|images?|img|input|leftimg8bit|photo|rgb)", re.IGNORECASE)
"""Names, without suffix, of images that have masks next to them."""

MASK_WORDS = re.compile(
    r"(.+)[ ._-](gt|labels?|masks?|seg|segmentation|gtfine_label(?:train)?ids)([ _-]?[0-9]+)?", re.IGNORECASE
)
"""Names, without suffix, of masks: ``1_mask`` next to ``1`` or ``1_image``."""


def is_ignored(folder: str) -> bool:
    """Return whether a folder is hidden or belongs to the system, by its name."""
    return folder.startswith(".") or folder in SYSTEM_FOLDERS


def skipped_kind(file: str) -> str | None:
    """Return the kind under which a file is counted as skipped, by its name: its suffix; None for an image."""
    dot = file.rfind(".")
    suffix = file[dot:].lower() if dot > 0 else ""
    if len(suffix) < 2:
        return file
    if file.startswith("."):
        return HIDDEN
    return None if suffix in IMAGE_SUFFIXES else suffix


def is_hidden_path(folder: PurePosixPath) -> bool:
    """Return whether a folder, or one above it, is ignored."""
    return any(is_ignored(part) and part != ".." for part in folder.parts)


def sidecar_kind(name: PurePosixPath) -> str | None:
    """Return the kind under which a file of an object store is counted as skipped; None for an image."""
    return HIDDEN if is_hidden_path(name.parent) else skipped_kind(name.name)


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


def sample_evenly(keys: Keys, labels: Sequence[int | None], limit: int | None) -> NDArray[np.int64]:
    """Return the rows of at most `limit` labelled keys, the same fraction of each class, sorted by key.

    Rows are chosen by the hash of the key, so that the order of the keys does not bias the sample.
    """
    used = np.fromiter((label is not None for label in labels), np.bool_, len(labels))
    if limit is not None and limit < used.sum():
        rows = np.flatnonzero(used).tolist()
        by_hash = sorted(rows, key=lambda row: (key_hash(keys[row]), keys[row]))
        ranked: Counter[int | None] = Counter()
        rank = {}
        for row in by_hash:
            rank[row] = (ranked[labels[row]], labels[row])
            ranked[labels[row]] += 1
        used[:] = False
        used[sorted(sorted(rows, key=keys.__getitem__), key=rank.__getitem__)[:limit]] = True
    rows_by_key = keys.sorted_rows()
    return rows_by_key if used.all() else rows_by_key[used[rows_by_key]]
