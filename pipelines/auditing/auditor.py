"""Audit a chain, or custom pipelines: one function for both."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from joulecache.pipelines.auditing.chains import audit_chain
from joulecache.pipelines.auditing.config import PIPELINE_WORKLOADS, AuditConfig, Budget, PipelinesConfig
from joulecache.pipelines.auditing.custom_pipelines import audit_pipelines
from joulecache.pipelines.auditing.results import Audit
from joulecache.pipelines.core.checks import check_sequence
from joulecache.pipelines.core.progress import Progress, silent
from joulecache.pipelines.core.user_code import origin_of
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.models.user_models import MakeModel
from joulecache.transforms.chain import Chain


def audit(
    source: str | os.PathLike[str] | None = None,
    chain: Chain | str | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    datasets: Mapping[str, Callable[[], Any]] | None = None,
    steps: int | None = None,
    arms: Sequence[str] | None = None,
    workloads: Sequence[str] | None = None,
    epochs: int | None = None,
    runs: int | None = None,
    pairs: int | None = None,
    model: str | os.PathLike[str] | MakeModel = "cnn",
    train_epochs: int = 3,
    prune: float | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    labels: str | os.PathLike[str] | None = None,
    masks: str | os.PathLike[str] | None = None,
    coco: str | os.PathLike[str] | None = None,
    splits: Mapping[str, str] | None = None,
    image: str | None = None,
    target: str | Sequence[str] | None = None,
    variants: Sequence[int] | None = None,
    seed: int = 0,
    step_ms: float | None = None,
    device_watts: tuple[float, float] | None = None,
    meter: Meter | None = None,
    progress: Progress | None = None,
    budget: Budget | None = None,
) -> Audit:
    """Measure the energy of feeding a model in several arms: whether caching a chain pays, or which of your pipelines costs less.

    Every run is kept in ``runs.jsonl`` and every model file in ``models/`` of the folder `out`. An audit that was stopped continues
    when it is called again with the same arguments.

    Args:
        source: The images of an audit of a chain. Sources other than folders are unpacked for the online arms; that is not measured.
        chain: The chain, with its cut.
        out: The folder of the audit: new, empty, or an audit.
        datasets: Your pipelines, instead of a source and a chain: functions by name, each called once, without arguments, that
            return a batched `tf.data.Dataset` of (images `[B, H, W, C]`, integer labels `[B]`); for a function's model, or the
            workload "input" alone, of any elements whose first tensor has the batch axis first. The first function is the
            reference.
        steps: Batches in an epoch of your pipelines; None: all.
        arms: Arms of the chain, some of "naive", "tuned", "tf_cache", "tf_cache_file", "tfrecord" and "optimized", which must include
            the first and the last. None: all but "tf_cache_file".
        workloads: Some of "input", "train", "finetune", "infer" and "accelerator"; of your pipelines "input", "train" and "accelerator".
            None: "input", "train" and, for a chain and a classifier by name or from a file, "infer".
        epochs: Epochs that the verdict on a cache covers; they are not run. None: 30.
        runs: Trainings that share the cache; they are not run. None: 1.
        pairs: Number of blocks; None: 20 for the input, 5 for training and fine-tuning, 10 for inference and for stages, which
            have at least 5.
        model: The model to train: the name of a classifier or a file, for one class or multi-label of each image; or a function that
            receives `TrainingData` and returns a compiled model, for any targets. Models are compared by their first metric.
        train_epochs: Epochs of one training run.
        prune: Share of the channels that the model for inference loses. None: 0.5.
        batch_size: Images in a batch. None: 64.
        limit: Maximum number of records of the source.
        labels: CSV file with the classes of the images.
        masks: Folder of masks named like the images, or a pattern of folders or files.
        coco: COCO file of the boxes (instances JSON), or a pattern of such files.
        splits: Names of the folders or files of the splits, by split.
        image: Column of the images in Parquet or TFRecord files.
        target: Targets, as ``NAME`` or ``NAME:KIND``, KIND being class, multilabel, value, text, mask, boxes or points: columns of
            Parquet or TFRecord files or of `labels`, or keys of the .json files of a tar. Several as a sequence; ``none`` for images alone.
        variants: Numbers of draws of the cached ops: first that of the cache, then others to compare. Caches with each of them and
            fresh draws are trained on, with one seed per block and at least 3 blocks, if "train" is measured and a training has
            more epochs than the cache has variants; `reuse` of the result shows how accuracy is affected. None: 1.
        seed: Seed of the draws, the weights and the order of the runs.
        step_ms: Milliseconds that a training step lasts on the simulated device of the workload "accelerator".
        device_watts: Watts of that device while it waits for a batch, and while it computes.
        meter: Measures the runs. None: a new one.
        progress: Called with a description, steps done and their total.
        budget: How much to measure.

    Returns:
        The audit. Its `stages` attribute the joules of the naive arm, if the input or the training of a chain is measured.

    Raises:
        ValueError: An argument is out of range or excludes another, or `out` holds anything but an audit.
        ArmError: An arm cannot run.
        BuildError: The cache cannot be built.
    """
    make_model = model if callable(model) else None
    defaults = None if make_model is None else PIPELINE_WORKLOADS  # what else there is compresses a classifier
    measured = {"pairs": pairs, "seed": seed, "budget": budget, "step_ms": step_ms, "device_watts": device_watts}
    common = measured | {
        "workloads": defaults if workloads is None else check_sequence("workloads", workloads),
        "model": origin_of(model).function if callable(model) else os.fspath(model),
        "train_epochs": train_epochs,
    }
    of_source = {"limit": limit, "labels": labels, "masks": masks, "coco": coco, "splits": splits, "image": image}
    of_chains = of_source | {
        "target": target,
        "arms": None if arms is None else check_sequence("arms", arms),
        "epochs": epochs,
        "runs": runs,
        "prune": prune,
        "batch_size": batch_size,
        "variants": None if variants is None else check_sequence("variants", variants),
    }
    if out is None:
        raise ValueError("out is missing: set the folder of the audit")
    tools: dict[str, Any] = {"make_model": make_model, "meter": meter or Meter(), "progress": progress or silent}
    if datasets is not None:
        _refuse({"source": source, "chain": chain} | of_chains)
        return audit_pipelines(datasets, out, PipelinesConfig(**_given(common | {"steps": steps})), **tools)
    if source is None or chain is None:
        raise ValueError("nothing to audit: set a source and a chain, or datasets, functions that return one")
    if steps is not None:
        raise ValueError("steps requires datasets: leave it out for a chain, or set a limit")
    return audit_chain(source, chain, out, AuditConfig(**_given(common | of_chains)), **tools)


def _refuse(arguments: Mapping[str, Any]) -> None:
    """Raise ValueError if arguments of the audit of a chain are given."""
    if refused := _given(arguments):
        raise ValueError(f"{', '.join(refused)}: only for the audit of a chain, leave them out for datasets")


def _given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that are not None."""
    return {name: value for name, value in arguments.items() if value is not None}
