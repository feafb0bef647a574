"""Keras' image_dataset_from_directory over a cache: what Keras gives, in its order, with images that are decoded once."""

from __future__ import annotations

import copy
import inspect
import io
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import write_files
from numpy.typing import NDArray
from PIL import Image

from joulecache.pipelines.building.config import BuildError
from joulecache.pipelines.building.precomputing import precompute
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.manifest_io import open_manifest
from joulecache.pipelines.loading.directory import image_dataset_from_directory
from joulecache.pipelines.source import SourceError
from joulecache.transforms.chain import parse
from joulecache.transforms.images import encode_png

keras_dataset = keras.utils.image_dataset_from_directory

ROOT = Path(__file__).parents[1]
SIZE = (6, 8)
COUNT = 23
LABELS = [number * number % 5 for number in range(COUNT)]

Epoch = list[tuple[NDArray[Any], ...]]


def swatch(number: int, suffix: str = ".png", mode: str = "RGB") -> bytes:
    """Encode an image of `SIZE` in one colour, whose first channel is the number: pixels say which file they are of."""
    stream = io.BytesIO()
    colour = (number, 255 - number, number * 7 % 256, 90)[: len(mode)] if mode != "L" else number
    Image.new(mode, SIZE[::-1], colour).save(stream, Image.registered_extensions()[suffix])
    return stream.getvalue()


def small(root: Path) -> Path:
    """Write six swatches in two classes."""
    return write_files(root, {f"{'ab'[n % 2]}/{n}.png": swatch(n) for n in range(6)})


@pytest.fixture(scope="module")
def swatches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in three classes, some of them deeper, beside files that are none; only to be read."""
    suffixes = [(".png", ".BMP")[n % 2] for n in range(COUNT)]
    names = [f"{'bac'[n % 3]}/{'deep/er/' * (n % 4 == 0)}{n:02d}{suffixes[n]}" for n in range(COUNT)]
    root = tmp_path_factory.mktemp("swatches")
    write_files(root, {name: swatch(n, suffixes[n].lower()) for n, name in enumerate(names)})
    return write_files(
        root, {"readme.txt": b"", "a/notes.txt": b"", ".hidden/x.txt": b"", "c/broken.webp": b"no image"}
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of the swatches, once they were loaded."""
    return tmp_path_factory.mktemp("cache")


def both(directory: Any, cache: Path, **arguments: Any) -> tuple[Any, Any]:
    """Return Keras' dataset and ours."""
    given = {"image_size": SIZE, "batch_size": 4, "seed": 7, "verbose": False, **arguments}
    theirs = keras_dataset(directory, **copy.deepcopy(given))  # Keras shuffles a list of labels in its place
    return theirs, image_dataset_from_directory(directory, cache_dir=cache, **given)


def ours(directory: Any, cache: Path, **arguments: Any) -> Any:
    given = {"image_size": SIZE, "batch_size": 4, "verbose": False, **arguments}
    return image_dataset_from_directory(directory, cache_dir=cache, **given)


def epoch(dataset: Any) -> Epoch:
    """Iterate once more."""
    return [one if isinstance(one, tuple) else (one,) for one in dataset.as_numpy_iterator()]


def numbers(came: Epoch) -> list[int]:
    """Return which swatches came."""
    return [int(image[0, 0, 0]) for images, *_ in came for image in images.reshape(-1, *images.shape[-3:])]


def assert_equal(theirs: Any, others: Any, epochs: int = 2) -> None:
    assert type(others) is type(theirs)
    for one, other in zip(*(parts if type(parts) is list else [parts] for parts in (theirs, others)), strict=True):
        assert other.class_names == one.class_names
        assert other.file_paths == one.file_paths
        assert other.element_spec == one.element_spec
        assert int(other.cardinality()) == int(one.cardinality())
        for _ in range(epochs):
            for expected, came in zip(epoch(one), epoch(other), strict=True):
                for values, found in zip(expected, came, strict=True):
                    assert values.dtype == found.dtype
                    np.testing.assert_array_equal(values, found)


