"""The training images of a source as encoded files, with the same random parameters for every arm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile as OpenedImage

from joulecache.pipelines.cache.cache import Cache
from joulecache.pipelines.core.progress import Progress
from joulecache.pipelines.experiment.python_ops import OnlineOps
from joulecache.pipelines.loading.targets import open_targets, select
from joulecache.pipelines.source import SYNTHETIC, ImageFile, Record, Source, Unit
from joulecache.pipelines.source.features import spatial_features
from joulecache.transforms.images import encode_png
from joulecache.transforms.ops import Decode, Op
from joulecache.transforms.ops.decode import TRANSPOSED
from joulecache.transforms.randomness import random_words
from joulecache.transforms.targets import BoxesTarget, MaskTarget, PointsTarget, SpatialTarget
from joulecache.transforms.tensorflow_targets import ABSENT, Boxes, Mask, Moving, Points

MovingTargets: TypeAlias = Mapping[str, Mapping[str, SpatialTarget | Path]]
"""Targets that move with the pixels, by name and key; in place of masks the paths of grey PNGs."""


@dataclass(frozen=True)
class ImageFiles:
    """Training images as encoded files, the same ones for every arm.

    Online arms are given random parameters and orientations, which cost them nothing: arms must differ neither in their random
    generators nor in their images, and TensorFlow does not read EXIF.

    Attributes:
        ops: The ops that the online arms run.
        seed: Seed of the draws.
        paths: Path of each file.
        targets: Targets of each file, `[N, ...]`, by name; of masks the paths of grey PNGs, of boxes as many as the image with most has.
        most_boxes: Boxes of each image after padding, by the name of their target.
        drawn: Parameters of the ops for E epochs, `[E, N, P]` int32.
        sizes: Height and width after decode, `[N, 2]` int64.
        orientations: EXIF orientations, `[N]` int32; None if every image is upright.
        decoded_in_python: Which files TensorFlow decodes to other pixels than the reference, or not at all, `[N]` bool; None without any.
    """

    ops: OnlineOps
    seed: int
    paths: tuple[str, ...]
    targets: Mapping[str, NDArray[Any] | Moving]
    most_boxes: Mapping[str, int]
    drawn: NDArray[np.int32]
    sizes: NDArray[np.int64]
    orientations: NDArray[np.int32] | None
    decoded_in_python: NDArray[np.bool_] | None

    def sample(self, count: int, seed: int) -> ImageFiles:
        """Return up to `count` of the files, drawn by the seed, in their order."""
        rows = np.sort(np.random.default_rng(seed).permutation(len(self.paths))[:count])
        return replace(
            self,
            paths=tuple(self.paths[row] for row in rows),
            targets={
                name: tf.nest.map_structure(lambda part: part[rows], target) for name, target in self.targets.items()
            },
            drawn=self.drawn[:, rows],
            sizes=self.sizes[rows],
            orientations=None if self.orientations is None else self.orientations[rows],
            decoded_in_python=None if self.decoded_in_python is None else self.decoded_in_python[rows],
        )


@dataclass(frozen=True)
class Unpacked:
    """A source as files.

    Attributes:
        folder: The folder of its images, named by key.
        source: What caches are built from: the source, or drawn photos as files.
        moving: Its targets that move with the pixels.
    """

    folder: Path
    source: Source
    moving: MovingTargets


def unpack(source: Source, work: Path, progress: Progress) -> Unpacked:
    """Return a source as files: those of a folder itself, others as copies in `work`, and masks as PNGs that TensorFlow decodes.

    Records that cannot be read are left out; building a cache rejects them.
    """
    is_folder, drawn = Path(source.location).is_dir(), source.location.startswith(SYNTHETIC)
    root = Path(source.location).resolve() if is_folder else work / "files"
    spatial = [(place, name) for place, name in enumerate(source.features) if name in spatial_features(source.features)]
    moving: dict[str, dict[str, SpatialTarget | Path]] = {name: {} for _, name in spatial}
    if is_folder and not spatial:
        return Unpacked(root, source, moving)
    units: list[Unit] = []
    for done, record in enumerate(_readable(source)):
        if not is_folder:
            _write(root / record.key, record.data)
        if drawn:
            units.append(ImageFile(record.key, str(root), record.targets, None, len(record.data), record.mtime_ns))
        for place, name in spatial:
            with suppress(ValueError):
                found = spatial_features(source.features)[name].decode(record.targets[place])
                moving[name][record.key] = (
                    _write(work / "masks" / str(place) / f"{record.key}.png", encode_png(found.ids))
                    if isinstance(found, MaskTarget)
                    else found
                )
        if done % 64 == 63:
            progress("unpacking the source", done + 1, source.records)
    return Unpacked(root, replace(source, units=tuple(units)) if drawn else source, moving)


def _readable(source: Source) -> Iterator[Record]:
    for unit in source.units:
        with suppress(OSError):
            yield from (record for record in unit.read() if record.problem is None)


def _write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def list_files(
    folder: Path,
    cache: Cache,
    epochs: int,
    moving: MovingTargets = MappingProxyType({}),
    ops: Mapping[str, type[Op]] | None = None,
) -> ImageFiles:
    """List the training images of a cache as files, with their targets and the random parameters of some epochs.

    Args:
        folder: The folder of the files, which are named by key.
        cache: The cache.
        epochs: Number of epochs.
        moving: The targets that move with the pixels, as `unpack` returns them.
        ops: Custom ops in the chain, by name.
    """
    chain, manifest = cache.chain(ops=ops), cache.manifest
    online = OnlineOps.of(chain, moving=bool(moving))
    rows = cache.rows("train")
    keys: list[str] = rows["key"].to_pylist()
    hashes = rows["key_hash"].to_numpy()
    paths = tuple(str(folder / key) for key in keys)
    headers = np.array([_read_header(chain.decode, path) for path in paths], np.int64).reshape(-1, 4)
    sizes, orientations, in_python = headers[:, :2], headers[:, 2].astype(np.int32), headers[:, 3].astype(bool)
    drawn = np.empty((epochs, len(keys), online.parameter_count(len(chain.ops))), np.int32)
    for epoch in range(epochs):
        # Before the cut the draws are the variant's, as the cache has them.
        before = random_words(chain.prefix, 0, manifest.seed, hashes, cache.split("train").draw_of(epoch))
        after = random_words(chain.suffix, chain.cut, manifest.seed, hashes, epoch)
        for row, words in enumerate(map(list.__add__, before, after)):
            drawn[epoch, row] = online.parameters(words, *sizes[row].tolist())
    turned = orientations if (orientations != 1).any() else None
    columns = open_targets(cache, "train", select(manifest.features, None, None), soft=chain.mixes)
    stacked = {name: _stacked([of[key] for key in keys]) for name, of in moving.items()}
    targets = {
        name: stacked[name] if name in stacked else columns[name].take(np.arange(len(keys)))
        for name in manifest.features
    }
    summaries = cache.split("train").targets or {}
    most = {name: max(summaries[name].most or 0, 1) for name, target in stacked.items() if isinstance(target, Boxes)}
    odd = in_python if in_python.any() and 0 not in online.in_python else None
    return ImageFiles(online, manifest.seed, paths, targets, most, drawn, sizes, turned, odd)


def _stacked(targets: Sequence[SpatialTarget | Path]) -> Moving:
    """Return one target of all images, all of one kind."""
    boxes = [target for target in targets if isinstance(target, BoxesTarget)]
    if boxes:
        most = max(1, *(len(target.classes) for target in boxes))
        corners, classes = np.zeros((len(boxes), most, 4), np.float32), np.full((len(boxes), most), ABSENT, np.int64)
        for row, target in enumerate(boxes):
            corners[row, : len(target.classes)], classes[row, : len(target.classes)] = target.boxes, target.classes
        return Boxes(corners, classes)
    points = [target.points for target in targets if isinstance(target, PointsTarget)]
    return Points(np.stack(points)) if points else Mask(np.array([str(path) for path in targets], object))


def _read_header(decode: Decode, path: str) -> tuple[int, int, int, bool]:
    """Return height and width after decode, the EXIF orientation, 1 if the reference ignores it, and whether Python has to decode it."""
    image, orientation = decode.open_upright(Path(path).read_bytes())
    width, height = image.size
    if orientation in TRANSPOSED:
        height, width = width, height
    return height, width, orientation, _decoded_differently(decode, image)


def _decoded_differently(decode: Decode, image: Image.Image) -> bool:
    """Return whether TensorFlow decodes an opened file to other pixels than the reference, or not at all."""
    match image.format:
        case "JPEG" | "MPO" if image.mode == "CMYK":
            return decode.channels == 1 or "adobe" not in image.info  # it refuses the first, and inverts the second
        case "BMP":
            return image.mode in ("1", "P")  # it decodes palette indices
        case "WEBP":
            return image.mode != "RGB" or getattr(image, "is_animated", False)
        case "GIF":  # it does not know a first frame that is smaller than the image
            return isinstance(image, OpenedImage) and image.tile[0].extents != (0, 0, *image.size)
    return image.format not in ("JPEG", "MPO", "PNG")
