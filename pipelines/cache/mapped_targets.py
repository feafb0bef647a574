"""Read the targets of one variant that move with the pixels, by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from joulecache.pipelines.cache.data_file import DataFile
from joulecache.pipelines.cache.mapped_images import MappedImages, mapping_errors, one_by_one
from joulecache.pipelines.cache.shards import read_targets
from joulecache.pipelines.cache.spatial_columns import BoxRows, PointRows, StoredColumn
from joulecache.pipelines.source.spatial import Boxes, Mask, SpatialFeature
from joulecache.transforms.ops.decode import decode_ids
from joulecache.transforms.targets import MaskTarget, PointsTarget, SpatialTarget

MappedTargets: TypeAlias = MappedImages | BoxRows | PointRows
"""Masks, which are read like images: raw ones ``[H, W, 1]`` or PNGs; boxes; or points. The last two are in memory."""


def map_targets(
    folder: Path, files: Sequence[DataFile], features: Mapping[str, SpatialFeature], size: tuple[int, int] | None
) -> dict[str, MappedTargets]:
    """Map the targets in the files of a variant.

    Args:
        folder: The folder of the files.
        files: The files.
        features: The features to read, by name.
        size: (height, width) of raw images, None for encoded ones.

    Raises:
        CacheError: A file is missing, damaged or of another size, or the process may map no more files.
    """
    with mapping_errors(folder, files):
        parts = [read_targets(folder / file.name, file, features, size) for file in files]
    return {
        name: _joined(feature, [part[name] for part in parts], files) for name, feature in features.items() if parts
    }


def target_of(mapped: MappedTargets, row: int) -> SpatialTarget:
    """Return the target of one image; DecodeError if it is an encoded mask that is damaged."""
    match mapped:
        case MappedImages():
            [mask] = mapped.views(np.array([row]))
            is_raw = isinstance(mask, np.ndarray) and mask.ndim == 3
            return MaskTarget(mask if is_raw else decode_ids(bytes(mask)))
        case BoxRows():
            return mapped[row]
        case _:
            return PointsTarget(mapped[row])


def _joined(feature: SpatialFeature, columns: Sequence[StoredColumn], files: Sequence[DataFile]) -> MappedTargets:
    match feature:
        case Mask():
            return one_by_one(cast("Sequence[Sequence[Any] | NDArray[np.uint8]]", columns), files)
        case Boxes():
            return BoxRows.joined(cast("Sequence[BoxRows]", columns))
        case _:
            return np.concatenate(cast("Sequence[PointRows]", columns))