def test_the_arguments_are_those_of_keras() -> None:
    *found, cache_dir = inspect.signature(image_dataset_from_directory).parameters.values()
    theirs = inspect.signature(keras_dataset).parameters.values()
    assert [(one.name, one.kind, one.default) for one in found] == [(one.name, one.kind, one.default) for one in theirs]
    assert (cache_dir.name, cache_dir.kind, cache_dir.default) == ("cache_dir", cache_dir.KEYWORD_ONLY, cache_dir.empty)


TRAINING, VALIDATION, BOTH = (
    {"validation_split": 0.3, "subset": subset} for subset in ("training", "validation", "both")
)
VARIATIONS: list[dict[str, Any]] = [
    {},
    {"shuffle": False, "seed": None},
    {"batch_size": None},
    {"batch_size": 100},
    {"image_size": list(SIZE), "interpolation": "Bilinear", "data_format": "channels_last"},
    {"label_mode": None},
    {"label_mode": "binary", "class_names": ["c", "a"]},
    {"label_mode": "binary", "class_names": ["a", "b"], "batch_size": None},
    {"class_names": ["c", "a", "b"]},
    {"labels": None, "shuffle": False, "batch_size": None},
    {"labels": LABELS},
    {"labels": LABELS, "shuffle": False, "label_mode": "categorical"},
    {"labels": [label % 2 for label in LABELS], "label_mode": "binary"},
    {"labels": [float(label) for label in LABELS]},
    TRAINING,
    VALIDATION,
    BOTH,
    {**BOTH, "shuffle": False, "seed": None},
    {**BOTH, "labels": None, "batch_size": None},
    {**BOTH, "label_mode": "categorical", "class_names": ["c", "a"]},
]


@pytest.mark.parametrize("arguments", VARIATIONS, ids=str)
def test_what_comes_is_what_keras_gives(swatches: Path, cache: Path, arguments: dict[str, Any]) -> None:
    assert_equal(*both(swatches, cache, **arguments))


def test_the_global_seed_counts_as_it_does_in_keras(swatches: Path, cache: Path) -> None:
    orders = []
    for seed in (1, 2):
        tf.random.set_seed(seed)
        theirs, dataset = both(swatches, cache)
        assert_equal(theirs, dataset)
        orders.append(numbers(epoch(dataset)))
    assert orders[0] != orders[1]


def test_a_seed_that_is_drawn_is_the_one_that_keras_draws(swatches: Path, cache: Path) -> None:
    paths = []
    for seed in (1, 2):
        np.random.seed(seed)  # noqa: NPY002 - what Keras draws from
        theirs = keras_dataset(swatches, image_size=SIZE, batch_size=4, verbose=False)
        np.random.seed(seed)  # noqa: NPY002
        dataset = ours(swatches, cache)
        assert_equal(theirs, dataset)
        paths.append(dataset.file_paths)
    assert paths[0] != paths[1]


def test_labels_that_are_given_stay_as_they_are_and_may_be_a_tuple(swatches: Path, cache: Path) -> None:
    given = list(LABELS)
    one, other = (ours(swatches, cache, labels=labels, seed=7) for labels in (given, tuple(given)))
    assert given == LABELS
    assert_equal(one, other)


