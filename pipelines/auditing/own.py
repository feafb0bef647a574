"""The audit of people's own pipelines: the first is the reference, and the training is measured in parts too."""

from __future__ import annotations

import functools
import hashlib
import inspect
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from joulecache.pipelines.auditing.results import Audit, PipelineFacts
from joulecache.pipelines.core.user_code import describe_failure
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.experiment.arms import Arm, ArmError, naming_failures
from joulecache.pipelines.experiment.blocks import Bench, Part, Progress
from joulecache.pipelines.experiment.folder import RUNS, check_folder, work_folder
from joulecache.pipelines.experiment.provenance import conditions, run_provenance
from joulecache.pipelines.experiment.results import WorkloadResult
from joulecache.pipelines.experiment.runs import RunLog, again, alone
from joulecache.pipelines.experiment.workloads import (
    SHORTEST_RUN_S,
    InputOnly,
    Training,
    check_names,
    check_whole,
    train_from_scratch,
)
from joulecache.pipelines.models.classifiers import MODEL_SUFFIXES, build_model
from joulecache.pipelines.training.input_waits import read_ahead

OWN_WORKLOADS = ("input", "train")
LONGEST_EPOCH_S = 600.0
"""For how long an epoch of unknown length may go on in the warm-up before it counts as endless."""

_INPUT, _TRAINING = "input", "training"


@dataclass(frozen=True)
class _Pipeline:
    """A pipeline after its first epoch: `first` and `last` are batches of it, `classes` is 0 where it was not asked for."""

    arm: Arm
    facts: PipelineFacts
    first: Any
    last: Any
    classes: int


def audit_pipelines(
    datasets: Mapping[str, Callable[[], Any]],
    folder: Path,
    *,
    steps: int | None,
    workloads: Sequence[str] = OWN_WORKLOADS,
    pairs: int | None,
    model: str,
    train_epochs: int,
    seed: int,
    meter: Meter,
    tell: Progress,
) -> Audit:
    """Audit own pipelines: see `audit`."""
    names = list(datasets)
    check_names("workloads", workloads, OWN_WORKLOADS)
    _check_pipelines(datasets)
    check_whole(steps=1 if steps is None else steps)
    check_folder(folder)
    trains = "train" in workloads
    homes = {name: _home(function) for name, function in datasets.items()}
    pipelines = []
    for done, (name, function) in enumerate(datasets.items()):
        tell("a first epoch of each pipeline", done, len(names))
        pipelines.append(_first_epoch(name, _make(name, function), homes[name], steps, trains=trains))
    training = _make_training(pipelines, model, train_epochs, seed) if trains else None
    settings = {
        # without a file nothing says whether a function is the same
        "pipelines": [[name, home[0], home[2] or uuid.uuid4().hex] for name, home in homes.items()],
        "steps": steps,
        "workloads": list(workloads),
        "model": model,
        "train_epochs": train_epochs,
        "seed": seed,
        **conditions(meter),
    }
    arms = [each.arm for each in pipelines]
    results: list[WorkloadResult] = []
    with work_folder(folder, settings):
        log = RunLog(folder / RUNS)
        bench = Bench(log, meter, seed, tell, reference=names[0])
        if "input" in workloads:
            results.append(bench.measure(InputOnly(shortest_s=SHORTEST_RUN_S), arms, pairs))
        if training is not None:
            parts = (
                Part(_INPUT, InputOnly(epochs=train_epochs), arms),
                Part(_TRAINING, training, [_kept_in_memory(each) for each in pipelines]),
            )
            results.append(bench.measure(training, arms, pairs, parts))
        whole = log.energy()
    return Audit(
        source=None,
        chain=None,
        pipelines=tuple(each.facts for each in pipelines),
        reference=names[0],
        cached=None,
        records=None,
        class_names=pipelines[0].facts.class_names,
        horizon_epochs=None,
        pixel_difference={},
        build=None,
        workloads=tuple(results),
        left_out={},
        compression=None,
        energy=whole,
        method=whole.method,
        provenance=run_provenance(
            meter,
            seed=seed,
            model=model if trains else None,
            train_epochs=train_epochs if trains else None,
            steps=steps,
        ),
    )


def _check_pipelines(datasets: Mapping[str, Callable[[], Any]]) -> None:
    if not datasets:
        raise ValueError("there is no pipeline to audit: give at least one function that returns a tf.data.Dataset")
    names = list(datasets)
    runs = [*names, again(names[0]), *(alone(name, part) for name in names for part in (_INPUT, _TRAINING))]
    for name, function in datasets.items():
        if not name or runs.count(name) > 1:
            raise ValueError(f"a pipeline cannot be called {name!r}: another run of the audit is")
        if not callable(function):
            raise ArmError(
                f"{name} is a {type(function).__name__}: give a function that takes nothing and returns a dataset"
            )


