"""Rolling variants: an advance computes the draws that follow, drops the oldest, and disturbs no reader."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from caches import CHAIN, OPTIONS, build, cached_images, is_clean, keys_of, shard_hashes

from joulecache.pipelines.building.local_destination import LocalDestination
from joulecache.pipelines.building.precomputing import Built, precompute
from joulecache.pipelines.cache.cache import verify
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.manifest_io import open_manifest
from joulecache.pipelines.loading import reader
from joulecache.pipelines.loading.loader import load
from joulecache.pipelines.loading.numpy_batches import batches
from joulecache.pipelines.loading.split import CachedSplit
from joulecache.transforms import Chain, parse

K = 2
SEED = OPTIONS["seed"]
WHOLE = parse(CHAIN)
PREFIX = Chain(WHOLE.prefix, WHOLE.cut)


@pytest.fixture
def cache(tmp_path: Path, photo_cache: Path) -> Path:
    """A cache of `photos` with the draws 0 and 1, to be advanced."""
    return Path(shutil.copytree(photo_cache, tmp_path / "cache"))


def advance(source: Path, cache: Path, draws: int, **options: Any) -> Built:
    return precompute(source, cache, **{**OPTIONS, "advance": draws, **options})


def check_draws(photos: dict[str, bytes], cache: Path, first: int) -> None:
    """Check that a cache holds `K` draws from `first` on, pixel by pixel, and nothing else."""
    split = open_manifest(cache).split("train")
    assert (split.first_draw, split.variants) == (first, K)
    found = []
    for variant in range(K):
        images = cached_images(cache, "train", variant)
        for key, image in zip(keys_of(cache, "train"), images, strict=True):
            expected = PREFIX(photos[key], key=key, seed=SEED, n=first + variant)
            np.testing.assert_array_equal(image, expected)
        found += images
    levels = np.stack(found).reshape(-1, 3)
    np.testing.assert_allclose(split.mean, levels.mean(axis=0))
    np.testing.assert_allclose(split.std, levels.std(axis=0))
    assert is_clean(cache)
    assert verify(cache) == []


@pytest.mark.parametrize(
    "form", [{}, pytest.param({"encoding": "png", "format": "tfrecord"}, marks=pytest.mark.slow)], ids=["raw", "png"]
)
def test_an_advance_computes_the_next_draws_alone_and_drops_the_oldest(
    tmp_path: Path, photo_folder: Path, photos: dict[str, bytes], cache: Path, form: dict[str, Any]
) -> None:
    if form:
        cache = tmp_path / "png"
        build(photo_folder, cache, **OPTIONS, **form)
    before = open_manifest(cache)
    train = before.splits["train"].records
    one = advance(photo_folder, cache, 1, **form)
    check_draws(photos, cache, 1)
    assert one.transformed == train
    assert one.manifest.split("train").variant_files(0) == before.split("train").variant_files(1)
    assert one.manifest.split("val") == before.split("val")
    assert one.energy is not None
    assert before.energy is not None
    assert one.manifest.build_energy.active_j == pytest.approx(before.build_energy.active_j + one.energy.active_j)
    assert precompute(photo_folder, cache, **OPTIONS, **form).unchanged  # the same command without advance
    if not form:
        assert advance(photo_folder, cache, K).transformed == K * train
        check_draws(photos, cache, 1 + K)


def test_an_update_of_an_advanced_cache_keeps_its_draws(
    tmp_path: Path, photo_folder: Path, photos: dict[str, bytes], cache: Path
) -> None:
    source = Path(shutil.copytree(photo_folder, tmp_path / "source"))
    advance(source, cache, 1)
    changed = {**photos, "dog/01.jpg": photos["cat/00.jpg"]}
    (source / "dog" / "01.jpg").write_bytes(changed["dog/01.jpg"])
    precompute(source, cache, **OPTIONS)
    check_draws(changed, cache, 1)
    changed["dog/01.jpg"] = photos["cat/03.jpg"]
    (source / "dog" / "01.jpg").write_bytes(changed["dog/01.jpg"])
    advance(source, cache, 1)  # and changed records at once
    check_draws(changed, cache, 2)
    assert precompute(source, cache, **{**OPTIONS, "replace": True}).manifest.first_draw == 0


def test_an_interrupted_advance_resumes_and_advances_once(
    monkeypatch: pytest.MonkeyPatch, photo_folder: Path, photos: dict[str, bytes], cache: Path
) -> None:
    before = shard_hashes(open_manifest(cache))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalDestination, "commit", stop)
        with pytest.raises(KeyboardInterrupt):
            advance(photo_folder, cache, 1)
    assert shard_hashes(open_manifest(cache)) == before
    assert verify(cache) == []
    resumed = advance(photo_folder, cache, 1)
    assert resumed.resumed_shards == 4
    check_draws(photos, cache, 1)


def test_open_readers_go_on_with_the_draws_that_they_opened(photo_folder: Path, cache: Path) -> None:
    expected = [images.tobytes() for images, _ in batches(cache, "train", 4, epochs=4)]
    reading = iter(batches(cache, "train", 4, epochs=4))
    first = next(reading)[0].tobytes()
    advance(photo_folder, cache, K)  # deletes all that is being read
    assert [first, *(images.tobytes() for images, _ in reading)] == expected


@pytest.mark.parametrize("follow", [False, True])
def test_a_commit_while_a_cache_is_opened_is_no_error(
    monkeypatch: pytest.MonkeyPatch, photo_folder: Path, cache: Path, *, follow: bool
) -> None:
    class Late(CachedSplit):
        def __init__(self, *arguments: Any) -> None:
            monkeypatch.setattr(reader, "CachedSplit", CachedSplit)
            advance(photo_folder, cache, K)  # deletes the files of the manifest that was read
            super().__init__(*arguments)

    loaded = batches(cache, "train", 4, epochs=1, follow=True)
    monkeypatch.setattr(reader, "CachedSplit", Late)
    if follow:
        advance(photo_folder, cache, 1)  # to be opened when the epoch begins
        found = epoch_of(loaded)
    else:
        found = epoch_of(batches(cache, "train", 4, epochs=1))
    assert found == epoch_of(batches(cache, "train", 4, epochs=1))
    assert open_manifest(cache).first_draw == K + follow


def test_an_epoch_reads_the_draw_of_its_number_while_the_cache_has_it(
    photo_folder: Path, photos: dict[str, bytes], cache: Path
) -> None:
    advance(photo_folder, cache, 1)
    split, keys = open_manifest(cache).split("train"), keys_of(cache, "train")
    assert [split.draw_of(epoch) for epoch in range(6)] == [2, 1, 2, 1, 2, 1]
    loaded = batches(cache, "train", len(keys), shuffle=False, epochs=3)
    for epoch, (images, _) in enumerate(loaded):
        for key, image in zip(keys, images, strict=True):
            whole = WHOLE(photos[key], key=key, seed=SEED, n=epoch, variants=K, first_draw=1)
            np.testing.assert_array_equal(image, whole)


# Following


@pytest.fixture(scope="module")
def draws(photos: dict[str, bytes], photo_cache: Path) -> list[bytes]:
    """The images of the training split for each of the first epochs of the online chain, in the order of the cache."""
    keys = keys_of(photo_cache, "train")
    return [b"".join(WHOLE(photos[key], key=key, seed=SEED, n=epoch).tobytes() for key in keys) for epoch in range(6)]


@pytest.fixture(scope="module")
def crops(photos: dict[str, bytes], photo_cache: Path) -> list[bytes]:
    """The cached images of the training split for each of the first draws."""
    keys = keys_of(photo_cache, "train")
    return [b"".join(PREFIX(photos[key], key=key, seed=SEED, n=n).tobytes() for key in keys) for n in range(4)]


@pytest.fixture
def without_suffix(photo_folder: Path, cache: Path) -> Path:
    """`cache` without the op after the cut, which would draw by the epoch."""
    precompute(photo_folder, cache, **{**OPTIONS, "chain": str(PREFIX)})
    return cache


def epoch_of(loaded: Any) -> bytes:
    return b"".join(np.asarray(images).tobytes() for images, _ in loaded)


def test_an_epoch_for_each_draw_is_the_online_stream_from_a_disk_of_k_variants(
    photo_folder: Path, cache: Path, draws: list[bytes]
) -> None:
    arrays = batches(cache, "train", 4, shuffle=False, follow=True)
    tensors = load(cache, "train", 4, shuffle=False, follow=True)
    files = len(list(cache.iterdir()))
    for expected in draws[:4]:
        assert epoch_of(arrays) == expected
        assert epoch_of(tensors.as_numpy_iterator()) == expected
        advance(photo_folder, cache, 1)
        assert len(list(cache.iterdir())) == files


@pytest.mark.parametrize(
    ("variants", "advance", "uses"), [(4, 1, 2), (4, 4, 3), (6, 2, 5), (8, 2, 1), (3, 2, 1), (1, 1, 4)]
)
def test_every_draw_is_used_as_often_as_the_advances_allow(
    photo_cache: Path, variants: int, advance: int, uses: int
) -> None:
    split = dataclasses.replace(open_manifest(photo_cache).split("train"), variants=variants)
    used = Counter(
        dataclasses.replace(split, first_draw=epoch // (advance * uses) * advance).draw_of(epoch)
        for epoch in range(40 * advance * uses)
    )
    steady = range(variants, 40 * advance - variants)  # others are not in the cache for as many epochs
    assert {used[draw] for draw in steady} == {uses}


def test_a_state_goes_on_with_the_same_bytes_while_the_cache_has_the_draw(photo_folder: Path, cache: Path) -> None:
    options: dict[str, Any] = {"epochs": 3, "follow": True}
    loaded = batches(cache, "train", 4, **options)
    reading = iter(loaded)
    for _ in range(len(loaded) // 3 + 2):
        next(reading)
    state = loaded.state()
    assert (state["epoch"], state["batch"], state["draw"]) == (1, 2, 1)
    advance(photo_folder, cache, 1)  # the cache has draws 1 and 2 now
    resumed = batches(cache, "train", 4, **options)
    resumed.restore(state)
    assert epoch_of(resumed) == epoch_of(reading)
    advance(photo_folder, cache, 1)
    with pytest.raises(CacheError, match=r"inside epoch 1, with draw 1, .* start=\(1, 2\) to go on with draw 3"):
        batches(cache, "train", 4, **options).restore(state)
    resumed.restore({**state, "batch": 0})  # the beginning of an epoch is on no draw yet


def test_a_checkpoint_of_an_iterator_resumes_after_an_advance(
    tmp_path: Path, photo_folder: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"epochs": 3, "follow": True}
    reading = iter(load(cache, "train", 4, **options))
    count = len(batches(cache, "train", 4))
    for _ in range(count + 2):
        next(reading)
    advance(photo_folder, cache, 1)
    path = tf.train.Checkpoint(iterator=reading).write(str(tmp_path / "saved"))
    resumed = iter(load(cache, "train", 4, **options))
    tf.train.Checkpoint(iterator=resumed).read(path)
    assert epoch_of(resumed) == epoch_of(reading)  # epoch 1 with draw 1, and epoch 2 with draw 2
    assert not caplog.records
    epoch_of(batches(cache, "train", 4, start=(0, 2), follow=True))
    assert "epoch 0 is resumed with draw 2" in caplog.text


def test_epochs_during_advances_read_one_draw_each(
    photo_folder: Path, without_suffix: Path, crops: list[bytes]
) -> None:
    loaded = batches(without_suffix, "train", 4, shuffle=False, follow=True)
    with ThreadPoolExecutor(1) as pool:
        advancing = pool.submit(lambda: [advance(photo_folder, without_suffix, 1, chain=str(PREFIX)) for _ in range(2)])
        found = [crops.index(epoch_of(loaded))]
        while not advancing.done():
            found.append(crops.index(epoch_of(loaded)))
        advancing.result()
    found.append(crops.index(epoch_of(loaded)))
    assert all(draw % K == epoch % K for epoch, draw in enumerate(found))
    assert [found[::2], found[1::2]] == [sorted(found[::2]), sorted(found[1::2])]  # never back to an older set
    assert found[-1] in (2, 3)


def test_a_cache_whose_records_change_is_not_followed(
    tmp_path: Path, photo_folder: Path, without_suffix: Path, crops: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    source = Path(shutil.copytree(photo_folder, tmp_path / "source"))
    loaded = batches(without_suffix, "train", 4, shuffle=False, epochs=2, follow=True)
    shutil.copy(source / "cat" / "00.jpg", source / "cat" / "added.jpg")
    advance(source, without_suffix, 1, chain=str(PREFIX))
    assert epoch_of(loaded) == crops[0] + crops[1]
    [note] = caplog.messages
    assert note.endswith("now has other records or options: epochs go on with draws 0 to 1, until it is loaded again")
    (source / "cat" / "added.jpg").unlink()
    os.utime(source / "cat" / "00.jpg")  # the index changes, its records do not
    advance(source, without_suffix, 1, chain=str(PREFIX))
    assert epoch_of(loaded) == crops[2] + crops[3]


def test_a_cache_in_a_store_advances_and_is_followed(bucket: str, photo_folder: Path, crops: list[bytes]) -> None:
    url, options = f"{bucket}/cache", {**OPTIONS, "chain": str(PREFIX), "shards": 1}
    precompute(photo_folder, url, **options)
    loaded = batches(url, "train", 4, follow=True)
    before = sorted(np.concatenate([images for images, _ in loaded]).reshape(-1, 32 * 32 * 3).tolist())
    advanced = precompute(photo_folder, url, **options, advance=1)
    assert advanced.transformed == advanced.manifest.splits["train"].records
    next(iter(loaded))  # epoch 1: draw 1, of both sets
    after = sorted(np.concatenate([images for images, _ in loaded]).reshape(-1, 32 * 32 * 3).tolist())
    assert before == _sorted_images(crops[0])
    assert after == _sorted_images(crops[2])
    assert verify(url) == []


def _sorted_images(crops: bytes) -> list[list[int]]:
    images: list[list[int]] = np.frombuffer(crops, np.uint8).reshape(-1, 32 * 32 * 3).tolist()
    return sorted(images)


# Refusals


def test_boxes_are_not_followed(tmp_path: Path) -> None:
    build("synthetic:8", tmp_path / "boxes", "decode|resize(16)|random_crop(8)", target=["label", "boxes"])
    with pytest.raises(ValueError, match="follow cannot pad the boxes of 'boxes'"):
        batches(tmp_path / "boxes", "train", 4, follow=True)
    assert len(batches(tmp_path / "boxes", "train", 4, targets="label", follow=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"advance": 0}, "advance must be .*, got 0"),
        ({"advance": 3}, "advance must be at most the 2 variants .*, got 3"),
        ({"advance": 1, "replace": True}, "which replace would not read"),
        ({"advance": 1, "chain": "decode|resize(32) || flip_lr"}, "draw nothing at random"),
        ({"advance": 1, "variants": 3}, "which is 2, got variants 3: pass --variants 2"),
    ],
)
def test_what_cannot_advance_is_refused(photo_folder: Path, cache: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises((CacheError, ValueError), match=message):
        precompute(photo_folder, cache, **{**OPTIONS, **options})


def test_the_command_says_what_an_advance_needs_and_used(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, photo_folder: Path, cache: Path
) -> None:
    options = ["--chain", CHAIN, "--variants", 2, "--shards", 4, "--val-fraction", 0.3, "--seed", 3, "--advance", 1]
    code, _, err = run("precompute", photo_folder, tmp_path / "new", *options)
    assert (code, err.count("\n")) == (2, 1)
    assert "advance 1 needs an existing cache, got none: build it first without --advance" in err
    code, out, _ = run("precompute", photo_folder, cache, *options)
    assert code == 0
    assert "draws 1 to 2: epoch e reads the one that is e modulo 2" in out
    assert "This build used" in out
