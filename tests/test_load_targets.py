"""What `load` yields for masks, boxes and points: structure, steps, order, weights, and what Keras does with it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from spatial_sources import FEATURES, Drawn, drawn, png, spatial_source, with_target

import joulecache as jc
from joulecache.pipelines.building.config import BuildConfig
from joulecache.pipelines.building.precomputing import build_cache
from joulecache.pipelines.cache.cache import Cache, open_cache
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.names import FORMATS
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.loading.config import Budget, LoadConfig
from joulecache.pipelines.loading.dataset import make_dataset
from joulecache.pipelines.loading.loader import load
from joulecache.pipelines.loading.reader import open_reader
from joulecache.pipelines.loading.spatial import MaskColumn
from joulecache.pipelines.loading.split import CachedSplit
from joulecache.pipelines.loading.targets import Selection
from joulecache.transforms import Op, Photometric, parse
from joulecache.transforms.coordinates import Coordinates

RECORDS, BATCH, SIDE = 20, 3, 24
CHAIN = f"decode|resize(28) || random_crop({SIDE})|flip_lr"
SPATIAL = ["area", "objects", "joints"]


def build(folder: Path, chain: str = CHAIN, ops: dict[str, type[Op]] | None = None, **options: Any) -> Cache:
    units = options.pop("units", [drawn(number) for number in range(RECORDS)])
    config = BuildConfig(chain=parse(chain, ops), **{"val_fraction": 0, "variants": 2, "shards": 2, **options})
    build_cache(spatial_source(units=units), folder, config, Meter())
    return open_cache(folder)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return build(tmp_path_factory.mktemp("targets") / "cache")


@pytest.fixture(scope="module", params=[f"{kind} {encoding}" for kind in FORMATS for encoding in ("raw", "png")])
def of_each_kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, cache: Cache) -> Cache:
    kind, encoding = request.param.split()
    if request.param == "arrow raw":
        return cache
    return build(tmp_path_factory.mktemp("targets") / "cache", format=kind, encoding=encoding)


def most_of(cache: Cache) -> int:
    most = (cache.split("train").targets or {})["objects"].most
    assert most
    return most


def flat(batch: Any) -> list[bytes]:
    """Return each record of a batch as bytes."""
    arrays = [np.asarray(each) for each in tf.nest.flatten(batch)]
    return [b"".join(np.asarray(array[row]).tobytes() for array in arrays) for row in range(len(arrays[0]))]


def listed(dataset: Any) -> list[bytes]:
    """Return each record of an iteration as bytes."""
    return [record for batch in dataset for record in flat(batch)]


# Structure


def test_each_feature_has_its_structure_alone_and_among_others(cache: Cache) -> None:
    most = most_of(cache)
    images = tf.TensorSpec([None, SIDE, SIDE, 3], tf.uint8)
    specs = {
        "area": tf.TensorSpec([None, SIDE, SIDE, 1], tf.uint8),
        "objects": {
            "boxes": tf.TensorSpec([None, most, 4], tf.float32),
            "classes": tf.TensorSpec([None, most], tf.int64),
        },
        "joints": tf.TensorSpec([None, 4, 3], tf.float32),
        "label": tf.TensorSpec([None], tf.int64),
        "age": tf.TensorSpec([None], tf.float32),
    }
    for name, spec in specs.items():
        assert load(cache, "train", BATCH, targets=name).element_spec == (images, spec)
    assert load(cache, "train", BATCH).element_spec == (images, specs)
    chosen = ["objects", "label"]
    assert load(cache, "train", BATCH, targets=chosen).element_spec[1] == {name: specs[name] for name in chosen}
    assert load(cache, "train", BATCH, targets=()).element_spec == images
    floats = load(cache, "train", BATCH, targets="area", dtype="float32").element_spec
    assert [each.dtype for each in floats] == [tf.float32, tf.uint8]  # ids stay ids


def test_class_names_are_those_of_the_only_target(cache: Cache) -> None:
    found = {name: load(cache, "train", BATCH, targets=name).class_names for name in FEATURES}
    assert found == {
        "label": ["cat", "dog"],
        "area": ["background", "fur", "eye"],
        "objects": ["head", "paw", "tail"],
        "age": [],
        "joints": [],
    }
    assert load(cache, "train", BATCH, targets="objects").num_classes == 3
    assert load(cache, "train", BATCH).class_names == []


def test_boxes_are_padded_to_the_most_of_the_split(of_each_kind: Cache) -> None:
    """The first records have no box, the others one to three."""
    dataset = load(of_each_kind, "train", BATCH, targets="objects", shuffle=False, epochs=1)
    boxes, classes = (np.concatenate([each[name] for _, each in dataset]) for name in ("boxes", "classes"))
    names = of_each_kind.rows("train")["key"].to_pylist()
    assert boxes.shape == (RECORDS, 3, 4)
    for name, found, numbers in zip(names, boxes, classes, strict=True):
        there = numbers >= 0
        assert there.sum() <= int(name[:3]) % 4
        assert (there == sorted(there, reverse=True)).all()
        assert (found[~there] == -1).all()
        assert (numbers[~there] == -1).all()
        left, top, right, bottom = found[there].T
        assert ((left >= 0) & (top >= 0) & (right - left >= 1) & (bottom - top >= 1)).all()
        assert ((right <= SIDE) & (bottom <= SIDE)).all()


def test_without_any_box_there_is_one_place(tmp_path: Path) -> None:
    cache = build(tmp_path / "cache", units=[drawn(4 * number) for number in range(5)])
    for _, targets in load(cache, "train", BATCH, targets="objects"):
        assert targets["boxes"].shape[1:] == (1, 4)
        assert (targets["boxes"].numpy() == -1).all()
        assert (targets["classes"].numpy() == -1).all()


def test_a_png_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    cache = build(tmp_path / "cache", encoding="png", units=[drawn(number) for number in range(4)])
    [column] = CachedSplit(cache, "train", selection=Selection(("area",))).targets
    assert isinstance(column, MaskColumn)
    with pytest.raises(
        CacheError, match=r"a mask 'area' has shape \(28, 28, 1\), its image \(30, 28\): rebuild the cache"
    ):
        replace(column, cached=(30, 28)).targets(np.arange(4), 0)


# Order, steps and resuming


@pytest.mark.parametrize("shuffle", [True, "blocks"])
@pytest.mark.parametrize("step_bytes", [1, 1 << 30])
def test_targets_stay_with_their_images_in_any_order_and_step(
    of_each_kind: Cache, shuffle: Any, step_bytes: int
) -> None:
    budget = Budget(step_bytes=step_bytes, encoded_step_bytes=step_bytes, block_bytes=1 << 13, window_bytes=1 << 15)
    config = LoadConfig("train", BATCH, shuffle, targets=SPATIAL, epochs=2, budget=budget)
    dataset = make_dataset(open_reader(of_each_kind, config), config)
    expected = load(of_each_kind, "train", BATCH, shuffle=False, targets=SPATIAL, epochs=2)
    came = listed(dataset)
    assert came != listed(expected)
    assert sorted(came) == sorted(listed(expected))
    assert listed(dataset) == came


def test_hosts_share_the_records(cache: Cache) -> None:
    shares = [listed(load(cache, "train", BATCH, targets=SPATIAL, epochs=1, hosts=(host, 3))) for host in range(3)]
    whole = listed(load(cache, "train", BATCH, targets=SPATIAL, epochs=1))
    assert [record for share in shares for record in share] == whole


def test_an_iterator_resumes_with_the_same_targets(cache: Cache, tmp_path: Path) -> None:
    def opened(**options: Any) -> Any:
        return load(cache, "train", BATCH, **{"targets": SPATIAL, "epochs": 2, **options})

    iterator = iter(opened())
    for _ in range(4):
        next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).save(str(tmp_path / "saved"))
    rest = listed(iterator)
    again = iter(opened(epochs=2))
    tf.train.Checkpoint(iterator=again).restore(path)
    assert listed(again) == rest == listed(opened(start=(0, 4)))
    other = tf.train.Checkpoint(iterator=iter(opened(targets=[*reversed(SPATIAL)])))
    with pytest.raises(tf.errors.OpError, match="other images or with other arguments"):
        other.restore(path)


def test_a_step_has_as_many_batches_as_masks_and_boxes_allow(cache: Cache) -> None:
    image = SIDE * SIDE * 3
    spatial = SIDE * SIDE + most_of(cache) * 24 + 4 * 3 * 4
    for targets, size in (([], image), ("label", image), (SPATIAL, image + spatial)):
        for batches in (1, 2, 5):
            step_bytes = batches * BATCH * size
            budget = Budget(step_bytes=step_bytes, encoded_step_bytes=step_bytes)
            reader = open_reader(cache, LoadConfig("train", BATCH, targets=targets, budget=budget))
            assert reader.batches.per_step == batches


def test_blocks_read_masks_ahead(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = open_reader(cache, LoadConfig("train", BATCH, "blocks", targets="area"))
    [column] = reader.split.targets
    ranges = {range(first, last) for variant in column.variants for first, last in variant.addresses(0, RECORDS)}  # type: ignore[union-attr]
    asked: list[int] = []
    monkeypatch.setattr("joulecache.pipelines.cache.mapped_images.read_ahead", lambda first, _: asked.append(first))
    reader.read(0, 0, sequential=False)
    assert any(first in each for first in asked for each in ranges)


# Ops after the cut


@dataclass(frozen=True)
class Dark(Photometric):
    """Leaves every pixel in its place."""

    def pixels(self, image: NDArray[np.uint8], drawn: tuple[int, ...]) -> NDArray[np.uint8]:
        return image // 2


@dataclass(frozen=True)
class Turn(Op):
    """Swaps rows and columns."""

    def pixels(self, image: NDArray[np.uint8], drawn: tuple[int, ...]) -> NDArray[np.uint8]:
        return image.swapaxes(0, 1)

    def mask(self, mask: NDArray[np.uint8], drawn: tuple[int, ...]) -> NDArray[np.uint8]:
        return mask.swapaxes(0, 1)

    def boxes(self, boxes: Coordinates, drawn: tuple[int, ...], size: tuple[int, int]) -> Coordinates:
        return boxes[:, [1, 0, 3, 2]]

    def points(self, points: Coordinates, drawn: tuple[int, ...], size: tuple[int, int]) -> Coordinates:
        return points[:, [1, 0, 2]]


OPS: dict[str, type[Op]] = {"dark": Dark, "turn": Turn}


def silent_turn() -> type[Op]:
    """Return an op of the same name that does not say what moves."""

    @dataclass(frozen=True)
    class Turn(Op):
        def pixels(self, image: NDArray[np.uint8], drawn: tuple[int, ...]) -> NDArray[np.uint8]:
            return image.swapaxes(0, 1)

    return Turn


def test_a_custom_op_after_the_cut_says_what_moves_or_is_refused(tmp_path: Path) -> None:
    plain = build(tmp_path / "plain", "decode|resize(20)", OPS)
    turned = build(tmp_path / "turned", "decode|resize(20) || turn|dark", OPS)
    before, after = (load(each, "train", RECORDS, shuffle=False, ops=OPS) for each in (plain, turned))
    [(images, one)], [(turned_images, other)] = ([*each] for each in (before, after))
    np.testing.assert_array_equal(turned_images, np.swapaxes(images, 1, 2) // 2)
    np.testing.assert_array_equal(other["area"], np.swapaxes(one["area"], 1, 2))
    np.testing.assert_array_equal(other["objects"]["boxes"], one["objects"]["boxes"].numpy()[:, :, [1, 0, 3, 2]])
    np.testing.assert_array_equal(other["joints"], one["joints"].numpy()[:, :, [1, 0, 2]])
    silent = {**OPS, "turn": silent_turn()}
    with pytest.raises(ValueError, match="turn does not say how masks, boxes and points move with the pixels"):
        load(turned, "train", BATCH, targets="joints", ops=silent)
    assert load(turned, "train", BATCH, targets="label", ops=silent).class_names == ["cat", "dog"]


def test_mixtures_refuse_targets_that_move_by_name(tmp_path: Path) -> None:
    cache = build(tmp_path / "cache", "decode|resize(20) || cutmix")
    for name, kind in (("area", "mask"), ("objects", "boxes"), ("joints", "points")):
        with pytest.raises(ValueError, match=f"but not the {kind} '{name}': leave it out with targets="):
            load(cache, "train", BATCH, targets=["label", name])
    images, labels = next(iter(load(cache, "train", BATCH, targets="label")))
    assert labels.shape == (BATCH, 2)
    assert images.shape == (BATCH, 20, 20, 3)


# Keras


def unit_with_mask(number: int) -> Drawn:
    """An image of 16x16 whose mask is its bright part, and whose weight is its number."""
    rng = np.random.default_rng(number)
    ids = (rng.random((16, 16)) > 0.5).astype(np.uint8)
    image = np.repeat((ids * 200)[:, :, None], 3, axis=2) + rng.integers(0, 50, (16, 16, 3), np.uint8)
    ids[0, 0] = 255
    unit = with_target(drawn(number), 1, png(ids))
    return replace(with_target(unit, 2, b""), data=png(image))


def segmenter() -> keras.Model:
    inputs = keras.Input((16, 16, 3))
    logits = keras.layers.Conv2D(3, 1)(keras.layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, logits)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
    model.compile(keras.optimizers.Adam(0.1), loss)
    return model


def test_keras_trains_on_masks_and_leaves_out_the_void(tmp_path: Path) -> None:
    cache = build(tmp_path / "cache", "decode|resize(16) || flip_lr", units=[unit_with_mask(n) for n in range(16)])
    train = load(cache, "train", 8, targets="area", epochs=15)
    model, callback = segmenter(), jc.EnergyCallback(Meter())
    history = model.fit(train, steps_per_epoch=2, epochs=15, verbose=0, shuffle=False, callbacks=[callback]).history[
        "loss"
    ]
    assert history[-1] < history[0] / 2


def test_a_weight_weights_whole_images(tmp_path: Path) -> None:
    """Keras would multiply weights [B] with the columns of masks of width B, and say nothing."""
    units = [unit_with_mask(n) for n in range(16)]
    cache = build(tmp_path / "cache", "decode|resize(16)", units=units)
    options: dict[str, Any] = {"shuffle": False, "sample_weight": "age"}
    dataset = load(cache, "train", 16, targets="area", **options)
    assert dataset.element_spec[2] == tf.TensorSpec([16, 1, 1], tf.float32)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    [(_, masks, weights)] = dataset
    logits = tf.random.stateless_normal([16, 16, 16, 256], [1, 2])
    expected = [
        weight * loss(masks[row : row + 1], logits[row : row + 1]) for row, weight in enumerate(weights[:, 0, 0])
    ]
    np.testing.assert_allclose(loss(masks, logits, sample_weight=weights), np.mean(expected), rtol=1e-5)

    spec = load(cache, "train", 16, targets=["label", *SPATIAL], **options).element_spec[2]
    each, one, two = (tf.TensorSpec([16, *[1] * axes], tf.float32) for axes in range(3))
    assert spec == {"label": each, "area": two, "objects": {"boxes": one, "classes": one}, "joints": one}
    assert load(cache, "train", 16, targets="label", **options).element_spec[2] == each


def test_keras_trains_on_several_weighted_targets(cache: Cache) -> None:
    dataset = load(cache, "train", BATCH, targets=["label", "objects"], sample_weight="age", epochs=1)
    inputs = keras.Input((SIDE, SIDE, 3))
    features = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(inputs))
    most = most_of(cache)
    boxes = keras.layers.Reshape((most, 4))(keras.layers.Dense(most * 4)(features))
    classes = keras.layers.Reshape((most, 3))(keras.layers.Dense(most * 3)(features))
    label = keras.layers.Dense(2)(features)
    model = keras.Model(inputs, {"label": label, "objects": {"boxes": boxes, "classes": classes}})
    sparse = keras.losses.SparseCategoricalCrossentropy
    heads = {"boxes": keras.losses.Huber(), "classes": sparse(from_logits=True, ignore_class=-1)}
    model.compile("sgd", {"label": sparse(from_logits=True), "objects": heads})
    assert np.isfinite(model.fit(dataset, verbose=0, shuffle=False).history["loss"]).all()


def test_cached_keeps_masks_and_boxes(cache: Cache, tmp_path: Path) -> None:
    dataset = load(cache, "train", BATCH, shuffle=False, targets=SPATIAL, epochs=1).unbatch()
    kept = dataset.apply(jc.cached(tmp_path / "elements"))
    assert kept.element_spec == dataset.element_spec
    assert listed(kept.batch(BATCH)) == listed(dataset.batch(BATCH))
