"""Masks in image files: which image each belongs to, and which classes they have."""

from __future__ import annotations

import heapq
import os
import re
import stat
from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from joulecache.pipelines.core.checks import shown
from joulecache.pipelines.core.files import mtime_ns
from joulecache.pipelines.core.object_store import is_remote
from joulecache.pipelines.core.quantities import plural
from joulecache.pipelines.source.classes import Labelled
from joulecache.pipelines.source.features import TargetTable
from joulecache.pipelines.source.folder import list_folder
from joulecache.pipelines.source.layout import READ_MASK, is_image_folder, is_mask_folder
from joulecache.pipelines.source.listing import ImageListing, image_places
from joulecache.pipelines.source.matching import Matches, match_names
from joulecache.pipelines.source.naming import IMAGE_SUFFIXES, IMAGE_WORDS, MASK_WORDS, is_utf8
from joulecache.pipelines.source.patterns import matched_paths
from joulecache.pipelines.source.records import SourceError
from joulecache.pipelines.source.spatial import VOID, Mask
from joulecache.pipelines.source.stored import find_stored
from joulecache.pipelines.source.unit_tables import FILE_COLUMNS, TargetFile
from joulecache.transforms.randomness import key_hash

MASK = "mask"
"""The name of a target of masks that has no other."""

BINARY_NAMES = ("background", "foreground")

_SAMPLE = 64  # masks that are decoded to tell whether all have two classes


@dataclass(frozen=True)
class MaskListing:
    """Mask files that the user names.

    Attributes:
        where: The folder or pattern, as given.
        names: Name of each mask.
        files: Where each is: a table with `FILE_COLUMNS` and ``mtime_ns``.
        paths: The local folders and files.
    """

    where: str
    names: Sequence[str]
    files: pa.Table
    paths: tuple[Path, ...]

    @property
    def folders(self) -> tuple[Path, ...]:
        """The local folders."""
        return tuple(path for path in self.paths if path.is_dir())


def split_masks(
    masks: MaskListing, listings: Sequence[ImageListing], location: str
) -> tuple[MaskListing, list[ImageListing]]:
    """Return the masks, and the images that are none of them.

    In a folder that has images too, masks are the files with a word for masks at the end of their names.

    Args:
        masks: The masks.
        listings: The images of folders or tars.
        location: The source.
    """
    if is_remote(masks.where):
        folder, above = (f"{text.rstrip('/')}/" for text in (masks.where, location))
        inside = [folder.removeprefix(above).rstrip("/")] if folder.startswith(above) and folder != above else []
        return masks, [_without(listing, inside) for listing in listings]
    root = Path(location).absolute()
    paths = [path.absolute() for path in masks.paths]
    if any(root.is_relative_to(path) for path in paths):
        kept = [bool(MASK_WORDS.fullmatch(_stem(name))) for name in masks.names]
        names = [name for name, keep in zip(masks.names, kept, strict=True) if keep]
        if not names:
            raise SourceError(
                f"the folder of masks {masks.where!r} has the images too: give a folder that has only masks, or name masks like "
                "'1_mask.png' for '1.jpg'"
            )
        masks = replace(masks, names=names, files=masks.files.filter(pa.array(kept, pa.bool_())))
        places = masks.files.select(["path", "name"]).to_pylist()
        files = {Path(place["path"], place["name"]).as_posix() for place in places}
        inside = [name.removeprefix(f"{root}/") for name in files if name.startswith(f"{root}/")]
    else:
        inside = [path.relative_to(root).as_posix() for path in paths if path.is_relative_to(root)]
    return masks, [_without(listing, inside) for listing in listings] if inside else [*listings]


def _without(listing: ImageListing, masks: Collection[str]) -> ImageListing:
    """Return a listing without some files and folders."""
    files, folders = {*masks}, tuple(f"{name}/" for name in masks)
    keep = [name not in files and not name.startswith(folders) for name in listing.names]
    names = [name for name, kept in zip(listing.names, keep, strict=True) if kept]
    skipped = {folder: kinds for folder, kinds in listing.skipped.items() if not f"{folder}/".startswith(folders)}
    return replace(listing, names=names, places=listing.places.filter(pa.array(keep, pa.bool_())), skipped=skipped)


