"""Keras' `image_dataset_from_directory` over a cache: its listing, labels and order, with images that are decoded once."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from joulecache.pipelines.building.local_destination import existing_cache
from joulecache.pipelines.building.precomputing import BuildProgress, precompute
from joulecache.pipelines.cache.cache import open_cache
from joulecache.pipelines.cache.errors import CacheError
from joulecache.pipelines.cache.manifest import Manifest
from joulecache.pipelines.cache.names import SPLITS
from joulecache.pipelines.loading.split import CachedSplit
from joulecache.pipelines.source import SourceError
from joulecache.pipelines.source.folder import list_folder
from joulecache.pipelines.source.naming import as_splits, first_folders
from joulecache.transforms.chain import Chain
from joulecache.transforms.ops import Decode, Resize
from joulecache.transforms.randomness import key_hash

_CHANNELS = {"rgb": 3, "grayscale": 1}
_ONLY: Mapping[str, tuple[object, ...]] = {
    "color_mode": tuple(_CHANNELS),
    "interpolation": ("bilinear",),
    "follow_links": (False,),
    "crop_to_aspect_ratio": (False,),
    "pad_to_aspect_ratio": (False,),
    "data_format": ("channels_last",),
    "format": ("tf",),
}
_CLASS = "all"  # of every image in the cache: labels may differ from call to call
_QUIET_S = 2  # before a build says how far it is


def image_dataset_from_directory(
    directory: str | os.PathLike[str],
    labels: str | Sequence[int] | None = "inferred",
    label_mode: str | None = "int",
    class_names: Sequence[str] | None = None,
    color_mode: str = "rgb",
    batch_size: int | None = 32,
    image_size: int | Sequence[int] = (256, 256),
    shuffle: bool = True,
    seed: int | None = None,
    validation_split: float | None = None,
    subset: str | None = None,
    interpolation: str = "bilinear",
    follow_links: bool = False,
    crop_to_aspect_ratio: bool = False,
    pad_to_aspect_ratio: bool = False,
    data_format: str | None = None,
    format: str = "tf",
    verbose: bool = True,
    *,
    cache_dir: str | os.PathLike[str],
) -> Any:
    """Return what `keras.utils.image_dataset_from_directory` returns, with the images out of a cache that the first call fills.

    Arguments, listing, labels, splits and the order of every epoch are Keras' own. `cache_dir` is a folder that is empty or does not
    exist, for this directory, size and colours alone. All images of the directory are cached, whichever are asked for; a later call
    computes those that were added or changed. Labels are not cached: each call takes them from the directory.

    Images are float32 ``[B, H, W, C]``. Where they have another size than the file they are not those of Keras: resized with
    antialias, in whole levels 0 to 255; and they are turned as EXIF says.

    Raises ValueError for arguments, SourceError for an image that cannot be cached, CacheError for a `cache_dir` that holds
    something else, BuildError when no image can be cached or the disk fails.
    """
    given = dict(locals())
    del given["cache_dir"]
    _refuse_unsupported(**given)
    for name, path in (("directory", directory), ("cache_dir", cache_dir)):
        if "://" in os.fspath(path):
            raise ValueError(f"{name} must be a folder on this machine, got {os.fspath(path)!r}: copy it here")
    if seed is None and not (shuffle and validation_split):  # for these Keras wants one
        given["seed"] = seed = np.random.randint(1_000_000)  # noqa: NPY002 - as Keras draws it, so that np.random.seed counts
    if isinstance(labels, list | tuple):
        given["labels"] = list(labels)  # Keras shuffles the list that it is given
    listed = keras.utils.image_dataset_from_directory(**given)
    size = image_size if isinstance(image_size, int) else (image_size[0], image_size[1])
    chain = Chain((Decode(channels=_CHANNELS[color_mode]), Resize(size)), cut=2)
    images = _CachedImages(Path(directory).absolute(), Path(cache_dir), chain, verbose)
    parts = listed if subset == "both" else [listed]
    classes = parts[0].class_names  # None where labels are not asked for
    label_of = None if classes is None else _label_of(directory, labels, classes)
    prefix = os.path.join(directory, "")  # noqa: PTH118 - what Keras puts before the names, "./" for "."
    datasets = []
    for part in parts:
        columns: Any = images.rows([path.removeprefix(prefix) for path in part.file_paths])
        if label_of:
            columns = columns, list(map(label_of, part.file_paths))
        dataset = tf.data.Dataset.from_tensor_slices(columns)
        if shuffle and (subset != "both" or part is parts[0]):
            dataset = dataset.shuffle(1024 if batch_size is None else batch_size * 8, seed=seed)
        if batch_size is not None:
            dataset = dataset.batch(batch_size)
        dataset = dataset.map(_element(images, label_mode, len(classes or ()))).prefetch(tf.data.AUTOTUNE)
        dataset.class_names, dataset.file_paths = classes, part.file_paths
        datasets.append(dataset)
    return datasets if subset == "both" else datasets[0]


def _refuse_unsupported(interpolation: str, data_format: str | None, **given: object) -> None:
    given["interpolation"] = interpolation.lower()
    given["data_format"] = data_format or keras.config.image_data_format()
    for name, allowed in _ONLY.items():
        if given[name] not in allowed:
            raise ValueError(
                f"{name} must be {' or '.join(map(repr, allowed))}, got {given[name]!r}: for that take Keras' own function, "
                f"which does not cache"
            )


def _label_of(directory: Any, labels: Any, class_names: Sequence[str]) -> Callable[[str], Any]:
    """Return what gives the label of a path."""
    if labels == "inferred":
        label = {name: place for place, name in enumerate(class_names)}
        start = len(os.path.join(directory, ""))  # noqa: PTH118
        return lambda path: label[path[start:].partition("/")[0]]
    in_order = keras.utils.image_dataset_from_directory(directory, labels=None, shuffle=False, verbose=False)
    return dict(zip(in_order.file_paths, labels, strict=True)).__getitem__


def _element(images: _CachedImages, label_mode: str | None, classes: int) -> Callable[..., Any]:
    """Return the function from rows, and labels if there are any, to what Keras gives of them."""

    def element(rows: Any, *labels: Any) -> Any:
        levels = tf.numpy_function(images.gather, [rows], tf.uint8)
        pixels = tf.cast(tf.ensure_shape(levels, [*rows.shape, *images.shape]), tf.float32)
        if not labels:
            return pixels
        if label_mode == "binary":
            return pixels, tf.expand_dims(tf.cast(labels[0], tf.float32), -1)
        return pixels, tf.one_hot(labels[0], classes) if label_mode == "categorical" else labels[0]

    return element


class _CachedImages:
    """All images of a directory, in a cache that is brought up to date."""

    def __init__(self, directory: Path, cache: Path, chain: Chain, verbose: bool) -> None:
        _refuse_other(existing_cache(cache), directory, cache, chain)
        manifest = _build(directory, cache, chain, verbose)
        # Folders called train, val and test are splits to a cache, where Keras may take them for classes.
        opened = open_cache(cache)
        self._splits = [CachedSplit(opened, name) for name in SPLITS if manifest.splits[name].records]
        self._ends = np.cumsum([len(split) for split in self._splits])
        self._directory, self._rejected = directory, cache / manifest.rejected.name
        self.shape = self._splits[0].image_shape

    def rows(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Return where images are, by their paths inside the directory. Raises SourceError for one that is not cached."""
        hashes = np.concatenate([split.key_hashes for split in self._splits])
        row_of = {hashed: row for row, hashed in enumerate(hashes.tolist())}
        rows = [row_of.get(key_hash(name), -1) for name in names]
        missing = [name for name, row in zip(names, rows, strict=True) if row < 0]
        if missing:
            raise SourceError(
                f"{len(missing)} of {len(names)} images in {str(self._directory)!r} cannot be cached, such as "
                f"{min(missing)!r}, {self._reason(min(missing))}: mend or delete it, or take Keras' own function"
            )
        return np.array(rows, np.int64)

    def gather(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the images of rows of any shape, uint8 ``[*rows, H, W, C]``."""
        flat = np.reshape(rows, -1)
        if len(self._splits) == 1:
            images = self._splits[0].images(flat, 0)
        else:
            images = np.empty((len(flat), *self.shape), np.uint8)
            which = np.searchsorted(self._ends, flat, side="right")
            for place, split in enumerate(self._splits):
                images[which == place] = split.images(flat[which == place] - (self._ends[place] - len(split)), 0)
        return images.reshape(*np.shape(rows), *self.shape)

    def _reason(self, name: str) -> str:
        with open(self._rejected, encoding="utf-8") as lines:
            for reject in map(json.loads, lines):
                if reject["key"] == name:
                    return str(reject["reason"])
        if any(part.startswith(".") for part in name.split("/")):
            return "which is hidden"
        return "which is no regular file, or lies behind a link to a folder"


def _refuse_other(there: Manifest | None, directory: Path, cache: Path, chain: Chain) -> None:
    """Raise CacheError for a cache of another directory, or other images of this one: it would be made anew at each call."""
    if there is None:
        return
    source = Path(there.source.location)  # it may have moved since
    if source.exists() and not source.samefile(directory):
        raise CacheError(
            f"{str(cache)!r} holds the images of {str(source)!r}: give {str(directory)!r} a cache_dir of its own"
        )
    if (there.chain, there.class_names) != (str(chain), (_CLASS,)):
        raise CacheError(
            f"{str(cache)!r} holds {there.chain!r} with classes {list(there.class_names[:5])}, not {str(chain)!r} without: give "
            f"each image_size and color_mode a cache_dir of its own"
        )


def _build(directory: Path, cache: Path, chain: Chain, verbose: bool) -> Manifest:
    """Cache all images below a directory, whatever lies beside what."""
    names = list_folder(directory).names
    splits = as_splits(first_folders(names)[0]) if names else None
    with tempfile.TemporaryDirectory() as folder, _progress(verbose) as tell:
        labels = Path(folder, "labels.csv")
        with open(labels, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("name", "label"), *((name, _CLASS) for name in names)])
        return precompute(
            directory,
            cache,
            chain,
            val_fraction=None if "val" in (splits or ()) else 0,  # where the folders hold out, it may not be given
            labels=labels,
            max_reject_rate=1,  # those that are asked for are missed when they are looked up
            progress=tell,
        ).manifest


@contextmanager
def _progress(verbose: bool) -> Iterator[Callable[[BuildProgress], None]]:
    """Show on a terminal how far a build is that takes long."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not (verbose and console.is_terminal)) as bars:
        task = bars.add_task("images", total=None, visible=False)
        yield lambda now: bars.update(task, completed=now.done, total=now.records, visible=now.duration_s > _QUIET_S)
