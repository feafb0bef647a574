"""The loader: every record once an epoch, the pixels of the reference chain, and nothing shared between batches."""

from __future__ import annotations

import dataclasses
import inspect
import io
import re
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from joulecache.pipelines.building.precomputing import precompute
from joulecache.pipelines.cache.cache import open_cache
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.manifest_io import open_manifest
from joulecache.pipelines.loading.array_pool import ArrayPool
from joulecache.pipelines.loading.config import LoadConfig, Shuffle
from joulecache.pipelines.loading.device import to_device
from joulecache.pipelines.loading.loader import load
from joulecache.pipelines.loading.reader import open_reader
from joulecache.pipelines.loading.split import CachedSplit
from joulecache.transforms.chain import apply
from joulecache.transforms.randomness import key_hash, random_words

Batch = tuple[NDArray[np.uint8], NDArray[np.int64]]

CHAIN = "decode|resize(20)|random_crop(16) || random_crop(14)|flip_lr|brightness(0.5)"
SEED, VARIANTS, QUALITY = 7, 3, 60
KINDS: dict[str, dict[str, Any]] = {
    "raw arrow": {},
    "raw arrow, nothing after the cut": {"chain": "decode|resize(20)|random_crop(16)"},
    "raw tfrecord": {"format": "tfrecord"},
    "png arrow": {"encoding": "png"},
    "png tfrecord": {"encoding": "png", "format": "tfrecord"},
    "jpeg arrow": {"encoding": "jpeg", "quality": QUALITY},
    "jpeg tfrecord": {"encoding": "jpeg", "quality": QUALITY, "format": "tfrecord"},
}


@dataclass(frozen=True, eq=False)
class Photos:
    """A cache of the photos of conftest, with the photos."""

    folder: Path
    photos: dict[str, bytes]


@cache
def rows_of(photos: Photos, split: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = open_cache(photos.folder).rows(split).to_pylist()
    return rows


@cache
def expected_images(photos: Photos, split: str, epoch: int, seed: int = SEED) -> list[bytes]:
    """Return the images of an epoch by the reference kernels, in the order of the index; `seed` is that of the suffix."""
    manifest = open_manifest(photos.folder)
    chain, variants = manifest.parsed_chain(split), manifest.splits[split].variants
    images = []
    for row in rows_of(photos, split):
        hashed = [key_hash(row["key"])]
        words = random_words(chain.prefix, 0, SEED, hashed, epoch % variants)[0]
        image = apply(chain.prefix, photos.photos[row["key"]], words)
        if manifest.encoding == "jpeg":
            stream = io.BytesIO()
            Image.fromarray(image).save(stream, "JPEG", quality=QUALITY)
            image = np.asarray(Image.open(stream))
        words = random_words(chain.suffix, chain.cut, seed, hashed, epoch)[0]
        images.append(apply(chain.suffix, image, words).tobytes())
    return images


def build(folder: Path, source: Path, photos: dict[str, bytes], **options: Any) -> Photos:
    given: dict[str, Any] = {"chain": CHAIN, "variants": VARIANTS, "val_fraction": 0.3, "shards": 3, **options}
    precompute(source, folder, seed=SEED, **given)
    return Photos(folder, photos)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path, photos: dict[str, bytes]) -> Photos:
    return build(tmp_path_factory.mktemp("raw"), photo_folder, photos)


@pytest.fixture(scope="module", params=KINDS)
def of_each_kind(
    request: pytest.FixtureRequest,
    raw: Photos,
    tmp_path_factory: pytest.TempPathFactory,
    photo_folder: Path,
    photos: dict[str, bytes],
) -> Photos:
    if request.param == "raw arrow":
        return raw
    return build(tmp_path_factory.mktemp("cache"), photo_folder, photos, limit=15, **KINDS[request.param])


def batches(dataset: Any) -> list[Batch]:
    """Iterate once more."""
    return list(dataset.as_numpy_iterator())


