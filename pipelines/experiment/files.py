"""The training images of a source as encoded files, with the same random parameters for every arm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from joulecache.pipelines.cache.cache import Cache
from joulecache.pipelines.core.progress import Progress
from joulecache.pipelines.experiment.failures import ArmError
from joulecache.pipelines.loading.targets import Selection, open_targets, select
from joulecache.pipelines.source import Source
from joulecache.transforms import tensorflow as graphs
from joulecache.transforms.chain import Chain
from joulecache.transforms.ops import Decode
from joulecache.transforms.ops.decode import TRANSPOSED
from joulecache.transforms.randomness import random_words


@dataclass(frozen=True)
class ImageFiles:
    """Training images as encoded files, the same ones for every arm.

    Online arms are given random parameters and orientations, which cost them nothing: arms must differ neither in their random
    generators nor in their images, and TensorFlow does not read EXIF.

    Attributes:
        paths: Path of each file.
        targets: Targets of each file, `[N, ...]`, in the order of `selection`.
        selection: Which targets they are.
        drawn: Random parameters of the ops for E epochs, `[E, N, P]` int32.
        sizes: Height and width after decode, `[N, 2]` int64.
        orientations: EXIF orientations, `[N]` int32; None if every image is upright.
    """

    paths: tuple[str, ...]
    targets: tuple[NDArray[Any], ...]
    selection: Selection
    drawn: NDArray[np.int32]
    sizes: NDArray[np.int64]
    orientations: NDArray[np.int32] | None

    def sample(self, count: int, seed: int) -> ImageFiles:
        """Return up to `count` of the files, drawn by the seed, in their order."""
        rows = np.sort(np.random.default_rng(seed).permutation(len(self.paths))[:count])
        return ImageFiles(
            tuple(self.paths[row] for row in rows),
            tuple(target[rows] for target in self.targets),
            self.selection,
            self.drawn[:, rows],
            self.sizes[rows],
            None if self.orientations is None else self.orientations[rows],
        )


def unpack(source: Source, work: Path, progress: Progress) -> Path:
    """Return a folder of the source's images as files named by key: the source if it is a folder, else a copy in `work`."""
    if Path(source.location).is_dir():
        return Path(source.location).resolve()
    root, done = work / "files", 0
    for unit in source.units:
        for record in unit.read():
            path = root / record.key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(record.data)
            done += 1
            if done % 64 == 0:
                progress("unpacking the source", done, source.records)
    return root


def list_files(folder: Path, cache: Cache, epochs: int) -> ImageFiles:
    """List the training images of a cache as files in `folder`, named by their keys, with the random parameters of some epochs.

    Raises:
        ArmError: TensorFlow decodes a file to different pixels than the reference.
    """
    chain, manifest = cache.chain(), cache.manifest
    rows = cache.rows("train")
    keys: list[str] = rows["key"].to_pylist()
    hashes = rows["key_hash"].to_numpy()
    paths = tuple(str(folder / key) for key in keys)
    headers = np.array([_read_header(chain.decode, path) for path in paths], np.int64).reshape(-1, 3)
    sizes, orientations = headers[:, :2], headers[:, 2].astype(np.int32)
    drawn = np.empty((epochs, len(keys), graphs.drawn_count(chain.ops)), np.int32)
    for epoch in range(epochs):
        # Before the cut the draws are the variant's: epoch e sees variant e mod K, as the cache does.
        before = random_words(chain.prefix, 0, manifest.seed, hashes, epoch % manifest.variants)
        after = random_words(chain.suffix, chain.cut, manifest.seed, hashes, epoch)
        for row, words in enumerate(map(list.__add__, before, after)):
            drawn[epoch, row] = _parameters(chain, words, *sizes[row].tolist())
    turned = orientations if (orientations != 1).any() else None
    selection = select(manifest.features, None, None)
    columns = open_targets(cache, "train", selection, soft=False)
    targets = tuple(column.take(np.arange(len(keys))) for column in columns.values())
    return ImageFiles(paths, targets, selection, drawn, sizes, turned)


def _parameters(chain: Chain, words: Sequence[int], height: int, width: int) -> list[int]:
    """Return the random parameters of all ops for one image."""
    drawn: list[int] = []
    used = 0
    for op in chain.ops[1:]:
        drawn += op.draw(words[used : used + op.random_words], height, width)
        used += op.random_words
        height, width = op.output_size(height, width)
    return drawn


def _read_header(decode: Decode, path: str) -> tuple[int, int, int]:
    """Return height and width after decode, and the EXIF orientation: 1 if the reference ignores it."""
    image, orientation = decode.open_upright(Path(path).read_bytes())
    why = _decoded_differently(decode, image)
    if why:
        raise ArmError(f"TensorFlow does not decode {path!r} as the reference does: {why}; leave it out of an audit")
    width, height = image.size
    if orientation in TRANSPOSED:
        height, width = width, height
    return height, width, orientation


def _decoded_differently(decode: Decode, image: Image.Image) -> str | None:
    """Return why TensorFlow decodes an opened file to different pixels than the reference; None if it does not."""
    match image.format:
        case "JPEG" | "MPO" if image.mode == "CMYK":
            if decode.channels == 1:
                return "it is CMYK, which TensorFlow cannot decode to grey"
            return None if "adobe" in image.info else "it is CMYK without Adobe's marker, which TensorFlow inverts"
        case "BMP" if image.mode in ("1", "P"):
            return "it is a BMP with a palette"
        case "WEBP" if image.mode != "RGB" or getattr(image, "is_animated", False):
            return "it is a WebP with transparency or several frames"
        case "GIF" if isinstance(image, ImageFile.ImageFile) and image.tile[0].extents != (0, 0, *image.size):
            return "it is a GIF whose first frame does not fill it"
        case "JPEG" | "MPO" | "PNG" | "GIF" | "BMP" | "WEBP":
            return None
        case other:
            return f"it is {other}"
