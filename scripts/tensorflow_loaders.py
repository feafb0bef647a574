"""TensorFlow's own loaders that scripts/bench_loader.py measures beside `load`, and `model.fit` over both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from other_loaders import BATCH, Dataset

import joulecache as jc

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CACHE, OURS = "`cache()` in RAM", "**ours, raw Arrow, 1 shard**"
CROPPED, MIRRORED = f"{CACHE}, one crop for each batch", f"{CACHE}, one crop for each batch, and flips"
WINDOW = 512


def tensorflow_datasets(folder: Path, images: NDArray[np.uint8], records: Path) -> dict[str, Dataset]:
    """Return TensorFlow's own loaders, and `cached()`, of one epoch each."""
    import tensorflow as tf

    elements = in_elements(images)
    saved = str(folder / "saved")
    elements.save(saved)
    shards = sorted(map(str, records.glob("*.tfrecord")))
    features = {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}

    def parse(examples: Any) -> tuple[Any, Any]:
        parsed = tf.io.parse_example(examples, features)
        return tf.reshape(tf.io.decode_raw(parsed["image"], tf.uint8), [-1, *images.shape[1:]]), parsed["label"]

    return {
        CACHE: in_memory(images),
        "`Dataset.load`": _ahead(_shuffled(tf.data.Dataset.load(saved))),
        "TFRecord and parse": _ahead(_shuffled(tf.data.TFRecordDataset(shards)).map(parse, tf.data.AUTOTUNE)),
        "**ours, `cached()` in place of `cache()`**": _ahead(_shuffled(elements.apply(jc.cached(folder / "cached")))),
    }


def drop_ins(cache: Path) -> dict[str, Dataset]:
    """Return `cache()` of the images of a cache, and `load` of it."""
    return {CACHE: in_memory(images_of(cache)), OURS: jc.load(cache, "train", BATCH)}


def cropped(images: NDArray[np.uint8], size: int) -> dict[str, Dataset]:
    """Return `cache()` of images, cropped and mirrored batch by batch, which is its cheapest."""
    import tensorflow as tf

    def crop(images: Any, labels: Any) -> tuple[Any, Any]:
        return tf.image.random_crop(images, [tf.shape(images)[0], size, size, 3]), labels

    def mirror(images: Any, labels: Any) -> tuple[Any, Any]:
        return tf.image.random_flip_left_right(images), labels

    crops = in_memory(images).map(crop, tf.data.AUTOTUNE)
    return {
        CROPPED: _ahead(crops),
        MIRRORED: _ahead(crops.map(mirror, tf.data.AUTOTUNE)),
    }


def images_of(cache: Path) -> NDArray[np.uint8]:
    """Return all images that `load` yields in an epoch."""
    import numpy as np

    return np.concatenate([batch for batch, _ in jc.batches(cache, "train", BATCH, shuffle=False)])


def in_memory(images: NDArray[np.uint8]) -> Dataset:
    """Return batches of images in the RAM of `cache()`."""
    in_ram = in_elements(images).cache()
    for _ in in_ram:
        pass
    return _ahead(_shuffled(in_ram))


def in_elements(images: NDArray[np.uint8]) -> Dataset:
    """Return images one by one."""
    import numpy as np
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((images, np.zeros(len(images), np.int64)))


def _shuffled(dataset: Dataset) -> Dataset:
    return dataset.shuffle(WINDOW).batch(BATCH)


def _ahead(dataset: Dataset) -> Dataset:
    import tensorflow as tf

    return dataset.prefetch(tf.data.AUTOTUNE)


def training(dataset: Dataset, epochs: int, steps_per_execution: int, count: int) -> Callable[[], Iterator[Any]]:
    """Return a function that trains a model on one pixel of each image, and yields a batch of the length of all epochs."""
    import keras

    first_pixel = keras.layers.Lambda(lambda images: keras.ops.cast(images[:, 0, 0], "float32"))
    images = keras.Input(dataset.element_spec[0].shape[1:], dtype="uint8")
    model = keras.Sequential([images, first_pixel, keras.layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, steps_per_execution=steps_per_execution, jit_compile=False)

    def train() -> Iterator[Any]:
        model.fit(dataset, epochs=epochs, verbose=0, shuffle=False)
        yield range(count)

    return train