def _home(function: Callable[[], Any]) -> tuple[str, str | None, str | None]:
    """Return a function as module:name, the file where it is defined, and its SHA-256; None where there is no such file."""
    inner: Any = inspect.unwrap(function)
    while isinstance(inner, functools.partial):
        inner = inspect.unwrap(inner.func)
    if not hasattr(inner, "__qualname__"):  # an object that is called
        inner = type(inner)
    name = f"{inner.__module__}:{inner.__qualname__}"
    try:
        file = inspect.getsourcefile(inner)
        digest = hashlib.sha256(Path(file or "").read_bytes()).hexdigest()
    except (OSError, TypeError):
        return name, None, None
    return name, file, digest


# The first epoch: what a pipeline yields, and whether it can be audited -----------------------------------------------


def _make(name: str, function: Callable[[], Any]) -> Any:
    """Call a function; ArmError where it fails or returns no dataset."""
    try:
        dataset = function()
    except (Exception, SystemExit) as error:  # of any kind: it is not ours
        raise ArmError(f"{name} failed: {describe_failure(error)}") from error
    if not isinstance(dataset, tf.data.Dataset):
        raise ArmError(f"{name} returned a {type(dataset).__name__}: return a tf.data.Dataset")
    return dataset


def _first_epoch(
    name: str, dataset: Any, home: tuple[str, str | None, str | None], steps: int | None, *, trains: bool
) -> _Pipeline:
    """Iterate over a pipeline once; ArmError where it fails, does not end, or yields what cannot be measured."""
    cardinality = int(dataset.cardinality())
    if steps is None and cardinality == tf.data.INFINITE_CARDINALITY:
        raise ArmError(f"{name} never ends: say by steps how many batches an epoch has, or leave out .repeat()")
    images, batches, most = 0, 0, -1
    first: Any = None
    last: Any = None
    deadline = time.monotonic() + LONGEST_EPOCH_S
    with naming_failures(name):
        for batch in dataset if steps is None else dataset.take(steps):
            if first is None:
                first = batch
                _check_first(name, batch, dataset, trains=trains)
            else:
                _check_like(name, last, first, batches, trains=trains, is_last=False)
            last = batch
            images += _images(batch).shape[0]
            batches += 1
            if trains:
                most = max(most, _highest_label(name, batch[1]))
            if cardinality < 0 and steps is None and time.monotonic() > deadline:
                raise ArmError(
                    f"{name} did not end within {LONGEST_EPOCH_S:g} s, in {batches} batches: say by steps how many batches an "
                    "epoch has"
                )
    if images == 0:
        raise ArmError(f"{name} yields nothing: its dataset is empty")
    if steps is not None and batches < steps:
        raise ArmError(f"{name} ends after {batches} batches, and {steps} steps were asked for: give at most {batches}")
    _check_like(name, last, first, batches, trains=trains, is_last=True)
    named = getattr(dataset, "class_names", None)
    class_names = () if named is None else tuple(map(str, named))
    if trains and class_names and most >= len(class_names):
        raise ArmError(f"{name} yields the label {most}, and its class_names are {len(class_names)}: count from 0")
    facts = PipelineFacts(
        name=name,
        function=home[0],
        file=home[1],
        sha256=home[2],
        elements=_elements(first),
        images=images,
        batches=batches,
        class_names=class_names,
    )
    arm = Arm(name, images, _one_epoch(dataset, steps, batches), lambda epoch: None, reads_on=True)
    return _Pipeline(arm, facts, first, last, len(class_names) or most + 1)


def _images(batch: Any) -> Any:
    return tf.nest.flatten(batch)[0]


def _rank(part: Any) -> int | None:
    rank: int | None = getattr(part, "shape", tf.TensorShape(None)).rank
    return rank


def _elements(batch: Any) -> str:
    """Say what a batch is, like ``uint8 [64, 32, 32, 3], int64 [64]``."""
    return ", ".join(
        type(part).__name__ if _rank(part) is None else f"{part.dtype.name} {[*part.shape]}".replace("None", "?")
        for part in tf.nest.flatten(batch)
    )


