"""`views=`: several images of each record, each the one of the usual stream at its draw."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from caches import build
from numpy.typing import NDArray

import joulecache as jc
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.loading.config import Budget, LoadConfig
from joulecache.pipelines.loading.numpy_batches import NumPyBatches
from joulecache.pipelines.loading.reader import open_reader

BATCH, EPOCHS = 4, 2
KINDS: dict[str, dict[str, Any]] = {
    "raw": {"chain": "decode|resize(14)|random_crop(12) || random_crop(9)|flip_lr", "variants": 3},
    "png": {"chain": "decode|resize(12) || random_crop(9)|to_float", "encoding": "png"},
    "no suffix": {"chain": "decode|resize(14)|random_crop(9)", "variants": 4},
    "png without suffix": {"chain": "decode|resize(14)|random_crop(9)", "variants": 2, "encoding": "png"},
}


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("views")
    for kind, options in KINDS.items():
        build(photo_folder, root / kind, **{"val_fraction": 0.2, "shards": 2, "seed": 5, **options})
    return {kind: root / kind for kind in KINDS}


def flat(batch: Any) -> list[tuple[str, tuple[int, ...], bytes]]:
    arrays = map(np.asarray, tf.nest.flatten(batch))
    return [(array.dtype.str, array.shape, array.tobytes()) for array in arrays]


def in_order(folder: Path, draw: int, **options: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return all images and labels of an epoch, in the order of the cache."""
    [batch] = jc.batches(folder, "train", 1000, shuffle=False, start=(draw, 0), epochs=draw + 1, **options)
    images, labels = batch
    return images, labels


OPTIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "in order": {"shuffle": False},
    "blocks": {"shuffle": "blocks", "budget": Budget(1 << 12, 1 << 12, block_bytes=1500, window_bytes=5000)},
    "where": {"where": "not key.endswith('3.png')"},
}