def test_a_directory_is_found_however_it_is_written(
    swatches: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(swatches)
    (tmp_path / "link").symlink_to(swatches)
    for directory in (".", f"{swatches}/", f"../{swatches.name}//", str(swatches), tmp_path / "link"):
        assert_equal(*both(directory, cache), epochs=1)


# ------------------------------------------------------------------------------------------ pixels


def test_images_of_another_size_are_those_of_our_resize(
    photo_folder: Path, photos: dict[str, bytes], tmp_path: Path
) -> None:
    dataset = ours(photo_folder, tmp_path / "cache", image_size=24, batch_size=100, shuffle=False)
    [(images, _)] = epoch(dataset)
    assert images.dtype == np.float32
    expected = [parse("decode|resize(24)")(photos[name]) for name in sorted(photos)]
    np.testing.assert_array_equal(images, np.stack(expected))


def test_photos_of_the_size_are_within_what_jpeg_decoders_differ_by(tmp_path: Path, photo: bytes) -> None:
    theirs, dataset = both(
        write_files(tmp_path / "photos", {"a/3.jpg": photo}), tmp_path / "cache", image_size=(48, 64)
    )
    difference = np.abs(epoch(theirs)[0][0] - epoch(dataset)[0][0])
    assert difference.max() <= 8
    assert difference.mean() < 1


@pytest.mark.parametrize("batch_size", [None, 4])
def test_grey_images_have_one_channel(tmp_path: Path, batch_size: int | None) -> None:
    files = {f"{'ab'[n % 2]}/{n}.png": swatch(n * 20, mode="L") for n in range(10)}
    root = write_files(tmp_path / "grey", files)
    theirs, dataset = both(root, tmp_path / "cache", color_mode="grayscale", batch_size=batch_size)
    assert_equal(theirs, dataset)
    assert dataset.element_spec[0].shape[-1] == 1


def test_alpha_is_kept(tmp_path: Path) -> None:
    files = {f"{'ab'[n % 2]}/{n}.png": swatch(n * 20, mode="RGBA") for n in range(6)}
    theirs, dataset = both(write_files(tmp_path / "rgba", files), tmp_path / "cache", color_mode="rgba")
    assert_equal(theirs, dataset)
    assert dataset.element_spec[0].shape[-1] == 4


ASPECTS = [{"crop_to_aspect_ratio": True}, {"pad_to_aspect_ratio": True}]


@pytest.mark.parametrize("aspect", ASPECTS, ids=str)
def test_the_aspect_ratio_is_kept_as_keras_keeps_it(tmp_path: Path, aspect: dict[str, bool]) -> None:
    """Images whose window has the size of the result: neither resizes them."""
    files = {}
    for height, width in ((6, 4), (6, 11), (9, 8), (2, 8), (6, 8)):
        pixels = np.random.default_rng(height * width).integers(1, 256, (height, width, 3), np.uint8)
        fits = (height >= 6 and width >= 8) if "crop_to_aspect_ratio" in aspect else (height <= 6 and width <= 8)
        if fits:
            files[f"a/{height}x{width}.png"] = encode_png(pixels)
    assert len(files) == 3
    assert_equal(*both(write_files(tmp_path / "images", files), tmp_path / "cache", **aspect))


# ------------------------------------------------------------------------------------------ grain


GRAIN: list[dict[str, Any]] = [
    {},
    {"shuffle": False, "label_mode": "binary", "class_names": ["c", "a"]},
    {"batch_size": None, "label_mode": "categorical"},
    {"batch_size": None, "labels": None},
    {"labels": LABELS, "label_mode": None},
    BOTH,
]


@pytest.mark.parametrize("arguments", GRAIN, ids=str)
def test_grain_yields_what_keras_yields_with_grain(swatches: Path, cache: Path, arguments: dict[str, Any]) -> None:
    pytest.importorskip("grain")
    found = [
        parts if isinstance(parts, list) else [parts] for parts in both(swatches, cache, format="grain", **arguments)
    ]
    for theirs, dataset in zip(*found, strict=True):
        assert type(dataset).__mro__[-3:] == type(theirs).__mro__[-3:]
        assert (dataset.class_names, dataset.file_paths) == (theirs.class_names, theirs.file_paths)
        for _ in range(2):
            for expected, came in zip(theirs, dataset, strict=True):
                for one, other in zip(*map(keras.tree.flatten, (expected, came)), strict=True):
                    assert type(other) is type(one)
                    assert other.dtype == one.dtype
                    np.testing.assert_array_equal(one, other)


def test_worker_processes_of_grain_map_the_files(swatches: Path, cache: Path) -> None:
    pytest.importorskip("grain")
    dataset = ours(swatches, cache, format="grain", shuffle=False)
    pickled = cloudpickle.dumps(dataset)
    assert np.asarray(next(iter(dataset))[0][0]).astype(np.uint8).tobytes() not in pickled
    for one, other in zip(dataset, pickle.loads(pickled), strict=True):  # noqa: S301
        for values, found in zip(one, other, strict=True):
            np.testing.assert_array_equal(values, found)


def test_without_grain_it_says_what_installs_it(swatches: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ImportError, match=re.escape("format='grain' needs grain: pip install 'joulecache[grain]'")):
        ours(swatches, cache, format="grain")


# ------------------------------------------------------------------------------------------ Keras' own tests


@pytest.mark.slow
def test_keras_own_tests_pass() -> None:
    pytest.importorskip("keras.src.utils.image_dataset_utils_test")
    pytest.importorskip("grain")
    code = "import check_keras; raise SystemExit(check_keras.main(None))"
    path = os.pathsep.join([str(ROOT), str(ROOT / "scripts")])
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"Keras: (\d+) of \1 tests passed\n$", done.stdout)