def _check_first(name: str, batch: Any, dataset: Any, *, trains: bool) -> None:
    """Raise ArmError for a first batch that is none, or that a classifier cannot be trained on."""
    got = f"{name} yields {_elements(batch)}"
    pair = batch if isinstance(batch, tuple) and len(batch) == 2 else None
    if not _rank(_images(batch)) or (pair is not None and list(map(_rank, pair)) == [3, 0]):
        raise ArmError(f"{got}: batch it, as by .batch(64)")
    if not trains:
        return
    alone = "or measure it with the workload input alone"
    if pair is None or not all(isinstance(part, tf.Tensor) for part in pair):
        raise ArmError(f"{got}: training needs pairs of (images [B, H, W, C], integer labels [B]); yield such, {alone}")
    images, labels = pair
    if images.shape.rank != 4 or not (images.dtype == tf.uint8 or images.dtype.is_floating):
        raise ArmError(f"{got}: training needs images of [B, H, W, C], uint8 or floats; yield such, {alone}")
    if labels.shape.rank != 1 or not labels.dtype.is_integer:
        raise ArmError(f"{got}: training needs the number of each image's class, integers of [B]; yield such, {alone}")
    if any(spec.shape.rank is None for spec in tf.nest.flatten(dataset.element_spec)):
        raise ArmError(
            f"{name} does not say how many dimensions its batches have: give an output_signature, or tf.ensure_shape"
        )


def _check_like(name: str, batch: Any, first: Any, number: int, *, trains: bool, is_last: bool) -> None:
    """Raise ArmError unless the images of a batch have the shape of the first ones; the last may be fewer."""
    one, other = (tuple(_images(each).shape) for each in (first, batch))
    may_be_fewer = not trains or (is_last and other[0] < one[0])
    if other == one or (other[1:] == one[1:] and may_be_fewer) or (len(one) != 4 and not trains):
        return
    raise ArmError(
        f"{name} changes the shape of its images: batch 1 is {list(one)}, batch {number} {list(other)}; give all of them one size, "
        "and let only the last batch be smaller"
    )


def _highest_label(name: str, labels: Any) -> int:
    numbers = labels.numpy()
    if numbers.size == 0:
        return -1
    if np.min(numbers) < 0:
        raise ArmError(f"{name} yields the label {np.min(numbers)}: classes are numbered from 0")
    return int(np.max(numbers))


def _one_epoch(dataset: Any, steps: int | None, batches: int) -> Any:
    """Return a dataset whose end is known, and that reads ahead as it did: TensorFlow would prefetch again behind the last step."""
    if steps is None and int(dataset.cardinality()) >= 0:
        return dataset
    options = tf.data.Options()
    options.experimental_optimization.inject_prefetch = False
    ahead = read_ahead(dataset)
    cut = ahead.apply(tf.data.experimental.assert_cardinality(batches)) if steps is None else ahead.take(steps)
    return cut.with_options(options)


# The training ---------------------------------------------------------------------------------------------------------


def _make_training(pipelines: Sequence[_Pipeline], model: str, epochs: int, seed: int) -> Training:
    """Make the training that all pipelines feed; ValueError where one model cannot be trained on all of them."""
    kinds = {each.facts.name: _kind(each.first[0]) for each in pipelines}
    if len(set(kinds.values())) > 1:
        raise ArmError(
            f"one model is trained on all pipelines, and their images differ: {', '.join(map(' yields '.join, kinds.items()))}; audit "
            "them with the workload input alone, or one by one"
        )
    keras.utils.set_random_seed(seed)
    images = pipelines[0].first[0]
    network = build_model(model, tuple(images.shape[1:]), max(each.classes for each in pipelines))
    if images.dtype.is_floating and not model.endswith(MODEL_SUFFIXES):
        network = keras.models.clone_model(network, clone_function=_without_scaling)
    return train_from_scratch(network, None, epochs)


def _kind(images: Any) -> str:
    return f"{'float' if images.dtype.is_floating else images.dtype.name} {'x'.join(map(str, images.shape[1:]))}"


def _without_scaling(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Clone a layer; one that scales pixels to 0..1 lets through what it gets: floats have their scale."""
    if isinstance(layer, keras.layers.Rescaling):
        return keras.layers.Identity(name=layer.name)
    return type(layer).from_config(layer.get_config())


def _kept_in_memory(pipeline: _Pipeline) -> Arm:
    """Return an arm of as many batches of the same shapes as an epoch has, all of which lie in memory."""
    repeated = tf.data.Dataset.from_tensors(pipeline.first).repeat(pipeline.facts.batches - 1)
    kept = repeated.concatenate(tf.data.Dataset.from_tensors(pipeline.last))
    if _images(pipeline.arm.dataset.element_spec).shape[0] is None:
        # Nothing, of another size: what is traced for batches of any size is then what is traced for the pipeline's own.
        nothing = tf.nest.map_structure(lambda part: part[:0], pipeline.first)
        kept = kept.concatenate(tf.data.Dataset.from_tensors(nothing).take(0))
    return Arm(pipeline.arm.name, pipeline.arm.records, kept, lambda epoch: None)
