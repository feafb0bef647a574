"""The loader: every record once an epoch, the pixels of the reference chain, and nothing shared between batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from joulecache.pipelines import loader
from joulecache.pipelines.build import precompute
from joulecache.pipelines.loader import CachedSplit, load
from joulecache.pipelines.manifest import CacheError, open_manifest, read_index
from joulecache.transforms.chain import parse

SOURCE = "synthetic:40"
CHAIN = "decode|resize(20) || random_crop(16)|flip_lr"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("caches") / "cache"
    precompute(SOURCE, folder, CHAIN, shards=3, seed=7)
    return folder


def batches(dataset: Any) -> list[tuple[Any, Any]]:
    return list(dataset.as_numpy_iterator())


def images_of(dataset: Any) -> Any:
    return np.concatenate([images for images, _ in batches(dataset)])


def keys_of(cache: Path, split: str) -> list[str]:
    manifest = open_manifest(cache)
    rows = read_index(cache, manifest).to_pylist()
    return [row["key"] for row in rows if row["split"] == ("train", "val").index(split)]


def photo(key: str) -> bytes:
    from joulecache.pipelines.source import synthetic_photo

    return synthetic_photo(int(Path(key).stem))


def test_pixels_are_those_of_the_whole_chain_run_online(cache: Path) -> None:
    dataset = load(cache, "train", 8, shuffle=False)
    chain, keys = parse(CHAIN), keys_of(cache, "train")
    for epoch in range(2):
        expected = np.stack([chain(photo(key), key=key, seed=7, n=epoch) for key in keys])
        assert np.array_equal(images_of(dataset), expected)


@pytest.mark.parametrize(("format", "encoding"), [("tfrecord", "raw"), ("arrow", "png"), ("tfrecord", "png")])
def test_every_lossless_cache_gives_the_same_pixels(cache: Path, tmp_path: Path, format: Any, encoding: Any) -> None:
    precompute(SOURCE, tmp_path / "other", CHAIN, shards=2, seed=7, format=format, encoding=encoding)
    one, other = (
        dict(zip(keys_of(folder, "train"), CachedSplit(folder, "train").images(np.arange(len(keys)), 3), strict=True))
        for folder in (cache, tmp_path / "other")
        for keys in [keys_of(folder, "train")]
    )
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[key], other[key]) for key in one)


def test_a_jpeg_cache_is_close(cache: Path, tmp_path: Path) -> None:
    precompute(SOURCE, tmp_path / "jpeg", CHAIN, seed=7, shards=3, encoding="jpeg", quality=95)
    one, other = (CachedSplit(folder, "train").images(np.arange(30), 0) for folder in (cache, tmp_path / "jpeg"))
    assert 0 < np.abs(one.astype(int) - other).mean() < 6


def test_epochs_read_one_variant_after_the_other(tmp_path: Path) -> None:
    precompute(SOURCE, tmp_path / "cache", "decode|resize(20)|random_crop(16)", variants=3)
    first, second, third, fourth = (
        images_of(dataset) for dataset in [load(tmp_path / "cache", "train", 8, shuffle=False)] for _ in range(4)
    )
    assert np.array_equal(first, fourth)
    assert not np.array_equal(first, second)
    assert not np.array_equal(second, third)


def test_every_epoch_is_another_permutation(cache: Path) -> None:
    records = open_manifest(cache).splits["train"].records
    orders = [loader._shuffled(records, 7, epoch, np.arange(records)) for epoch in range(4)]
    assert all(sorted(order) == list(range(records)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize("records", [1, 2, 5000, 8193])
def test_an_order_is_the_same_however_it_is_asked_for(records: int) -> None:
    whole = loader._shuffled(records, 1, 2, np.arange(records))
    pieces = [loader._shuffled(records, 1, 2, np.arange(i, min(i + 100, records))) for i in range(0, records, 100)]
    assert np.array_equal(whole, np.concatenate(pieces))
    assert sorted(whole) == list(range(records))


def test_every_record_comes_once_an_epoch_with_its_own_label(cache: Path) -> None:
    split = CachedSplit(cache, "train")
    pixels = {
        image.tobytes(): label
        for image, label in zip(split.images(np.arange(len(split)), 0), split.labels, strict=True)
    }
    seen = [
        (image.tobytes(), label)
        for images, labels in batches(load(cache, "train", 8))
        for image, label in zip(images, labels, strict=True)
    ]
    assert len(seen) == len(split)
    assert dict(seen) == pixels


def test_one_seed_is_one_stream(cache: Path) -> None:
    one, same, other = (images_of(load(cache, "train", 8, seed=seed)) for seed in (3, 3, 4))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_held_out_records_come_in_their_order_every_time(cache: Path) -> None:
    dataset = load(cache, "val", 4)
    labels = np.concatenate([labels for _, labels in batches(dataset)])
    assert np.array_equal(labels, CachedSplit(cache, "val").labels)
    assert np.array_equal(images_of(dataset), images_of(dataset))


def test_a_dataset_knows_its_length_types_and_classes(cache: Path) -> None:
    dataset = load(cache, "train", 8)
    records = open_manifest(cache).splits["train"].records
    assert int(dataset.cardinality()) == -(-records // 8) == len(batches(dataset))
    assert dataset.class_names == ["bar", "cross", "disc", "square"]
    assert dataset.num_classes == 4
    images, labels = batches(dataset)[0]
    assert (images.dtype, images.shape, labels.dtype) == (np.uint8, (8, 16, 16, 3), np.int64)


def test_drop_remainder_keeps_whole_batches_only(cache: Path) -> None:
    dataset = load(cache, "train", 16, drop_remainder=True)
    assert dataset.element_spec[0].shape == (16, 16, 16, 3)
    assert all(len(images) == 16 for images, _ in batches(dataset))


def test_two_iterators_do_not_disturb_each_other(cache: Path) -> None:
    alone = load(cache, "train", 8)
    first, second = images_of(alone), images_of(alone)
    dataset = load(cache, "train", 8)
    pairs = list(zip(dataset.as_numpy_iterator(), dataset.as_numpy_iterator(), strict=True))
    together = {np.concatenate([pair[i][0] for pair in pairs]).tobytes() for i in (0, 1)}
    assert together == {first.tobytes(), second.tobytes()}


def test_batches_keep_their_pixels(cache: Path) -> None:
    """TensorFlow takes over the arrays as they are: one that was used again would change under it."""
    kept = [images for images, _ in load(cache, "train", 8, shuffle=False)]
    copies = [images for images, _ in load(cache, "train", 8, shuffle=False).as_numpy_iterator()]
    assert all(np.array_equal(images.numpy(), copy) for images, copy in zip(kept, copies, strict=True))


def test_batches_begin_where_tensorflow_needs_them() -> None:
    for size in (1, 1000, 100_000):
        assert loader._aligned((size, 3)).ctypes.data % 64 == 0


def test_it_trains_a_model(cache: Path) -> None:
    train = load(cache, "train", 8)
    model = keras.Sequential(
        [keras.Input((16, 16, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), keras.layers.Dense(4)]
    )
    model.compile(optimizer="adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(train, validation_data=load(cache, "val", 8), epochs=2, verbose=0, shuffle=False).history
    assert len(history["val_loss"]) == 2


def test_a_cache_that_is_replaced_is_still_read_as_it_was(tmp_path: Path) -> None:
    precompute(SOURCE, tmp_path / "cache", "decode|resize(16)")
    dataset = load(tmp_path / "cache", "train", 8, shuffle=False)
    before = images_of(dataset)
    precompute(SOURCE, tmp_path / "cache", "decode|resize(12)", replace=True)
    assert np.array_equal(images_of(dataset), before)


@pytest.mark.parametrize("batch_size", [0, -1, True, "8", 2.0])
def test_bad_batch_sizes_are_refused(cache: Path, batch_size: Any) -> None:
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1, got"):
        load(cache, "train", batch_size)


def test_a_batch_larger_than_the_split_is_one_batch_or_refused(cache: Path) -> None:
    assert len(batches(load(cache, "train", 1000))) == 1
    with pytest.raises(ValueError, match="leaves nothing of the"):
        load(cache, "train", 1000, drop_remainder=True)


def test_unknown_and_empty_splits_are_refused(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split must be one of train, val, got 'test'"):
        load(cache, "test", 8)
    precompute(SOURCE, tmp_path / "all", CHAIN, val_fraction=0)
    with pytest.raises(CacheError, match="no records in split 'val': this cache has train"):
        load(tmp_path / "all", "val", 8)


def test_images_of_varying_size_are_refused(tmp_path: Path) -> None:
    precompute(SOURCE, tmp_path / "cache", "decode", encoding="png")
    with pytest.raises(CacheError, match="vary in size"):
        load(tmp_path / "cache", "train", 8)


@pytest.mark.parametrize("seed", [-1, 2**64, True, "1"])
def test_bad_seeds_are_refused(cache: Path, seed: Any) -> None:
    with pytest.raises(ValueError, match="seed must be a whole number"):
        load(cache, "train", 8, seed=seed)