# ------------------------------------------------------------------------------------------ the cache


def forge(path: Path) -> None:
    """Change the bytes of a file so that it looks as before."""
    before = path.stat()
    path.write_bytes(bytes(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_second_call_reads_no_image(tmp_path: Path) -> None:
    root, cache = small(tmp_path / "images"), tmp_path / "cache"
    first = numbers(epoch(ours(root, cache, seed=1)))
    manifest = (cache / "manifest.json").read_bytes()
    for path in root.rglob("*.png"):
        forge(path)
    for arguments in ({}, {"labels": None}, {"class_names": ["a", "b"]}, {"batch_size": 6}):
        dataset = ours(root, cache, seed=1, **arguments)
        assert sorted(numbers(epoch(dataset))) == sorted(first) == list(range(6))
    assert (cache / "manifest.json").read_bytes() == manifest


def test_what_is_added_changed_or_gone_is_noticed_and_the_rest_not_read(tmp_path: Path) -> None:
    root, cache = small(tmp_path / "images"), tmp_path / "cache"
    ours(root, cache)
    forge(root / "a/0.png")
    forge(root / "b/3.png")
    (root / "b/5.png").unlink()
    write_files(root, {"a/2.png": swatch(100), "b/new.png": swatch(101), "new/class.png": swatch(102)})
    dataset = ours(root, cache, shuffle=False)
    assert numbers(epoch(dataset)) == [0, 100, 4, 1, 3, 101, 102]
    assert dataset.class_names == ["a", "b", "new"]


def test_a_dataset_keeps_its_images_when_the_directory_changes(tmp_path: Path) -> None:
    root, cache = small(tmp_path / "images"), tmp_path / "cache"
    dataset = ours(root, cache, shuffle=False)
    write_files(root, {f"{'ab'[n % 2]}/{n}.png": swatch(n + 100) for n in range(6)})
    ours(root, cache)
    assert sorted(numbers(epoch(dataset))) == list(range(6))


def test_a_directory_that_moved_has_its_cache_still(tmp_path: Path) -> None:
    root, cache = small(tmp_path / "images"), tmp_path / "cache"
    ours(root, cache)
    root = root.rename(tmp_path / "moved")
    forge(root / "a/0.png")
    assert sorted(numbers(epoch(ours(root, cache)))) == list(range(6))


def test_another_directory_is_refused(tmp_path: Path) -> None:
    ours(small(tmp_path / "train"), tmp_path / "cache")
    with pytest.raises(CacheError, match=r"holds the images of '.*/train': use a separate cache_dir for '.*/val'"):
        ours(small(tmp_path / "val"), tmp_path / "cache")


@pytest.mark.parametrize("arguments", [{"image_size": 9}, {"color_mode": "rgba"}, *ASPECTS], ids=str)
def test_other_images_of_the_directory_are_refused(tmp_path: Path, arguments: dict[str, Any]) -> None:
    root = small(tmp_path / "images")
    ours(root, tmp_path / "cache")
    with pytest.raises(CacheError, match=r"holds 'decode\|resize\(\(6, 8\)\)' .* a separate cache_dir"):
        ours(root, tmp_path / "cache", **arguments)


def test_a_cache_with_classes_is_not_made_one_without(tmp_path: Path) -> None:
    root = small(tmp_path / "images")
    precompute(root, tmp_path / "cache", "decode|resize((6, 8))", val_fraction=0)
    with pytest.raises(CacheError, match=r"with classes a, b, not .* without"):
        ours(root, tmp_path / "cache")
    assert open_manifest(tmp_path / "cache").class_names == ("a", "b")


def test_folders_that_are_no_cache_are_refused(tmp_path: Path) -> None:
    root = small(tmp_path / "images")
    write_files(tmp_path / "mine", {"diary.txt": b""})
    with pytest.raises(CacheError, match="is not empty and not a joulecache cache"):
        ours(root, tmp_path / "mine")
    with pytest.raises(CacheError, match="overlap"):
        ours(root, root / "cache")


# ------------------------------------------------------------------------------------------ directories of other kinds


SIX = [f"{'ab'[n % 2]}/{n}.png" for n in range(6)]
LOOSE = [*SIX, "loose.png", "Loose, too\n.gif"]


def spread_over(*folders: str) -> list[str]:
    """Return images in folders, some of them deeper."""
    return [f"{folders[n % len(folders)]}/{'cat/' * (n % 5 > 2)}{n}.png" for n in range(17)]


LAYOUTS: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "flat": ("images", [f"{n}.png" for n in range(9)], {"labels": None}),
    "images beside classes": ("images", LOOSE, {}),
    "labels of images beside classes": ("images", LOOSE, {"labels": [3, 1, 2, 5, 4, 6, 7, 0]}),
    "splits of a cache": ("images", spread_over("train", "val"), {}),
    "splits without labels": ("images", spread_over("train", "test"), {"labels": None}),
    "splits by other names": ("images", spread_over("Validation", "test", "train"), {}),
    "splits inside a folder": ("images", spread_over("x/train", "x/val"), {}),
    "a name like a synthetic source": ("synthetic:9", SIX, {}),
    "a name like a pattern": ('[ab]*, été "1"', SIX, {}),
}


@pytest.mark.parametrize(("name", "files", "arguments"), LAYOUTS.values(), ids=LAYOUTS)
def test_any_layout_is_read_as_keras_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, files: list[str], arguments: dict[str, Any]
) -> None:
    write_files(tmp_path / name, {file: swatch(n, file[-4:]) for n, file in enumerate(files)})
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # built, and as it is found
        assert_equal(*both(name, tmp_path / "cache", **arguments))