def list_masks(where: str | os.PathLike[str]) -> MaskListing:
    """List the masks in a folder, also in folders in it, or in the folders or files that a pattern matches; SourceError without any."""
    text = os.fspath(where)
    paths: tuple[Path, ...] = ()
    if is_remote(text):
        folder, _ = find_stored(text)
        listings = [folder()] if folder else []
    else:
        paths = tuple(path for path in matched_paths(text) if path.exists())
        files = [path for path in paths if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES]
        listings = [replace(list_folder(path), prefix=f"{path.as_posix()}/") for path in paths if path.is_dir()]
        listings += [_list_files(files)] if files else []
    if not listings:
        raise SourceError(f"no masks at {text!r}: expected a folder of images, or a pattern of folders or images")
    if not any(len(listing.names) for listing in listings):
        raise SourceError(f"no images in the folder of masks {text!r}: expected masks named like the images")
    prefix = len(listings) > 1
    names = [listing.prefix + name if prefix else name for listing in listings for name in listing.names]
    return MaskListing(text, names, _joined([file_places(each.places, each.names) for each in listings]), paths)


def _list_files(paths: Sequence[Path]) -> ImageListing:
    """List files of a pattern, with their whole paths as names."""
    names, sizes, times = [], array("q"), array("q")
    for path in paths:
        if is_utf8(str(path)):
            status = path.stat()
            names.append(str(path.absolute())[1:])
            sizes.append(status.st_size)
            times.append(mtime_ns(status))
    return ImageListing("", names, image_places("/", sizes, times, None), None, [], {}, [])


def file_places(places: pa.Table, names: Sequence[str]) -> pa.Table:
    """Return where target files are, from the table of `image_places` and their names."""
    in_folder = pc.is_null(places["offset"])
    table = places.append_column("name", pc.if_else(in_folder, pa.array(names, pa.string()), None))
    return table.select([*FILE_COLUMNS, "mtime_ns"])


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks()


# Matching -------------------------------------------------------------------------------------------------------------


def masks_of_images(masks: MaskListing, keys: Sequence[str]) -> Labelled:
    """Return the mask of each image, which has the same name but for the suffix, or for words such as ``_mask`` and ``images/``.

    Raises:
        SourceError: No mask has the name of an image, or a mask may be of two images, or an image has two.
    """
    found = _matches(masks.names, keys)
    if not found.rows:
        raise SourceError(
            f"no mask in {masks.where!r} is named like an image of the source: got {min(masks.names)!r}, expected names such as "
            f"{_stem(min(keys)) + '.png'!r}"
        )
    if found.either:
        index, *rows = found.either
        one, other = sorted(keys[row] for row in rows)
        raise SourceError(
            f"the mask {masks.names[index]!r} in {masks.where!r} may be of {one!r} or {other!r}: put masks into the same folders as images"
        )
    if found.twice:
        one, other = sorted(masks.names[index] for index in found.twice)
        raise SourceError(
            f"{one!r} and {other!r} in {masks.where!r} are masks of the same image: keep one, or name them with a pattern"
        )
    mask_of: list[int | None] = [None] * len(keys)
    for index, row in found.rows.items():
        mask_of[row] = index
    labelled = masks_by_row(MASK, masks.files, mask_of, masks.where)
    unused = len(masks.names) - len(found.rows)
    if not unused:
        return labelled
    lost = next(name for index, name in enumerate(masks.names) if index not in found.rows)
    note = f"{masks.where} has {plural(unused, 'mask')} of images that the source does not have, such as {lost!r}"
    return replace(labelled, notes=(*labelled.notes, note))


