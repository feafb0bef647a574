"""Masks, boxes and points over the pictures of a sheet."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from caches import build
from numpy.typing import NDArray
from PIL import Image

from joulecache.pipelines.cache.cache import open_cache
from joulecache.pipelines.cache.mapped_targets import target_of
from joulecache.pipelines.report.render.contact_sheet import write_contact_sheet, write_preview
from joulecache.pipelines.report.render.overlays import Overlay, colour, mask_colour
from joulecache.pipelines.source import Record, SourceConfig, SourceError, open_source
from joulecache.pipelines.source.features import Features
from joulecache.pipelines.source.first import read_first
from joulecache.pipelines.source.spatial import Boxes, Mask, Points
from joulecache.transforms import BoxesTarget, MaskTarget, PointsTarget, parse
from joulecache.transforms.targets import SpatialTarget

TILE = 128
GREY = (100, 100, 100)


def drawn(feature: Mask | Boxes | Points, target: SpatialTarget, scale: float = 1) -> NDArray[np.uint8]:
    """Return a grey picture of 64x64 with a target over it."""
    picture = Image.new("RGB", (64, 64), GREY)
    Overlay(feature, target).draw(picture, (scale, scale))
    return np.asarray(picture)


def boxes(*corners: tuple[int, int, int, int]) -> BoxesTarget:
    return BoxesTarget(np.array(corners, np.float32).reshape(-1, 4), np.arange(len(corners)))


def changed(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    differs: NDArray[np.bool_] = (pixels != GREY).any(axis=2)
    return differs


def test_a_mask_tints_its_classes_and_not_the_background() -> None:
    ids = np.zeros((32, 32, 1), np.uint8)
    ids[:8], ids[8:16], ids[16:20] = 1, 2, 255
    overlay = Overlay(Mask(("background", "cat", "dog")), MaskTarget(ids))
    assert overlay.classes() == {"cat": colour(0), "dog": colour(1), "void": mask_colour(255)}
    pixels = drawn(overlay.feature, overlay.target, scale=2)
    for rows, tint in ((slice(0, 16), colour(0)), (slice(16, 32), colour(1)), (slice(32, 40), mask_colour(255))):
        expected = 0.55 * np.array(GREY) + 0.45 * np.array(tint)
        assert np.abs(pixels[rows] - expected).max() <= 1
    assert not changed(pixels)[40:].any()
    assert Overlay(Mask(), MaskTarget(ids)).classes() == {"1": colour(0), "2": colour(1), "void": mask_colour(255)}


def test_a_box_has_its_outline_and_a_name_where_there_is_room() -> None:
    target = boxes((10, 20, 60, 50), (2, 2, 8, 6))
    overlay = Overlay(Boxes(("ox", "cat")), target)
    assert overlay.classes() == {"ox": colour(0), "cat": colour(1)}
    pixels = drawn(overlay.feature, target)
    outline = np.concatenate([pixels[49, 10:60], pixels[20:50, 59]])
    assert (outline == colour(0)).all()
    assert (pixels[2, 2:8] == colour(1)).all()
    assert not changed(pixels[:20, 9:]).any()
    assert not changed(pixels[3:5, 3:7]).any()  # no name in the small box
    assert changed(pixels[21:30, 11:20]).all()  # the name
    assert not changed(pixels[35:49, 11:59]).any()
    np.testing.assert_array_equal(drawn(overlay.feature, boxes((5, 10, 30, 25), (1, 1, 4, 3)), scale=2), pixels)


def test_points_are_dots_where_they_are_in_the_image() -> None:
    target = PointsTarget(np.array([[10, 20, 2], [40, 20, 0], [30, 50, 1]], np.float32))
    overlay = Overlay(Points(3), target)
    assert overlay.classes() == {}
    pixels = drawn(overlay.feature, target)
    assert (pixels[20, 10] == colour(0)).all()
    assert (pixels[50, 30] == colour(2)).all()
    ys, xs = np.nonzero(changed(pixels))
    assert (np.hypot(xs - 10, ys - 20) < 4).sum() + (np.hypot(xs - 30, ys - 50) < 4).sum() == len(xs)


def test_places_and_classes_of_a_damaged_cache_are_drawn_as_far_as_they_go() -> None:
    damaged = np.array([[np.nan, 10, 1e30, 40], [-np.inf, -5, 20, np.inf]], np.float32)
    target = BoxesTarget(damaged, np.array([-1, 7]))
    assert [*Overlay(Boxes(("ox",)), target).classes()] == ["-1", "7"]
    assert changed(drawn(Boxes(("ox",)), target)).any()
    drawn(Points(1), PointsTarget(np.array([[np.nan, np.inf, np.nan]], np.float32)))


def test_colours_of_neighbouring_classes_differ() -> None:
    colours = np.array([colour(number) for number in range(12)])
    distances = np.abs(colours[:, None] - colours[None]).max(axis=2)
    assert distances[~np.eye(12, dtype=bool)].min() > 30
    assert np.diag(distances, 1).min() > 150


def first(*targets: str) -> tuple[Features, Record]:
    return read_first("synthetic:1", SourceConfig(target=targets))


def test_a_preview_draws_a_mask_where_the_chain_moves_it(tmp_path: Path) -> None:
    chain = parse("decode|resize(128) || flip_lr|rotate(30)")
    sheets = []
    for target in ("label", "mask"):
        features, record = first(target)
        write_preview(chain, record, features, tmp_path / f"{target}.png", seed=1)
        sheets.append(np.asarray(Image.open(tmp_path / f"{target}.png")).astype(int))
    plain, tinted = sheets
    assert len(tinted) == len(plain) + 24  # the legend
    mask = Mask(("background", "bar", "cross", "disc", "square")).decode(record.targets[0])
    for epoch in range(24):
        _, (moved,) = chain.with_targets(record.data, [mask], key=record.key, seed=1, n=epoch, variants=1)
        assert isinstance(moved, MaskTarget)
        top, left = (6 + (epoch + 2) // 8 * 152, 6 + (epoch + 2) % 8 * 134)
        tile = np.s_[top : top + TILE, left : left + TILE]
        difference = np.abs(tinted[tile] - plain[tile]).max(axis=2)
        assert (difference[moved.ids[:, :, 0] == 0] == 0).all()
        assert (difference[moved.ids[:, :, 0] > 0] > 5).mean() > 0.95


def test_a_preview_refuses_a_target_that_is_malformed(tmp_path: Path) -> None:
    features, record = first("mask")
    broken = Record(record.key, (b"no mask",), record.data, 0)
    with pytest.raises(ValueError, match=r"^'bar/00000000\.jpg' cannot be used: its mask cannot be decoded: "):
        write_preview(parse("decode"), broken, features, tmp_path / "sheet.png")
    assert not any(tmp_path.iterdir())


def test_the_first_record_of_a_source_is_the_first_that_it_lists(photo_folder: Path) -> None:
    features, record = read_first(str(photo_folder))
    source = open_source(photo_folder)
    assert features == source.features
    assert record == next(iter(next(iter(source.units)).read()))


def test_an_image_is_a_record_without_targets(tmp_path: Path, photo: bytes) -> None:
    (tmp_path / "one.image").write_bytes(photo)
    assert read_first(str(tmp_path / "one.image")) == ({}, Record("one.image", (), photo, 0))
    with pytest.raises(SourceError, match="is one image: drop --target, or give the folder of its images"):
        read_first(str(tmp_path / "one.image"), SourceConfig(target="mask"))


def test_the_sheet_of_a_cache_draws_what_each_image_has(tmp_path: Path) -> None:
    options = {"val_fraction": 0, "shards": 1, "workers": 1}
    sheets = []
    for format, encoding in (("arrow", "raw"), ("arrow", "png"), ("tfrecord", "raw"), ("tfrecord", "png")):
        cache = tmp_path / f"{format}-{encoding}"
        build(
            "synthetic:4",
            cache,
            "decode|resize(128)",
            target=["mask", "area"],
            format=format,
            encoding=encoding,
            **options,
        )
        write_contact_sheet(cache, tmp_path / "sheet.png")
        sheets.append((tmp_path / "sheet.png").read_bytes())
    assert len({*sheets}) == 1
    opened = open_cache(cache)
    masks = opened.targets("train")["mask"]
    with Image.open(tmp_path / "sheet.png") as sheet:
        picture = np.asarray(sheet).astype(int)
    for row in range(4):
        target = target_of(masks, row)
        assert isinstance(target, MaskTarget)
        [encoded] = opened.images("train").views(np.array([row]))
        image = np.asarray(Image.open(io.BytesIO(bytes(encoded)))).astype(int)
        difference = np.abs(picture[6 : 6 + TILE, 6 + 134 * row :][:, :TILE] - image).max(axis=2)
        np.testing.assert_array_equal(difference > 0, target.ids[:, :, 0] > 0)


def test_the_sheet_of_a_cache_has_the_boxes_and_points_of_the_last_op(tmp_path: Path) -> None:
    build("synthetic:2", tmp_path / "cache", "decode|resize(64)", target=["boxes", "points"], val_fraction=0, workers=1)
    write_contact_sheet(tmp_path / "cache", tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        picture = np.asarray(sheet)
    targets = open_cache(tmp_path / "cache").targets("train")
    for row, tile in enumerate((picture[6:, 6:], picture[6:, 140:])):
        boxes, points = target_of(targets["boxes"], row), target_of(targets["points"], row)
        assert isinstance(boxes, BoxesTarget)
        assert isinstance(points, PointsTarget)
        [[left, top, right, bottom]], [number] = (2 * boxes.boxes).round().astype(int), boxes.classes
        edges = np.concatenate([tile[bottom - 1, left:right], tile[top:bottom, right - 1]])
        assert ((edges == colour(number)).all(axis=1)).mean() > 0.6  # dots cover the rest
        x, y = (2 * points.points[0, :2]).round().astype(int)
        assert (tile[y - 1 : y + 2, x - 1 : x + 2] == colour(0)).all(axis=2).any()
