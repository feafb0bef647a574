"""Masks in files: which image each belongs to, and what is refused or rejected."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeSource, encoded, small_photo, write_files
from PIL import Image
from sources import records, splits

import joulecache as jc
from joulecache.pipelines.source import ImageFile, Source, SourceConfig, SourceError, TarMember, open_source
from joulecache.pipelines.source.features import ClassLabel
from joulecache.pipelines.source.spatial import Mask

Run = Callable[..., tuple[int, str, str]]


def mask(*ids: int) -> bytes:
    return encoded(np.array([ids], np.uint8)[:, :, None], "PNG")


def write(folder: Path, *names: str, start: int = 0) -> Path:
    """Write masks whose first pixel tells them apart; return the folder."""
    return write_files(folder, {name: mask(number, 99) for number, name in enumerate(names, start)})


def write_images(folder: Path, *names: str) -> Path:
    return write_files(folder, dict.fromkeys(names, b"jpeg"))


def found(source: Source) -> dict[str, int]:
    """Return the first id of the mask of each image."""
    [(name, feature)] = source.features.items()
    assert name == "mask"
    assert isinstance(feature, Mask)
    return {record.key: int(feature.decode(record.targets[0]).ids[0, 0, 0]) for record in records(source)}


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (("0.jpg", "1.jpg"), ("0.png", "1.png")),
        (("a/0.jpg", "b/1.jpg"), ("a/0.png", "b/1.png")),
        (("a/0.jpg", "b/1.jpg"), ("0.png", "1.png")),
        (("0.jpg", "1.jpg"), ("x/0.png", "y/1.png")),
        (("0_image.jpg", "1_image.jpg"), ("0_mask.gif", "1_mask.gif")),
        (("a/0_leftImg8bit.png", "a/1_leftImg8bit.png"), ("a/0_gtFine_labelIds.png", "a/1_gtFine_labelIds.png")),
        (("train/images/0.jpg", "val/images/0.jpg"), ("train/masks/0.png", "val/masks/0.png")),
    ],
)
def test_masks_are_matched_by_name(tmp_path: Path, images: tuple[str, ...], masks: tuple[str, ...]) -> None:
    source = open_source(
        write_images(tmp_path / "images", *images), SourceConfig(masks=write(tmp_path / "truth", *masks))
    )
    assert found(source) == {name: number for number, name in enumerate(images)}
    assert source.features == {"mask": Mask()}
    assert source.notes == (f"masks with ids 0 to 99 from {tmp_path / 'truth'}",)
    [unit, _] = source.units
    assert isinstance(unit, ImageFile)
    assert unit.targets == (None,)
    assert unit.size_bytes == len(b"jpeg") + unit.files[0].size_bytes


def test_masks_inside_the_source_are_no_images(tmp_path: Path) -> None:
    write_images(tmp_path / "images", "0.jpg", "1.jpg")
    write(tmp_path / "masks", "0.png", "1.png")
    with pytest.raises(
        SourceError, match="'masks' looks like masks of the images in 'images': pass --masks FOLDER to read them"
    ):
        open_source(tmp_path)
    source = open_source(tmp_path, SourceConfig(masks=tmp_path / "masks"))
    assert found(source) == {"images/0.jpg": 0, "images/1.jpg": 1}
    assert not source.skipped


def test_a_pattern_names_the_masks_of_each_split(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "test")):
        write_images(tmp_path / split / "images", "0.jpg", "1.jpg")
        write(tmp_path / split / "masks", "0.png", "1.png", start=2 * number)
    source = open_source(tmp_path, SourceConfig(masks=f"{tmp_path}/*/masks"))
    assert found(source) == {
        "train/images/0.jpg": 0,
        "train/images/1.jpg": 1,
        "test/images/0.jpg": 2,
        "test/images/1.jpg": 3,
    }
    assert splits(source)["test/images/0.jpg"] == "test"
    one = open_source(tmp_path, SourceConfig(masks=f"{tmp_path}/train/masks/*.png", splits={"train": "train/images"}))
    assert found(one) == {"train/images/0.jpg": 0, "train/images/1.jpg": 1}


def test_masks_in_the_folder_of_the_images(tmp_path: Path) -> None:
    write_images(tmp_path, "0.jpg", "1.jpg")
    write(tmp_path, "0_mask.png", "1_mask.png")
    source = open_source(tmp_path, SourceConfig(masks=tmp_path))
    assert found(source) == {"0.jpg": 0, "1.jpg": 1}
    assert source.notes == (f"masks with ids 0 to 99 from {tmp_path}",)


def test_jpeg_masks_of_two_levels_are_read_and_others_rejected(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", "0.jpg", "1.jpg")
    levels = (255, 3)
    files = {
        f"{n}.jpg": encoded(np.full((8, 8, 1), level, np.uint8), "JPEG", quality=95) for n, level in enumerate(levels)
    }
    source = open_source(images, SourceConfig(masks=write_files(tmp_path / "masks", files)))
    one, other = (record.targets[0] for record in records(source))
    Mask().decode(one)
    with pytest.raises(ValueError, match="a JPEG changes class ids: save masks as PNG"):
        Mask().decode(other)


def test_an_image_without_a_mask_is_rejected_and_a_mask_without_an_image_counted(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", "0.jpg", "1.jpg", "2.jpg")
    masks = write(tmp_path / "masks", "0.png", "1.png", "9.png")
    source = open_source(images, SourceConfig(masks=masks))
    assert source.refused == (("2.jpg", f"it has no mask in {masks}"),)
    assert source.notes[-1] == f"{masks} has 1 mask of images that the source does not have, such as '9.png'"
    (masks / "0.png").unlink()
    with pytest.raises(FileNotFoundError):
        records(source)


def test_a_mask_that_was_written_later_is_seen(tmp_path: Path) -> None:
    images, masks = write_images(tmp_path / "images", "0.jpg"), write(tmp_path / "masks", "0.png")
    os.utime(images / "0.jpg", ns=(5, 5))
    os.utime(masks / "0.png", ns=(7, 7))
    assert [unit.mtime_ns for unit in open_source(images, SourceConfig(masks=masks)).units] == [7]
    os.utime(images / "0.jpg", ns=(9, 9))
    assert [unit.mtime_ns for unit in open_source(images, SourceConfig(masks=masks)).units] == [9]


@pytest.mark.parametrize(
    ("ids", "names"),
    [
        ([(0, 255), (0, 0)], ("background", "foreground")),
        ([(0, 1), (1, 1)], ("background", "foreground")),
        ([(0, 0), (0, 0)], ()),
        ([(0, 1), (0, 255)], ()),
        ([(0, 1), (0, 2)], ()),
    ],
)
def test_binary_masks_have_names(tmp_path: Path, ids: list[tuple[int, ...]], names: tuple[str, ...]) -> None:
    images = write_images(tmp_path / "images", "0.jpg", "1.jpg")
    write_files(tmp_path / "masks", {f"{number}.png": mask(*each) for number, each in enumerate(ids)})
    source = open_source(images, SourceConfig(masks=tmp_path / "masks"))
    assert source.features == {"mask": Mask(names)}
    assert ("background and foreground" in source.notes[0]) == bool(names)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({}, r"^no images in the folder of masks '.*': expected masks named like the images"),
        (
            {"7.png": mask(1)},
            r"^no mask in '.*' is named like an image of the source: got '7.png', expected names such as '0.png'",
        ),
        (
            {"0.png": mask(1), "0.bmp": mask(1), "1.png": mask(1)},
            r"^'0.bmp' and '0.png' in '.*' are masks of the same image: keep one",
        ),
        (
            {"0.png": encoded(np.zeros((2, 2, 3), np.uint8), "PNG"), "1.png": b"no image"},
            r"^the masks in '.*' are not usable: its mask cannot be decoded: ",
        ),
        (
            {name: encoded(np.full((2, 2, 1), 7, np.uint8), "JPEG") for name in ("0.jpg", "1.jpg")},
            r"^the masks in '.*' are not usable: .*: a JPEG changes class ids: save masks as PNG$",
        ),
    ],
)
def test_unusable_masks_are_refused(tmp_path: Path, masks: dict[str, bytes], message: str) -> None:
    images = write_images(tmp_path / "images", "0.jpg", "1.jpg")
    (tmp_path / "masks").mkdir()
    write_files(tmp_path / "masks", masks)
    with pytest.raises(SourceError, match=message):
        open_source(images, SourceConfig(masks=tmp_path / "masks"))


def test_a_mask_that_may_be_of_two_images_is_refused(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", "a/0.jpg", "b/0.jpg")
    with pytest.raises(
        SourceError, match=r"^the mask '0.png' in '.*' may be of 'a/0.jpg' or 'b/0.jpg': put masks into"
    ):
        open_source(images, SourceConfig(masks=write(tmp_path / "masks", "0.png")))
    with pytest.raises(SourceError, match=r"^no masks at '.*none': expected a folder of images, or a pattern"):
        open_source(images, SourceConfig(masks=tmp_path / "none"))


def test_images_alone(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", "a/0.jpg", "b/1.jpg")
    source = open_source(images, SourceConfig(target="none"))
    assert (source.features, [record.targets for record in records(source)]) == ({}, [(), ()])
    with pytest.raises(ValueError, match="target 'none' means images alone: drop it, or masks and coco"):
        SourceConfig(target="none", masks=images)


def test_no_cache_is_written_into_a_folder_of_masks(run: Run, tmp_path: Path) -> None:
    images, masks = write_images(tmp_path / "images", "0.jpg"), write(tmp_path / "masks", "0.png")
    code, _, err = run("precompute", images, masks / "cache", "--chain", "decode|resize(4)", "--masks", masks)
    assert code == 2
    assert f"joulecache: source '{masks}' and cache '{masks / 'cache'}' overlap" in err
    assert [path.name for path in masks.iterdir()] == ["0.png"]


def test_masks_next_to_the_images_of_a_tar(make_tar: MakeSource) -> None:
    files = {"a/0.jpg": b"x", "a/0.seg.png": mask(5, 7), "a/1.jpg": b"x", "a/1.seg.png": mask(6, 7), "a/2.jpg": b"x"}
    tar = make_tar(files)
    source = open_source(tar)
    assert found(source) == {"a/0.jpg": 5, "a/1.jpg": 6}
    assert source.refused == (("a/2.jpg", "it has no mask in files such as 'a/0.seg.png'"),)
    assert source.notes == ("masks with ids 5 to 7 from files such as 'a/0.seg.png'",)
    assert source.skipped == {"(mask)": 2}
    [unit, _] = source.units
    assert isinstance(unit, TarMember)
    assert unit.size_bytes == len(b"x") + len(mask(5, 7))


def test_a_tar_of_cls_files_and_masks_has_both(make_tar: MakeSource) -> None:
    files = {
        "0.jpg": b"x",
        "0.seg.png": mask(5, 7),
        "0.cls": b"1",
        "1.jpg": b"x",
        "1.seg.png": mask(6, 7),
        "1.cls": b"0",
    }
    both = open_source(make_tar(files), SourceConfig(target=("mask", "cls")))
    assert both.features == {"mask": Mask(), "cls": ClassLabel(("0", "1"))}
    assert [record.targets[1] for record in records(both)] == [1, 0]


def test_a_tar_of_classes_and_masks_has_both(make_tar: MakeSource) -> None:
    files = {"0.jpg": b"x", "0.seg.png": mask(5, 7), "0.json": b'{"kind": "a", "at": [[1, 2]]}'}
    tar = make_tar(files)
    source = open_source(tar, SourceConfig(target=("mask:mask", "kind:class", "at:points")))
    assert [*source.features] == ["mask", "kind", "at"]
    [record] = records(source)
    assert (record.targets[0], record.targets[1]) == (mask(5, 7), 0)
    classes = make_tar({"0.jpg": b"x", "0.seg.png": mask(5, 7), "0.cls": b"3"})
    both = open_source(classes, SourceConfig(target=("mask:mask", "cls")))
    assert [record.targets for record in records(both)] == [(mask(5, 7), 3)]
    assert [*both.features] == ["mask", "cls"]
    source = open_source(classes)
    assert source.class_names == ("0", "1", "2", "3")
    assert source.notes == (
        "1 image named like masks is left out, such as '0.seg.png': pass --target mask:mask to read masks",
    )
    with pytest.raises(
        SourceError, match=r"^'0.seg.png' and '0.mask.png' are masks of the same image '0.jpg': keep one"
    ):
        open_source(make_tar({"0.jpg": b"x", "0.seg.png": mask(5), "0.mask.png": mask(5)}))
    with pytest.raises(SourceError, match=r"^no masks for --target mask:mask in .*: pass their folder as --masks"):
        open_source(make_tar({"0.jpg": b"x"}), SourceConfig(target="mask:mask"))


def test_masks_next_to_the_images_of_a_folder(tmp_path: Path) -> None:
    write_images(tmp_path, "0.jpg", "1_image.jpg")
    write(tmp_path, "0_mask.png", "1_mask.png")
    assert found(open_source(tmp_path, SourceConfig(target="mask:mask"))) == {"0.jpg": 0, "1_image.jpg": 1}


def test_a_changed_mask_is_built_again(tmp_path: Path) -> None:
    photos = write_files(tmp_path / "images", {f"{n}.jpg": small_photo(n) for n in range(6)})

    def solid(number: int, level: int) -> bytes:
        with Image.open(photos / f"{number}.jpg") as photo:
            width, height = photo.size
        return encoded(np.full((height, width, 1), level, np.uint8), "PNG")

    folder = write_files(tmp_path / "masks", {f"{n}.png": solid(n, n) for n in range(6)})
    options: dict[str, Any] = {"masks": folder, "val_fraction": 0, "shards": 1}
    built = jc.precompute(photos, tmp_path / "cache", "decode|resize(4)", **options)
    assert built.manifest.splits["train"].records == 6
    assert jc.precompute(photos, tmp_path / "cache", "decode|resize(4)", **options).unchanged
    (folder / "3.png").write_bytes(solid(3, 77))
    again = jc.precompute(photos, tmp_path / "cache", "decode|resize(4)", **options)
    assert (again.unchanged, again.copied) == (False, 5)
    ids = {int(each) for _, batch in jc.load(tmp_path / "cache", "train", 2) for each in batch.numpy()[:, 0, 0, 0]}
    assert ids == {0, 1, 2, 77, 4, 5}


def test_masks_and_a_class_of_a_tar(make_tar: MakeSource) -> None:
    files = {"0.jpg": b"x", "0.seg.png": mask(5, 7), "0.json": b'{"kind": "a"}'}
    source = open_source(make_tar(files), SourceConfig(target=("mask:mask", "kind")))
    assert [*source.features] == ["mask", "kind"]


def test_a_folder_of_images_and_masks_is_no_folder_of_masks(tmp_path: Path) -> None:
    write_images(tmp_path / "images", "0.jpg")
    write(tmp_path / "masks", "0.png")
    with pytest.raises(
        SourceError, match=r"^the folder of masks '.*' has the images too: give a folder that has only masks"
    ):
        open_source(tmp_path / "images", SourceConfig(masks=tmp_path))
    with pytest.raises(ValueError, match=r"^masks must be a path, got 5$"):
        SourceConfig(masks=5)  # type: ignore[arg-type]