def masks_beside(listings: Sequence[ImageListing], masks: Collection[int]) -> Labelled:
    """Return the masks next to images, such as ``1.seg.png`` next to ``1.jpg``, as WebDataset has them.

    Args:
        listings: The images.
        masks: The rows of those that are named like masks of others.

    Raises:
        SourceError: An image has two masks.
    """
    names = [name for listing in listings for name in listing.names]
    prefixes = [listing.prefix for listing in listings for _ in listing.names]
    image_of: dict[tuple[str, str], int] = {}
    for row, name in enumerate(names):
        if row not in masks:
            found = IMAGE_WORDS.fullmatch(_stem(name))
            image_of.setdefault((prefixes[row], found[1] if found else _stem(name)), row)
            image_of[prefixes[row], _stem(name)] = row
    mask_of: list[int | None] = [None] * len(names)
    for row in sorted(masks):
        found = MASK_WORDS.fullmatch(_stem(names[row]))
        image = image_of.get((prefixes[row], found[1] if found else ""))
        if image is None:
            continue
        if (other := mask_of[image]) is not None:
            raise SourceError(
                f"{names[other]!r} and {names[row]!r} are masks of the same image {names[image]!r}: keep one of them"
            )
        mask_of[image] = row
    files = _joined([file_places(listing.places, listing.names) for listing in listings])
    labelled = masks_by_row(MASK, files, mask_of, f"files such as {names[min(masks)]!r}")
    return replace(labelled, left_out=dict.fromkeys(masks, READ_MASK))


class MaskFinder:
    """Finds the masks that the cells of a table name: images of the source, or other local files.

    Args:
        location: The source.
        listings: Its images.
        keys: Their keys.
    """

    def __init__(self, location: str, listings: Sequence[ImageListing], keys: Sequence[str]) -> None:
        self._location, self._listings, self._keys = location, listings, keys

    def find(self, name: str, cells: Sequence[str | None], folder: str, where: str) -> Labelled:
        """Return the masks in a column.

        Args:
            name: Name of the target.
            cells: The path of each image's mask, relative to `folder`; None for an image without a line.
            folder: The folder of the table.
            where: The table.
        """
        row_of = {key: row for row, key in enumerate(self._keys)}
        prefix = self._prefix(folder)
        others: dict[str, tuple[int, os.stat_result]] = {}
        mask_of: list[int | None] = []
        reasons: dict[int, str] = {}
        for row, cell in enumerate(cells):
            found = None
            try:
                if cell is None:
                    raise ValueError(f"it has no label in {where}")
                path = _checked_path(name, cell, where)
                found = None if prefix is None else row_of.get(prefix + path)
                if found is None:
                    found = len(self._keys) + self._other(others, folder, path, name)
            except ValueError as error:
                reasons[row] = str(error)
            mask_of.append(found)
        places = [file_places(each.places, each.names) for each in self._listings]
        if others:
            sizes, times = zip(*((status.st_size, mtime_ns(status)) for _, status in others.values()), strict=True)
            places.append(file_places(image_places(os.path.abspath(folder), sizes, times, None), [*others]))  # noqa: PTH100
        if all(found is None for found in mask_of):
            why = min(reasons.items())[1] if reasons else "it has no lines"
            raise SourceError(f"{where} names no mask in column {name!r}: {why}")
        labelled = masks_by_row(name, _joined(places), mask_of, where)
        used = {found for found in mask_of if found is not None and found < len(self._keys)}
        return replace(labelled, reasons=reasons, left_out=dict.fromkeys(used, READ_MASK))

    def _prefix(self, folder: str) -> str | None:
        """Return the start of the keys of files in a folder; None if it is not in the source."""
        if is_remote(self._location) or is_remote(folder):
            url, root = (f"{text.rstrip('/')}/" for text in (folder, self._location))
            return url.removeprefix(root) if url.startswith(root) else None
        above, below = Path(self._location).absolute(), Path(folder).absolute()
        if not above.is_dir():
            return ""  # of a tar: the table is somewhere else
        if not below.is_relative_to(above):
            return None
        inside = below.relative_to(above).as_posix()
        return "" if inside == "." else f"{inside}/"

    @staticmethod
    def _other(others: dict[str, tuple[int, os.stat_result]], folder: str, path: str, name: str) -> int:
        """Return the place of a local file that is not in the source among others."""
        if path not in others:
            try:
                if is_remote(folder):
                    raise FileNotFoundError
                status = Path(folder, path).stat()
                if not stat.S_ISREG(status.st_mode):
                    raise FileNotFoundError
                others[path] = len(others), status
            except (OSError, ValueError):
                raise ValueError(
                    f"its {name!r} {path!r} is missing: there is no such file in {folder or '.'}"
                ) from None
        return others[path][0]


