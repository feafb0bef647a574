"""Models that the user's code makes, compiled with any loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from joulecache.pipelines.core.user_code import describe_failure, origin_of
from joulecache.pipelines.models.metrics import Metric, first_metric
from joulecache.pipelines.source.feature import Feature
from joulecache.pipelines.source.features import Features
from joulecache.pipelines.source.spatial import Boxes, Mask

_IMAGES = 2  # in the batch that a model is tried on


@dataclass(frozen=True)
class TrainingData:
    """What a model trains on: the argument of a function that makes one.

    Attributes:
        element_spec: Types of a batch, as `tf.data.Dataset.element_spec` has them: images, and targets as `load` yields them. The
            batch size is None, and in audits the number of boxes too.
        features: The features of the targets, by name; empty for custom pipelines.
    """

    element_spec: Any
    features: Mapping[str, Feature] = field(default_factory=dict)

    @property
    def image_shape(self) -> tuple[int | None, ...]:
        """Height, width and channels of an image; None for a size that varies."""
        return tuple(tf.nest.flatten(self.element_spec)[0].shape[1:])


MakeModel: TypeAlias = Callable[[TrainingData], keras.Model]
"""A function that returns a compiled model."""


@dataclass(frozen=True)
class UserModel:
    """A model that a function made.

    Attributes:
        network: The compiled model.
        metric: Its first metric.
        remake: Makes it again, with new weights.
    """

    network: keras.Model
    metric: Metric
    remake: Callable[[], keras.Model]


def make_user_model(function: MakeModel, data: TrainingData, batch: Any = None) -> UserModel:
    """Make a model, and evaluate it on a batch, so that what does not fit the data fails before anything is trained.

    Args:
        function: The user's function.
        data: What the model trains on.
        batch: The batch; None: a blank one.

    Raises:
        ValueError: The function fails, or returns anything but a compiled model that fits the data.
    """
    name = origin_of(function).function
    network = _made(name, function, data)
    tried = tf.nest.map_structure(_blank, data.element_spec) if batch is None else batch
    try:
        results = network.evaluate(tf.data.Dataset.from_tensors(tried), verbose=0, return_dict=True)
    except Exception as error:  # layers, losses and metrics raise anything
        raise ValueError(
            f"the model of {name} does not fit batches of {describe_elements(data.element_spec)}: {describe_failure(error)}"
        ) from error
    if not results:
        raise ValueError(f"the model of {name} has neither a loss nor a metric: compile it with a loss")
    metric = first_metric(results, network)
    return UserModel(network, metric, lambda: _made(name, function, data))


def _made(name: str, function: MakeModel, data: TrainingData) -> keras.Model:
    try:
        network = function(data)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise ValueError(f"{name} failed: {describe_failure(error)}") from error
    if not isinstance(network, keras.Model):
        raise ValueError(f"{name} must return a compiled keras.Model, got {type(network).__name__}")
    if not network.compiled:
        raise ValueError(f"{name} returned a model that is not compiled: call compile with an optimizer and a loss")
    return network


def _blank(spec: tf.TensorSpec) -> tf.Tensor:
    shape = [_IMAGES, *(1 if size is None else size for size in spec.shape[1:])]
    return tf.zeros(shape, spec.dtype) if spec.dtype != tf.string else tf.fill(shape, "")


def describe_elements(batch: Any) -> str:
    """Describe a batch, or its types: ``uint8 [64, 32, 32, 3], int64 [64]``."""
    return ", ".join(
        type(part).__name__ if rank(part) is None else f"{part.dtype.name} {[*part.shape]}".replace("None", "?")
        for part in tf.nest.flatten(batch)
    )


def rank(part: Any) -> int | None:
    """Return the number of dimensions of a tensor or of its type; None if it has no shape, or an unknown one."""
    found: int | None = getattr(part, "shape", tf.TensorShape(None)).rank
    return found


def batch_spec(image_shape: tuple[int, int, int], image_dtype: tf.DType, features: Features) -> Any:
    """Return the types of the batches that `load` yields from a cache with these features."""
    images = tf.TensorSpec([None, *image_shape], image_dtype)
    targets = {name: _target_spec(feature, image_shape[:2]) for name, feature in features.items()}
    if not targets:
        return images
    return images, targets if len(targets) > 1 else next(iter(targets.values()))


def _target_spec(feature: Feature, size: tuple[int, int]) -> Any:
    match feature:
        case Boxes():
            return {"boxes": tf.TensorSpec([None, None, 4]), "classes": tf.TensorSpec([None, None], tf.int64)}
        case Mask():
            return tf.TensorSpec([None, *size, 1], tf.uint8)
    dtype = tf.string if feature.loaded_dtype == "str" else tf.as_dtype(feature.loaded_dtype)
    return tf.TensorSpec([None, *feature.shape], dtype)
