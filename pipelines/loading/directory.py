"""Keras' `image_dataset_from_directory` with images that are decoded once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from joulecache.pipelines.core.checks import check_integer, check_path
from joulecache.pipelines.loading.directory_cache import DirectoryCache, cache_directory
from joulecache.pipelines.loading.grain_images import grain_dataset, require_grain
from joulecache.pipelines.loading.kept_alive import call_method, keep_alive
from joulecache.transforms.chain import Chain
from joulecache.transforms.ops import Decode, Resize

if TYPE_CHECKING:
    import grain

_CHANNELS = {"rgb": 3, "grayscale": 1, "rgba": 4}
_SUPPORTED: Mapping[str, str] = {"interpolation": "bilinear", "data_format": "channels_last"}


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
) -> tf.data.Dataset | grain.IterDataset | list[tf.data.Dataset] | list[grain.IterDataset]:
    """Load images from a directory as `keras.utils.image_dataset_from_directory` does, but decode each only once.

    Arguments, listing, labels, splits and the order of every epoch are those of Keras. The first call caches all images of the
    directory, whichever subset it loads; later calls cache those that were added or changed. Labels are not cached.

    Pixels differ from Keras' for images that are resized or rotated: they are resized with antialiasing, rounded to integers
    from 0 to 255, and rotated according to EXIF. With `pad_to_aspect_ratio`, images have the same black bars in both formats.

    Args:
        directory: The directory of the images.
        labels: ``inferred`` from the class folders, a list with a label for each file, or None.
        label_mode: ``int``, ``binary``, ``categorical`` or None.
        class_names: The class folders to load, in the order of their labels.
        color_mode: ``rgb``, ``rgba`` or ``grayscale``.
        batch_size: Images per batch; None for single images.
        image_size: Side of the images, or (height, width).
        shuffle: Whether to shuffle.
        seed: Seed of the shuffle and of the split.
        validation_split: Share of the images to hold out.
        subset: ``training``, ``validation`` or ``both``.
        interpolation: Only ``bilinear``.
        follow_links: Whether to load from folders behind links.
        crop_to_aspect_ratio: Keep the aspect ratio: use the largest central window that has the one of `image_size`.
        pad_to_aspect_ratio: Keep the aspect ratio: put images between black bars.
        data_format: Only ``channels_last``.
        format: ``tf``, or ``grain``, which needs the extra ``grain``.
        verbose: Print the number of files, and show the progress of the cache on a terminal.
        cache_dir: A folder that is empty or does not exist, one for each directory, size, aspect ratio option and color mode.

    Returns:
        A `tf.data.Dataset` or `grain.IterDataset` of images, float32 ``[B, H, W, C]``, and labels as Keras has them; a list of two
        for ``subset="both"``.

    Raises:
        ValueError: An argument is invalid, or not supported.
        SourceError: An image cannot be cached.
        CacheError: `cache_dir` holds something else.
        BuildError: No image can be cached, or the disk failed.
        ImportError: grain is not installed.
    """
    given = dict(locals())
    del given["cache_dir"]
    _check_supported(given, cache_dir)
    if seed is None and not (shuffle and validation_split):  # which require one in Keras
        given["seed"] = seed = np.random.randint(1_000_000)  # noqa: NPY002 - as Keras does, so that np.random.seed has an effect
    if isinstance(labels, list | tuple):
        given["labels"] = list(labels)  # Keras shuffles this list in place
    if format == "grain":
        require_grain()
        given["format"] = "tf"  # only the files and classes are of interest, which are the same
    listed = keras.utils.image_dataset_from_directory(**given)
    if subset == "validation" and validation_split:
        _check_held_out(len(listed.file_paths), validation_split, given)
    size = image_size if isinstance(image_size, int) else (image_size[0], image_size[1])
    fit = "crop" if crop_to_aspect_ratio else "pad" if pad_to_aspect_ratio else "stretch"
    chain = Chain((Decode(channels=_CHANNELS[color_mode]), Resize(size, fit)), cut=2)
    images = cache_directory(Path(directory).absolute(), Path(cache_dir), chain, verbose=verbose)
    parts = listed if subset == "both" else [listed]
    label_of = _label_of(directory, labels, parts[0].class_names, follow_links)
    dataset_of = _grain_dataset if format == "grain" else _tf_dataset
    datasets = []
    for part in parts:
        shuffle_seed = seed if shuffle and (subset != "both" or part is parts[0]) else None
        found = _Listed(
            images.rows(_names(part.file_paths, os.fspath(directory))),
            list(map(label_of, part.file_paths)) if label_of else None,
            label_mode,
            len(part.class_names or ()),
        )
        dataset = dataset_of(images, found, shuffle_seed, batch_size)
        dataset.class_names, dataset.file_paths = part.class_names, part.file_paths
        datasets.append(dataset)
    return datasets if subset == "both" else datasets[0]


def _check_supported(given: Mapping[str, Any], cache_dir: str | os.PathLike[str]) -> None:
    if given["batch_size"] is not None:
        check_integer("batch_size", given["batch_size"])
    found = {
        **given,
        "interpolation": given["interpolation"].lower(),
        "data_format": given["data_format"] or keras.config.image_data_format(),
    }
    for name, supported in _SUPPORTED.items():
        if found[name] != supported:
            raise ValueError(
                f"{name} must be {supported!r}, got {found[name]!r}: use keras.utils.image_dataset_from_directory for that, which does not "
                "cache"
            )
    for name, path in (("directory", given["directory"]), ("cache_dir", cache_dir)):
        if "://" in check_path(name, path):
            raise ValueError(f"{name} must be a local folder, got {os.fspath(path)!r}: copy it to this machine")


def _check_held_out(held_out: int, validation_split: float, given: Mapping[str, Any]) -> None:
    """Raise ValueError if the split holds out no image: Keras 3.15 then returns all of them."""
    if int(validation_split * held_out):
        return
    whole = {**given, "validation_split": None, "subset": None, "shuffle": False, "verbose": False}
    images = len(keras.utils.image_dataset_from_directory(**whole).file_paths)
    if not int(validation_split * images):
        raise ValueError(f"validation_split holds out none of {images} images, got {validation_split}: raise it")


def _label_of(
    directory: str | os.PathLike[str],
    labels: str | Sequence[int] | None,
    class_names: Sequence[str] | None,
    follow_links: bool,
) -> Callable[[str], object] | None:
    """Return the function from the path of an image to its label; None if Keras yields no labels."""
    if labels is None or class_names is None:
        return None
    if isinstance(labels, str):  # "inferred"
        label = {name: place for place, name in enumerate(class_names)}
        start = len(os.path.join(directory, ""))  # noqa: PTH118
        return lambda path: label[path[start:].partition("/")[0]]
    in_order = keras.utils.image_dataset_from_directory(
        directory, labels=None, shuffle=False, follow_links=follow_links, verbose=False
    )
    return dict(zip(in_order.file_paths, labels, strict=True)).__getitem__


def _names(file_paths: Sequence[str], directory: str) -> list[str]:
    """Return the paths of Keras' listing in the directory."""
    prefix = os.path.join(directory, "")  # noqa: PTH118 - what Keras puts before the names, "./" for "."
    return [path.removeprefix(prefix) for path in file_paths]


