"""The images of a source by their folders, across all of its listings."""

from __future__ import annotations

import itertools
import os
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from joulecache.pipelines.source.classes import Labelled
from joulecache.pipelines.source.layout import (
    FLAT,
    MASK,
    MASK_BESIDE,
    OUTSIDE,
    Folder,
    LeftOut,
    Splits,
    find_classes,
    find_splits,
    folders_without_images,
    unlabelled,
)
from joulecache.pipelines.source.listing import ImageListing
from joulecache.pipelines.source.naming import IMAGE_WORDS, MASK_WORDS, is_ignored
from joulecache.pipelines.source.notes import folder_notes, unread_images

_FLAT_CLASS = "all"


@dataclass(frozen=True)
class ImageTree:
    """The images of a source by their folders.

    Attributes:
        folders: Each folder with images. Where files are splits, its first part is the split.
        folder_of: Index of the folder of each image.
        masks: Rows of the images that are named like masks of others: ``1_mask.png`` next to ``1.jpg`` or ``1_image.jpg``.
        skipped: Number of files that are not images, by folder and kind.
        splits: The splits of the folders.
    """

    folders: Sequence[Folder]
    folder_of: Sequence[int]
    masks: frozenset[int]
    skipped: Mapping[Folder, Counter[str]]
    splits: Splits

    @classmethod
    def of(
        cls, listings: Sequence[ImageListing], file_splits: Sequence[str] | None, given: Mapping[str, str] | None
    ) -> ImageTree:
        """Sort images by folder and find the splits.

        Args:
            listings: The images.
            file_splits: The split of each listing. Default: folders may be splits.
            given: The folder of each split. Default: known names.

        Raises:
            SourceError: It is unknown which folders are splits.
        """
        index_of: dict[Folder, int] = {}
        folder_of = array("i")
        masks: list[int] = []
        skipped: defaultdict[Folder, Counter[str]] = defaultdict(Counter)
        for listing, split in zip(listings, file_splits or itertools.repeat(None), strict=file_splits is not None):
            masks += (len(folder_of) + row for row in _mask_rows(listing.names))
            local: dict[str, int] = {}
            for name in listing.names:
                path = name.rpartition("/")[0]
                if path not in local:
                    local[path] = index_of.setdefault(_folder(split, path), len(index_of))
                folder_of.append(local[path])
            for path, kinds in listing.skipped.items():
                hidden = any(map(is_ignored, path.split("/")))
                skipped[() if hidden else _folder(split, path)] += kinds
        folders = list(index_of)
        if file_splits is None:
            counts = Counter(folder_of)
            shape = {folder: counts[index] for index, folder in enumerate(folders)}
            splits = find_splits(Counter(shape) + Counter(_unread(skipped)), given)
        else:
            splits = Splits(
                {folder: (folder[0], folder[1:]) for folder in [*folders, *skipped]}, given=given is not None
            )
        return cls(folders, folder_of, frozenset(masks), skipped, splits)

    @property
    def split_of(self) -> list[str | None]:
        """The split of each folder; None without one."""
        return [self.splits.inside.get(folder, (None,))[0] for folder in self.folders]

    def left_out(self, labels: Sequence[int | None], *, by_name: bool) -> dict[int, LeftOut]:
        """Return why images are no records, by row: they are masks, outside the splits, or in a split without labels.

        Args:
            labels: The label of each image; None without one.
            by_name: Whether these are labels of names, so that an image with one is no mask.
        """
        left_out = {row: MASK_BESIDE for row in self.masks if not by_name or labels[row] is None}
        used = [folder in self.splits.inside for folder in self.folders]
        splits = self.split_of
        labelled = {splits[index] for index, label in zip(self.folder_of, labels, strict=True) if label is not None}
        hidden = {split: unlabelled(split) for split in {*splits} - labelled - {None, "train"}}
        if hidden or not all(used):
            for row, index in enumerate(self.folder_of):
                if not used[index]:
                    left_out[row] = OUTSIDE
                elif splits[index] in hidden:
                    left_out[row] = hidden[splits[index]]
        return left_out


@dataclass(frozen=True)
class FolderLabels:
    """The labels of images by their folders.

    Attributes:
        labelled: The labels.
        is_flat: Whether there are no class folders.
        problem: Why folders cannot be classes; None if they can.
    """

    labelled: Labelled
    is_flat: bool
    problem: str | None


def folder_labels(tree: ImageTree) -> FolderLabels:
    """Return the labels of images by their class folders."""
    counts = Counter(index for row, index in enumerate(tree.folder_of) if row not in tree.masks)
    found = find_classes(
        {tree.folders[index]: number for index, number in counts.items()}, _unread(tree.skipped), tree.splits
    )
    places = [found.names.get(folder, MASK) for folder in tree.folders]
    names = sorted({place for place in places if isinstance(place, str)})
    index_of = {name: label for label, name in enumerate(names)}
    labels = [index_of[place] if isinstance(place, str) else None for place in places]
    left_out = dict.fromkeys(tree.masks, MASK_BESIDE)
    for row, index in enumerate(tree.folder_of):
        place = places[index]
        if not isinstance(place, str):
            left_out[row] = place
    labelled = Labelled(
        [None if row in left_out else labels[index] for row, index in enumerate(tree.folder_of)],
        tuple(name or _FLAT_CLASS for name in names),
        left_out=left_out,
        notes=(*found.notes, *folder_notes(folders_without_images(tree.skipped, found))),
    )
    return FolderLabels(labelled, names == [FLAT], found.problem)


def _folder(split: str | None, path: str) -> Folder:
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    return parts if split is None else (split, *parts)


def _unread(skipped: Mapping[Folder, Counter[str]]) -> dict[Folder, int]:
    return {folder: number for folder, kinds in skipped.items() if (number := unread_images(kinds))}


def _mask_rows(names: Sequence[str]) -> Iterator[int]:
    """Yield the rows of names like that of another image, with a word for masks at the end."""
    found = {}
    for row, name in enumerate(names):
        if match := MASK_WORDS.fullmatch(os.path.splitext(name)[0]):  # noqa: PTH122 - a Path for each name costs more
            found[row] = match[1]
    if found:
        stems = {os.path.splitext(name)[0] for name in names}  # noqa: PTH122
        stems |= {match[1] for match in map(IMAGE_WORDS.fullmatch, stems) if match}
        yield from (row for row, stem in found.items() if stem in stems)
