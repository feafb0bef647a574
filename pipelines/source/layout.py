"""Splits and classes by the folders of the images."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from joulecache.pipelines.core.quantities import count, listed, plural, shortened
from joulecache.pipelines.source.config import SOURCE_SPLITS
from joulecache.pipelines.source.records import SourceError
from joulecache.pipelines.source.splits import choose_splits, lone_split, split_words, splits_option

Folder = tuple[str, ...]
"""The parts of a folder's path; () for the source itself."""

FLAT = ""
"""The class of images that are not in class folders."""

_SHOWN = 5  # names in a message
_IMAGE_FOLDERS = frozenset(
    ["image", "images", "img", "imgs", "input", "inputs", "jpegimages", "leftimg8bit", "photos", "rgb"]
)
_MASK_FOLDERS = frozenset(
    [
        *("annot", "annotation", "annotations", "annots", "groundtruth", "gt", "gtcoarse", "gtfine", "label", "labels"),
        *(
            "mask",
            "masks",
            "seg",
            "segmentation",
            "segmentationclass",
            "segmentationobject",
            "segmentations",
            "trimap",
            "trimaps",
            "truth",
        ),
    ]
)
_PARTS = _IMAGE_FOLDERS | {"batch", "chunk", "fold", "part", "shard", "subset"}
_WORD = re.compile(r"[^\W\d_]+")
_NUMBER_AT_END = re.compile(r"[ _.-]*[0-9]+$")
_AS_CLASSES = "if they are classes, pass --splits train=."


@dataclass(frozen=True)
class LeftOut:
    """Why images are no records.

    Attributes:
        kind: The kind under which they are counted as skipped.
        note: A sentence for people, with ``{images}`` for their number, ``{are}``, and ``{example}`` for the name of one.
    """

    kind: str
    note: str


STRAY = LeftOut("(next to class folders)", "{images} next to the class folders {are} left out, such as {example}")
OUTSIDE = LeftOut("(outside the splits)", "{images} outside the splits {are} left out, such as {example}")
MASK = LeftOut(
    "(mask)", "{images} in folders of masks {are} left out, such as {example}: pass --masks FOLDER to read masks"
)
MASK_BESIDE = LeftOut(
    "(mask)", "{images} named like masks {are} left out, such as {example}: pass --target mask:mask to read masks"
)
READ_MASK = LeftOut("(mask)", "")
"""A mask that is read with its image."""


def unlabelled(split: str | None) -> LeftOut:
    """Return that the images of a split have no labels."""
    return LeftOut(f"(split {split})", f"split {split} has no labels: its {{images}} {{are}} left out")


@dataclass(frozen=True)
class Splits:
    """The images of each split by their folder inside the split.

    Attributes:
        inside: The split, None without one, and the folder inside it of each folder. Folders that are absent are left out.
        given: Whether the user named the splits, or that there are none.
    """

    inside: Mapping[Folder, tuple[str | None, Folder]]
    given: bool


# Splits ---------------------------------------------------------------------------------------------------------------


def find_splits(counts: Mapping[Folder, int], given: Mapping[str, str] | None) -> Splits:
    """Divide folders into splits.

    Args:
        counts: Number of images in each folder, without those in folders below it.
        given: The folder of each split, relative to the source or to the folder that all images share; ``.`` is the source. Default: known
            names of the first folders that differ, or of those inside each class folder.

    Raises:
        SourceError: Only some folders are splits, or a given folder is missing.
    """
    base = shared_folder(counts)
    if given is not None:
        return Splits(_inside(counts, _given_roots(counts, base, given)), given=True)
    words = _below(counts, base)
    splits = choose_splits(words) if words else None
    if splits is not None:
        return Splits(_inside(counts, {(*base, word): split for word, split in splits.items()}), given=False)
    _refuse_lone_split(counts, base, words)
    return Splits(_splits_in_classes(counts, base) or {folder: (None, folder) for folder in counts}, given=False)


def shared_folder(counts: Mapping[Folder, int]) -> Folder:
    """Return the folder that all images share, but for few next to it. A folder that holds images itself is not shared."""
    shared: Folder = ()
    while True:
        words = _below(counts, shared)
        if len(words) != 1 or 2 * counts.get(shared, 0) >= words.total() + counts.get(shared, 0):
            return shared
        child = (*shared, *words)
        if 2 * counts.get(child, 0) >= words.total():
            return shared
        shared = child


def _below(counts: Mapping[Folder, int], above: Folder) -> Counter[str]:
    """Return the number of images below each folder in `above`."""
    depth, words = len(above), Counter[str]()
    for folder, images in counts.items():
        if len(folder) > depth and folder[:depth] == above:
            words[folder[depth]] += images
    return words


