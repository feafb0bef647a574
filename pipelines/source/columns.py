"""Which columns of a file hold the images and the classes: found by their names and types, or chosen by the user."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from joulecache.pipelines.core.quantities import listed, plural
from joulecache.pipelines.source.classes import CLASS_KEYS, called
from joulecache.pipelines.source.config import SourceConfig, Wanted
from joulecache.pipelines.source.features import Features
from joulecache.pipelines.source.layout import is_mask_folder
from joulecache.pipelines.source.records import Archive, SourceError

IMAGE, BYTES, INTEGER, TEXT, BOOLEAN, FLOAT, LIST = "image", "bytes", "integer", "text", "boolean", "float", "list"
MASK, BOXES = "mask", "boxes"
"""Kinds of columns."""

_IMAGE_KINDS = (IMAGE, BYTES)
_CLASS_KINDS = (INTEGER, TEXT, BOOLEAN, BYTES)
_PREFERRED_IMAGES = ("image", "image/encoded", "image_raw")
_PREFERRED_TARGETS = ("label", "image/class/label")
_IMAGE_NAMES = (*_PREFERRED_IMAGES, "img", "picture", "photo", "jpg", "jpeg", "png", "webp")
_TARGET_NAMES = (*CLASS_KEYS, *_PREFERRED_TARGETS, "labels", "fine_label", "coarse_label", "image/class/text")
_MASK_NAMES = ("mask", "masks", "annotation", "segmentation", "segmentation_mask", "image/segmentation/class/encoded")
_SPLIT_NAMES = ("split", "subset", "partition")
_SHOWN = 20  # columns in a message


@dataclass(frozen=True)
class BoxColumns:
    """The features of TFRecords that make boxes, as fractions of the image's sides.

    Attributes:
        corners: Those of ymin, xmin, ymax and xmax; or one, with these four numbers of each box.
        classes: That of the classes; None without.
        crowds: That tells which boxes are of crowds; None without.
    """

    corners: tuple[str, ...]
    classes: str | None = None
    crowds: str | None = None

    @property
    def names(self) -> list[str]:
        """All of them."""
        return [*self.corners, *(name for name in (self.classes, self.crowds) if name is not None)]


@dataclass(frozen=True)
class Column:
    """A column of a Parquet file, or a feature of TFRecords.

    Attributes:
        name: Its name; ``a.b`` for field b of column a.
        kind: What it holds: one of the kinds above, or another in words.
        class_names: The names of its classes, if the file declares them.
        boxes: The features that it is made of; None for a column as it is in the file.
    """

    name: str
    kind: str
    class_names: tuple[str, ...] | None = None
    boxes: BoxColumns | None = None

    def __str__(self) -> str:
        names = "" if self.class_names is None else f", {len(self.class_names)} names"
        return f"{self.name} ({self.kind}{names})"


@dataclass(frozen=True)
class Columns:
    """The columns that the records of a file are read from.

    Attributes:
        image: Column of the images.
        target: Column of the classes.
        classes: The classes that the labels name; None if the labels are numbers.
        features: The features of other targets than one class; None for the class.
        sources: The columns of these targets.
    """

    image: str
    target: str
    classes: tuple[str, ...] | None = None
    features: Features | None = None
    sources: tuple[Column, ...] = ()

    def __repr__(self) -> str:  # part of a spec's digest, once per unit: no class names
        others = "" if self.features is None else f", {self._features_digest}"
        return f"Columns({self.image!r}, {self.target!r}, {self._digest}{others})"

    @property
    def names(self) -> list[str]:
        """The columns of the image and the targets."""
        return (
            [self.image, self.target] if self.features is None else [self.image, *(each.name for each in self.sources)]
        )

    @functools.cached_property
    def _features_digest(self) -> str:
        return hashlib.sha256(repr((self.features, self.sources)).encode()).hexdigest()

    def number(self, label: bool | int | str | bytes) -> int:
        """Return the number of a label's class; ValueError if it is not one of the classes."""
        if isinstance(label, int):
            return int(label)
        text = class_text(label)
        if not text:
            raise ValueError("its label is empty")
        try:
            return self._numbers[text]
        except KeyError:
            raise ValueError(f"its label {text!r} is not one of the {len(self._numbers)} classes") from None

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes or ())}

    @functools.cached_property
    def _digest(self) -> str | None:
        return None if self.classes is None else hashlib.sha256(repr(self.classes).encode()).hexdigest()