@dataclass(frozen=True)
class _Listed:
    """What a dataset yields, in the order of Keras' listing.

    Attributes:
        rows: Rows of the images in the cache, int64 ``[N]``.
        labels: A number for each image; None for images alone.
        label_mode: ``int``, ``binary`` or ``categorical``.
        classes: Number of classes.
    """

    rows: NDArray[np.int64]
    labels: list[object] | None
    label_mode: str | None
    classes: int


def _tf_dataset(images: DirectoryCache, listed: _Listed, seed: int | None, batch_size: int | None) -> tf.data.Dataset:
    """Return a dataset, shuffled if there is a seed."""
    columns: Any = listed.rows if listed.labels is None else (listed.rows, listed.labels)
    dataset = tf.data.Dataset.from_tensor_slices(columns)
    if seed is not None:
        dataset = dataset.shuffle(1024 if batch_size is None else batch_size * 8, seed=seed)
    if batch_size is not None:
        dataset = dataset.batch(batch_size)
    return dataset.map(_element(images, listed.label_mode, listed.classes)).prefetch(tf.data.AUTOTUNE)


def _grain_dataset(
    images: DirectoryCache, listed: _Listed, seed: int | None, batch_size: int | None
) -> grain.IterDataset:
    labels: NDArray[Any] | None = None
    if listed.labels is not None:
        labels = np.array(listed.labels, np.int32)
        if listed.label_mode == "binary":
            labels = labels[:, None].astype(np.float32)
        elif listed.label_mode == "categorical":
            labels = (labels[:, None] == np.arange(listed.classes)).astype(np.float32)
    return grain_dataset(images, listed.rows, labels, seed, batch_size)


def _element(images: DirectoryCache, label_mode: str | None, classes: int) -> Callable[..., Any]:
    """Return the function from rows and labels to Keras' elements."""
    token = keep_alive(images)

    def element(rows: tf.Tensor, *labels: tf.Tensor) -> tf.Tensor | tuple[tf.Tensor, tf.Tensor]:
        values = call_method(token, images.images, [rows], tf.uint8)
        pixels = tf.cast(tf.ensure_shape(values, [*rows.shape, *images.image_shape]), tf.float32)
        if not labels:
            return pixels
        if label_mode == "binary":
            return pixels, tf.expand_dims(tf.cast(labels[0], tf.float32), -1)
        return pixels, tf.one_hot(labels[0], classes) if label_mode == "categorical" else labels[0]

    return element
