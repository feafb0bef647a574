"""Sentences about what a source has that is not read."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from joulecache.pipelines.core.quantities import count, listed, plural, shortened
from joulecache.pipelines.source.layout import Folder, LeftOut
from joulecache.pipelines.source.naming import IMAGE_SUFFIXES, PACKED_SUFFIXES, UNREAD_SUFFIXES

_QUIET = (".DS_Store", ".ds_store", ".db", ".gitattributes", ".gitignore", ".gitkeep", ".ini")
_DATA = {
    r"\.parquet": "*.parquet",
    r"\.tar": "*.tar",
    r"\.tfrecord": "*.tfrecord*",
    r"[^.].*-[0-9]+-of-[0-9]+": "*-of-*",
}
"""By the start of a kind: the pattern of its files. TFRecord files may have no suffix: ``train-00000-of-01024``."""

_KINDS_SHOWN = 10
_FOLDERS_SHOWN = 5


def unread_images(kinds: Mapping[str, int]) -> int:
    """Return the number of images in formats that are not read."""
    return sum(number for kind, number in kinds.items() if kind in UNREAD_SUFFIXES)


def skipped_notes(skipped: Counter[str]) -> list[str]:
    """Return sentences about skipped files by kind; kinds in brackets have their own sentences."""
    images = _by_number({kind: number for kind, number in skipped.items() if kind in UNREAD_SUFFIXES})
    others = _by_number(
        {kind: number for kind, number in skipped.items() if kind not in (*UNREAD_SUFFIXES, *_QUIET) and kind[0] != "("}
    )
    notes = []
    if images:
        notes.append(f"skipped images in formats that are not read ({images}): convert them to JPEG or PNG")
    if others:
        notes.append(f"skipped files that are not images ({others})")
    return notes


def left_out_notes(reasons: Mapping[LeftOut, Sequence[str]]) -> list[str]:
    """Return a sentence about each reason why images are left out, from their names."""
    return [
        left_out_note(reason, len(names), min(names))
        for reason, names in sorted(reasons.items(), key=lambda item: item[0].kind)
        if reason.note
    ]


def left_out_note(reason: LeftOut, images: int, example: str = "") -> str:
    """Return a sentence about images that are left out, from their number and the name of one."""
    return reason.note.format(images=plural(images, "image"), are="is" if images == 1 else "are", example=repr(example))


def folder_notes(without_images: Mapping[Folder, Counter[str]]) -> list[str]:
    """Return a sentence about folders without images."""
    if not without_images:
        return []
    names = [
        f"{'/'.join(folder)!r} ({_by_number(kinds) or 'empty'})" for folder, kinds in sorted(without_images.items())
    ]
    return [f"no images in {'folder' if len(names) == 1 else 'folders'} {shortened(names, _FOLDERS_SHOWN)}"]


def no_images(location: str, skipped: Mapping[Folder, Counter[str]], refused: Sequence[tuple[str, str]]) -> str:
    """Return what is wrong with a source without images, and what to do."""
    kinds = sum(skipped.values(), Counter[str]())
    first = f", {len(refused)} refused, such as {': '.join(refused[0])}" if refused else ""
    problem = f"no images in {location!r} ({kinds.total()} other files{first})"
    if unread_images(kinds):
        return f"{problem}: {listed(sorted(kinds.keys() & UNREAD_SUFFIXES))} files are not read, convert them to JPEG or PNG"
    for start, pattern in _DATA.items():
        folders = {folder for folder, found in skipped.items() if any(map(re.compile(start).match, found))}
        if folders and not os.path.isfile(location):  # noqa: PTH113 - may be a URL
            [*parts] = folders.pop() if len(folders) == 1 else ("**",)
            return f'{problem}: give its {pattern} files as a pattern, "{"/".join([location.rstrip("/"), *parts, pattern])}"'
    if packed := sorted(kinds.keys() & PACKED_SUFFIXES):
        return f"{problem}: unpack its {listed(packed)} files"
    return f"{problem}: expected names that end in {', '.join(sorted(IMAGE_SUFFIXES))}"


def _by_number(kinds: Mapping[str, int]) -> str:
    found = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    return shortened([f"{count(number)} {kind}" for kind, number in found], _KINDS_SHOWN) if found else ""