@dataclass(frozen=True)
class Choice:
    """The columns to read from all files of a source.

    Attributes:
        file: Name of the file that the columns were chosen from.
        image: Column of the images.
        target: Column of the classes; the first target's if there are other targets, and the images' without any.
        others: Names of columns that could have been chosen instead.
        split: Name of the column that seems to have the split of each row, which is not read; None without one.
        by_default: Neither the user nor an unusual name decided.
        wanted: The targets, if they are not one class.
    """

    file: str
    image: Column
    target: Column
    others: tuple[str, ...]
    split: str | None
    by_default: bool
    wanted: tuple[Wanted, ...] | None = None

    @property
    def columns(self) -> Columns:
        """The columns to read."""
        return Columns(self.image.name, self.target.name)

    def notes(self, classes: int) -> tuple[str, ...]:
        """Return a sentence that says which columns are read, unless these are the usual ones."""
        if self.wanted is not None:
            targets = listed([wanted.name for wanted in self.wanted]) if self.wanted else ""
            return (f"images from column {self.image.name}, {'targets from ' + targets if targets else 'no targets'}",)
        if self.by_default and not self.others:
            return ()
        instead = f", not from {' or '.join(self.others)}" if self.others else ""
        return (
            f"images from column {self.image.name}, classes from {self.target.name} ({plural(classes, 'name')}){instead}",
        )

    def split_notes(self) -> tuple[str, ...]:
        """Return a sentence about the column of splits, for a source whose files are no splits; none without such a column."""
        if self.split is None:
            return ()
        return (
            f"column {self.split} is not read, and its test rows, if any, are trained on: give each split its own files",
        )


class _NoColumnError(SourceError):
    """A file has no column of images, or none of classes; another file may have one."""


class _NoTargetError(_NoColumnError):
    """A file has no known column of targets."""


def choose_columns(
    files: Sequence[Archive],
    read: Callable[[Archive], Sequence[Column]],
    config: SourceConfig,
    preferred: Sequence[str] = _PREFERRED_TARGETS,
) -> Choice:
    """Choose the columns by the first file that has images and classes: some files of a test split have no classes.

    Args:
        files: The files of the source.
        read: Returns the columns of a file.
        config: May name the columns.
        preferred: Names of target columns that are chosen before any other.

    Raises:
        SourceError: No file has both columns, or more than one column fits.
    """
    problem: _NoColumnError | None = None
    for file in files:
        try:
            return choose(file.name, read(file), config, preferred)
        except _NoColumnError as error:
            problem = problem or error
    assert problem is not None, "a source has files"
    if isinstance(problem, _NoTargetError) and config.target is None:
        return _images_alone(files[0].name, read(files[0]), config)
    raise problem


def _images_alone(file: str, columns: Sequence[Column], config: SourceConfig) -> Choice:
    images = _image_columns(columns, mask_columns(columns))
    image, others = _find(file, columns, "image", "images", images, _IMAGE_KINDS, _PREFERRED_IMAGES, config.image)
    return Choice(file, image, image, others, _split_column(columns), by_default=False, wanted=())


def _image_columns(columns: Sequence[Column], masks: Sequence[Column]) -> list[Column]:
    """Return the columns that may have the images: not those of masks, unless there are no others."""
    images = [column for column in columns if called([column.name], _IMAGE_NAMES) or column.kind == IMAGE]
    return [column for column in images if column not in masks] or images


def mask_columns(columns: Sequence[Column]) -> list[Column]:
    """Return the columns of masks, by their types and names."""
    return [
        column
        for column in columns
        if column.kind == MASK
        or (column.kind == IMAGE and is_mask_folder(column.name.rpartition("/")[2]))
        or (column.kind == BYTES and called([column.name], _MASK_NAMES))
    ]


def _is_of_boxes(column: Column, columns: Sequence[Column]) -> bool:
    """Return whether a column has boxes, or is a field of them."""
    return column.kind == BOXES or any(
        column.name.startswith((f"{each.name}.", f"{each.name}/")) or (each.boxes and column.name in each.boxes.names)
        for each in columns
        if each.kind == BOXES
    )


def _spatial_targets(file: str, columns: Sequence[Column], masks: Sequence[Column]) -> tuple[Wanted, ...]:
    """Return the masks and boxes of a file without a column of classes; SourceError if there are several of either."""
    found: list[Wanted] = []
    for kind, of_kind in {MASK: masks, BOXES: [column for column in columns if column.kind == BOXES]}.items():
        if len(of_kind) > 1:
            ways = " or ".join(f"--target {column.name}:{kind}" for column in of_kind)
            raise SourceError(f"{file!r} has {len(of_kind)} columns of {kind}: choose with {ways}")
        found += [Wanted(kind, kind) for _ in of_kind]
    return tuple(found)


def find_column(columns: Sequence[Column], wanted: Wanted) -> Column | None:
    """Return the column of a target: that of its name, or for ``mask`` and ``boxes`` the only one of the kind; None without."""
    named = next((column for column in columns if column.name == wanted.name), None)
    if named is not None or wanted.name not in (MASK, BOXES) or wanted.kind not in (None, wanted.name):
        return named
    of_kind = mask_columns(columns) if wanted.name == MASK else [each for each in columns if each.kind == BOXES]
    return of_kind[0] if len(of_kind) == 1 else None


