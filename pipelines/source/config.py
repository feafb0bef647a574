"""How to read a source. The command line shows the `Attributes:` of `SourceConfig` as help."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from joulecache.pipelines.core.checks import check_choice, check_integer, check_path, check_text, make_plain, shown

SOURCE_SPLITS = ("train", "val", "test")
SOURCE_OPTIONS = ("limit", "labels", "masks", "coco", "splits", "image", "target")

KINDS: tuple[str, ...] = ("class", "multilabel", "value", "text", "mask", "boxes", "points")
"""What ``--target NAME:KIND`` accepts."""

NO_TARGETS = "none"
"""What ``--target`` accepts for images alone."""


class Wanted(NamedTuple):
    """A target that the user names.

    Attributes:
        name: Its column or key.
        kind: One of `KINDS`; None to infer it.
    """

    name: str
    kind: str | None


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """How to read a source.

    Attributes:
        limit: Use at most this many records.
        labels: CSV file with a header line and the name and class of each image.
        masks: Folder of masks named like the images, or a pattern.
        coco: COCO file of the boxes (instances JSON), or a pattern.
        splits: Folders or files of the splits: train=NAME,test=NAME; train=. for none.
        image: Column of the images in Parquet or TFRecord files, or of names in `labels`.
        target: Column or .json key of a target, such as age:value; none for images alone.

    Raises:
        ValueError: A field is out of range.
    """

    limit: int | None = None
    labels: str | os.PathLike[str] | None = None
    masks: str | os.PathLike[str] | None = None
    coco: str | os.PathLike[str] | None = None
    splits: Mapping[str, str] | None = None
    image: str | None = None
    target: tuple[str, ...] | str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        make_plain(self)
        for name in ("labels", "masks", "coco"):
            path = getattr(self, name)
            object.__setattr__(self, name, None if path is None else check_path(name, path))
        if isinstance(self.target, list):
            object.__setattr__(self, "target", tuple(self.target))
        if self.limit is not None:
            check_integer("limit", self.limit)
        if self.image is not None:
            check_text("image", self.image)
        self._check_target()
        if self.splits is None:
            return
        if not isinstance(self.splits, Mapping):
            raise ValueError(f"splits must be a dict of names by split, got {shown(self.splits)}")
        for split, folder in self.splits.items():
            check_choice("splits", split, SOURCE_SPLITS)
            check_text(f"the name of split {split}", folder)
        if "train" not in self.splits or len(set(self.splits.values())) < len(self.splits):
            raise ValueError(f"splits must name train, and a different name for each split, got {dict(self.splits)}")

    @property
    def targets(self) -> tuple[Wanted, ...]:
        """The targets that `target` names, with their kinds."""
        given = [self.target] if isinstance(self.target, str) else self.target or ()
        if self.is_unlabelled:
            return ()
        split = [text.rpartition(":") if ":" in text else (text, "", "") for text in given]
        return tuple(Wanted(name, kind or None) for name, _, kind in split)

    @property
    def is_unlabelled(self) -> bool:
        """Whether the user wants images alone."""
        return self.target in (NO_TARGETS, (NO_TARGETS,))

    @property
    def target_column(self) -> str | None:
        """The column of the classes, if it is the only target named."""
        return self.targets[0].name if len(self.targets) == 1 and self.targets[0].kind in (None, "class") else None

    @property
    def target_names(self) -> tuple[str, ...]:
        """The names of the targets, unless the only one is a class."""
        return () if self.target_column is not None else tuple(wanted.name for wanted in self.targets)

    def _check_target(self) -> None:
        given = [self.target] if isinstance(self.target, str) else self.target
        if given is None:
            return
        if not isinstance(given, Sequence):
            raise ValueError(f"target must be a name or a sequence of names, got {shown(given)}")
        for text in given:
            check_text("target", text)
            name, colon, kind = text.rpartition(":")
            if colon and kind not in KINDS:
                raise ValueError(f"target must be NAME or NAME:KIND with a kind of {', '.join(KINDS)}, got {text!r}")
            if colon and not name:
                raise ValueError(f"target must name a column before its kind, got {text!r}")
        if self.is_unlabelled:
            if self.masks is not None or self.coco is not None:
                raise ValueError(f"target {NO_TARGETS!r} means images alone: drop it, or masks and coco")
            return
        names = [wanted.name for wanted in self.targets]
        if not names or len({*names}) < len(names):
            raise ValueError(f"target must name different columns, got {self.target!r}")

    def source_options(self) -> dict[str, Any]:
        """Return the fields that are not at their defaults, as keyword arguments of a build of the same records."""
        values = {name: getattr(self, name) for name in SOURCE_OPTIONS}
        return {name: value for name, value in values.items() if value is not None}
