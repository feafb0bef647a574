#!/usr/bin/env python3
"""Write the golden pixels in tests/golden anew: one PNG for each chain in its chains.json, one .npz for each in its batches.json.

A .npz holds the images of a batch of three, and the labels that are mixed with them.

Look at the difference before you commit it: changed pixels mean that every cache built before holds others, and that the op's
`version` must be raised. The photo itself is drawn only where it is missing.
"""

import io
import json
import os
import sys
from pathlib import Path

from environment import ROOT

VENV = ROOT / ".venv"
GOLDEN = ROOT / "tests" / "golden"
DRAW = {"key": "golden.jpg", "seed": 7, "n": 3}
BATCH = 3


def main() -> None:
    """Write every file, and say how many changed."""
    photo = GOLDEN / "photo.jpg"
    if not photo.exists():
        _draw(photo)
    chains, batches = (json.loads((GOLDEN / f"{kind}.json").read_text("utf-8")) for kind in ("chains", "batches"))
    kept = {f"{name}.png" for name in chains} | {f"{name}.npz" for name in batches}
    for found in (*GOLDEN.glob("*.png"), *GOLDEN.glob("*.npz")):
        if found.name not in kept:
            found.unlink()
    changed = _write_images(photo, chains) + _write_batches(photo, batches)
    print(f"{changed} of {len(kept)} files changed")


def _write_images(photo: Path, chains: dict[str, str]) -> int:
    from PIL import Image

    from joulecache.transforms import parse
    from joulecache.transforms.images import as_image

    changed = 0
    for name, text in chains.items():
        image = as_image(parse(text)(photo, **DRAW))
        path = GOLDEN / f"{name}.png"
        if not path.exists() or _levels(Image.open(path)) != _levels(image):
            image.save(path, optimize=True)
            changed += 1
    return changed


def _write_batches(photo: Path, batches: dict[str, str]) -> int:
    import numpy as np

    changed = 0
    for name, text in batches.items():
        made = dict(zip(("images", "labels"), _batch(photo, text), strict=True))
        path = GOLDEN / f"{name}.npz"
        before = np.load(path) if path.exists() else {}
        if any(part not in before or not _same(before[part], array) for part, array in made.items()):
            np.savez_compressed(path, **made)
            changed += 1
    return changed


def _batch(photo: Path, text: str) -> tuple:
    """Run a chain on the first variants of the photo, as the first batch of epoch n, each variant of a class of its own."""
    import numpy as np

    from joulecache.transforms import Chain, parse
    from joulecache.transforms.chain import apply_batch_ops, mix_labels
    from joulecache.transforms.randomness import random_words

    chain = parse(text)
    single = Chain(chain.prefix, chain.cut)
    images = np.stack([single(photo, **{**DRAW, "n": variant}) for variant in range(BATCH)])
    ops = chain.on_batches
    [words] = random_words(ops, len(chain.ops) - len(ops), DRAW["seed"], [0], DRAW["n"])
    size = images.shape[1:3]
    return apply_batch_ops(ops, images, words), mix_labels(ops, np.arange(BATCH), BATCH, words, size)


def _same(one, other) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def _levels(image) -> tuple:
    return image.mode, image.size, image.tobytes()


def _draw(path: Path) -> None:
    from PIL import Image

    from joulecache.pipelines.source import synthetic_photo

    with Image.open(io.BytesIO(synthetic_photo(3))) as large:
        large.resize((64, 48), Image.Resampling.LANCZOS).save(path, "JPEG", quality=85)


if __name__ == "__main__":
    python = VENV / "bin" / "python"
    if python.exists() and Path(sys.prefix) != VENV:
        os.execv(python, [str(python), *sys.argv])
    main()