def test_class_folders_may_be_empty_or_links_and_images_links(tmp_path: Path) -> None:
    root = small(tmp_path / "images")
    (root / "aa").mkdir()
    (root / "a/9.png").symlink_to(write_files(tmp_path / "elsewhere", {"9.png": swatch(9)}) / "9.png")
    (root / "c").symlink_to(root / "a")
    theirs, dataset = both(root, tmp_path / "cache", label_mode="categorical")
    assert_equal(theirs, dataset)
    assert dataset.class_names == ["a", "aa", "b", "c"]


@pytest.mark.parametrize("labels", ["inferred", list(range(7))], ids=["inferred", "given"])
def test_folders_behind_links_are_followed_on_request(tmp_path: Path, labels: Any) -> None:
    root = small(tmp_path / "images")
    (root / "a/more").symlink_to(write_files(tmp_path / "elsewhere", {"9.png": swatch(9)}))
    theirs, dataset = both(root, tmp_path / "cache", follow_links=True, shuffle=False, labels=labels)
    assert_equal(theirs, dataset)
    assert 9 in numbers(epoch(dataset))
    assert 9 not in numbers(epoch(ours(root, tmp_path / "cache", shuffle=False)))


def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    root = write_files(small(tmp_path / "images"), {"b/bad.png": b"no image", "b/cut.png": swatch(9)[:50]})
    with pytest.raises(SourceError, match=r"2 of 8 images in '.*/images' .* 'b/bad.png', not an image in one of the"):
        ours(root, tmp_path / "cache")
    with pytest.raises(SourceError, match=r"'b/bad.png', not an image in one of the"):  # out of the cache that is there
        ours(root, tmp_path / "cache")
    assert numbers(epoch(ours(root, tmp_path / "cache", class_names=["a"], shuffle=False))) == [0, 2, 4]
    write_files(root, {"b/bad.png": swatch(8), "b/cut.png": swatch(9)})
    assert numbers(epoch(ours(root, tmp_path / "cache", shuffle=False))) == [0, 2, 4, 1, 3, 5, 8, 9]


def test_a_directory_of_which_nothing_can_be_decoded_names_an_image(tmp_path: Path) -> None:
    root = write_files(tmp_path / "images", {"a/bad.png": b"no image"})
    with pytest.raises(BuildError, match=r"a/bad.png: not an image"):
        ours(root, tmp_path / "cache")


