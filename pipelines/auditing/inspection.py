"""Inspect the first epoch of a custom pipeline: what it yields, and whether it can be audited."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from joulecache.pipelines.auditing.results import PipelineFacts
from joulecache.pipelines.core.user_code import Origin, describe_failure
from joulecache.pipelines.experiment.arms import Arm
from joulecache.pipelines.experiment.failures import ArmError, naming_failures
from joulecache.pipelines.loading.iterators import keep_iterators_at_exit
from joulecache.pipelines.models.user_models import describe_elements, rank
from joulecache.pipelines.training.input_waits import read_ahead

_OR_INPUT = "pass a function that makes your model as model, or measure it with the workload input alone"


@dataclass(frozen=True)
class InspectedPipeline:
    """A custom pipeline as an arm, with the first and last batch of one epoch; 0 classes if nothing is trained."""

    arm: Arm
    facts: PipelineFacts
    first: Any
    last: Any
    classes: int

    def kept_in_memory(self) -> Arm:
        """Return an arm with as many batches of the same shapes, all in memory."""
        repeated = tf.data.Dataset.from_tensors(self.first).repeat(self.facts.batches - 1)
        kept = repeated.concatenate(tf.data.Dataset.from_tensors(self.last))
        if _images(self.arm.dataset.element_spec).shape[0] is None:
            # add zero batches of another size: the graph is then traced for batches of any size, as for the pipeline
            empty = tf.nest.map_structure(lambda part: part[:0], self.first)
            kept = kept.concatenate(tf.data.Dataset.from_tensors(empty).take(0))
        return Arm(self.arm.name, self.arm.records, kept)


def make_dataset(name: str, function: Callable[[], object]) -> tf.data.Dataset:
    """Call a function; raise ArmError if it fails or returns anything but a dataset."""
    keep_iterators_at_exit()
    try:
        dataset = function()
    except (Exception, SystemExit) as error:  # user code may raise anything
        raise ArmError(f"{name} failed: {describe_failure(error)}") from error
    if not isinstance(dataset, tf.data.Dataset):
        raise ArmError(f"{name} returned a {type(dataset).__name__}: return a tf.data.Dataset")
    return dataset


def inspect_pipeline(
    name: str,
    dataset: tf.data.Dataset,
    origin: Origin,
    *,
    steps: int | None = None,
    trains: bool,
    own_model: bool = False,
    longest_s: float = 600.0,
) -> InspectedPipeline:
    """Iterate over one epoch of a pipeline, of `steps` batches or all.

    If the length of the epoch is unknown, it counts as endless after `longest_s` seconds. `trains` requires data for a classifier, or
    with `own_model` batches of one shape.

    Raises:
        ArmError: It fails, does not end, or yields what cannot be measured.
    """
    if steps is None and int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise ArmError(f"{name} never ends: set the number of batches in an epoch with steps, or remove .repeat()")
    epoch = _Epoch(name, dataset, trains=trains, classifies=trains and not own_model)
    deadline_s = time.monotonic() + longest_s
    with naming_failures(name):
        for batch in dataset if steps is None else dataset.take(steps):
            epoch.add(batch)
            if steps is None and int(dataset.cardinality()) < 0 and time.monotonic() > deadline_s:
                raise ArmError(
                    f"{name} did not end within {longest_s:g} s, in {epoch.batches} batches: set the number of batches in an epoch with "
                    "steps"
                )
    epoch.end(steps)
    classes = epoch.count_classes()
    facts = PipelineFacts(
        name=name,
        function=origin.function,
        file=origin.file,
        sha256=origin.sha256,
        elements=describe_elements(epoch.first),
        images=epoch.images,
        batches=epoch.batches,
        class_names=epoch.class_names,
    )
    arm = Arm(name, epoch.images, one_epoch(dataset, steps, epoch.batches), reads_on=True)
    return InspectedPipeline(arm, facts, epoch.first, epoch.last, classes)


class _Epoch:
    """The part of an epoch seen so far; raises ArmError for what cannot be measured."""

    def __init__(self, name: str, dataset: tf.data.Dataset, *, trains: bool, classifies: bool) -> None:
        named = getattr(dataset, "class_names", None)
        self.class_names = () if named is None else tuple(map(str, named))
        self.images = self.batches = 0
        self.first: Any = None
        self.last: Any = None
        self._name, self._dataset, self._trains, self._classifies = name, dataset, trains, classifies
        self._highest_label = -1

    def add(self, batch: Any) -> None:
        """Check and count a batch."""
        if self.first is None:
            self.first = batch
            self._check_first()
        else:
            self._check_shape(is_last=False)
        self.last = batch
        self.images += _images(batch).shape[0]
        self.batches += 1
        if self._classifies:
            self._check_labels(batch[1].numpy())

    def end(self, steps: int | None) -> None:
        """Check the epoch."""
        if self.images == 0:
            raise ArmError(f"{self._name} yields nothing: its dataset is empty")
        if steps is not None and self.batches < steps:
            raise ArmError(
                f"{self._name} ends after {self.batches} batches, but steps is {steps}: set it to at most {self.batches}"
            )
        self._check_shape(is_last=True)

    def count_classes(self) -> int:
        """Return the number of classes: that of the names, or the highest label plus 1."""
        if self._classifies and self.class_names and self._highest_label >= len(self.class_names):
            raise ArmError(
                f"{self._name} yields the label {self._highest_label}, but has {len(self.class_names)} class_names: count from 0"
            )
        return len(self.class_names) or self._highest_label + 1

    def _check_first(self) -> None:
        batch = self.first
        got = f"{self._name} yields {describe_elements(batch)}"
        pair = batch if isinstance(batch, tuple) and len(batch) == 2 else None
        if not rank(_images(batch)) or (pair is not None and list(map(rank, pair)) == [3, 0]):
            raise ArmError(f"{got}: batch it, for example with .batch(64)")
        if self._classifies:
            self._check_pair(pair, got)
        if self._trains and any(spec.shape.rank is None for spec in tf.nest.flatten(self._dataset.element_spec)):
            raise ArmError(
                f"{self._name} does not declare how many dimensions its batches have: set an output_signature, or use tf.ensure_shape"
            )

    def _check_pair(self, pair: tuple[Any, Any] | None, got: str) -> None:
        """Check that a batch can train a classifier."""
        if pair is None or not all(isinstance(part, tf.Tensor) for part in pair):
            raise ArmError(
                f"{got}: training needs pairs of (images [B, H, W, C], integer labels [B]); yield those, {_OR_INPUT}"
            )
        images, labels = pair
        if images.shape.rank != 4 or not (images.dtype == tf.uint8 or images.dtype.is_floating):
            raise ArmError(f"{got}: training needs images [B, H, W, C], uint8 or floats; yield those, {_OR_INPUT}")
        if labels.shape.rank != 1 or not labels.dtype.is_integer:
            raise ArmError(
                f"{got}: training needs the class number of each image, integers [B]; yield those, {_OR_INPUT}"
            )

    def _check_shape(self, *, is_last: bool) -> None:
        """Check that the images of the latest batch have the shape of the first ones; the last batch may be smaller."""
        one, other = (tuple(_images(each).shape) for each in (self.first, self.last))
        may_be_smaller = not self._trains or (is_last and other[0] < one[0])
        same = other == one or (other[1:] == one[1:] and may_be_smaller)
        if not same and (len(one) == 4 or self._trains):
            raise ArmError(
                f"{self._name} changes the shape of its images: batch 1 is {list(one)}, batch {self.batches} {list(other)}; make all "
                "images one size, and only the last batch smaller"
            )

    def _check_labels(self, labels: Any) -> None:
        if labels.size == 0:
            return
        if np.min(labels) < 0:
            raise ArmError(f"{self._name} yields the label {np.min(labels)}: number the classes from 0")
        self._highest_label = max(self._highest_label, int(np.max(labels)))


def _images(batch: Any) -> Any:
    return tf.nest.flatten(batch)[0]


def one_epoch(dataset: tf.data.Dataset, steps: int | None, batches: int) -> tf.data.Dataset:
    """Return a dataset with a known end that reads ahead as before: TensorFlow would also prefetch after the last step."""
    if steps is None and int(dataset.cardinality()) >= 0:
        return dataset
    options = tf.data.Options()
    options.experimental_optimization.inject_prefetch = False
    ahead = read_ahead(dataset)
    cut = ahead.apply(tf.data.experimental.assert_cardinality(batches)) if steps is None else ahead.take(steps)
    return cut.with_options(options)
