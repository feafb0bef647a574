"""How to read a source. The command line shows the `Attributes:` of `SourceConfig` as help."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from joulecache.pipelines.core.checks import check_choice, check_integer, check_text, make_plain

SOURCE_SPLITS = ("train", "val", "test")
SOURCE_OPTIONS = ("limit", "labels", "splits", "image", "target")
_KIND = ":class"


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """How to read a source.

    Attributes:
        limit: Use at most this many records.
        labels: CSV file with a header line and the name and class of each image.
        splits: Folders or files of the splits: train=NAME,test=NAME; train=. for none.
        image: Column of the images in Parquet or TFRecord files, or of names in `labels`.
        target: Column of the classes, or their key in the .json files of a tar.

    Raises:
        ValueError: A field is out of range.
    """

    limit: int | None = None
    labels: str | os.PathLike[str] | None = None
    splits: Mapping[str, str] | None = None
    image: str | None = None
    target: str | None = None

    def __post_init__(self) -> None:
        make_plain(self)
        if self.limit is not None:
            check_integer("limit", self.limit)
        for name in ("image", "target"):
            if getattr(self, name) is not None:
                check_text(name, getattr(self, name))
        self._check_target()
        if self.splits is None:
            return
        for split, folder in self.splits.items():
            check_choice("splits", split, SOURCE_SPLITS)
            check_text(f"the name of split {split}", folder)
        if "train" not in self.splits or len(set(self.splits.values())) < len(self.splits):
            raise ValueError(f"splits must name train, and a different name for each split, got {dict(self.splits)}")

    @property
    def target_column(self) -> str | None:
        """The column that `target` names, without its kind."""
        return None if self.target is None else self.target.removesuffix(_KIND)

    def _check_target(self) -> None:
        name, colon, kind = (self.target or "").rpartition(":")
        if colon and (not name or kind != _KIND[1:]):
            raise ValueError(f"target must be COLUMN or COLUMN{_KIND}, the only kind so far, got {self.target!r}")

    def source_options(self) -> dict[str, Any]:
        """Return the fields that are not at their defaults, as keyword arguments of a build of the same records."""
        values = {name: getattr(self, name) for name in SOURCE_OPTIONS}
        return {name: value for name, value in values.items() if value is not None}
