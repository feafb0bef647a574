#!/usr/bin/env python3
"""Write the golden pixels in tests/golden: a PNG for each chain in chains.json, and a .npz for each in batches.json.

    scripts/make_golden.py

A .npz holds the images of a batch of three, and the labels that are mixed with them. Review the diff before you commit it:
changed pixels mean that caches built before differ from new ones, and that the op's `version` must be raised. The photo itself
is only drawn if it is missing.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from environment import ROOT, argument_parser, enter

import joulecache as jc

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    Batch = dict[str, NDArray[np.uint8] | NDArray[np.float32]]

GOLDEN = ROOT / "tests" / "golden"
BATCH = 3


class Draw(TypedDict):
    """The values that determine the random parameters of an image."""

    key: str
    seed: int
    n: int


DRAW: Draw = {"key": "golden.jpg", "seed": 7, "n": 3}


def main() -> None:
    """Write all files, and print how many changed."""
    photo = GOLDEN / "photo.jpg"
    if not photo.exists():
        make_photo(photo)
    chains, batches = (json.loads((GOLDEN / f"{kind}.json").read_text("utf-8")) for kind in ("chains", "batches"))
    kept = {f"{name}.png" for name in chains} | {f"{name}.npz" for name in batches}
    for found in (*GOLDEN.glob("*.png"), *GOLDEN.glob("*.npz")):
        if found.name not in kept:
            found.unlink()
    changed = sum(write_image(GOLDEN / f"{name}.png", photo, text) for name, text in chains.items())
    changed += sum(write_batch(GOLDEN / f"{name}.npz", photo, text) for name, text in batches.items())
    print(f"{changed} of {len(kept)} files changed")


def make_photo(path: Path) -> None:
    """Draw the photo that all chains run on."""
    from PIL import Image

    from joulecache.pipelines.source import synthetic_photo

    with Image.open(io.BytesIO(synthetic_photo(3))) as large:
        large.resize((64, 48), Image.Resampling.LANCZOS).save(path, "JPEG", quality=85)


def write_image(path: Path, photo: Path, text: str) -> bool:
    """Write the result of a chain if its pixels changed; return whether they did."""
    import numpy as np
    from PIL import Image

    from joulecache.transforms.images import as_image

    image = as_image(jc.parse(text)(photo, **DRAW).astype(np.uint8, casting="no"))
    if path.exists() and pixels(Image.open(path)) == pixels(image):
        return False
    image.save(path, optimize=True)
    return True


def write_batch(path: Path, photo: Path, text: str) -> bool:
    """Write a batch if it changed; return whether it did."""
    import numpy as np

    batch = make_batch(photo, text)
    before: dict[str, NDArray[np.generic]] = dict(np.load(path)) if path.exists() else {}
    if all(name in before and same(before[name], array) for name, array in batch.items()):
        return False
    np.savez_compressed(path, images=batch["images"], labels=batch["labels"])
    return True


def make_batch(photo: Path, text: str) -> Batch:
    """Run a chain on the first variants of the photo as one batch, with a class for each variant."""
    import numpy as np

    from joulecache.transforms.chain import apply_batch_ops
    from joulecache.transforms.ops.batch import mix_labels
    from joulecache.transforms.randomness import random_words

    chain = jc.parse(text)
    single = jc.Chain(chain.prefix, chain.cut)
    variants = [single(photo, key=DRAW["key"], seed=DRAW["seed"], n=variant) for variant in range(BATCH)]
    images = np.stack([variant.astype(np.uint8, casting="no") for variant in variants])
    ops = chain.on_batches
    [words] = random_words(ops, len(chain.ops) - len(ops), DRAW["seed"], [0], DRAW["n"])
    labels = mix_labels(ops, np.arange(BATCH), BATCH, words, (images.shape[1], images.shape[2]))
    return {"images": apply_batch_ops(ops, images, words), "labels": labels}


def same(one: NDArray[np.generic], other: NDArray[np.generic]) -> bool:
    """Return whether two arrays are equal byte for byte."""
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def pixels(image: Image.Image) -> tuple[str, tuple[int, int], bytes]:
    """Return the mode, size and pixels of an image, for comparison."""
    return image.mode, image.size, image.tobytes()


if __name__ == "__main__":
    enter()
    argument_parser(__doc__).parse_args()
    main()
