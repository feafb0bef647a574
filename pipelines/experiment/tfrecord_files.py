"""The files of the arm `tfrecord`: the cached ops precomputed into TFRecord, with images as PNG, as TFDS stores arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf

from joulecache.pipelines.building.config import BuildConfig
from joulecache.pipelines.cache.cache import Cache
from joulecache.pipelines.source import features as stored
from joulecache.pipelines.source.features import AnyFeature
from joulecache.transforms import tensorflow_targets as moved

_FILES_AT_ONCE = 16  # TFDS's interleave_cycle_length and interleave_block_length


def tfrecord_config(config: BuildConfig, like: Cache) -> BuildConfig:
    """Return a build of the same images as TFRecord files: as many as those of `like`, so that the records are in the same order."""
    return replace(config, format="tfrecord", encoding="png", shards=len(like.split("train").variant_files(0)))


@dataclass(frozen=True)
class TFRecordFiles:
    """A split's TFRecord files, read and parsed as TFDS does.

    Attributes:
        cache: The cache that holds them.
        most_boxes: Boxes of each image after padding, by the name of their target.
        soft: Whether classes are shares, because the chain mixes images.
    """

    cache: Cache
    most_boxes: Mapping[str, int]
    soft: bool = False

    def examples(self, epoch: tf.Variable, *, shuffle: bool) -> tf.data.Dataset:
        """Return the rows and serialized examples of the variant of an epoch: file by file, or with files shuffled and interleaved."""
        split = self.cache.split("train")
        by_variant = [split.variant_files(variant) for variant in range(split.variants)]
        paths = tf.constant([[str(self.cache.folder / file.name) for file in files] for files in by_variant])
        counts = [file.records for file in by_variant[0]]
        first_rows = tf.constant(np.cumsum([0, *counts[:-1]], dtype=np.int64))

        def read(file: tf.Tensor) -> tf.data.Dataset:
            return tf.data.TFRecordDataset(paths[epoch % split.variants, file]).enumerate(first_rows[file])

        files = tf.data.Dataset.range(len(counts))
        if shuffle:
            found = files.shuffle(len(counts), seed=0).interleave(
                read, cycle_length=_FILES_AT_ONCE, block_length=_FILES_AT_ONCE, num_parallel_calls=tf.data.AUTOTUNE
            )
        else:
            found = files.flat_map(read)
        return found.apply(tf.data.experimental.assert_cardinality(split.records))  # Keras warns if it is unknown

    # AutoGraph cannot convert `match`, and logs a warning.
    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def parse(self, example: tf.Tensor) -> tuple[tf.Tensor, tuple[Any, ...]]:
        """Return the image of a serialized example, uint8 `[H, W, C]`, and its targets, as the online arms have them."""
        split, features = self.cache.split("train"), self.cache.manifest.features
        specs: dict[str, Any] = {"image": tf.io.FixedLenFeature([], tf.string)}
        for name, feature in features.items():
            specs |= _specs(name, feature)
        found = tf.io.parse_single_example(example, specs)
        image = tf.io.decode_png(found["image"], channels=split.image_shape[2])
        targets = tuple(self._target(name, feature, found) for name, feature in features.items())
        return tf.ensure_shape(image, split.image_shape), targets

    def _target(self, name: str, feature: AnyFeature, found: Mapping[str, Any]) -> Any:
        match feature:
            case stored.Mask():
                ids = tf.io.decode_png(found[name], channels=1)
                return moved.Mask(tf.ensure_shape(ids, (*self.cache.split("train").image_shape[:2], 1)))
            case stored.Boxes():
                return self._boxes(name, *(found[column] for column in feature.columns(name)))
            case stored.Points():
                return moved.Points(found[name])
            case stored.ClassLabel() if self.soft:
                return tf.one_hot(found[name], len(feature.names))
            case stored.MultiLabel():
                return tf.cast(found[name], tf.float32)
        return found[name]

    def _boxes(self, name: str, corners: tf.Tensor, classes: tf.Tensor) -> moved.Boxes:
        """Return boxes, padded to as many as the image with most has."""
        most = self.most_boxes[name]
        missing = most - tf.shape(classes)[0]
        corners = tf.pad(tf.reshape(corners, [-1, 4]), [[0, missing], [0, 0]])
        classes = tf.pad(classes, [[0, missing]], constant_values=moved.ABSENT)
        return moved.Boxes(tf.ensure_shape(corners, [most, 4]), tf.ensure_shape(classes, [most]))


def _specs(name: str, feature: AnyFeature) -> dict[str, Any]:
    """Return how a target is parsed."""
    match feature:
        case stored.Mask() | stored.Text():
            return {name: tf.io.FixedLenFeature([], tf.string)}
        case stored.Boxes():
            corners, classes = feature.columns(name)
            return {corners: tf.io.RaggedFeature(tf.float32), classes: tf.io.RaggedFeature(tf.int64)}
        case stored.MultiLabel():
            return {name: tf.io.FixedLenFeature(feature.shape, tf.int64)}
        case stored.Points(n):
            return {name: tf.io.FixedLenFeature([n, 3], tf.float32)}
    return {name: tf.io.FixedLenFeature(feature.shape, tf.as_dtype(feature.dtype))}
