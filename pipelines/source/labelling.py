"""Labels of images in separate files: from a labels file, from label files in the same tar, or from folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from joulecache.pipelines.core.object_store import is_remote
from joulecache.pipelines.core.quantities import shortened
from joulecache.pipelines.source.classes import Labelled, crowding_note, merged
from joulecache.pipelines.source.coco import BOXES, COCO_KINDS, coco_targets, read_coco
from joulecache.pipelines.source.config import SourceConfig, Wanted
from joulecache.pipelines.source.features import LABEL, TargetTable
from joulecache.pipelines.source.label_members import TEXT_KEY, Label, Unusable, member_labels, sample_names
from joulecache.pipelines.source.labels import LabelTable, table_labels
from joulecache.pipelines.source.listing import ImageListing
from joulecache.pipelines.source.masks import MASK, MaskFinder, MaskListing, masks_beside, masks_of_images
from joulecache.pipelines.source.matching import keys_below
from joulecache.pipelines.source.records import SourceError
from joulecache.pipelines.source.targets import read_table
from joulecache.pipelines.source.tree import FolderLabels, ImageTree, folder_labels

_TABLES = (".cls", ".csv", ".json", ".jsonl", ".tsv")  # under any name, unlike .txt and .xml files
_TABLE = "pass a table with the name and class of each image as --labels"
_SHOWN = 3


def label_images(
    location: str,
    listings: Sequence[ImageListing],
    keys: Sequence[str],
    tree: ImageTree,
    config: SourceConfig,
    given: LabelTable | None,
    masks: MaskListing | None,
) -> Labelled:
    """Return the targets of images: of mask files, COCO files and a labels file, as given; else of label files in tars, or of folders.

    Args:
        location: The source.
        listings: Its images.
        keys: Their keys.
        tree: The images by their folders.
        config: Its `image` and `target` name columns of the labels file; `target` also a key in the .json files of tars.
        given: The labels file.
        masks: The mask files.

    Raises:
        SourceError: Labels are unusable, or it is unknown which are meant.
    """
    if config.is_unlabelled:
        return Labelled([0] * len(keys), (), targets=TargetTable({}, {}))
    found: list[Labelled] = []
    beside = bool(tree.masks) and masks is None and given is None
    others = without_files(config, beside=beside)
    if masks is not None:
        found.append(masks_of_images(masks, keys))
    elif beside and any(each.kind == "mask" or each == (MASK, None) for each in config.targets):
        found.append(masks_beside(listings, tree.masks))
    if config.coco is not None:
        found.append(_targets_of_coco(location, config, keys))
    if found and not others.targets and not given:
        return merged(found)
    folders = folder_labels(tree)
    if not found and not given and not config.targets and tree.masks and _is_without_labels(listings, folders):
        return masks_beside(listings, tree.masks)
    labelled = _label_alone(location, listings, keys, folders, others if found else config, given)
    return merged([*found, labelled], label=others.target_column or LABEL) if found else labelled


def without_files(config: SourceConfig, *, beside: bool = False) -> SourceConfig:
    """Return a configuration without the targets that are in files of masks or in COCO files.

    Args:
        config: The configuration.
        beside: Whether there are masks next to the images.
    """
    masks = [MASK] if config.masks is not None or beside else []
    coco = COCO_KINDS if config.coco is not None else ()
    of_files = [
        each
        for each in config.targets
        if each == (MASK, "mask") or (each.name in masks and each.kind is None) or each.name in coco
    ]
    if not of_files:
        return config
    others = [each for each in config.targets if each not in of_files]
    return replace(config, target=tuple(":".join(filter(None, each)) for each in others) or None)


def _is_without_labels(listings: Sequence[ImageListing], folders: FolderLabels) -> bool:
    """Return whether the images are in tars that have neither several class folders nor label files."""
    has_files = any(listing.labels is None or any(listing.labels.values()) for listing in listings)
    return len(folders.labelled.names) < 2 and not has_files


def _label_alone(
    location: str,
    listings: Sequence[ImageListing],
    keys: Sequence[str],
    folders: FolderLabels,
    config: SourceConfig,
    given: LabelTable | None,
) -> Labelled:
    """Return the targets of images by a labels file if given, else by label files in tars, else by folders."""
    if given:
        root = Path(location)
        find_key = keys_below(root, Path(given.folder)) if root.is_dir() else None
        finder = MaskFinder(location, listings, keys)
        of_table = table_labels(
            given, keys, image=config.image, targets=config.targets, find_key=find_key, find_masks=finder.find
        )
        return replace(of_table, read=_read_inside(location, [given.path, *given.others]))
    if config.image is not None:
        raise SourceError(f"--image names a column, but {location!r} has no columns: drop it, or {_TABLE}")
    target = config.target_column
    if config.target_names:
        return _targets_of_members(location, listings, config.targets)
    suffixes = [".cls"] if len(folders.labelled.names) > 1 else [".cls", ".json", ".txt"]
    if target is not None:
        suffixes = [".json", ".cls"] if target == "cls" else [".json"]
    for suffix in suffixes:
        if labelled := _from_members(location, listings, suffix):
            return labelled
    problem = _first_problem(listings)
    if target is not None:
        kinds = f"; for another kind than a class, pass --target {target}:KIND" if problem else ""
        of_coco = f"{' or '.join(COCO_KINDS)} of the COCO file, " if config.coco is not None else ""
        raise SourceError(
            f"no image in {location!r} has a class under {target!r}{problem}: --target must name {of_coco}a key of the .json files in a "
            f"tar, or a column of a --labels table{kinds}"
        )
    unused = shortened(list(_unused_files(listings)), _SHOWN)
    if unused and folders.is_flat and any(listing.labels is not None for listing in listings):
        key = ", or name the key of the class in .json files with --target" if ".json" in unused else ""
        raise SourceError(f"no labels found in {location!r}, but {unused}{problem}: {_TABLE}{key}")
    if folders.problem:
        raise SourceError(folders.problem)
    labelled = folders.labelled
    notes = (*labelled.notes, *crowding_note(labelled.labels))
    if unused:
        notes = (f"label files are not used ({unused}): {_TABLE} if these have the labels", *notes)
    return replace(labelled, notes=notes)


def _targets_of_coco(location: str, config: SourceConfig, keys: Sequence[str]) -> Labelled:
    assert config.coco is not None
    wanted = [each for each in config.targets if each.name in COCO_KINDS]
    for name, kind in wanted:
        if kind not in (None, COCO_KINDS[name]):
            raise SourceError(f"target {name!r} of a COCO file is of kind {COCO_KINDS[name]}, got {kind!r}")
    files = read_coco(config.coco)
    root = Path(location) if Path(location).is_dir() else None
    found = coco_targets(files, keys, root, [each.name for each in wanted] or [BOXES])
    return replace(found, read=_read_inside(location, [file.path for file in files]))


def _read_inside(location: str, paths: Sequence[str]) -> Counter[str]:
    """Return the number of files in a source that were read as labels, by suffix."""
    if is_remote(location):
        inside = [path for path in paths if path.startswith(f"{location.rstrip('/')}/")]
    else:
        root = Path(location).absolute()
        inside = [path for path in paths if root.is_dir() and Path(path).absolute().is_relative_to(root)]
    return Counter(PurePosixPath(path).suffix.lower() for path in inside)


def _targets_of_members(location: str, listings: Sequence[ImageListing], wanted: Sequence[Wanted]) -> Labelled:
    """Return the targets in tars: under keys of .json files, or the texts of .txt files; SourceError if there are none."""
    if masks := [each.name for each in wanted if each.kind == "mask"]:
        raise SourceError(
            f"no masks for --target {masks[0]}:mask in {location!r}: pass their folder as --masks, or name masks next to images like "
            "'1.seg.png' next to '1.jpg'"
        )
    of_text = [each for each in wanted if each.name == TEXT_KEY]
    in_json = [each for each in wanted if each not in of_text]
    cells: dict[str, list[str | None]] = {}
    missing: dict[int, str] = {}
    read: Counter[str] = Counter()
    for suffix, named in ((".json", in_json), (".txt", of_text)):
        if not named:
            continue
        found, read[suffix] = _found_members(listings, suffix)
        if not any(isinstance(each, tuple) for each in found):
            names = ", ".join(repr(each.name) for each in named)
            raise SourceError(
                f"no image in {location!r} has {names}{_first_problem(listings)}: --target must name keys of the .json files in a tar, "
                f"{TEXT_KEY} for its .txt files, or columns of a --labels table"
            )
        for place, each in enumerate(named):
            cells[each.name] = [value[place] if isinstance(value, tuple) else None for value in found]
        for row, value in enumerate(found):
            if not isinstance(value, tuple):
                missing[row] = value.reason if isinstance(value, Unusable) else f"it has no {suffix} file"
    kinds = " and ".join(read)
    targets, reasons, notes = read_table(
        wanted, {each.name: cells[each.name] for each in wanted}, f"the {kinds} files of {location!r}"
    )
    reasons.update(missing)
    rows = len(next(iter(cells.values())))
    labels = [None if row in reasons else 0 for row in range(rows)]
    return Labelled(labels, (), reasons, read=read, notes=tuple(notes), targets=targets)


def _found_members(listings: Sequence[ImageListing], suffix: str) -> tuple[list[Label | None], int]:
    """Return what the label file of each image has, None without one, and the number of these files."""
    found: list[Label | None] = []
    files = 0
    for listing in listings:
        labels = (listing.labels or {}).get(suffix, {})
        if not labels:
            found += [None] * len(listing.names)
            continue
        stems = [next((stem for stem in sample_names(name) if stem in labels), None) for name in listing.names]
        found += [None if stem is None else labels[stem] for stem in stems]
        files += len({*stems} - {None})
    return found, files


def _from_members(location: str, listings: Sequence[ImageListing], suffix: str) -> Labelled | None:
    """Return the classes in the label files of a suffix; None without any."""
    if not any((listing.labels or {}).get(suffix) for listing in listings):
        return None
    found, files = _found_members(listings, suffix)
    # files of other kinds may have something else, such as captions or boxes
    if not any(label is not None and (suffix == ".cls" or not isinstance(label, Unusable)) for label in found):
        return None
    labelled = member_labels(suffix, [each for each in found if not isinstance(each, tuple)])
    notes = crowding_note(labelled.labels)
    if suffix == ".txt" and notes:
        raise SourceError(
            f"the .txt files in {location!r} seem to be captions, not classes, as nearly each is different: read them as texts "
            f"with --target {TEXT_KEY}:text, or {_TABLE}"
        )
    if suffix != ".cls":
        notes = (f"classes are read from the {suffix} files in {location}", *notes)
    return replace(labelled, notes=notes, read=Counter({suffix: files}))


def _first_problem(listings: Sequence[ImageListing]) -> str:
    """Return why the first label file has no class; "" if all have one."""
    for listing in listings:
        for labels in (listing.labels or {}).values():
            for name, label in labels.items():
                if isinstance(label, Unusable):
                    return f" ({name}: {label.reason})"
    return ""


def _unused_files(listings: Sequence[ImageListing]) -> Iterator[str]:
    """Yield "20 .json files such as 'a/1.json'" for the kinds of files that may have labels."""
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for listing in listings:
        files = [
            *listing.beside,
            *(stem + suffix for suffix, labels in (listing.labels or {}).items() for stem in labels),
        ]
        stems = {stem for name in listing.names for stem in sample_names(name)} if files else set()
        for file in sorted(files):
            stem, suffix = os.path.splitext(file)  # noqa: PTH122 - a Path for each name costs more than the rest
            if stem in stems or suffix.lower() in _TABLES:
                counts[suffix.lower()] += 1
                first.setdefault(suffix.lower(), file)
    for suffix, count in counts.items():
        yield repr(first[suffix]) if count == 1 else f"{count:,} {suffix} files such as {first[suffix]!r}"
