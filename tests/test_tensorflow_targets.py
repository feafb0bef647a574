"""Masks, boxes and points that TensorFlow moves in the online arms: those of the cache, byte for byte."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from small_audits import arms_in_order
from spatial_sources import Drawn, drawn, jpeg, spatial_source

from joulecache.pipelines.building.config import BuildConfig
from joulecache.pipelines.building.precomputing import build_cache
from joulecache.pipelines.cache.cache import open_cache
from joulecache.pipelines.core.progress import silent
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.experiment.arms import make_prefix_arms
from joulecache.pipelines.experiment.files import list_files, unpack
from joulecache.pipelines.experiment.names import ARMS
from joulecache.pipelines.loading.loader import load
from joulecache.transforms import parse
from joulecache.transforms import tensorflow_targets as moved
from joulecache.transforms.ops.decode import EXIF_ORIENTATION

ONLINE = [name for name in ARMS if name != "optimized"]
COUNT, BATCH, EPOCHS = 12, 5, 3


def turned(unit: Drawn) -> Drawn:
    """Return an image that is stored on its side, as phones do; its targets are those of the upright image."""
    upright = Image.open(io.BytesIO(unit.data))
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    stream = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(stream, "JPEG", exif=exif)
    return replace(unit, data=stream.getvalue())


@pytest.mark.parametrize(
    "chain",
    [
        "decode|resize(40)|random_crop((32, 30)) || flip_lr",
        "decode|resize_shorter(48)|central_crop(41)|pad((3, 2, 1, 0), 7) || flip_ud|brightness(0.3)|random_crop(36)",
        "decode|random_resized_crop(32)|flip_lr || pad(2, 0, 'reflect')|cutout(8)|flip_ud|to_float",
        "decode(3, 20) || random_resized_crop(24)|flip_lr",
        "decode(background=9)|resize(40)|rotate(20) || random_crop(32)|affine(10)|flip_lr|hue(0.1)",
    ],
)
def test_online_arms_move_targets_as_the_cache_does(chain: str, tmp_path: Path) -> None:
    units = [turned(drawn(number)) if number % 3 else drawn(number, encode=jpeg) for number in range(COUNT)]
    source = spatial_source(units=units)
    parsed = parse(chain)
    if "(3, 20)" in chain:  # one size for batches
        source = spatial_source(units=[unit for unit in units if "0" in unit.name])
        parsed = parse(chain.replace(" || ", "|resize(30) || "))
    config = BuildConfig(chain=parsed, variants=2, val_fraction=0, seed=3)
    build_cache(source, tmp_path / "cache", config, Meter())
    cache = open_cache(tmp_path / "cache")
    unpacked = unpack(source, tmp_path, silent)
    files = list_files(unpacked.folder, cache, EPOCHS, unpacked.moving)
    for arm in arms_in_order(ONLINE, source, config, files, cache, BATCH).values():
        for epoch in range(EPOCHS):
            arm.start_epoch(epoch)
            expected = load(cache, "train", BATCH, shuffle=False, start=(epoch, 0)).take(len(arm.dataset))
            for (images, targets), (like, wanted) in zip(arm.dataset, expected, strict=True):
                assert images.shape == like.shape
                tf.nest.assert_same_structure(targets, wanted)
                for part, same in zip(tf.nest.flatten(targets), tf.nest.flatten(wanted), strict=True):
                    assert part.dtype == same.dtype
                    np.testing.assert_array_equal(part, same)


def test_truncated_arms_read_and_move_the_targets_too(tmp_path: Path) -> None:
    source = spatial_source()
    chain = parse("decode|resize(40) || random_crop(32)|flip_lr")
    build_cache(source, tmp_path / "cache", BuildConfig(chain=chain, val_fraction=0), Meter())
    cache = open_cache(tmp_path / "cache")
    unpacked = unpack(source, tmp_path, silent)
    files = list_files(unpacked.folder, cache, 1, unpacked.moving).sample(10, 0)
    arms = {arm.name: next(iter(arm.dataset)) for arm in make_prefix_arms(files, cache, BATCH)}
    assert list(arms) == ["tf.data", "read", "decode", "resize(40)", "random_crop(32)", "flip_lr", "batch"]
    for name, (numbers, targets) in arms.items():
        assert targets["area"].shape == ((BATCH, 32, 32, 1) if name == "batch" else (BATCH,))
        assert numbers.shape[0] == targets["objects"]["boxes"].shape[0] == BATCH
    sizes = [len(path.read_bytes()) for path in map(Path, sorted(files.targets["area"].ids))]  # type: ignore[union-attr]
    assert set(arms["read"][1]["area"].numpy()) <= set(sizes)


def test_dropped_boxes_are_behind_the_others() -> None:
    boxes = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    packed = moved.packed(
        moved.Boxes(tf.constant(boxes), tf.constant([[moved.ABSENT, 5, moved.ABSENT, 7]], tf.int64)), 3
    )
    np.testing.assert_array_equal(packed.classes, [[5, 7, -1]])
    np.testing.assert_array_equal(packed.boxes, [[boxes[0, 1], boxes[0, 3], [-1] * 4]])