def labels_of(came: list[Batch]) -> list[int]:
    return [int(label) for _, labels in came for label in labels]


def bytes_of(came: list[Batch]) -> list[bytes]:
    return [image.tobytes() for images, _ in came for image in images]


def test_an_epoch_holds_the_reference_pixels_of_its_variant_and_its_draws(of_each_kind: Photos) -> None:
    dataset = load(of_each_kind.folder, "train", 4)
    labels = [row["label"] for row in rows_of(of_each_kind, "train")]
    for epoch in range(VARIANTS + 1):
        expected = expected_images(of_each_kind, "train", epoch)
        assert len(set(expected)) == len(expected)
        came = batches(dataset)
        assert sorted(zip(bytes_of(came), labels_of(came), strict=True)) == sorted(zip(expected, labels, strict=True))


def test_validation_of_each_kind_comes_in_the_order_of_the_index(of_each_kind: Photos) -> None:
    dataset = load(of_each_kind.folder, "val", 4)
    for _ in range(2):
        came = batches(dataset)
        assert bytes_of(came) == expected_images(of_each_kind, "val", 0)
        assert labels_of(came) == [row["label"] for row in rows_of(of_each_kind, "val")]


def test_rows_come_as_they_are_asked_for(of_each_kind: Photos) -> None:
    split = CachedSplit(open_cache(of_each_kind.folder), "train")
    rows = np.array([3, 0, len(split) - 1, 3, 7])
    expected = expected_images(of_each_kind, "train", 4)
    assert [image.tobytes() for image in split.images(rows, 4)] == [expected[row] for row in rows]
    assert split.key_hashes.tolist() == [key_hash(row["key"]) for row in rows_of(of_each_kind, "train")]


@pytest.mark.parametrize("shuffle", [False, True, "blocks"])
def test_a_reader_reads_steps_of_numpy_batches(raw: Photos, shuffle: Shuffle) -> None:
    reader = open_reader(open_cache(raw.folder), LoadConfig("train", 4, shuffle, start=(1, 2)))
    expected, labels = expected_images(raw, "train", 1), [row["label"] for row in rows_of(raw, "train")]
    order = reader.order.rows(1, 0, len(expected))[2 * 4 :]
    came: list[tuple[bytes, int]] = []
    for step in range(reader.batches.steps):
        (images,), (numbers,) = reader.read(1, step, sequential=step > 0)
        assert images.shape[:2] == numbers.shape
        came += [(image.tobytes(), int(number)) for image, number in zip(*map(joined, (images, numbers)), strict=True)]
    assert came == [(expected[row], labels[row]) for row in order]


def joined(batches: NDArray[Any]) -> NDArray[Any]:
    return batches.reshape(-1, *batches.shape[2:])


def test_another_seed_changes_the_draws_after_the_cut_only(raw: Photos) -> None:
    came, default = (bytes_of(batches(load(raw.folder, "train", 4, seed=s, shuffle=False))) for s in (99, None))
    assert came == expected_images(raw, "train", 0, seed=99)
    assert default == expected_images(raw, "train", 0, seed=SEED) != came