def _split_column(columns: Sequence[Column]) -> str | None:
    return next((column.name for column in columns if called([column.name], _SPLIT_NAMES)), None)


def choose(
    file: str, columns: Sequence[Column], config: SourceConfig, preferred: Sequence[str] = _PREFERRED_TARGETS
) -> Choice:
    """Choose the columns of one file.

    Args:
        file: Its name, for messages.
        columns: Its columns.
        config: May name the columns.
        preferred: Names of target columns that are chosen before any other.

    Raises:
        SourceError: There is no such column, or more than one fits.
    """
    masks = mask_columns(columns)
    images = _image_columns(columns, masks)
    targets = [column for column in columns if called([column.name], _TARGET_NAMES) or column.class_names is not None]
    targets = [column for column in targets if column not in masks and not _is_of_boxes(column, columns)]
    find = functools.partial(_find, file, columns)
    image, other_images = find("image", "images", images, _IMAGE_KINDS, _PREFERRED_IMAGES, config.image)
    wanted = config.targets
    if config.is_unlabelled:
        return Choice(file, image, image, other_images, _split_column(columns), by_default=False, wanted=())
    if not wanted and not targets:
        wanted = _spatial_targets(file, columns, [column for column in masks if column is not image])
    elif not wanted and all(column.kind == FLOAT for column in targets):
        wanted = tuple(Wanted(column.name, "value") for column in targets)
    elif not wanted and all(column.kind == LIST and column.class_names for column in targets):
        wanted = tuple(Wanted(column.name, "multilabel") for column in targets)
    elif len(wanted) == 1 and wanted[0].kind is None:
        column = find_column(columns, wanted[0])
        wanted = (wanted[0],) if column is not None and (column.kind not in _CLASS_KINDS or column in masks) else ()
    elif len(wanted) == 1 and wanted[0].kind == "class":
        wanted = ()
    if wanted:
        first = find_column(columns, wanted[0]) or image
        return Choice(file, image, first, other_images, _split_column(columns), by_default=False, wanted=wanted)
    target, other_targets = find("target", "classes", targets, _CLASS_KINDS, preferred, config.target_column)
    spatial = tuple(column.name for column in columns if column.kind == BOXES or column in masks)
    others = other_images + tuple(name for name in (*other_targets, *spatial) if name != image.name)
    named = config.image is not None or config.target is not None
    usual = image.name in _PREFERRED_IMAGES and target.name in preferred
    split = _split_column([column for column in columns if column is not target])
    return Choice(file, image, target, others, split, by_default=usual and not named)


def _find(
    file: str,
    columns: Sequence[Column],
    option: str,
    what: str,
    candidates: Sequence[Column],
    kinds: Sequence[str],
    preferred: Sequence[str],
    name: str | None,
) -> tuple[Column, tuple[str, ...]]:
    """Return the column of a name, or the one that fits, and the names of others that fit as well."""
    shown = ", ".join(map(str, columns[:_SHOWN])) + (", ..." if len(columns) > _SHOWN else "")
    if name is not None:
        named = next((column for column in columns if column.name == name), None)
        if named is None:
            raise _NoColumnError(f"{file!r} has no column {name!r}: it has {shown or 'none'}")
        if named.kind not in kinds:
            raise SourceError(_wrong_kind(file, named, what))
        return named, ()
    fitting = [column for column in candidates if column.kind in kinds]
    if not fitting and candidates:
        raise SourceError(_wrong_kind(file, candidates[0], what))
    if not fitting:
        kind = _NoTargetError if option == "target" else _NoColumnError
        raise kind(f"{file!r} has no known column of {what}: name it with --{option}; it has {shown or 'none'}")
    first = next((column for wanted in preferred for column in fitting if column.name == wanted), None)
    if first is None and len(fitting) > 1:
        ways = " or ".join(f"--{option} {column.name}" for column in fitting)
        raise SourceError(f"{file!r} has {len(fitting)} columns of {what}: choose one with {ways}")
    first = first or fitting[0]
    return first, tuple(column.name for column in fitting if column is not first)


def _wrong_kind(file: str, column: Column, what: str) -> str:
    expected = "encoded images" if what == "images" else "classes: expected integers, text or booleans"
    return f"column {column.name!r} of {file!r} holds {column.kind}, not {expected}"


def class_text(label: str | bytes) -> str:
    """Return a label as text; ValueError if it is not UTF-8."""
    if isinstance(label, str):
        return label
    try:
        return label.decode()
    except UnicodeDecodeError:
        raise ValueError("its label is neither a number nor UTF-8 text") from None
