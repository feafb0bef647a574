"""One meaning in every place: cached and loaded pixels are those of the whole chain run online, byte for byte."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import keras
import numpy as np
import pytest
import tensorflow as tf
from caches import keys_of
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from sources import classes

from joulecache.pipelines.building.config import ShardConfig
from joulecache.pipelines.building.precomputing import precompute
from joulecache.pipelines.building.shard import build_shard
from joulecache.pipelines.building.specs import ShardSpec
from joulecache.pipelines.building.work_folder import WORK
from joulecache.pipelines.cache.cache import open_cache, verify
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.manifest_io import open_manifest
from joulecache.pipelines.cache.shards import read_encoded
from joulecache.pipelines.loading.loader import load
from joulecache.pipelines.loading.split import CachedSplit
from joulecache.pipelines.source import open_source
from joulecache.transforms import Chain, Op, parse
from joulecache.transforms.chain import apply, apply_to_each, fixed_size
from joulecache.transforms.images import as_array
from joulecache.transforms.ops import OPS, BatchOp, op_name
from joulecache.transforms.randomness import key_hash, random_words, word_table

SEED = 11

GEOMETRY = (
    "decode|resize_shorter(44)|pad((1, 2, 3, 4), (9, 80, 200), 'reflect')|random_crop((40, 38))|flip_lr|flip_ud"
    "|rotate(20, 'bilinear', 7)|affine(10, (0.1, 0.2), (0.8, 1.2), 5)|cutout((9, 12), 3)"
)
COLOUR = (
    "decode(shorter=20)|resize(40)|central_crop(38)|random_resized_crop(32)|brightness(0.4)|contrast(0.4)|saturation(0.4)"
    "|hue(0.2)|color_jitter(0.4, 0.4, 0.4, 0.1)|grayscale(3)"
)
LEVELS = (
    "decode|resize(34)|gaussian_blur(5)|gaussian_noise|autocontrast|equalize|posterize(5)|solarize(100)|sharpness(2)"
    "|rand_augment(2, 9)|trivial_augment"
)
CHAINS = {"geometry": GEOMETRY, "colour": COLOUR, "levels": LEVELS}


def cuts(text: str) -> Iterator[Chain]:
    """Yield a chain cut after decode, after some of its ops, and at its end."""
    ops = parse(text).ops
    for cut in (1, len(ops) // 2, len(ops) - 1, len(ops)):
        yield Chain(ops, cut)


def test_the_chains_here_have_every_op_on_single_images() -> None:
    ops = {type(op) for text in CHAINS.values() for op in parse(text).ops}
    assert ops == {kind for kind in OPS.values() if not issubclass(kind, BatchOp)}


# The cut


@pytest.mark.parametrize("name", CHAINS)
def test_a_cache_cut_anywhere_gives_the_pixels_of_the_whole_chain(
    tmp_path: Path, photo_folder: Path, photos: dict[str, bytes], name: str
) -> None:
    expected = [
        {key: parse(CHAINS[name])(data, key=key, seed=SEED, n=n) for key, data in photos.items()} for n in range(2)
    ]
    for chain in cuts(CHAINS[name]):
        if fixed_size(chain.prefix) is None:
            continue  # refused, by name: raw needs one size
        cache = tmp_path / f"{chain.cut}"
        precompute(photo_folder, cache, chain, variants=2, val_fraction=0, seed=SEED, shards=2)
        dataset = load(cache, "train", 7, shuffle=False)
        for epoch in range(2):
            images = [image for images, _ in dataset.as_numpy_iterator() for image in images]
            for key, image in zip(keys_of(cache, "train"), images, strict=True):
                np.testing.assert_array_equal(image, expected[epoch][key], err_msg=f"{key}, {chain}")


names = st.sampled_from(
    [
        "pad(3, 200, 'symmetric')",
        "pad((0, 1, 2, 3))",
        "random_crop(24)",
        "central_crop(24)",
        "random_resized_crop(26)",
        "resize((25, 27))",
        "resize_shorter(28)",
        "flip_lr",
        "flip_ud(0.7)",
        "rotate((-90, 45), fill=20)",
        "affine(30, shear=(-5, 5, -3, 3), interpolation='bilinear')",
        "cutout(11)",
        "brightness(0.9)",
        "contrast(0.9)",
        "saturation(1)",
        "hue(0.5)",
        "color_jitter(0.5, (0.5, 1.5), 0.9, 0.3)",
        "grayscale(1)",
        "grayscale(3)",
        "gaussian_blur((3, 5), 1.5)",
        "gaussian_noise(0.1, 0.3)",
        "autocontrast",
        "equalize",
        "posterize(3)",
        "solarize(99.5)",
        "sharpness(0)",
        "rand_augment(3, 30)",
        "trivial_augment",
    ]
)


@settings(deadline=None, max_examples=60)
@given(
    steps=st.lists(names, min_size=1, max_size=7),
    cut=st.integers(1, 8),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**64 - 1),
    n=st.integers(0, 2**32 - 1),
)
def test_a_shard_of_any_chain_cut_anywhere_gives_the_pixels_of_the_whole_chain(
    photo_folder: Path, photos: dict[str, bytes], steps: list[str], cut: int, channels: int, seed: int, n: int
) -> None:
    chain = parse("|".join([f"decode({channels})", "resize((33, 35))", *steps]))
    chain = replace(chain, cut=min(cut, len(chain.ops)))
    keys = list(photos)[:2]
    whole = [chain(photos[key], key=key, seed=seed, n=n, variants=2) for key in keys]
    config = ShardConfig(chain, chain, 2, encoding="png", val_fraction=0, seed=seed)
    units = tuple(unit for unit in open_source(photo_folder).units if unit.name in keys)
    with TemporaryDirectory() as folder:
        Path(folder, WORK).mkdir()
        file = build_shard(ShardSpec(folder, 0, 1, units, classes(3), config)).files["train"][n % 2]
        cached = [as_array(Image.open(io.BytesIO(bytes(one)))) for one in read_encoded(Path(folder, file.name), file)]
    hashes = [key_hash(key) for key in keys]
    if len({image.shape for image in cached}) == 1:
        loaded = apply_to_each(chain.on_images, cached, word_table(chain.on_images, chain.cut, seed, hashes, n))
    else:
        rows = random_words(chain.on_images, chain.cut, seed, hashes, n)
        loaded = [apply(chain.on_images, image, row) for image, row in zip(cached, rows, strict=True)]
    for one, other in zip(loaded, whole, strict=True):
        np.testing.assert_array_equal(one, other)


def test_every_op_is_among_the_random_chains() -> None:
    drawn = {piece.partition("(")[0] for piece in names.elements} | {"decode"}  # type: ignore[attr-defined]
    assert drawn == {op_name(kind) for kind in OPS.values() if not issubclass(kind, BatchOp)}


# Workers, order, formats


EVERY_OP = (
    "decode|resize((33, 35))|pad(2, 100)|central_crop(35)|random_resized_crop(32)|random_crop(30)|resize_shorter(31)|flip_lr"
    "|flip_ud|rotate(10)|affine(5, (0.1, 0.1))|cutout(6)|brightness(0.2)|contrast(0.2)|saturation(0.2)|hue(0.1)"
    "|color_jitter(0.1, 0.1, 0.1, 0.1)|gaussian_blur(3)|gaussian_noise(sigma=0.02)|autocontrast|equalize|posterize(7)"
    "|solarize(250)|sharpness(1.5)|rand_augment|trivial_augment|grayscale(3)"
)
RECORDS, VARIANTS = 30, 34


@pytest.fixture(scope="module")
def thousand_pairs(photos: dict[str, bytes]) -> dict[tuple[str, int], bytes]:
    """Every (record, variant) by a plain loop, in a different order."""
    pairs = [(key, variant) for key in photos for variant in range(VARIANTS)]
    random.Random(0).shuffle(pairs)
    chain = parse(EVERY_OP)
    return {(key, n): chain(photos[key], key=key, seed=SEED, n=n).tobytes() for key, n in pairs}


@pytest.mark.slow
@pytest.mark.parametrize("format", ["arrow", "tfrecord"])
def test_a_thousand_pairs_are_the_same_by_any_number_of_workers_and_by_a_plain_loop(
    tmp_path: Path, photo_folder: Path, thousand_pairs: dict[tuple[str, int], bytes], format: Any
) -> None:
    assert {type(op) for op in parse(EVERY_OP).ops} == {k for k in OPS.values() if not issubclass(k, BatchOp)}
    assert len(thousand_pairs) == 1020
    assert len(set(thousand_pairs.values())) > 970  # variants differ: a loop that drew nothing would pass otherwise
    digests = []
    for workers in (1, 2, 8):
        cache = tmp_path / f"{workers}"
        options = {"variants": VARIANTS, "format": format, "val_fraction": 0, "seed": SEED, "shards": 3}
        precompute(photo_folder, cache, EVERY_OP, workers=workers, **options)
        digests.append([file.sha256 for file in open_manifest(cache).splits["train"].files])
        split = CachedSplit(open_cache(cache), "train")
        for variant in range(VARIANTS):
            images = split.images(np.arange(RECORDS), variant)
            for key, image in zip(keys_of(cache, "train"), images, strict=True):
                assert image.tobytes() == thousand_pairs[key, variant], (key, variant, workers)
    assert digests[0] == digests[1] == digests[2]


# Serving


FLOATS = "decode|resize(24)|random_crop(20) || flip_lr|to_float|normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))"


def test_a_chain_serves_what_the_loader_gives(tmp_path: Path, photo_folder: Path) -> None:
    cache = tmp_path / "cache"
    precompute(photo_folder, cache, FLOATS, variants=2, val_fraction=0.3, seed=SEED)
    manifest = open_manifest(cache)
    for split, epochs in (("train", 4), ("val", 1)):
        chain = manifest.parsed_chain(split)
        dataset = load(cache, split, 5, shuffle=False)
        assert dataset.element_spec[0] == tf.TensorSpec([None, 20, 20, 3], tf.float32)
        variants = manifest.splits[split].variants
        for epoch in range(epochs):
            images = np.concatenate([images for images, _ in dataset.as_numpy_iterator()])
            assert images.dtype == np.float32
            for key, image in zip(keys_of(cache, split), images, strict=True):
                path = photo_folder / key
                for asked in (path, path.read_bytes(), Image.open(path)):
                    served = chain(asked, key=key, seed=SEED, n=epoch, variants=variants)
                    np.testing.assert_array_equal(served, image)


@pytest.mark.parametrize("encoding", ["raw", "png"])
@pytest.mark.parametrize("text", ["decode|resize(16) || grayscale|to_float", "decode|resize(16)|grayscale || to_float"])
def test_grey_has_one_channel_on_both_sides_of_the_cut(
    tmp_path: Path, photo_folder: Path, photos: dict[str, bytes], text: str, encoding: Any
) -> None:
    precompute(photo_folder, tmp_path / "cache", text, val_fraction=0, encoding=encoding)
    [(images, _)] = load(tmp_path / "cache", "train", 30, shuffle=False).as_numpy_iterator()
    assert images.shape == (30, 16, 16, 1)
    np.testing.assert_array_equal(images, [parse(text)(photos[key]) for key in keys_of(tmp_path / "cache", "train")])
    split = CachedSplit(open_cache(tmp_path / "cache"), "train")
    np.testing.assert_array_equal(split.batch(np.arange(30), 0, 0)[0], images)


# Mixtures


def labels_of(cache: Path, split: str) -> NDArray[np.int64]:
    labels: NDArray[np.int64] = open_cache(cache).rows(split)["label"].to_numpy()
    return labels


def mixed(folder: Path, source: Path, op: str, **options: Any) -> Path:
    precompute(source, folder, f"decode|resize(16) || flip_lr|{op}", val_fraction=0.3, seed=SEED, **options)
    return folder


@pytest.mark.parametrize("op", ["mixup", "cutmix(0.5)", "mixup(0.2)|cutmix", "to_float|mixup", "mixup|to_float"])
def test_mixtures_mix_images_and_labels_alike(tmp_path: Path, photo_folder: Path, op: str) -> None:
    cache = mixed(tmp_path / "cache", photo_folder, op)
    split = CachedSplit(open_cache(cache), "train")
    rows = np.argsort(labels_of(cache, "train"), kind="stable")[:: len(split) // 8][:8]  # of every class
    before = split.images(rows, 3)
    images, (labels,) = split.batch(rows, 3, 5)
    assert images.shape == before.shape
    assert images.dtype == (np.float32 if "to_float" in op else np.uint8)
    assert labels.shape == (8, 3)
    assert labels.dtype == np.float32
    np.testing.assert_allclose(labels.sum(axis=1), 1, rtol=1e-6)
    again, _ = split.batch(rows, 3, 5)
    np.testing.assert_array_equal(images, again)
    shares = {split.batch(rows, 3, number)[1][0].tobytes() for number in range(6)}
    assert len(shares) > 1  # every batch has its own draw


def test_both_splits_of_a_mixing_cache_fit_one_loss(tmp_path: Path, photo_folder: Path) -> None:
    cache = mixed(tmp_path / "cache", photo_folder, "mixup(0.4)")
    train, val = (load(cache, split, 8) for split in ("train", "val"))
    assert train.element_spec[1] == val.element_spec[1] == tf.TensorSpec([None, 3], tf.float32)
    for _, labels in val:
        assert set(np.unique(labels)) == {0, 1}
    hard = np.concatenate([labels for _, labels in val.as_numpy_iterator()]).argmax(axis=1)
    np.testing.assert_array_equal(hard, labels_of(cache, "val"))
    rescaled = keras.layers.Rescaling(1 / 255)
    model = keras.Sequential([keras.Input((16, 16, 3)), rescaled, keras.layers.Flatten(), keras.layers.Dense(3)])
    model.compile("adam", keras.losses.CategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    history = model.fit(train, validation_data=val, epochs=2, verbose=0, shuffle=False).history
    assert np.isfinite(history["loss"] + history["val_accuracy"]).all()


def test_held_out_records_are_not_mixed(tmp_path: Path, photo_folder: Path) -> None:
    with pytest.raises(ValueError, match="val_chain must not contain mixup or cutmix"):
        mixed(tmp_path / "cache", photo_folder, "mixup", val_chain="decode|resize(16) || mixup")


# Custom ops


@dataclass(frozen=True)
class Invert(Op):
    """Turn every second image round."""

    random_words: ClassVar[int] = 1
    level: int = 255

    def pixels(self, image: NDArray[np.uint8], drawn: tuple[int, ...]) -> NDArray[np.uint8]:
        return self.level - image if drawn[0] < 2**31 else image


@dataclass(frozen=True)
class Halve(Op):
    """Leave out every second pixel."""

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return -(-height // 2), -(-width // 2)

    def pixels(self, image: NDArray[np.uint8], drawn: tuple[int, ...]) -> NDArray[np.uint8]:
        assert drawn == ()
        return image[::2, ::2]


OWN: dict[str, type[Op]] = {"invert": Invert, "halve": Halve}


@pytest.mark.parametrize("cut", [2, 4])
def test_custom_ops_work_before_and_after_the_cut(
    tmp_path: Path, photo_folder: Path, photos: dict[str, bytes], cut: int
) -> None:
    chain = replace(parse("decode|resize(21)|invert|halve|flip_lr", OWN), cut=cut)
    cache = tmp_path / "cache"
    precompute(photo_folder, cache, chain, variants=2, val_fraction=0.3, seed=SEED, workers=2)
    dataset = load(cache, "train", 6, shuffle=False, ops=OWN)
    turned = 0
    for epoch in range(2):
        images = np.concatenate([images for images, _ in dataset.as_numpy_iterator()])
        assert images.shape[1:] == (11, 11, 3)
        for key, image in zip(keys_of(cache, "train"), images, strict=True):
            np.testing.assert_array_equal(image, chain(photos[key], key=key, seed=SEED, n=epoch))
            plain = parse("decode|resize(21)")(photos[key])[::2, ::2]
            turned += np.array_equal(image, 255 - plain) or np.array_equal(image, 255 - plain[:, ::-1])
    assert 0 < turned < 2 * len(keys_of(cache, "train"))
    assert verify(cache) == []
    if cut == 2:
        return  # the held-out records were cached whole, without invert
    with pytest.raises(CacheError, match=r"unknown op 'invert'.*pass them as `ops`, or by --ops"):
        load(cache, "train", 6)


def test_another_version_of_a_custom_op_is_another_cache(
    tmp_path: Path, photo_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    precompute(photo_folder, tmp_path / "cache", parse("decode|resize(9)|invert", OWN), seed=SEED)
    before = load(tmp_path / "cache", "train", 4, ops=OWN, shuffle=False)
    assert "other versions" not in caplog.text
    monkeypatch.setattr(Invert, "version", 2)
    after = load(tmp_path / "cache", "train", 4, ops=OWN, shuffle=False)
    assert "was built with other versions of its ops" in caplog.text
    np.testing.assert_array_equal(next(before.as_numpy_iterator())[0], next(after.as_numpy_iterator())[0])
    with pytest.raises(CacheError, match=r"with other versions of the ops in .*invert.*pass --replace"):
        precompute(photo_folder, tmp_path / "cache", parse("decode|resize(9)|invert", OWN), seed=SEED)


@dataclass(frozen=True)
class Picky(Op):
    """Fail on every image whose first level is odd."""

    def pixels(self, image: NDArray[np.uint8], drawn: tuple[int, ...]) -> NDArray[np.uint8]:
        if image[0, 0, 0] % 2:
            raise KeyError("odd")
        return image


def test_an_image_on_which_a_custom_op_fails_is_rejected_with_the_reason(
    tmp_path: Path, photo_folder: Path, photos: dict[str, bytes]
) -> None:
    chain = parse("decode|picky|resize(9)", {"picky": Picky})
    built = precompute(photo_folder, tmp_path / "cache", chain, val_chain="decode|resize(9)", max_reject_rate=0.9)
    rejected = (tmp_path / "cache" / built.manifest.rejected.name).read_text().splitlines()
    assert 0 < len(rejected) < len(photos)
    assert all("picky failed: KeyError: 'odd'" in line for line in rejected)