def test_a_dataset_says_its_length_shapes_types_and_classes(raw: Photos) -> None:
    records = len(rows_of(raw, "train"))
    dataset = load(raw.folder, "train", 4)
    assert (dataset.class_names, dataset.num_classes) == (["cat", "dog", "été"], 3)
    assert int(dataset.cardinality()) == len(dataset) == -(-records // 4) == len(batches(dataset))
    for batch_size, drop, size in ((4, False, None), (4, True, 4), (records, False, records)):
        images, labels = load(raw.folder, "train", batch_size, drop_remainder=drop).element_spec
        assert images == tf.TensorSpec([size, 14, 14, 3], tf.uint8)
        assert labels == tf.TensorSpec([size], tf.int64)


# ------------------------------------------------------------------------------------------ epochs


def epochs_of(raw: Photos, came: list[list[Batch]]) -> list[int]:
    """Which epoch each list of batches is, whole; an error for one that is none."""
    known = {tuple(sorted(expected_images(raw, "train", epoch))): epoch for epoch in range(5)}
    return [known[tuple(sorted(bytes_of(one)))] for one in came]


def test_repeat_goes_on_with_the_next_epoch(raw: Photos) -> None:
    came = batches(load(raw.folder, "train", 100).repeat(3))
    assert epochs_of(raw, [[one] for one in came]) == [0, 1, 2]


def test_iterators_at_once_have_whole_epochs_of_their_own(raw: Photos) -> None:
    dataset = load(raw.folder, "train", 4)
    triples = list(zip(*[dataset.as_numpy_iterator() for _ in range(3)], strict=True))
    assert sorted(epochs_of(raw, [[triple[which] for triple in triples] for which in range(3)])) == [0, 1, 2]


def test_an_iterator_that_is_left_early_leaves_whole_epochs_to_the_others(raw: Photos) -> None:
    dataset = load(raw.folder, "train", 4)
    next(iter(dataset))
    assert epochs_of(raw, [batches(dataset), batches(dataset)]) == [1, 2]


def test_loads_do_not_share_their_epochs(raw: Photos) -> None:
    one, other = load(raw.folder, "train", 4), load(raw.folder, "train", 4)
    assert epochs_of(raw, [batches(one), batches(one), batches(other)]) == [0, 1, 0]


@given(batch_size=st.integers(1, 40), seed=st.integers(0, 2**64 - 1), drop=st.booleans())
@settings(max_examples=10, deadline=None)
def test_any_batch_size_gives_each_record_once(raw: Photos, batch_size: int, seed: int, drop: bool) -> None:
    records = len(rows_of(raw, "train"))
    size = min(batch_size, records) if drop else batch_size
    dataset = load(raw.folder, "train", size, seed=seed, drop_remainder=drop)
    came = batches(dataset)
    images = bytes_of(came)
    assert len(images) == len(set(images)) == (records // size * size if drop else records)
    assert set(images) <= set(expected_images(raw, "train", 0, seed))
    assert {len(labels) for _, labels in came[:-1]} <= {size}
    assert len(came) == int(dataset.cardinality())


def test_a_split_of_one_record_can_be_shuffled(tmp_path: Path, photo_folder: Path, photos: dict[str, bytes]) -> None:
    one = build(tmp_path / "one", photo_folder, photos, limit=1, val_fraction=0)
    dataset = load(one.folder, "train", 8)
    assert epochs_of(one, [batches(dataset), batches(dataset)]) == [0, 1]


def test_batches_that_are_kept_keep_their_pixels(raw: Photos) -> None:
    """TensorFlow takes over the arrays as they are: one that was used again would change under it."""
    kept = [images for images, _ in load(raw.folder, "train", 2, shuffle=False)]
    assert [image.tobytes() for images in kept for image in images.numpy()] == expected_images(raw, "train", 0)


def test_batches_begin_where_tensorflow_needs_them() -> None:
    for size in (1, 1000, 100_000):
        for dtype in (np.uint8, np.float32):
            array = ArrayPool().empty((size, 3), dtype)
            assert array.ctypes.data % 64 == 0
            assert array.shape == (size, 3)
            assert array.dtype == np.dtype(dtype)


def test_memory_is_used_again_when_nobody_holds_it_any_more() -> None:
    memory = ArrayPool()

    def array() -> NDArray[np.float32]:
        taken: NDArray[np.float32] = memory.empty((1000, 3), np.float32)
        return taken

    first = array()
    place = first.ctypes.data
    part = first[5:].reshape(-1)[::2]
    del first
    second = array()
    assert second.ctypes.data != place
    del part
    assert array().ctypes.data == place
    assert memory.empty((3, 1000), np.uint8).ctypes.data not in (place, second.ctypes.data)


def test_memory_that_a_tensor_holds_is_not_used_again() -> None:
    memory, places = ArrayPool(), []

    def fill(number: int) -> NDArray[np.int64]:
        array: NDArray[np.int64] = memory.empty((1000,), np.int64)
        places.append(array.ctypes.data)
        array[:] = number
        return array

    numbers = tf.data.Dataset.range(20).map(lambda number: tf.numpy_function(fill, [number], tf.int64))
    kept = list(numbers)
    assert [int(tensor[0]) for tensor in kept] == list(range(20))
    assert len(set(places)) == 20  # taken over as they are, not copied
    del kept
    for _ in range(3):
        for tensor in numbers:
            assert len(set(tensor.numpy())) == 1
    assert len(set(places)) < 40


def test_an_epoch_needs_the_memory_of_a_few_batches(raw: Photos) -> None:
    dataset, places = load(raw.folder, "train", 2), []
    for _ in range(5):
        places += [images.numpy().ctypes.data for images, _ in dataset]
    assert len(set(places)) < len(places) / 2


# ------------------------------------------------------------------------------------------ damaged caches


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path, photos: dict[str, bytes]) -> dict[str, Photos]:
    """Small caches of encoded images, by format; only to be copied."""
    root = tmp_path_factory.mktemp("few")
    options = {"encoding": "png", "limit": 6, "val_fraction": 0, "variants": 1}
    return {kind: build(root / kind, photo_folder, photos, format=kind, **options) for kind in ("arrow", "tfrecord")}


def test_a_shard_that_is_cut_or_missing_is_refused(few: dict[str, Photos], tmp_path: Path) -> None:
    folder = shutil.copytree(few["tfrecord"].folder, tmp_path / "cache")
    opened = open_cache(folder)
    path = folder / opened.split("train").files[0].name
    path.write_bytes(path.read_bytes()[:-1])
    for found in (folder, opened):
        with pytest.raises(CacheError, match="truncated or changed"):
            load(found, "train", 4)
    path.unlink()
    with pytest.raises(CacheError, match="cannot be read"):
        load(folder, "train", 4)


@pytest.mark.parametrize("kind", ["arrow", "tfrecord"])
def test_damaged_shards_are_refused_and_damaged_images_stop_the_stream(
    few: dict[str, Photos], tmp_path: Path, kind: str
) -> None:
    folder = shutil.copytree(few[kind].folder, tmp_path / "cache")
    paths = [folder / file.name for file in open_manifest(folder).splits["train"].files]
    for path in paths:
        path.write_bytes(path.read_bytes().replace(b"IDAT", b"IDXX"))
    with pytest.raises(tf.errors.OpError, match="DecodeError"):
        batches(load(folder, "train", 4))
    paths[0].write_bytes(bytes(paths[0].stat().st_size))
    with pytest.raises(CacheError, match="is damaged"):
        load(folder, "train", 4)


# ------------------------------------------------------------------------------------------ bad input


BAD: list[tuple[str, object, str]] = [
    *(("batch_size", value, "an integer of at least 1") for value in (0, -1, True, "8", 2.0, None)),
    *(("epochs", value, "an integer of at least 1") for value in (0, True, 2.0)),
    *(("seed", value, "an integer from 0 to") for value in (-1, 2**64, True, 1.0)),
    *(("dtype", value, "one of uint8, float16, bfloat16, float32") for value in ("int8", "float64", None)),
    *(("shuffle", value, 'True, False or "blocks"') for value in ("all", 1.5, 2)),
    *(
        ("hosts", value, "an InputContext or (index, count) with 0 <= index < count")
        for value in ((2, 2), (-1, 2), (0, 0), 2, (0,), ("0", "2"), (0.0, 2))
    ),
    ("split", "dev", "one of train, val, test"),
]


@pytest.mark.parametrize(("name", "value", "expected"), BAD)
def test_bad_arguments_are_refused(name: str, value: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{name} must be {expected}")) as caught:
        LoadConfig(**{"split": "train", "batch_size": 8, name: value})
    assert str(caught.value).endswith(f"got {value!r}")


def test_arguments_may_be_numbers_of_numpy() -> None:
    one, two = np.int64(1), np.uint32(2)
    given: dict[str, Any] = {"batch_size": two, "seed": one, "epochs": two, "hosts": (one, two), "start": (one, one)}
    plain: dict[str, Any] = {"batch_size": 2, "seed": 1, "epochs": 2, "hosts": (1, 2), "start": (1, 1)}
    assert repr(LoadConfig("train", **given)) == repr(LoadConfig("train", **plain))


def test_load_checks_its_arguments_and_has_the_defaults_of_its_config(raw: Photos) -> None:
    bad: list[dict[str, Any]] = [{"batch_size": 0}, {"verify": "never"}, {"verify": True}, {"stage_limit_bytes": 0}]
    for options in bad:
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be "):
            load(**{"cache": raw.folder, "split": "train", "batch_size": 8, **options})
    parameters = inspect.signature(load).parameters
    fields = {field.name: field.default for field in dataclasses.fields(LoadConfig) if field.name != "budget"}
    del fields["hosts"]  # None for `load`, which takes an InputContext too
    for name, default in fields.items():
        assert parameters[name].default in (default, inspect.Parameter.empty)


@pytest.mark.parametrize("epochs", [None, 2])
def test_batches_on_a_device_are_the_same(raw: Photos, epochs: int | None) -> None:
    plain = load(raw.folder, "train", 8, epochs=epochs)
    moved = to_device(load(raw.folder, "train", 8, epochs=epochs), "/CPU:0")
    for _ in range(2):
        assert bytes_of(batches(moved)) == bytes_of(batches(plain))
    assert (moved.element_spec, moved.class_names) == (plain.element_spec, plain.class_names)


@pytest.mark.parametrize("device", ["/GPU:9", "/CPU:0", "gpu", 3, ""])
def test_a_device_that_is_no_accelerator_is_refused(raw: Photos, device: Any) -> None:
    expected = r"prefetch_to_device must name an accelerator that TensorFlow sees \(.*\), got " + re.escape(
        repr(device)
    )
    with pytest.raises(ValueError, match=expected):
        load(raw.folder, "train", 8, prefetch_to_device=device)


def test_texts_stay_on_the_cpu() -> None:
    with pytest.raises(ValueError, match="cannot copy texts, which stay on the CPU: leave them out with targets"):
        to_device(tf.data.Dataset.from_tensors((1, "text")), "/CPU:0")


def test_an_opened_cache_is_not_read_again(raw: Photos, tmp_path: Path) -> None:
    opened = open_cache(shutil.copytree(raw.folder, tmp_path / "cache"))
    (opened.folder / "manifest.json").unlink()
    for split in ("train", "val"):
        assert bytes_of(batches(load(opened, split, 8, shuffle=False))) == expected_images(raw, split, 0)
    next(opened.folder.glob("train-*")).unlink()
    with pytest.raises(CacheError, match="No such file"):
        load(opened, "train", 8)


def test_a_batch_larger_than_the_split_is_one_batch_or_refused(raw: Photos) -> None:
    assert len(batches(load(raw.folder, "train", 1000))) == 1
    with pytest.raises(ValueError, match="batch_size 1000 with drop_remainder leaves nothing of the"):
        load(raw.folder, "train", 1000, drop_remainder=True)


def test_images_of_varying_size_are_refused(tmp_path: Path, photo_folder: Path, photos: dict[str, bytes]) -> None:
    cache = build(tmp_path / "cache", photo_folder, photos, chain="decode", encoding="png", limit=6)
    with pytest.raises(CacheError, match="vary in size: batches need one size"):
        load(cache.folder, "train", 8)