def _given_roots(counts: Collection[Folder], base: Folder, given: Mapping[str, str]) -> dict[Folder, str]:
    above = {folder[:depth] for folder in counts for depth in range(len(folder) + 1)}
    roots: dict[Folder, str] = {}
    for split, name in given.items():
        path = tuple(part for part in name.split("/") if part not in ("", "."))
        root = next((root for root in (path, (*base, *path)) if root in above), None)
        if root is None:
            there = sorted(folder[-1] for folder in above if folder[:-1] == base and folder) or ["."]
            raise SourceError(
                f"no images in the folder {name!r} of split {split}: expected one of {shortened(list(map(repr, there)), _SHOWN)}"
            )
        if root in roots:
            raise SourceError(
                f"splits {roots[root]} and {split} are the same folder {name!r}: give each its own folder"
            )
        roots[root] = split
    return roots


def _inside(counts: Iterable[Folder], roots: Mapping[Folder, str]) -> dict[Folder, tuple[str | None, Folder]]:
    """Return the split and the folder inside it of the folders below the roots; the innermost root decides."""
    inside: dict[Folder, tuple[str | None, Folder]] = {}
    for folder in counts:
        depths = [depth for depth in range(len(folder) + 1) if folder[:depth] in roots]
        if depths:
            root, rest = folder[: depths[-1]], folder[depths[-1] :]
            inside[folder] = roots[root], rest
    repeated = {
        root for root in roots if root and _repeats(root, [folder for folder in inside if folder[: len(root)] == root])
    }
    for root in repeated:  # as in seg_train/seg_train/forest
        inside |= {folder: (split, rest[1:]) for folder, (split, rest) in inside.items() if folder[: len(root)] == root}
    return inside


def _repeats(root: Folder, folders: Collection[Folder]) -> bool:
    """Return whether all images below a root are in one folder of the same name."""
    return {folder[len(root) : len(root) + 1] for folder in folders} == {root[-1:]}


def _refuse_lone_split(counts: Mapping[Folder, int], base: Folder, words: Mapping[str, int]) -> None:
    """Refuse a folder named like a split next to folders of other names, unless it is ``train`` without class folders: a vehicle."""
    word, split = lone_split(words) or ("", "")
    if not split or len(words) < 2 or (split == "train" and len(_below(counts, (*base, word))) < 2):
        return
    others = shortened([repr(other) for other in sorted(words) if other != word], _SHOWN)
    inside = {name: _below(counts, (*base, name)).keys() for name in words}
    # as fold1/cat and holdout/cat, unlike cat and test/cat
    others_alike = inside[word].isdisjoint(words) and any(inside[word] & inside[name] for name in words if name != word)
    by_name = split == "train" or others_alike
    option = splits_option(words) if by_name else f"--splits {shlex.quote(f'train=.,{split}={word}')}"
    raise SourceError(f"{word!r} looks like a split, but not {others}: name the splits, like {option}; {_AS_CLASSES}")


def _splits_in_classes(counts: Mapping[Folder, int], base: Folder) -> dict[Folder, tuple[str | None, Folder]]:
    """Return the split and the folder without it where each class folder has splits, as in ``cat/train``; {} elsewhere."""
    depth = len(base) + 1
    classes = [folder for folder in counts if len(folder) >= depth]
    words = Counter({folder[depth]: 1 for folder in classes if len(folder) > depth})
    splits = split_words(words)
    if "train" not in splits.values() or len(set(splits.values())) < len(words) or len(words) < 2:
        return {}
    if any(len(folder) == depth for folder in classes):
        return {}
    return {folder: (splits[folder[depth]], (*folder[:depth], *folder[depth + 1 :])) for folder in classes}


# Classes --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FolderClasses:
    """The class of each folder.

    Attributes:
        names: Class of each folder, or why its images are left out.
        roots: The class folders.
        notes: Sentences for people.
        problem: Why the folders cannot be classes; None if they can.
    """

    names: Mapping[Folder, str | LeftOut]
    roots: frozenset[Folder]
    notes: tuple[str, ...]
    problem: str | None