def _checked_path(name: str, cell: str, where: str) -> str:
    """Return a path of a table relative to its folder; ValueError if there is none, or it leaves the folder."""
    path = PurePosixPath(cell.replace("\\", "/"))
    if not cell:
        raise ValueError(f"its {name!r} is empty")
    if path.is_absolute() or PureWindowsPath(cell).drive or ".." in path.parts or is_remote(cell) or "\0" in cell:
        raise ValueError(f"its {name!r} {shown(cell)} must be a path relative to the folder of {where}, without '..'")
    return path.as_posix()


def masks_by_row(name: str, files: pa.Table, mask_of: Sequence[int | None], where: str) -> Labelled:
    """Return the masks of images as a target.

    Args:
        name: Name of the target.
        files: The table of `file_places`.
        mask_of: The row of each image's mask; None without one.
        where: Where the masks are, for messages.
    """
    taken = files.take(pa.array(mask_of, pa.int64())).combine_chunks()
    used = [row for row in mask_of if row is not None]
    feature, note = mask_feature(_sample(files, used), where)
    reason = f"it has no mask in {where}"
    return Labelled(
        [None if row is None else 0 for row in mask_of],
        (),
        {row: reason for row, mask in enumerate(mask_of) if mask is None},
        notes=(f"{note} from {where}",),
        targets=TargetTable({name: feature}, {}, {name: taken}),
    )


def _sample(files: pa.Table, rows: Sequence[int]) -> list[bytes]:
    """Return some masks, chosen by the hashes of their names: the same in any order of the files."""
    places = files.take(pa.array(rows, pa.int64())).select(FILE_COLUMNS)
    names = pc.coalesce(places["name"], places["offset"].cast(pa.string())).to_pylist()
    chosen = heapq.nsmallest(_SAMPLE, range(len(rows)), key=lambda row: (key_hash(names[row]), names[row]))
    sampled = places.take(pa.array(chosen, pa.int64())).to_pylist()
    contents = []
    for place in sampled:
        try:
            contents.append(TargetFile(**place).read())
        except OSError:  # its record will be rejected
            continue
    return contents


def mask_feature(sample: Sequence[bytes], where: str) -> tuple[Mask, str]:
    """Return the feature of masks by some of them, and what they are, for a note; SourceError if none can be read as a mask."""
    values: set[int] = set()
    problem = None
    decoded = 0
    for data in sample:
        try:
            values |= {*np.unique(Mask().decode(data).ids).tolist()}
            decoded += 1
        except ValueError as error:
            problem = str(error)
    if problem and not decoded:
        raise SourceError(f"the masks in {where!r} are not usable: {problem}")
    if values in ({0, 255}, {0, 1}):
        return Mask(BINARY_NAMES), f"masks of 0 and {max(values)}, read as the classes {' and '.join(BINARY_NAMES)},"
    ids = values - {VOID}
    if not ids:
        return Mask(), "masks without a class"
    return Mask(), f"masks with id {min(ids)}" if len(ids) == 1 else f"masks with ids {min(ids)} to {max(ids)}"


def _matches(masks: Sequence[str], keys: Sequence[str]) -> Matches:
    """Match by names without suffix, or else also without words for masks and images."""
    found = match_names([_stem(name) for name in masks], keys)
    if 2 * len(found.rows) >= min(len(masks), len(keys)):
        return found
    plain = match_names(
        [_plain(name, MASK_WORDS) for name in masks], [_plain(key, IMAGE_WORDS) + ".png" for key in keys]
    )
    return plain if len(plain.rows) > len(found.rows) else found


def _plain(name: str, words: re.Pattern[str]) -> str:
    """Return a name without its suffix, words at its end, and folders of images or masks."""
    *folders, file = _stem(name).split("/")
    found = words.fullmatch(file)
    kept = [folder for folder in folders if not is_mask_folder(folder) and not is_image_folder(folder)]
    return "/".join([*kept, found[1] if found else file])


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]  # noqa: PTH122 - a Path for each name costs more than the rest
