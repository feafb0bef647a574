"""A cache in an object store that is read while its shards arrive."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from joulecache.pipelines.cache.cache import Cache
from joulecache.pipelines.cache.data_file import DataFile
from joulecache.pipelines.cache.file_guard import FileGuard
from joulecache.pipelines.cache.local_copy import RemoteCache
from joulecache.pipelines.cache.local_shards import LocalShards
from joulecache.pipelines.cache.mapped_images import MappedImages, mapping_errors, one_by_one
from joulecache.pipelines.cache.mapped_targets import MappedTargets
from joulecache.pipelines.cache.shards import map_images, read_encoded, read_targets
from joulecache.pipelines.cache.spatial_columns import BoxRows
from joulecache.pipelines.cache.verification import find_problems
from joulecache.pipelines.source.features import spatial_features
from joulecache.pipelines.source.spatial import Boxes, Mask
from joulecache.transforms.targets import BoxesTarget


@dataclass(frozen=True, eq=False)
class StreamedCache(Cache):
    """A cache in an object store. The index is on this machine, and those of its shards that `shards` holds; only they can be read.

    Attributes:
        shards: Its files on this machine.
    """

    shards: LocalShards

    def images(self, split: str, variant: int = 0) -> MappedImages:
        """Return the cached images of one variant of a split, whose shards are mapped when they are read."""
        found = self.manifest.split(split)
        height, width, channels = found.image_shape
        if self.manifest.encoding == "raw":
            assert height is not None
            assert width is not None
            shape = (height, width, channels)
            return self._images(
                found.variant_files(variant), "images", lambda path, file: map_images(path, file, shape)
            )
        return self._images(found.variant_files(variant), "images", read_encoded)

    def targets(
        self, split: str, variant: int = 0, names: Collection[str] | None = None
    ) -> Mapping[str, MappedTargets]:
        """Return the targets of one variant that move with the pixels; they are read with their shards."""
        found = self.manifest.split(split)
        files = found.variant_files(variant)
        height, width, _ = found.image_shape
        size = None if self.manifest.encoding != "raw" or height is None or width is None else (height, width)
        columns: dict[str, Any] = {}
        for name, feature in spatial_features(self.manifest.features).items():
            if names is not None and name not in names:
                continue

            def read(path: Path, file: DataFile, name: str = name, chosen: Any = feature) -> Any:
                return read_targets(path, file, {name: chosen}, size)[name]

            if isinstance(feature, Mask):
                columns[name] = self._images(files, name, read)
            else:
                rows = _StreamedBoxes if isinstance(feature, Boxes) else _StreamedPoints
                columns[name] = rows(_Shards(self.shards, files, f"target {name}", read))
        return columns

    def guard(self, split: str) -> FileGuard:
        """Return a guard of nothing: shards are checked when they arrive, and come and go."""
        return FileGuard(self.folder, ())

    def verify(self) -> list[str]:
        """Check every byte in the store against the manifest; return one line per problem."""
        return find_problems(self.location)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle what opens it again."""
        return stream, (RemoteCache(self.location, self.manifest, self.shards.limit_bytes),)

    def _images(self, files: Sequence[DataFile], kind: str, open_file: Callable[[Path, DataFile], Any]) -> MappedImages:
        return _StreamedImages(_Shards(self.shards, files, kind, open_file))


def stream(remote: RemoteCache) -> StreamedCache:
    """Open a cache in an object store without its shards; fetches its index.

    Raises:
        CacheError: The index is damaged, or the store failed.
    """
    shards = remote.shards()
    shards.pin([remote.manifest.index])
    return StreamedCache(remote.url, shards.folder, remote.manifest, shards)


class _Shards(Sequence[Any]):
    """What the files of a variant hold of one kind; each is opened when it is read."""

    def __init__(
        self, shards: LocalShards, files: Sequence[DataFile], kind: str, open_file: Callable[[Path, DataFile], Any]
    ) -> None:
        self._shards, self.files, self._kind, self._open_file = shards, files, kind, open_file
        self._ends = np.cumsum([file.records for file in files])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: Any) -> Any:
        file = self.files[number]

        def open_file(path: Path) -> Any:
            with mapping_errors(path.parent, [file]):
                return self._open_file(path, file)

        return self._shards.opened(file.name, self._kind, open_file)

    def row(self, row: int) -> Any:
        """Return one row of all files."""
        number = int(np.searchsorted(self._ends, row, side="right"))
        return self[number][row - int(self._ends[number]) + self.files[number].records]


class _StreamedImages(MappedImages):
    """Images or masks in files that come and go."""

    def __init__(self, shards: _Shards) -> None:
        super().__init__(shards.files)
        self._mapped = one_by_one(shards, shards.files)

    def take(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        self._mapped.take(rows, out)

    def views(self, rows: NDArray[np.int64]) -> list[Any]:
        return self._mapped.views(rows)

    def read_ahead(self, start: int, stop: int) -> None:
        """Do nothing: files that just arrived are in memory."""

    def disable_readahead(self) -> None:
        """Do nothing: no file is mapped yet."""


class _StreamedBoxes:
    """Boxes as `BoxRows`, in files that come and go."""

    def __init__(self, shards: _Shards) -> None:
        self._shards = shards

    def __getitem__(self, row: int) -> BoxesTarget:
        return cast("BoxesTarget", self._shards.row(row))

    def take(self, rows: NDArray[np.int64]) -> BoxRows:
        """Return the boxes of some images, in this order."""
        return BoxRows.of([self[row] for row in rows.tolist()])


class _StreamedPoints:
    """Points as an array, in files that come and go."""

    def __init__(self, shards: _Shards) -> None:
        self._shards = shards

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.stack([self._shards.row(row) for row in rows.tolist()])
