"""Mixed caches: exact shares, each cache in its own order, and the same stream however it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from caches import OPTIONS, build
from hypothesis import given, settings
from hypothesis import strategies as st

from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.loading.loader import load
from joulecache.pipelines.loading.mixing import Mix, mix, whole_shares
from joulecache.pipelines.loading.numpy_batches import batches

RECORDS, EPOCHS, BATCH = 37, 3, 4
Item = tuple[bytes, int]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> Path:
    """A cache of the same photos with one variant, encoded, and with other draws."""
    folder = tmp_path_factory.mktemp("other") / "cache"
    build(photo_folder, folder, **{**OPTIONS, "variants": 1, "seed": 8, "val_fraction": 0.6}, encoding="png")
    return folder


@pytest.fixture(scope="module")
def mixed(photo_cache: Path, other: Path) -> Mix:
    return mix({photo_cache: 0.7, other: 0.3}, records=RECORDS)


def items(loaded: Any) -> list[Item]:
    """Return the images and labels of batches, one by one."""
    return [
        (image.tobytes(), int(label)) for images, labels in loaded for image, label in zip(images, labels, strict=True)
    ]


def one_by_one(cache: Path) -> Iterator[Item]:
    loaded = batches(cache, "train", 1)
    while True:
        yield from items(loaded)


@pytest.fixture(scope="module")
def expected(photo_cache: Path, other: Path) -> list[Item]:
    """The mixed stream: the next image is that of the cache whose next one is due first."""
    streams, shares, taken = [one_by_one(photo_cache), one_by_one(other)], [7, 3], [0, 0]
    stream = []
    for _ in range(RECORDS * EPOCHS):
        number = min((0, 1), key=lambda each: Fraction(2 * taken[each] + 1, shares[each]))
        stream.append(next(streams[number]))
        taken[number] += 1
    return stream


def test_the_stream_has_exact_shares_of_each_cache_in_its_order(mixed: Mix, expected: list[Item]) -> None:
    arrays = batches(mixed, "train", BATCH, epochs=EPOCHS)
    assert items(arrays) == expected
    assert len(arrays) == EPOCHS * -(-RECORDS // BATCH)
    tensors = load(mixed, "train", BATCH)
    assert len(tensors) == -(-RECORDS // BATCH)
    assert tensors.element_spec[0].shape.as_list() == [None, 32, 32, 3]
    assert [item for _ in range(EPOCHS) for item in items(tensors.as_numpy_iterator())] == expected


def test_it_resumes_anywhere(tmp_path: Path, mixed: Mix, expected: list[Item], photo_cache: Path, other: Path) -> None:
    loaded = batches(mixed, "train", BATCH, epochs=EPOCHS)
    reading = iter(loaded)
    for _ in range(13):
        next(reading)
    resumed = batches(mixed, "train", BATCH, epochs=EPOCHS)
    resumed.restore(loaded.state())
    read = RECORDS + 3 * BATCH
    assert items(resumed) == items(reading) == expected[read:]
    assert items(load(mixed, "train", BATCH, epochs=EPOCHS, start=(1, 3)).as_numpy_iterator()) == expected[read:]
    iterator = iter(load(mixed, "train", BATCH, epochs=EPOCHS))
    for _ in range(13):
        next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "saved"))
    again = iter(load(mixed, "train", BATCH, epochs=EPOCHS))
    tf.train.Checkpoint(iterator=again).read(path)
    assert items((images.numpy(), labels.numpy()) for images, labels in again) == expected[read:]
    for others in ({photo_cache: 2, other: 1}, {other: 0.3, photo_cache: 0.7}):
        with pytest.raises(CacheError, match="other arguments"):
            batches(mix(others, records=RECORDS), "train", BATCH).restore(loaded.state())


def test_hosts_divide_it(mixed: Mix, expected: list[Item]) -> None:
    parts = [items(batches(mixed, "train", BATCH, hosts=(host, 2), epochs=2)) for host in range(2)]
    middle = RECORDS // 2
    ends = [(0, middle), (middle, RECORDS)]
    for part, (start, stop) in zip(parts, ends, strict=True):
        assert part == expected[start:stop] + expected[RECORDS + start : RECORDS + stop]


def test_an_epoch_has_the_records_of_all_caches_by_default(photo_cache: Path, other: Path) -> None:
    count = sum(len(items(batches(cache, "train", 8))) for cache in (photo_cache, other))
    assert len(items(batches(mix({photo_cache: 1, other: 2}), "train", 8))) == count


# Shares


@pytest.mark.parametrize(
    ("shares", "whole"),
    [
        ([0.7, 0.3], (7, 3)),
        ([7, 3.0], (7, 3)),
        ([1, 2, 3], (1, 2, 3)),
        ([0.1, 0.2], (1, 2)),
        ([5], (1,)),
        ([1 / 3, 2 / 3], (1, 2)),
        ([1, 3.14159265], (241_453, 758_547)),
        ([1e-6, 1], (1, 999_999)),
    ],
)
def test_shares_are_exact(shares: list[float], whole: tuple[int, ...]) -> None:
    assert whole_shares(shares) == whole


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=5))
def test_a_period_has_its_shares_and_spreads_them(shares: Sequence[int]) -> None:
    from joulecache.pipelines.loading.mixing import spread

    counts = whole_shares(shares)
    pattern = spread(counts)
    period, number = sum(counts), len(counts)
    for source, count in enumerate(counts):
        mine = pattern.source == source
        assert pattern.rank[mine].tolist() == list(range(count))
        ahead = np.cumsum(mine) - count / period * np.arange(1, period + 1)
        assert abs(ahead).max() <= 0.5 + number / 2 * count / period + 1e-9


# Refusals


@pytest.mark.parametrize("shares", [{}, {"a": 0}, {"a": -1}, {"a": float("nan")}, {"a": "1"}, ["a"]])
def test_shares_are_positive_numbers(shares: Any) -> None:
    with pytest.raises(ValueError, match="share"):
        mix(shares)


def test_what_cannot_be_mixed_is_refused(
    tmp_path: Path, photo_folder: Path, photo_cache: Path, other: Path, make_folder: Callable[..., Path], photo: bytes
) -> None:
    def refused(second: Path, message: str, **options: Any) -> None:
        with pytest.raises(ValueError, match=message):
            batches(mix({photo_cache: 1, second: 1e-9 if "millionth" in message else 1}), "train", 4, **options)

    build(photo_folder, tmp_path / "small", "decode|resize(20)")
    refused(
        tmp_path / "small",
        r"the images of .*small are \('uint8', 20, 20, 3\), but those of .* are \('uint8', 32, 32, 3\)",
    )
    named = make_folder({f"{kind}/{number}.jpg": photo for kind in ("ape", "bee") for number in range(5)})
    build(named, tmp_path / "named", "decode|resize(32)")
    refused(tmp_path / "named", "the targets of .*named are .*ape.*, but those of .* are .*cat")
    build(photo_folder, tmp_path / "mixup", "decode|resize(32) || mixup")
    refused(tmp_path / "mixup", "mixes images of one cache")
    refused(other, "at least a millionth of all, got 1e-09")
    refused(other, "follow is not for a mix", follow=True)
    refused(other, 'shuffle="blocks" is not for a mix', shuffle="blocks")