def find_classes(counts: Mapping[Folder, int], unread: Mapping[Folder, int], splits: Splits) -> FolderClasses:
    """Find the class folders: the first folders that differ inside the splits.

    Args:
        counts: Number of images in each folder, without those in folders below it.
        unread: The same for images in formats that are not read. They are no records, but show where class folders are.
        splits: The splits of the folders of both.
    """
    sizes: defaultdict[str | None, Counter[Folder]] = defaultdict(Counter)  # by split and folder inside it
    for folder in counts.keys() & splits.inside.keys():
        split, inside = splits.inside[folder]
        sizes[split][inside] += counts[folder]
    flat = {split for split, folders in sizes.items() if set(folders) == {()}}
    shapes: Counter[Folder] = Counter()
    for folder, (split, inside) in splits.inside.items():
        if split not in flat:
            shapes[inside] += counts.get(folder, 0) + unread.get(folder, 0)
    base = shared_folder(shapes)
    masks = _mask_folders(shapes, base)
    loose = STRAY if any(_below(folders, base) for folders in sizes.values()) else FLAT
    left_out = {} if loose == FLAT else _unlabelled_splits(sizes, base)
    names: dict[Folder, str | LeftOut] = dict.fromkeys(counts, OUTSIDE)
    roots = set()
    for folder in counts.keys() & splits.inside.keys():
        split, inside = splits.inside[folder]
        if split in left_out:
            names[folder] = left_out[split]
        elif inside in masks:
            names[folder] = MASK
        elif len(inside) > len(base):
            names[folder] = inside[len(base)]
            roots.add(folder[: len(folder) - len(inside) + len(base) + 1])
        else:
            names[folder] = loose
            roots |= {folder} if loose == FLAT else set()
    names = _normalized(names)
    problems = [_stray_problem(split, folders, base) for split, folders in sizes.items() if split not in left_out]
    if not splits.given:
        problems.append(_mask_problem(_below(shapes, base), base, splits))
        if set(sizes) == {None}:
            problems.append(_repeated_problem({folder: n for folder, n in shapes.items() if folder not in masks}, base))
            problems.append(_parts_problem(_below(shapes, base)))
    problem = next((problem for problem in problems if problem), None) if loose == STRAY else None
    return FolderClasses(names, frozenset(roots), tuple(_class_notes(names, splits)), problem)


def _mask_folders(folders: Collection[Folder], base: Folder) -> set[Folder]:
    """Return the folders of masks inside class folders: ``cat/masks`` next to ``cat/images``."""
    first = len(base) + 1
    with_images = {
        folder[:place] for folder in folders for place in range(first, len(folder)) if is_image_folder(folder[place])
    }
    return {
        folder
        for folder in folders
        for place in range(first, len(folder))
        if is_mask_folder(folder[place]) and folder[:place] in with_images
    }


def is_image_folder(folder: str) -> bool:
    """Return whether a folder is named like one of images next to masks."""
    return not is_mask_folder(folder) and not _name_parts(folder).isdisjoint(_IMAGE_FOLDERS)


def is_mask_folder(folder: str) -> bool:
    """Return whether a folder is named like one of masks."""
    return not _name_parts(folder).isdisjoint(_MASK_FOLDERS)


def _name_parts(folder: str) -> set[str]:
    """Return the words in a name, and the name."""
    return {folder.lower(), *_WORD.findall(folder.lower())}


def _mask_problem(words: Collection[str], base: Folder, splits: Splits) -> str | None:
    """Return what is wrong where masks are next to images, in the place of classes."""
    masks = sorted(filter(is_mask_folder, words))
    images = sorted(word for word in words if is_image_folder(word) or lone_split([word]))
    if not images or not masks:
        return None
    chosen = (*base, images[0])
    roots = {
        split: folder[: -len(inside)]
        for folder, (split, inside) in splits.inside.items()
        if inside[: len(chosen)] == chosen
        and folder[-len(inside) :] == inside  # not so where splits are in class folders
    }
    fix, as_classes = f"give its folder {'/'.join(chosen)!r} as the source", _AS_CLASSES
    named = [split for split in SOURCE_SPLITS if split in roots]
    if named:
        fix, as_classes = (
            "pass --splits " + shlex.quote(",".join(f"{split}={'/'.join((*roots[split], *end))}" for split in named))
            for end in (chosen, base)
        )
        as_classes = f"if they are classes, {as_classes}"
    return (
        f"{listed(list(map(repr, masks)))} {'looks' if len(masks) == 1 else 'look'} like masks of the images in {images[0]!r}: "
        f"pass --masks FOLDER to read them; {fix} to use the images alone; {as_classes}"
    )


def _repeated_problem(counts: Mapping[Folder, int], base: Folder) -> str | None:
    """Return what is wrong where folders have the same folders inside, so that they may be splits or classes."""
    words, deeper = _below(counts, base), Counter[str]()
    inside: defaultdict[str, set[str]] = defaultdict(set)
    for folder, images in counts.items():
        if len(folder) > len(base) + 1:
            word, name = folder[len(base) : len(base) + 2]
            inside[word].add(name)
            deeper[word] += images
    if len(words) < 2 or any(2 * deeper[word] <= words[word] for word in words):
        return None
    common = set.intersection(*inside.values())
    if len(common) < 2:
        return None
    names, same = (shortened(list(map(repr, sorted(found))), _SHOWN) for found in (words, common))
    return f"{names} have the same folders ({same}): if they are splits, name them, like {splits_option(words)}; {_AS_CLASSES}"


