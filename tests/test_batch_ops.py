"""What runs on whole batches, after the cut: floats, and mixtures of images and of their labels."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray

from joulecache.transforms import Chain, Cutmix, Mixup, Normalize, Op, ToFloat, parse
from joulecache.transforms.chain import apply_batch_ops
from joulecache.transforms.ops import OPS, BatchOp, op_name
from joulecache.transforms.ops.batch import mix_labels
from joulecache.transforms.randomness import random_words

Array = NDArray[np.uint8]
Floats = NDArray[np.float32]

GOLDEN = Path(__file__).parent / "golden"
BATCHES: dict[str, str] = json.loads((GOLDEN / "batches.json").read_text("utf-8"))
LARGEST = 2**32 - 1
UNIT = 65536

relaxed = settings(deadline=None, max_examples=60)
words = st.integers(0, LARGEST)
batches: st.SearchStrategy[Array] = st_numpy.arrays(
    np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))
)


def noise(*shape: int) -> Array:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def floats(images: Array) -> Floats:
    return images.astype(np.float32) / np.float32(255)


# Golden


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_is_the_golden_one(name: str) -> None:
    """Where this fails, an epoch is no longer what it was: see that it is meant, then run scripts/make_golden.py."""
    chain = parse(BATCHES[name])
    single = Chain(chain.prefix, chain.cut)
    images: Any = np.stack([single(GOLDEN / "photo.jpg", key="golden.jpg", seed=7, n=variant) for variant in range(3)])
    ops = chain.on_batches
    [drawn] = random_words(ops, len(chain.ops) - len(ops), 7, [0], 3)
    labels = mix_labels(ops, np.arange(3), 3, drawn, images.shape[1:3])
    with np.load(GOLDEN / f"{name}.npz") as golden:
        for got, expected in ((apply_batch_ops(ops, images, drawn), golden["images"]), (labels, golden["labels"])):
            assert got.dtype == expected.dtype
            np.testing.assert_array_equal(got, expected)


def test_every_op_on_batches_has_a_golden_one() -> None:
    named = {op_name(type(op)) for text in BATCHES.values() for op in parse(text).on_batches}
    assert named == {name for name, kind in OPS.items() if issubclass(kind, BatchOp)}


# Floats


def test_floats_are_levels_times_the_float32_nearest_to_a_255th() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(2, 8, 16, 1)
    got = apply_batch_ops([ToFloat()], levels, [])
    assert got.dtype == np.float32
    expected = [np.float32(level) * np.float32(1 / 255) for level in range(256)]
    np.testing.assert_array_equal(got.ravel(), expected)
    assert (got.min(), got.max()) == (0, 1)
    np.testing.assert_allclose(got.ravel(), np.arange(256) / 255, rtol=1.2e-7)


@relaxed
@given(
    images=batches,
    mean=st.tuples(*[st.floats(-1, 1, width=32)] * 3),
    std=st.tuples(*[st.floats(0.015625, 2, width=32)] * 3),
    data=st.data(),
)
def test_normalize_subtracts_then_divides_in_float32(
    images: Array, mean: tuple[float, float, float], std: tuple[float, float, float], data: st.DataObject
) -> None:
    channels = images.shape[3]
    per_channel = channels == 3 and data.draw(st.booleans())
    op = Normalize(mean, std) if per_channel else Normalize(mean[0], std[1])
    got = apply_batch_ops([ToFloat(), op], images, [])
    assert got.dtype == np.float32
    for place in np.ndindex(*images.shape):
        channel = place[3]
        subtracted, divisor = (mean[channel], std[channel]) if per_channel else (mean[0], std[1])
        level = np.float32(images[place]) * np.float32(1 / 255)
        assert got[place] == (level - np.float32(subtracted)) / np.float32(divisor)


@pytest.mark.parametrize("op", [ToFloat(), Normalize(0.5, 0.25), Normalize((0.1, 0.2, 0.3), (1, 2, 3))], ids=repr)
def test_one_image_gets_the_floats_that_it_gets_in_a_batch(op: Op) -> None:
    images = noise(3, 5, 7, 3)
    ops = [op] if op == ToFloat() else [ToFloat(), op]
    together = apply_batch_ops(ops, images, [])
    for image, expected in zip(images, together, strict=True):
        np.testing.assert_array_equal(apply_batch_ops(ops, image, []), expected)
        chain = Chain((*parse("decode").ops, *ops), 1)
        np.testing.assert_array_equal(chain(image), expected)


# Mixtures of images


def shifted(images: NDArray[Any]) -> NDArray[Any]:
    """Return for each image the one before it, for the first the last."""
    return np.stack([images[(place or len(images)) - 1] for place in range(len(images))])


@relaxed
@given(images=batches, word=words)
def test_mixup_blends_levels_with_those_of_the_image_before_rounded_down(images: Array, word: int) -> None:
    share = Fraction(word + 2**15 >> 16, UNIT)
    got = apply_batch_ops([Mixup()], images, [word])
    assert got.dtype == np.uint8
    expected = [
        math.floor(share * own + (1 - share) * other)
        for own, other in zip(images.ravel().tolist(), shifted(images).ravel().tolist(), strict=True)
    ]
    assert got.ravel().tolist() == expected


@relaxed
@given(images=batches, word=words)
def test_mixup_blends_floats_with_those_of_the_image_before(images: Array, word: int) -> None:
    share = (word + 2**15 >> 16) / UNIT
    levels = floats(images)
    got = apply_batch_ops([Mixup()], levels, [word])
    assert got.dtype == np.float32
    expected = share * levels.astype(float) + (1 - share) * shifted(levels).astype(float)
    np.testing.assert_allclose(got, expected, atol=2e-7)


def test_mixup_of_the_largest_levels_does_not_overflow() -> None:
    white = np.full((2, 4, 4, 3), 255, np.uint8)
    for word in (0, 2**31, LARGEST - 2**15, LARGEST):
        np.testing.assert_array_equal(apply_batch_ops([Mixup()], white, [word]), white)


def test_all_or_nothing_of_an_image_is_its_own() -> None:
    images = noise(3, 4, 5, 3)
    np.testing.assert_array_equal(apply_batch_ops([Mixup()], images, [LARGEST]), images)
    np.testing.assert_array_equal(apply_batch_ops([Mixup()], images, [0]), shifted(images))


@relaxed
@given(images=batches, drawn=st.tuples(words, words, words), as_floats=st.booleans())
def test_cutmix_puts_in_a_window_of_the_image_before(
    images: Array, drawn: tuple[int, int, int], as_floats: bool
) -> None:
    _, height, width, _ = images.shape
    own = (drawn[0] + 2**15 >> 16) / UNIT
    down, across = (int(0.5 * math.sqrt(1 - own) * side) for side in (height, width))
    y, x = drawn[1] * height >> 32, drawn[2] * width >> 32
    batch: NDArray[Any] = floats(images) if as_floats else images
    expected = batch.copy()
    for row in range(max(0, y - down), min(height, y + down)):
        for column in range(max(0, x - across), min(width, x + across)):
            expected[:, row, column] = shifted(batch)[:, row, column]
    got = apply_batch_ops([Cutmix()], batch.copy(), drawn)
    assert got.dtype == batch.dtype
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("op", [Mixup(0.4), Cutmix(0.4)], ids=repr)
@pytest.mark.parametrize("as_floats", [False, True])
def test_a_batch_of_one_is_mixed_with_itself(op: Op, as_floats: bool) -> None:
    images: NDArray[Any] = floats(noise(1, 6, 7, 3)) if as_floats else noise(1, 6, 7, 3)
    for number in range(20):
        [drawn] = random_words([op], 1, 0, [number], 0)
        np.testing.assert_allclose(apply_batch_ops([op], images.copy(), drawn), images, rtol=2e-7)
        np.testing.assert_array_equal(mix_labels([op], np.array([2]), 4, drawn, (6, 7)), [[0, 0, 1, 0]])


# Mixtures of labels


@relaxed
@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=6), word=words)
def test_mixup_mixes_labels_by_the_share_of_its_images(labels: list[int], word: int) -> None:
    share = (word + 2**15 >> 16) / UNIT
    got = mix_labels([Mixup()], np.array(labels), 5, [word], (4, 4))
    assert got.dtype == np.float32
    assert got.shape == (len(labels), 5)
    for place, label in enumerate(labels):
        expected = [0.0] * 5
        expected[label] += share
        expected[labels[place - 1]] += 1 - share
        assert got[place].tolist() == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose(got.sum(axis=1), 1, atol=1e-6)


@relaxed
@given(size=st.tuples(st.integers(1, 20), st.integers(1, 20)), drawn=st.tuples(words, words, words))
def test_cutmix_mixes_labels_by_the_pixels_that_are_left(size: tuple[int, int], drawn: tuple[int, int, int]) -> None:
    # White puts its window into black: the label says how white the black one has become.
    images = np.zeros((2, *size, 1), np.uint8)
    images[0] = 255
    mixed = apply_batch_ops([Cutmix()], images, drawn)
    got = mix_labels([Cutmix()], np.array([0, 1]), 2, drawn, size)
    white = (mixed[1] == 255).mean()
    np.testing.assert_allclose(got, [[1 - white, white], [white, 1 - white]], atol=1e-6)


@relaxed
@given(
    ops=st.lists(st.sampled_from([Mixup(0.2), Mixup(1.0)]), max_size=3).flatmap(
        lambda mixups: st.permutations([*mixups, Cutmix(0.8), ToFloat()])
    ),
    seed=st.integers(0, 2**32),
)
def test_labels_follow_their_images_through_several_mixtures(ops: list[Op], seed: int) -> None:
    # Image c is 255 in channel c alone, so that the mean of a channel is the share of that label. One window only: where two of
    # them meet, the labels are those that would follow if they did not, as in torchvision.
    images = np.zeros((3, 8, 8, 3), np.uint8)
    for place in range(3):
        images[place, :, :, place] = 255
    [drawn] = random_words(ops, 1, seed, [0], 0)
    labels = mix_labels(ops, np.arange(3), 3, drawn, (8, 8))
    mixed = apply_batch_ops(ops, images, drawn)
    np.testing.assert_allclose(mixed.mean(axis=(1, 2)), labels, atol=3.01 / 255)  # up to 3 blends are rounded down
    np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-6)


def test_labels_without_a_mixture_are_one_hot() -> None:
    got = mix_labels([ToFloat()], np.array([2, 0]), 3, [], (4, 4))
    assert got.dtype == np.float32
    assert got.tolist() == [[0, 0, 1], [1, 0, 0]]


# Memory


def test_labels_are_left_as_they_were() -> None:
    ops = parse("decode || mixup|cutmix").on_batches
    labels = np.array([0, 1, 2, 1])
    labels.flags.writeable = False
    [drawn] = random_words(ops, 1, 0, [0], 0)
    mix_labels(ops, labels, 3, drawn, (8, 8))
    np.testing.assert_array_equal(labels, [0, 1, 2, 1])


@pytest.mark.parametrize("text", ["to_float", "mixup", "to_float|normalize(0.5, 0.25)", "to_float|cutmix|mixup"])
def test_a_batch_is_left_as_it_was_where_the_first_op_makes_a_new_one(text: str) -> None:
    ops = parse(f"decode || {text}").on_batches
    images = noise(4, 8, 8, 3)
    before = images.copy()
    images.flags.writeable = False
    got = apply_batch_ops(ops, images, random_words(ops, 1, 0, [0], 0)[0])
    assert not np.shares_memory(got, images)
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("text", ["to_float", "mixup|cutmix", "to_float|cutmix|mixup|normalize(0.5, 0.25)"])
def test_a_new_batch_lies_where_its_caller_wants_it(text: str) -> None:
    ops = parse(f"decode || {text}").on_batches
    made: list[NDArray[Any]] = []

    def empty(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        made.append(np.full(shape, 99, dtype))
        return made[-1]

    images = noise(4, 8, 8, 3)
    [drawn] = random_words(ops, 1, 0, [0], 0)
    expected = apply_batch_ops(ops, images.copy(), drawn)
    got = apply_batch_ops(ops, images, drawn, empty)
    assert got is made[-1]
    np.testing.assert_array_equal(got, expected)


def test_without_ops_a_batch_is_itself() -> None:
    images = noise(2, 3, 4, 3)
    assert apply_batch_ops([], images, []) is images
