"""Masks, boxes and points that were cached and loaded are those of the whole chain run online, byte for byte."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from spatial_sources import FEATURES, Drawn, drawn, jpeg, png, spatial_source
from test_exactness import CHAINS, names

from joulecache.pipelines.building.config import BuildConfig
from joulecache.pipelines.building.precomputing import build_cache
from joulecache.pipelines.cache.cache import Cache, open_cache
from joulecache.pipelines.cache.names import FORMATS, Encoding, Format
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.loading.loader import load
from joulecache.pipelines.loading.split import CachedSplit
from joulecache.pipelines.source.feature import Target
from joulecache.pipelines.source.features import spatial_features
from joulecache.pipelines.source.spatial import Boxes, Points
from joulecache.transforms import BoxesTarget, Chain, MaskTarget, PointsTarget, parse
from joulecache.transforms.chain import fixed_size

SEED, VARIANTS, EPOCHS = 11, 2, 3
LOSSLESS: tuple[Encoding, ...] = ("raw", "png")

Expected = dict[str, NDArray[Any]]
"""An image, and its masks, boxes, their classes and points, as `load` yields them."""


def build(folder: Path, chain: Chain, units: list[Drawn], **options: Any) -> Cache:
    config = BuildConfig(chain=chain, **{"variants": VARIANTS, "val_fraction": 0, "seed": SEED, **options})
    build_cache(spatial_source(units=units), folder, config, Meter())
    return open_cache(folder)


def online(chain: Chain, unit: Drawn, most: int, n: int, variants: int | None = VARIANTS, seed: int = SEED) -> Expected:
    """Run the whole chain on a record by the reference kernels, and pad its boxes."""
    targets = dict(zip(FEATURES, unit.contents, strict=True))
    given = [feature.decode(targets[name]) for name, feature in spatial_features(FEATURES).items()]
    image, (mask, boxes, points) = chain.with_targets(
        unit.data, given, key=unit.name, seed=seed, n=n, variants=variants
    )
    assert isinstance(mask, MaskTarget)
    assert isinstance(boxes, BoxesTarget)
    assert isinstance(points, PointsTarget)
    missing = most - len(boxes.classes)
    return {
        "image": image,
        "area": mask.ids,
        "boxes": np.concatenate([boxes.boxes, np.full((missing, 4), -1, np.float32)]),
        "classes": np.concatenate([boxes.classes, np.full(missing, -1)]),
        "joints": points.points,
    }


def most_boxes(cache: Cache) -> int:
    return max(1, (cache.split("train").targets or {})["objects"].most or 0)


def keys(cache: Cache) -> list[str]:
    return [str(key) for key in cache.rows("train")["key"].to_pylist()]


def check_rows(cache: Cache, chain: Chain, units: list[Drawn], epochs: int = EPOCHS, seed: int = SEED) -> None:
    """Compare every record of every epoch."""
    split, unit_of = CachedSplit(cache, "train"), {unit.name: unit for unit in units}
    for epoch in range(epochs):
        images, (_, area, boxes, classes, _, joints) = split.batch(np.arange(len(split)), epoch, 0)
        found = {"image": images, "area": area, "boxes": boxes, "classes": classes, "joints": joints}
        for row, key in enumerate(keys(cache)):
            expected = online(chain, unit_of[key], most_boxes(cache), epoch, cache.manifest.variants, seed)
            for name, array in expected.items():
                assert found[name].dtype == array.dtype
                np.testing.assert_array_equal(
                    found[name][row], array, err_msg=f"{name} of {key} in epoch {epoch}, {chain}"
                )


@pytest.fixture(scope="module")
def units() -> list[Drawn]:
    return [drawn(number, encode=jpeg if number % 2 else png) for number in range(8)]


@pytest.mark.parametrize("name", CHAINS)
def test_a_cache_cut_anywhere_gives_the_targets_of_the_whole_chain(
    tmp_path: Path, units: list[Drawn], name: str
) -> None:
    ops = parse(CHAINS[name]).ops
    stored = itertools.cycle(itertools.product(FORMATS, LOSSLESS))
    for cut in (3, 4, 5, len(ops) - 1, len(ops)):
        chain = Chain(ops, cut)
        if fixed_size(chain.prefix) is None:
            continue  # refused, by name: batches need one size
        kind, encoding = next(stored)
        cache = build(tmp_path / f"{cut}", chain, units, format=kind, encoding=encoding, shards=2)
        check_rows(cache, chain, units)


SIDES = 40, 44
corners = st.floats(0, 1, width=32)
boxes = st.lists(st.tuples(*[st.floats(-0.25, 1.25, width=32)] * 4), max_size=5)
places = st.lists(st.tuples(corners, corners, st.integers(0, 2)), min_size=4, max_size=4)


@st.composite
def records(draw: st.DrawFn, number: int) -> Drawn:
    """An image with random boxes and points, some far outside or tiny, and random ids."""
    height, width = SIDES
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = np.array([width, height, width, height], np.float32)
    found = np.array(draw(boxes), np.float32).reshape(-1, 4) * scale
    found = np.concatenate([np.minimum(found[:, :2], found[:, 2:]), np.maximum(found[:, :2], found[:, 2:])], axis=1)
    left, top, right, bottom = found.T
    found = found[(left < right) & (top < bottom) & (left < width) & (top < height) & (right > 0) & (bottom > 0)]
    points = np.array(draw(places), np.float32) * np.array([width, height, 1], np.float32)
    objects, joints = FEATURES["objects"], FEATURES["joints"]
    assert isinstance(objects, Boxes)
    assert isinstance(joints, Points)
    ids = rng.integers(0, draw(st.integers(1, 4)), (height, width, 1), np.uint8)
    ids[ids == 3] = 255
    targets: dict[str, Target] = {
        "label": number % 2,
        "area": png(ids[:, :, 0]),
        "objects": objects.encode(found, rng.integers(0, 3, len(found)).tolist()),
        "age": float(number),
        "joints": joints.encode(points),
    }
    features = tuple(FEATURES.values())
    return Drawn(
        f"{number}.png", tuple(targets.values()), features, png(rng.integers(0, 256, (height, width, 3), np.uint8))
    )


@settings(deadline=None, max_examples=20)
@given(
    steps=st.lists(names, min_size=1, max_size=6),
    cut=st.integers(2, 8),
    channels=st.sampled_from([1, 3]),
    units=st.tuples(records(0), records(1), records(2)),
    seed=st.integers(0, 2**64 - 1),
    kind=st.sampled_from(FORMATS),
    encoding=st.sampled_from(LOSSLESS),
)
def test_random_targets_of_random_chains_cut_anywhere_are_those_of_the_whole_chain(
    steps: list[str], cut: int, channels: int, units: tuple[Drawn, ...], seed: int, kind: Format, encoding: Encoding
) -> None:
    chain = parse("|".join([f"decode({channels})", "resize((33, 35))", *steps]))
    chain = replace(chain, cut=min(cut, len(chain.ops)))
    with TemporaryDirectory() as folder:
        cache = build(Path(folder, "cache"), chain, [*units], format=kind, encoding=encoding, seed=seed, shards=1)
        check_rows(cache, chain, [*units], 2, seed)


@pytest.mark.parametrize("kind", FORMATS)
def test_with_a_variant_for_every_epoch_the_cached_stream_is_the_online_stream(
    tmp_path: Path, units: list[Drawn], kind: Format
) -> None:
    chain = parse("decode|random_resized_crop(24)|flip_lr || rotate(20)|random_crop(20)|brightness(0.3)|to_float")
    cache = build(tmp_path / "cache", chain, units, format=kind, variants=EPOCHS)
    dataset = load(cache, "train", 3, shuffle=False, epochs=EPOCHS, targets=["area", "objects", "joints"])
    unit_of = {unit.name: unit for unit in units}
    order = [unit_of[key] for key in keys(cache)]
    expected = [online(chain, unit, most_boxes(cache), n, None) for n in range(EPOCHS) for unit in order]
    came = [tf.nest.map_structure(np.asarray, batch) for batch in dataset]
    found = {
        "image": [images for images, _ in came],
        "area": [targets["area"] for _, targets in came],
        "boxes": [targets["objects"]["boxes"] for _, targets in came],
        "classes": [targets["objects"]["classes"] for _, targets in came],
        "joints": [targets["joints"] for _, targets in came],
    }
    for name, batches in found.items():
        stream = np.concatenate(batches)
        assert stream.dtype == expected[0][name].dtype
        np.testing.assert_array_equal(stream, np.stack([each[name] for each in expected]), err_msg=name)