@pytest.mark.parametrize("name", ["a/.hidden.png", "a/.checkpoints/0.png", "@eaDir/a.png"])
def test_hidden_images_that_keras_lists_are_refused(tmp_path: Path, name: str) -> None:
    root = write_files(small(tmp_path / "images"), {name: swatch(9)})
    with pytest.raises(
        SourceError, match=f"1 of 7 images .*{re.escape(repr(name))}, which is hidden or in .* delete it"
    ):
        ours(root, tmp_path / "cache")


def test_links_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    root = small(tmp_path / "images")
    (root / "a/9.png").symlink_to(root / "nothing")
    with pytest.raises(SourceError, match="which is not a regular file"):
        ours(root, tmp_path / "cache")


# ------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("argument", "value", "allowed"),
    [
        ("interpolation", "nearest", "'bilinear'"),
        ("data_format", "channels_first", "'channels_last'"),
    ],
)
def test_what_is_not_cached_is_refused(
    swatches: Path, tmp_path: Path, argument: str, value: object, allowed: str
) -> None:
    with pytest.raises(ValueError, match=f"^{argument} must be {allowed}, got {value!r}: use keras.utils"):
        ours(swatches, tmp_path / "cache", **{argument: value})
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def channels_first() -> Iterator[None]:
    before = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format(before)


@pytest.mark.usefixtures("channels_first")
def test_the_data_format_of_keras_counts(swatches: Path, cache: Path) -> None:
    with pytest.raises(ValueError, match=r"^data_format must be 'channels_last', got 'channels_first'"):
        ours(swatches, cache)
    ours(swatches, cache, data_format="channels_last")


@pytest.mark.parametrize("which", ["directory", "cache_dir"])
def test_folders_elsewhere_are_refused(swatches: Path, tmp_path: Path, which: str) -> None:
    given: dict[str, Any] = {"directory": swatches, "cache_dir": tmp_path / "cache", which: "gs://bucket/images"}
    with pytest.raises(ValueError, match=f"^{which} must be a local folder, got 'gs://bucket/images': copy it"):
        image_dataset_from_directory(**given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"validation_split": 0.2, "subset": "training"}, "you must provide a `seed` argument"),
        ({"validation_split": 0.2}, "If `subset` is set, `validation_split` must be set"),
        ({"labels": LABELS, "class_names": ["a"]}, "You can only pass `class_names` if"),
        ({"labels": "other"}, "`labels` argument should be"),
        ({"label_mode": "other"}, "`label_mode` argument must be"),
        ({"color_mode": "other"}, "`color_mode` must be one of"),
        ({"format": "other"}, "`format` should be either"),
        ({"crop_to_aspect_ratio": True, "pad_to_aspect_ratio": True}, "Only one of `pad_to_aspect_ratio`"),
    ],
    ids=str,
)
def test_keras_refuses_what_it_refuses(swatches: Path, cache: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ours(swatches, cache, **arguments)


@pytest.mark.parametrize("labels", ["inferred", LABELS], ids=["inferred", "given"])
def test_a_split_that_holds_out_nothing_is_refused(swatches: Path, cache: Path, labels: Any) -> None:
    """Keras would validate on all images, those of the training too: keras-team/keras#23202."""
    arguments = {"subset": "validation", "seed": 1, "verbose": False, "labels": labels}
    with pytest.raises(ValueError, match=f"validation_split holds out none of {COUNT} images, got 0.04: raise it"):
        ours(swatches, cache, validation_split=0.04, **arguments)
    assert len(ours(swatches, cache, validation_split=0.05, **arguments).file_paths) == 1


@pytest.mark.parametrize("directory", ["nowhere", "empty", "synthetic:9"])
def test_a_directory_without_images_is_refused(tmp_path: Path, directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises((FileNotFoundError, ValueError), match=r"No such file|No images found"):
        ours(directory, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("verbose", "labels"), [(True, "inferred"), (True, LABELS), (False, "inferred")])
def test_it_says_what_keras_says_and_no_more(
    swatches: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], verbose: bool, labels: Any
) -> None:
    keras_dataset(swatches, list(labels) if isinstance(labels, list) else labels, seed=1, verbose=verbose, **BOTH)
    expected = capfd.readouterr().out
    assert ("Found 23 files" in expected) is verbose
    ours(swatches, tmp_path / "cache", labels=labels, seed=1, verbose=verbose, **BOTH)
    said = capfd.readouterr()
    assert (said.out, said.err) == (expected, "")