def opened(folder: Path, views: int, **options: Any) -> NumPyBatches:
    config = LoadConfig("train", BATCH, views=views, **{"epochs": EPOCHS, **options})
    return NumPyBatches(lambda: open_reader(jc.open_cache(folder), config), config)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_views_are_the_usual_images_of_their_draws(caches: Mapping[str, Path], kind: str, options: str) -> None:
    views, given = (3 if kind == "raw" else 2), OPTIONS[options]
    pairs = [*opened(caches[kind], views, **given)]
    alone = [*opened(caches[kind], 1, **given)]
    whole = [in_order(caches[kind], draw) for draw in range(EPOCHS * views)]
    row_of = {image.tobytes(): row for epoch in range(EPOCHS) for row, image in enumerate(whole[epoch][0])}
    count = len(alone) // EPOCHS
    for number, ((images, labels), (usual, expected)) in enumerate(zip(pairs, alone, strict=True)):
        assert isinstance(images, tuple)
        assert labels.tolist() == expected.tolist()
        rows = [row_of[image.tobytes()] for image in usual]  # views=1 has the same records in the same order
        for view, found in enumerate(images):
            drawn, _ = whole[number // count * views + view]
            assert (found.dtype, found.tobytes()) == (drawn.dtype, drawn[rows].tobytes())
    first, second, *_ = (np.concatenate(each) for each in zip(*(images for images, _ in pairs), strict=True))
    assert (first != second).any(axis=(1, 2, 3)).mean() > 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_load_yields_the_views_of_batches_and_both_resume(
    caches: Mapping[str, Path], kind: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"views": 2, "epochs": EPOCHS, "hosts": (1, 2)}
    running = jc.batches(caches[kind], "train", BATCH, **options)
    iterator = iter(running)
    expected = [flat(next(iterator)) for _ in range(4)]
    state = json.dumps(running.state())
    expected += [flat(batch) for batch in iterator]
    again = jc.batches(caches[kind], "train", BATCH, **options)
    again.restore(json.loads(state))
    assert [flat(batch) for batch in again] == expected[4:]
    with pytest.raises(CacheError, match="this state was saved over other images"):
        jc.batches(caches[kind], "train", BATCH, **{**options, "views": 1}).restore(json.loads(state))

    dataset = jc.load(caches[kind], "train", BATCH, **options)
    (first, second), _ = dataset.element_spec
    assert first == second
    assert [flat(batch) for batch in dataset.as_numpy_iterator()] == expected
    loaded = iter(dataset)
    for _ in range(4):
        next(loaded)
    path = tf.train.Checkpoint(iterator=loaded).save(str(tmp_path / "saved"))
    loaded = iter(jc.load(caches[kind], "train", BATCH, **options))
    tf.train.Checkpoint(iterator=loaded).restore(path)
    assert [flat(tf.nest.map_structure(lambda each: each.numpy(), batch)) for batch in loaded] == expected[4:]


def test_each_iteration_of_load_is_the_next_epoch(caches: Mapping[str, Path]) -> None:
    options: dict[str, Any] = {"views": 2, "targets": ()}
    dataset = jc.load(caches["raw"], "train", BATCH, start=(1, 2), **options)
    found = jc.batches(caches["raw"], "train", BATCH, start=(1, 2), **options)
    for _ in range(3):
        assert [flat(batch) for batch in dataset.as_numpy_iterator()] == [flat(batch) for batch in found]
    images = next(iter(jc.load(caches["raw"], "train", BATCH, dtype="float32", **options)))
    assert [image.dtype for image in images] == [tf.float32, tf.float32]


@pytest.mark.parametrize("kind", KINDS)
def test_records_have_views(caches: Mapping[str, Path], kind: str) -> None:
    records = jc.open_cache(caches[kind]).records("train", epoch=3, views=2)
    expected = [in_order(caches[kind], draw) for draw in (6, 7)]
    for row in (0, 5, -1):
        views, label = records[row]
        assert flat((views, label)) == flat((tuple(images[row] for images, _ in expected), expected[0][1][row]))


def test_balanced_records_and_mixes_have_views(caches: Mapping[str, Path]) -> None:
    cache = jc.open_cache(caches["raw"])
    options: dict[str, Any] = {"balance": "label", "targets": (), "epochs": 2}
    online = [in_order(cache.folder, draw)[0] for draw in range(40)]
    row_of = {image.tobytes(): row for images in online for row, image in enumerate(images)}
    seen: Counter[int] = Counter()
    usual = [image for batch in jc.batches(cache, "train", BATCH, **options) for image in batch]
    pairs = [
        pair for batch in jc.batches(cache, "train", BATCH, views=2, **options) for pair in zip(*batch, strict=True)
    ]
    for image, pair in zip(usual, pairs, strict=True):
        row = row_of[image.tobytes()]
        assert [each.tobytes() for each in pair] == [online[2 * seen[row] + view][row].tobytes() for view in (0, 1)]
        seen[row] += 1
    mixed = jc.batches(jc.mix({caches["raw"]: 1, cache: 1}), "train", BATCH, views=2, **options)
    found = [pair for batch in mixed for pair in zip(*batch, strict=True)]
    assert list(map(flat, found[::2])) == list(map(flat, found[1::2])) == list(map(flat, pairs))


def test_what_has_no_views_is_refused(caches: Mapping[str, Path]) -> None:
    bad: list[tuple[str, dict[str, Any], str]] = [
        ("raw", {"views": 0}, "views must be an integer of at least 1, got 0"),
        ("raw", {"views": True}, "views must be an integer of at least 1, got True"),
        ("raw", {"views": 2, "follow": True}, "views must be 1 with follow, which reads one draw in each epoch, got 2"),
        ("no suffix", {"views": 5}, "no op after the cut is random, and the cache has 4 variants, got views=5"),
        (
            "raw",
            {"views": 2, "split": "val"},
            "no op after the cut is random, and the cache has 1 variant, got views=2",
        ),
    ]
    for kind, options, expected in bad:
        for make in (jc.batches, jc.load):
            with pytest.raises(ValueError, match=re.escape(expected)):
                make(**{"cache": caches[kind], "split": "train", "batch_size": BATCH, **options})
