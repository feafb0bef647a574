"""Builds with masks, boxes and points: equal to the ops run by hand, the same bytes however they are built, and updated in part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import numpy as np
import pytest
from caches import hashes, index_of, is_clean, keys_of, rejects_of, shard_hashes
from numpy.typing import NDArray
from spatial_sources import FEATURES, Drawn, drawn, jpeg, png, spatial_source, with_target

from joulecache.pipelines.building import shard_memory
from joulecache.pipelines.building.config import BuildConfig, BuildError
from joulecache.pipelines.building.images import mean_image_bytes
from joulecache.pipelines.building.precomputing import build_cache
from joulecache.pipelines.building.results import Built
from joulecache.pipelines.cache.cache import open_cache, verify
from joulecache.pipelines.cache.data_file import TargetSummary
from joulecache.pipelines.cache.mapped_images import MappedImages
from joulecache.pipelines.cache.names import ENCODINGS, FORMATS, SPLITS, Encoding, Format
from joulecache.pipelines.cache.spatial_columns import BoxRows
from joulecache.pipelines.core import memory
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.source.features import Features
from joulecache.pipelines.source.spatial import Boxes, Mask, Points
from joulecache.transforms import Decode, parse
from joulecache.transforms.ops import Op
from joulecache.transforms.ops.decode import decode_ids
from joulecache.transforms.randomness import key_hash, random_words
from joulecache.transforms.targets import BoxesTarget, MaskTarget, PointsTarget, SpatialTarget, apply_with_targets

CHAIN = "decode|resize(40)|random_crop(32)|flip_lr || flip_ud"
VARYING = "decode|random_crop(20)|flip_lr|pad(3)"
OPTIONS: dict[str, Any] = {"variants": 2, "shards": 3, "val_fraction": 0.3, "seed": 5}
AREA, OBJECTS, JOINTS = (list(FEATURES).index(name) for name in ("area", "objects", "joints"))

every_format = pytest.mark.parametrize("kind", FORMATS)
every_encoding = pytest.mark.parametrize("encoding", ENCODINGS)


def build(cache: Path, units: Sequence[Drawn], features: Features = FEATURES, **options: Any) -> Built:
    chosen: dict[str, Any] = {"chain": CHAIN, **OPTIONS, **options}
    chosen["chain"] = parse(chosen["chain"]) if isinstance(chosen["chain"], str) else chosen["chain"]
    return build_cache(spatial_source(features=features, units=units), cache, BuildConfig(**chosen), Meter())


@pytest.fixture(scope="module")
def units() -> list[Drawn]:
    return [drawn(number) for number in range(14)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, units: list[Drawn]) -> Path:
    """A raw Arrow cache of all units; only to be read."""
    cache = tmp_path_factory.mktemp("built") / "cache"
    build(cache, units)
    return cache


def stored(cache: Path, split: str, variant: int) -> list[tuple[NDArray[np.uint8], tuple[SpatialTarget, ...]]]:
    """Return the images and targets of a variant, decoded, in the order of the index."""
    opened = open_cache(cache)
    count = opened.split(split).records
    rows = np.arange(count)
    images: list[Any] = opened.images(split, variant).views(rows)
    targets = opened.targets(split, variant)
    masks: list[Any] = cast("MappedImages", targets["area"]).views(rows)
    if opened.manifest.encoding != "raw":
        images = [Decode().pixels(bytes(image)) for image in images]
        masks = [decode_ids(bytes(mask)) for mask in masks]
    boxes, points = cast("BoxRows", targets["objects"]), cast("NDArray[np.float32]", targets["joints"])
    return [(images[row], (MaskTarget(masks[row]), boxes[row], PointsTarget(points[row]))) for row in range(count)]


def by_hand(unit: Drawn, ops: tuple[Op, ...], variant: int) -> tuple[NDArray[np.uint8], tuple[SpatialTarget, ...]]:
    """Run the cached ops on one image and its targets."""
    words = random_words(ops, 0, OPTIONS["seed"], [key_hash(unit.name)], variant)[0]
    spatial = [
        feature.decode(target)
        for feature, target in zip(unit.features, unit.contents, strict=True)
        if isinstance(feature, Mask | Boxes | Points)
    ]
    return apply_with_targets(ops, unit.data, words, spatial)


def assert_same(found: Sequence[SpatialTarget], expected: Sequence[SpatialTarget]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert type(one) is type(other)
        for name in one.__slots__:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def check(cache: Path, units: Sequence[Drawn], *, exact_pixels: bool = True) -> None:
    """Check every image and target against the ops run by hand, and that the cache is intact."""
    opened, by_name = open_cache(cache), {unit.name: unit for unit in units}
    seen = []
    for split in (split for split in SPLITS if opened.manifest.splits[split].records):
        for variant in range(opened.split(split).variants):
            found = stored(cache, split, variant)
            for key, (image, targets) in zip(keys_of(cache, split), found, strict=True):
                pixels, expected = by_hand(by_name[key], opened.chain(split).prefix, variant)
                if exact_pixels:
                    np.testing.assert_array_equal(image, pixels)
                assert_same(targets, expected)
                seen.append(key)
    rejected = {reject["key"] for reject in rejects_of(cache)}
    assert {*seen} == by_name.keys() - rejected
    assert verify(cache) == []
    assert is_clean(cache)


# Building -------------------------------------------------------------------------------------------------------------


@every_format
@every_encoding
def test_targets_are_those_of_the_ops_run_by_hand(
    tmp_path: Path, units: list[Drawn], kind: Format, encoding: Encoding
) -> None:
    build(tmp_path / "cache", units, format=kind, encoding=encoding)
    check(tmp_path / "cache", units, exact_pixels=encoding != "jpeg")


@every_format
def test_images_and_masks_of_any_size_are_stored_encoded(tmp_path: Path, units: list[Drawn], kind: Format) -> None:
    build(tmp_path / "cache", units, format=kind, encoding="png", chain="decode|flip_lr")
    check(tmp_path / "cache", units)
    shapes = {image.shape for image, _ in stored(tmp_path / "cache", "train", 0)}
    assert len(shapes) > 1


def test_targets_are_scaled_where_decode_scales_the_image(tmp_path: Path) -> None:
    units = [drawn(number, encode=jpeg) for number in range(6)]
    build(tmp_path / "cache", units, chain="decode(shorter=20)|resize(24)")
    check(tmp_path / "cache", units)


def test_the_bytes_do_not_depend_on_the_number_of_workers(tmp_path: Path, units: list[Drawn], built: Path) -> None:
    build(tmp_path / "cache", units, workers=2)
    assert hashes(open_cache(tmp_path / "cache").manifest) == hashes(open_cache(built).manifest)


@every_format
@pytest.mark.parametrize(("encoding", "process_bytes"), [("raw", 5000), ("png", 0), ("jpeg", 1500)])
def test_a_large_shard_has_the_same_bytes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    units: list[Drawn],
    kind: Format,
    encoding: Encoding,
    process_bytes: int,
) -> None:
    """What does not fit in memory is in files while it is built, from which rejected records are dropped."""
    some = [*units[:4], replace(units[4], data=b"damaged"), *units[5:]]
    options: dict[str, Any] = {"format": kind, "encoding": encoding, "max_reject_rate": 0.5}
    small = build(tmp_path / "small", some, **options).manifest
    on_disk = Mock(wraps=memory.array_on_disk)
    monkeypatch.setattr(shard_memory, "array_on_disk", on_disk)
    monkeypatch.setattr(shard_memory, "PROCESS_BYTES", process_bytes)  # less than the images of a split
    monkeypatch.setattr(shard_memory, "_BLOCK_BYTES", 2000)
    large = build(tmp_path / "large", some, **options).manifest
    assert on_disk.call_count > 4
    assert hashes(large) == hashes(small)
    assert len(rejects_of(tmp_path / "large")) == 1
    check(tmp_path / "large", some, exact_pixels=encoding != "jpeg")
    build(tmp_path / "large", units, **options)  # copies all images but one
    assert hashes(open_cache(tmp_path / "large").manifest) == hashes(build(tmp_path / "new", units, **options).manifest)


def test_summaries_count_what_the_files_have(built: Path) -> None:
    manifest = open_cache(built).manifest
    for split in ("train", "val"):
        found = manifest.split(split).targets or {}
        rows = [
            targets for variant in range(manifest.split(split).variants) for _, targets in stored(built, split, variant)
        ]
        masks = [cast("MaskTarget", row[0]).ids for row in rows]
        boxes = [cast("BoxesTarget", row[1]) for row in rows]
        points = np.stack([cast("PointsTarget", row[2]).points for row in rows])
        there = points[:, :, 2] > 0
        assert found["area"] == TargetSummary(
            tuple(int(sum((mask == number).sum() for mask in masks)) for number in range(3)),
            empty=sum(not ((mask > 0) & (mask < 255)).any() for mask in masks),
        )
        assert found["objects"] == TargetSummary(
            tuple(int(sum((each.classes == number).sum() for each in boxes)) for number in range(3)),
            empty=sum(not len(each.classes) for each in boxes),
            most=max(len(each.classes) for each in boxes),
        )
        assert found["joints"] == TargetSummary(
            tuple(there.sum(axis=0).tolist()),
            float(points[there][:, :2].min()),
            float(points[there][:, :2].max()),
            int((~there.any(axis=1)).sum()),
        )
        assert found["label"].counts is not None
        assert sum(found["label"].counts) == manifest.split(split).records


# Rejects --------------------------------------------------------------------------------------------------------------


def boxes(corners: list[float], number: int = 0) -> bytes:
    """Return one box as bytes, unchecked."""
    return np.array([corners], "<f4").tobytes() + np.array([number], "<i8").tobytes()


WRONG = [
    (AREA, png(np.zeros((10, 10), np.uint8)), "the mask must be 48x64 as the image is, got 10x10"),
    (AREA, png(np.full((48, 64), 7, np.uint8)), "its mask has id 7, but there are 3 classes"),
    (
        AREA,
        png(np.zeros((48, 64, 3), np.uint8)),
        "its mask cannot be decoded: expected one channel of class ids, got RGB",
    ),
    (AREA, b"not an image", "its mask cannot be decoded: not an image"),
    (OBJECTS, boxes([64, 1, 70, 9]), "box 0 must overlap the image of 48x64"),
    (OBJECTS, boxes([9, 1, 5, 9]), "a box must have a positive width and height"),
    (OBJECTS, boxes([np.nan, 1, 5, 9]), "a box must have finite numbers"),
    (OBJECTS, boxes([0, 1, 5, 9], 7), "a box has class 7"),
    (JOINTS, bytes(12), "its points must be 4 of x, y and visibility"),
]


def test_a_wrong_target_rejects_its_record_alone(tmp_path: Path, units: list[Drawn]) -> None:
    wrong = [
        replace(with_target(units[4], place, target), name=f"wrong{number}.png")
        for number, (place, target, _) in enumerate(WRONG)
    ]
    build(tmp_path / "cache", [*units, *wrong], max_reject_rate=0.5)
    found = rejects_of(tmp_path / "cache")
    assert [reject["key"] for reject in found] == [unit.name for unit in wrong]
    for reject, (_, _, reason) in zip(found, WRONG, strict=True):
        assert reject["reason"].startswith(reason)
    check(tmp_path / "cache", [*units, *wrong])
    assert build(tmp_path / "cache", [*units, *wrong], max_reject_rate=0.5).unchanged


# Updates --------------------------------------------------------------------------------------------------------------


def changed_target(unit: Drawn, place: int) -> Drawn:
    """Return an image with another target of the same kind."""
    feature = unit.features[place]
    if isinstance(feature, Mask):
        ids = decode_ids(cast("bytes", unit.contents[place]))[:, :, 0]
        return with_target(unit, place, png(np.where(ids == 1, 2, ids).astype(np.uint8)))
    if isinstance(feature, Boxes):
        return with_target(unit, place, feature.encode([[1, 2, 30, 40], [3, 3, 9, 9]], [2, 0]))
    assert isinstance(feature, Points)
    return with_target(unit, place, feature.encode([[1, 2], [3, 4], [5, 6], [7, 8]]))


@pytest.mark.parametrize(
    ("kind", "encoding", "place"),
    [
        ("arrow", "raw", AREA),
        ("arrow", "png", JOINTS),
        ("tfrecord", "raw", OBJECTS),
        ("tfrecord", "jpeg", AREA),
    ],
)
def test_an_update_rewrites_only_the_shard_of_a_changed_target(
    tmp_path: Path, units: list[Drawn], kind: Format, encoding: Encoding, place: int
) -> None:
    cache = tmp_path / "cache"
    options: dict[str, Any] = {"format": kind, "encoding": encoding}
    before = shard_hashes(build(cache, units, **options).manifest)
    shard_of = {row["key"]: row["shard"] for row in index_of(cache)}
    changed = [*units[:5], changed_target(units[5], place), *units[6:]]
    result = build(cache, changed, **options)
    after = shard_hashes(result.manifest)
    rewritten = {int(name.split("-")[2]) for name in {*after} - {*before}}
    assert rewritten == {shard_of["005.png"]}
    assert result.transformed == (2 if "005.png" in keys_of(cache, "train") else 1)
    assert result.copied > 0
    check(cache, changed, exact_pixels=encoding != "jpeg")
    build(tmp_path / "fresh", changed, **options)
    assert shard_hashes(open_cache(tmp_path / "fresh").manifest) == after
    assert build(cache, changed, **options).unchanged


def test_rehash_finds_a_target_that_changed_without_its_time(tmp_path: Path, units: list[Drawn]) -> None:
    cache = tmp_path / "cache"
    masks = [cast("bytes", unit.contents[AREA]) for unit in (units[5], changed_target(units[5], AREA))]
    before, after = (
        replace(with_target(units[5], AREA, mask.ljust(max(map(len, masks)), b"\0")), mtime_ns=1) for mask in masks
    )
    build(cache, [*units[:5], before, *units[6:]])
    changed = [*units[:5], after, *units[6:]]
    assert build(cache, changed).unchanged
    assert build(cache, changed, rehash=True).transformed > 0
    check(cache, changed)


@pytest.mark.parametrize(("kind", "encoding"), [("arrow", "png"), ("tfrecord", "raw")])
def test_variants_are_added_and_dropped(tmp_path: Path, units: list[Drawn], kind: Format, encoding: Encoding) -> None:
    cache = tmp_path / "cache"
    options: dict[str, Any] = {"format": kind, "encoding": encoding}
    one = build(cache, units, variants=1, **options).manifest
    three = build(cache, units, variants=3, **options)
    assert {*shard_hashes(one)} < {*shard_hashes(three.manifest)}
    check(cache, units)
    build(cache, units, variants=2, **options)
    check(cache, units)


def test_a_feature_is_added_and_removed(tmp_path: Path, units: list[Drawn]) -> None:
    """Images are copied where the cache has the targets that moved with them."""
    cache = tmp_path / "cache"
    without = {name: feature for name, feature in FEATURES.items() if name != "objects"}
    fewer = [drawn(number, without) for number in range(14)]
    data = {unit.name: unit.data for unit in units}
    fewer = [
        replace(unit, data=data[unit.name], contents=_without(whole, OBJECTS))
        for unit, whole in zip(fewer, units, strict=True)
    ]
    build(cache, units)
    removed = build(cache, fewer, without)
    assert removed.transformed == 0
    build(tmp_path / "fresh", fewer, without)
    assert shard_hashes(open_cache(tmp_path / "fresh").manifest) == shard_hashes(removed.manifest)
    added = build(cache, units)
    assert added.copied == 0
    check(cache, units)


def _without(unit: Drawn, place: int) -> tuple[Any, ...]:
    return (*unit.contents[:place], *unit.contents[place + 1 :])


def test_a_renamed_target_is_renamed_in_the_shards(tmp_path: Path, units: list[Drawn]) -> None:
    cache = tmp_path / "cache"
    renamed = {{"age": "years"}.get(name, name): feature for name, feature in FEATURES.items()}
    build(cache, units)
    manifest = build(cache, units, renamed).manifest
    build(tmp_path / "fresh", units, renamed)
    assert shard_hashes(open_cache(tmp_path / "fresh").manifest) == shard_hashes(manifest)


def test_an_interrupted_build_is_resumed(tmp_path: Path, units: list[Drawn], built: Path) -> None:
    """A build with too many rejects keeps its shards: the same source, read again, resumes them."""
    cache = tmp_path / "cache"
    wrong = [*units[:4], with_target(units[4], AREA, b"none"), *units[5:]]
    with pytest.raises(BuildError, match="its mask cannot be decoded"):
        build(cache, wrong, max_reject_rate=0.0)
    result = build(cache, units)
    assert result.resumed_shards == 2
    assert hashes(result.manifest) == hashes(open_cache(built).manifest)


# Refused before the build ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Swirl(Op):
    """Says nothing of targets."""

    def pixels(self, image: NDArray[np.uint8], drawn: tuple[int, ...], /) -> NDArray[np.uint8]:
        return image[::-1]


def test_a_cached_op_that_does_not_say_what_it_does_to_targets_is_refused(tmp_path: Path, units: list[Drawn]) -> None:
    with pytest.raises(ValueError, match="swirl does not say how masks, boxes and points move with the pixels: define"):
        build(tmp_path / "cache", units, chain=parse("decode|resize(32)|swirl", {"swirl": Swirl}))
    assert not (tmp_path / "cache").exists()


def test_a_target_with_the_name_of_a_column_of_boxes_is_refused(tmp_path: Path, units: list[Drawn]) -> None:
    renamed = {{"age": "objects_classes"}.get(name, name): feature for name, feature in FEATURES.items()}
    with pytest.raises(ValueError, match="'objects_classes' is both a target and a column of another one"):
        build(tmp_path / "cache", units, renamed)


def test_masks_count_in_the_size_of_a_build(units: list[Drawn]) -> None:
    config = BuildConfig(chain=parse(CHAIN), **OPTIONS).shard_config(holds_out=False)
    images = mean_image_bytes(units, config, {})
    assert mean_image_bytes(units, config, FEATURES) == images * 4 / 3
    encoded = replace(config, encoding="png")
    assert mean_image_bytes(units, encoded, FEATURES) > mean_image_bytes(units, encoded, {})
