"""The audit of custom pipelines, of which the first is the reference; training is also measured in parts."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import keras
import tensorflow as tf

from joulecache.pipelines.auditing.config import PipelinesConfig
from joulecache.pipelines.auditing.folder import AuditFolder
from joulecache.pipelines.auditing.inspection import InspectedPipeline, inspect_pipeline, make_dataset
from joulecache.pipelines.auditing.results import Audit
from joulecache.pipelines.core.checks import check_path
from joulecache.pipelines.core.progress import Progress
from joulecache.pipelines.core.user_code import origin_of, source_sha256
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.experiment.blocks import Bench, Part
from joulecache.pipelines.experiment.failures import ArmError
from joulecache.pipelines.experiment.names import ACCELERATOR, INPUT, TRAIN
from joulecache.pipelines.experiment.provenance import conditions, run_provenance
from joulecache.pipelines.experiment.results import WorkloadResult
from joulecache.pipelines.experiment.workloads import (
    Accelerator,
    InputOnly,
    Training,
    train_from_scratch,
    train_user_model,
)
from joulecache.pipelines.models.classifiers import build_model, check_model, is_model_file
from joulecache.pipelines.models.user_models import MakeModel, TrainingData, describe_elements, make_user_model

_TRAINING = "training"
"""The part of a training that is not its input."""


def audit_pipelines(
    datasets: Mapping[str, Callable[[], object]],
    out: str | os.PathLike[str],
    config: PipelinesConfig,
    *,
    make_model: MakeModel | None = None,
    meter: Meter,
    progress: Progress,
) -> Audit:
    """Audit custom pipelines: functions by name, each called once, that return a batched `tf.data.Dataset`.

    The first is the reference. `out` is the folder of the audit, `make_model` makes the model to train.

    Raises:
        ValueError: `datasets` is empty, or `out` holds anything but an audit.
        ArmError: A pipeline cannot be audited.
    """
    _check_functions(datasets)
    folder = AuditFolder(Path(check_path("out", out)))
    folder.check()
    trains = TRAIN in config.workloads
    if trains and make_model is None:
        check_model(config.model)
    pipelines = _inspect(datasets, config, progress, own_model=make_model is not None)
    training = make_training(pipelines, config, make_model) if trains else None
    with folder.work(_settings(pipelines, config, make_model, meter)):
        log = folder.open_log()
        bench = Bench(log, meter, config.seed, pipelines[0].arm.name, progress)
        results = _measure(bench, pipelines, training, config)
        energy = log.energy()
    return Audit(
        source=None,
        chain=None,
        pipelines=tuple(each.facts for each in pipelines),
        reference=pipelines[0].arm.name,
        cached=None,
        records=None,
        class_names=pipelines[0].facts.class_names,
        horizon_epochs=None,
        pixel_difference={},
        build=None,
        workloads=results,
        left_out={},
        compression=None,
        energy=energy,
        method=energy.method,
        provenance=run_provenance(
            meter,
            seed=config.seed,
            model=config.model if trains else None,
            train_epochs=config.train_epochs if trains else None,
            steps=config.steps,
        ),
    )


def _check_functions(datasets: Mapping[str, Callable[[], object]]) -> None:
    if not datasets:
        raise ValueError("there is no pipeline to audit: pass at least one function that returns a tf.data.Dataset")
    for name, function in datasets.items():
        if not name:
            raise ValueError("a pipeline has an empty name: name every pipeline")
        if not callable(function):
            raise ArmError(
                f"{name} is a {type(function).__name__}: pass a function without arguments that returns a dataset"
            )


def _inspect(
    datasets: Mapping[str, Callable[[], object]], config: PipelinesConfig, progress: Progress, *, own_model: bool
) -> list[InspectedPipeline]:
    origins = {name: origin_of(function) for name, function in datasets.items()}
    made = {name: make_dataset(name, function) for name, function in datasets.items()}
    if TRAIN in config.workloads and not own_model:
        for shape in {shape for dataset in made.values() if (shape := _declared_shape(dataset))}:
            check_model(config.model, shape)
    pipelines = []
    for done, (name, dataset) in enumerate(made.items()):
        progress("the first epoch of each pipeline", done, len(datasets))
        pipelines.append(
            inspect_pipeline(
                name,
                dataset,
                origins[name],
                steps=config.steps,
                trains=TRAIN in config.workloads,
                own_model=own_model,
                longest_s=config.budget.longest_epoch_s,
            )
        )
    return pipelines


def _declared_shape(dataset: tf.data.Dataset) -> tuple[int, int, int] | None:
    """Return height, width and channels of the images that a dataset declares; None if it does not."""
    spec = tf.nest.flatten(dataset.element_spec)[0]
    if not isinstance(spec, tf.TensorSpec) or not (spec.dtype == tf.uint8 or spec.dtype.is_floating):
        return None
    if spec.shape.rank != 4 or None in spec.shape[1:]:
        return None
    height, width, channels = spec.shape[1:].as_list()
    return height, width, channels


def _settings(
    pipelines: Sequence[InspectedPipeline], config: PipelinesConfig, make_model: MakeModel | None, meter: Meter
) -> dict[str, object]:
    return {
        # without a source file there is no telling whether the function has changed
        "pipelines": [
            [each.facts.name, each.facts.function, each.facts.sha256 or uuid.uuid4().hex] for each in pipelines
        ],
        "steps": config.steps,
        "model": config.model,
        **({} if make_model is None else {"model_sha256": source_sha256(make_model)}),
        "train_epochs": config.train_epochs,
        "seed": config.seed,
        "step_ms": config.step_ms,
        **conditions(meter),
    }


def _measure(
    bench: Bench, pipelines: Sequence[InspectedPipeline], training: Training | None, config: PipelinesConfig
) -> tuple[WorkloadResult, ...]:
    arms = [each.arm for each in pipelines]
    results = []
    if INPUT in config.workloads:
        results.append(bench.measure(InputOnly(shortest_s=config.budget.shortest_run_s), arms, config.pairs))
    if ACCELERATOR in config.workloads:
        results.append(
            bench.measure(Accelerator(config.device, shortest_s=config.budget.shortest_run_s), arms, config.pairs)
        )
    if training is not None:
        parts = (
            Part(INPUT, InputOnly(epochs=config.train_epochs), arms),
            Part(_TRAINING, training, [each.kept_in_memory() for each in pipelines]),
        )
        results.append(bench.measure(training, arms, config.pairs, parts))
    return tuple(results)


def make_training(
    pipelines: Sequence[InspectedPipeline], config: PipelinesConfig, make_model: MakeModel | None = None
) -> Training:
    """Make the training of one model on every pipeline; raise ArmError if their images or, for a function's model, batches differ."""
    keras.utils.set_random_seed(config.seed)
    if make_model is not None:
        first = pipelines[0]
        _check_same(
            {
                each.facts.name: describe_elements(tf.nest.map_structure(lambda part: part[0], each.first))
                for each in pipelines
            }
        )
        model = make_user_model(make_model, TrainingData(first.arm.dataset.element_spec), first.first)
        return train_user_model(model, None, config.train_epochs)
    kinds = {each.facts.name: _kind(each.first[0]) for each in pipelines}
    _check_same(kinds)
    images = pipelines[0].first[0]
    network = build_model(config.model, tuple(images.shape[1:]), max(each.classes for each in pipelines))
    if images.dtype.is_floating and not is_model_file(config.model):
        network = keras.models.clone_model(network, clone_function=_without_scaling)
    return train_from_scratch(network, None, config.train_epochs)


def _check_same(kinds: Mapping[str, str]) -> None:
    """Raise ArmError if pipelines yield different things."""
    if len(set(kinds.values())) > 1:
        raise ArmError(
            f"one model is trained on all pipelines, but their images differ: {', '.join(map(' yields '.join, kinds.items()))}; audit "
            "them with the workload input alone, or one by one"
        )


def _kind(images: tf.Tensor) -> str:
    return f"{'float' if images.dtype.is_floating else images.dtype.name} {'x'.join(map(str, images.shape[1:]))}"


def _without_scaling(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Clone a layer; replace one that scales pixels to 0..1 by the identity, since floats are scaled already."""
    if isinstance(layer, keras.layers.Rescaling):
        return keras.layers.Identity(name=layer.name)
    return type(layer).from_config(layer.get_config())
