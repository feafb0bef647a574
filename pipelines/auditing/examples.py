"""Example images: a few training records after every op of the chain, and in later epochs."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from joulecache.pipelines.auditing.results import Example, ExampleImage
from joulecache.pipelines.cache.cache import Cache
from joulecache.pipelines.cache.manifest import Manifest
from joulecache.pipelines.core.quantities import clipped
from joulecache.pipelines.experiment.files import ImageFiles
from joulecache.pipelines.source.features import AnyFeature, ClassLabel, MultiLabel, Text, Value
from joulecache.transforms.chain import Chain, op_text
from joulecache.transforms.images import as_image

_EXAMPLES = 3
_LATER_EPOCHS = 3
_LONGEST_TEXT = 60  # characters
_SIDE = 112  # pixels on the longer side: a few kilobytes per image


def draw_examples(files: ImageFiles, folder: Path, cache: Cache) -> tuple[Example, ...]:
    """Return examples of the files in a folder, evenly spaced, as the chain of a cache transforms them.

    Large images are shrunk, small ones enlarged without smoothing. Images after `to_float` are left out.
    """
    rows = np.unique(np.linspace(0, len(files.paths) - 1, _EXAMPLES).astype(int))
    features = cache.manifest.features
    examples = []
    for row in rows:
        path = Path(files.paths[row])
        key = path.relative_to(folder).as_posix()
        shown = [
            _shown(name, features[name], target[row])
            for name, target in files.targets.items()
            if isinstance(target, np.ndarray)
        ]
        examples.append(
            Example(key, ", ".join(filter(None, shown)), tuple(_images(path, key, files.ops.chain, cache.manifest)))
        )
    return tuple(examples)


def _shown(name: str, feature: AnyFeature, target: Any) -> str:
    """Return a target in words; "" if it has too many numbers."""
    match feature:
        case ClassLabel():
            return str(
                feature.names[np.argmax(target) if np.ndim(target) else target]
            )  # shares, if the chain mixes images
        case MultiLabel():
            return "/".join(feature.names[number] for number in np.flatnonzero(target)) or f"no {name}"
        case Text():
            return clipped(target, _LONGEST_TEXT)
        case Value(shape=()):
            return f"{name} {target:g}"
    return ""


def _images(path: Path, key: str, chain: Chain, manifest: Manifest) -> Iterator[ExampleImage]:
    ops, data = (*chain.prefix, *chain.on_images), path.read_bytes()

    def jpeg(count: int, epoch: int) -> str:
        part = Chain(ops[:count], min(count, chain.cut))
        return _jpeg(
            part(data, key=key, seed=manifest.seed, n=epoch, variants=manifest.variants, first_draw=manifest.first_draw)
        )

    for count, op in enumerate(ops, 1):
        yield ExampleImage(op_text(op), count == chain.cut, jpeg(count, 0))
    if any(op.random for op in chain.on_images) or (manifest.variants > 1 and chain.cached_random):
        for epoch in range(1, 1 + _LATER_EPOCHS):
            yield ExampleImage(f"epoch {epoch}", False, jpeg(len(ops), epoch))


def _jpeg(pixels: NDArray[np.generic]) -> str:
    """Return an image `[H, W, C]` uint8 as a small JPEG, base64-encoded."""
    image = as_image(np.ascontiguousarray(pixels))
    image.thumbnail((_SIDE, _SIDE))
    times = max(1, _SIDE // max(image.size))
    stream = io.BytesIO()
    image.resize((times * image.width, times * image.height), Image.Resampling.NEAREST).save(
        stream, "JPEG", quality=85, subsampling=0
    )
    return base64.b64encode(stream.getvalue()).decode()