def _parts_problem(words: Collection[str]) -> str | None:
    """Return what is wrong where folders are numbered parts of one set, as ``images_001`` and ``images_002``."""
    stems = {_NUMBER_AT_END.sub("", word) for word in words}
    if len(words) < 2 or len(stems) > 1 or _name_parts(*stems).isdisjoint(_PARTS):
        return None
    names = shortened(list(map(repr, sorted(words))), _SHOWN)
    return (
        f"{names} look like parts of one set, not like classes: give the classes of all images in a table, --labels FILE; "
        f"{_AS_CLASSES}"
    )


def _unlabelled_splits(sizes: Mapping[str | None, Counter[Folder]], base: Folder) -> dict[str | None, LeftOut]:
    """Return the splits without class folders. ``images`` in ``test/images`` is none if it is no class of train."""
    trained = {name for split in (None, "train") for name in _below(sizes.get(split, {}), base)}
    left_out: dict[str | None, LeftOut] = {}
    for split in sizes.keys() - {None, "train"}:
        names = _below(sizes[split], base)
        if not names or (len(names) == 1 and not trained & set(names)):
            left_out[split] = unlabelled(split)
    return left_out


def _stray_problem(split: str | None, counts: Counter[Folder], base: Folder) -> str | None:
    """Return what is wrong where most images of a split are next to class folders."""
    loose = counts.total() - _below(counts, base).total()
    if 2 * loose < counts.total():
        return None
    where = "" if split is None else f" of split {split}"
    are = "is" if loose == 1 else "are"
    return (
        f"{count(loose)} of {plural(counts.total(), 'image')}{where} {are} not in class folders: move them there, or give the classes "
        "of all images in a table, --labels FILE"
    )


def _normalized(names: Mapping[Folder, str | LeftOut]) -> dict[Folder, str | LeftOut]:
    """Give classes that are the same in Unicode, but in other bytes, as of macOS and Linux, one name."""
    forms: defaultdict[str, set[str]] = defaultdict(set)
    for name in names.values():
        if isinstance(name, str):
            forms[unicodedata.normalize("NFC", name)].add(name)
    renamed = {form: name for name, found in forms.items() if len(found) > 1 for form in found}
    return {folder: renamed.get(name, name) if isinstance(name, str) else name for folder, name in names.items()}


def _class_notes(names: Mapping[Folder, str | LeftOut], splits: Splits) -> Iterator[str]:
    classes: defaultdict[str | None, set[str]] = defaultdict(set)
    for folder, name in names.items():
        if isinstance(name, str):
            classes[splits.inside[folder][0]].add(name)
    found = sorted(set().union(*classes.values()))
    if found == [FLAT]:
        yield "there are no class folders: all images have one class, 'all', unless a table gives their classes, --labels FILE"
    elif len(found) == 1:
        yield f"all images have one class, {found[0]!r}"
    alike = defaultdict(list)
    for name in found:
        alike[name.casefold().strip()].append(repr(name))
    for same in alike.values():
        if len(same) > 1:
            yield f"classes {listed(same)} differ only in case or spaces"
    trained = classes["train"] or classes[None]
    for split in sorted(split for split in classes if split in ("val", "test")):
        if missing := sorted(trained - classes[split]):
            yield f"split {split} has no images of {_classes(missing)}"
        if extra := sorted(classes[split] - trained):
            yield f"split {split} has images of {_classes(extra)}, but train has none"


def _classes(names: Sequence[str]) -> str:
    return f"class{'' if len(names) == 1 else 'es'} {shortened(list(map(repr, names)), _SHOWN)}"


def folders_without_images(others: Mapping[Folder, Counter[str]], classes: FolderClasses) -> dict[Folder, Counter[str]]:
    """Return the folders next to class folders or splits that have no image, with the kinds of the files below them.

    Args:
        others: Kinds of the files that are no images, by folder.
        classes: The class of each folder with images.
    """
    with_images = {folder[:depth] for folder in classes.names for depth in range(len(folder) + 1)}
    found: defaultdict[Folder, Counter[str]] = defaultdict(Counter)
    for folder, kinds in others.items():
        above = [folder[:depth] for depth in range(len(folder) + 1)]
        empty = next((part for part in above if part not in with_images), None)
        if empty is not None and classes.roots.isdisjoint(above[: len(empty)]):
            found[empty] += kinds
    return dict(found)
