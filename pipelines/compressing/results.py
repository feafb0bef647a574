"""Results of a compression, and `compression.json`, which holds them. Imports no TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

from annotated_types import MinLen

from joulecache.pipelines.compressing.output import read_record
from joulecache.pipelines.compressing.recipe import Recipe
from joulecache.pipelines.core import codec
from joulecache.pipelines.core.codec import JSON, UNCHECKED, Amount, Count, Share, Whole
from joulecache.pipelines.core.notebook import Displayed
from joulecache.pipelines.core.statistics import mean_of
from joulecache.pipelines.energy import Energy

COMPRESSION_RECORD = "compression.json"
CONTROL = "control"
"""Name of the model file that was fine-tuned for as long as the compressed ones, but not compressed."""
_STEPS = ("pruned", "sparse", "clustered")


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A TensorFlow Lite file, measured on the held-out images.

    Attributes:
        name: `baseline`, `control`, or the steps that made it, such as `pruned-clustered-int8`.
        file_name: Name of the file in the output folder.
        parameters: Weights of the Keras model.
        nonzero_weights: Weights that are not exactly 0, before quantization, which rounds more to 0.
        macs: Multiply-accumulates per image, including those with zeros; None if the model has layers that are not counted.
        file_bytes: Size of the file.
        gzip_bytes: Size of the file after `gzip -9`.
        accuracy: Share of the held-out images that are classified correctly; for multi-labels, of the answers yes or no for each
            class of each image.
        accuracy_low: Lower end of its 95% Wilson interval.
        accuracy_high: Upper end of its 95% Wilson interval.
        images: Held-out images.
        cpu_ms_per_image: CPU milliseconds per image on one thread, in the fastest run.
        cpu_ms_per_image_median: CPU milliseconds per image on one thread, median of the runs.
        runs: How often it was timed.
        batch_size: Images per batch in the timed runs.
        energy_per_image: Energy of the timed runs per image.
        dense: Name of the unpruned model file to compare with, of the same precision; None where there is none.
        faster_than_dense: Whether every run used less CPU time than the run of `dense` next to it.
        finetune_energy: Energy of all fine-tuning on the way to this file; None where there was none.
        inferences_to_pay_back: Images after which a pruned, sparse or clustered file has saved the active joules of its
            fine-tuning against `dense`. None where there is nothing to pay back, and where not every run used less than
            `dense`.
    """

    name: str
    file_name: str = field(metadata={"alias": "path"})
    parameters: Whole
    nonzero_weights: Whole
    macs: Whole | None
    file_bytes: Whole
    gzip_bytes: Whole
    accuracy: Share
    accuracy_low: Share
    accuracy_high: Share
    images: Count
    cpu_ms_per_image: Amount
    cpu_ms_per_image_median: Amount
    runs: Count
    batch_size: Count
    energy_per_image: Energy
    dense: str | None
    faster_than_dense: bool | None
    finetune_energy: Energy | None
    inferences_to_pay_back: Amount | None

    @property
    def steps(self) -> tuple[str, ...]:
        """Steps before quantization that made the file: some of ``pruned``, ``sparse`` and ``clustered``."""
        return tuple(step for step in self.name.split("-") if step in _STEPS)


class AccuracyLoss(NamedTuple):
    """Accuracy below the control's, as a share of 1: mean over the seeds, with Student's 95% interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Compression(Displayed):
    """What compressing a model produced.

    Attributes:
        model_files: The measured files: the given model first, the result of the last step last.
        recipe: The recipe.
        seed: The first seed. All but `accuracies` and `accuracy_lost` is about this one.
        widths: By pruned layer: output channels before and after.
        calibration_images: Images that calibrated int8; 0 without int8.
        accuracies: By model file: accuracy for each seed, from `seed` on.
        chance: Accuracy of always answering the most frequent class of the held-out images; None in records of earlier versions.
        accuracy_lost: By model file: accuracy below the control's; empty for one seed and without a control.
    """

    model_files: Annotated[tuple[ModelFile, ...], MinLen(1)] = field(metadata={"alias": "variants"})
    recipe: Recipe
    seed: int
    widths: Mapping[str, tuple[Whole, Whole]]
    calibration_images: Whole
    accuracies: Mapping[str, Annotated[tuple[Share, ...], MinLen(1)]]
    chance: Share | None = None
    accuracy_lost: Mapping[str, AccuracyLoss] = field(init=False, metadata={"alias": "lost", **UNCHECKED})

    def __post_init__(self) -> None:
        object.__setattr__(self, "accuracy_lost", _accuracy_lost(self.accuracies))

    def model_file(self, name: str) -> ModelFile:
        """Return the model file of that name; raise ValueError, which lists the names, if there is none."""
        by_name = {each.name: each for each in self.model_files}
        if name not in by_name:
            raise ValueError(f"no model file {name!r}: choose one of {', '.join(by_name)}")
        return by_name[name]

    @property
    def uncompressed(self) -> ModelFile:
        """The file to compare with: the control, which was fine-tuned as long; without one, the given model."""
        return next((file for file in self.model_files if file.name == CONTROL), self.model_files[0])

    def is_at_chance(self, file: ModelFile) -> bool:
        """Return whether a model file is not shown to be better than always answering the most frequent class."""
        return self.chance is not None and file.accuracy_low <= self.chance

    def to_json(self) -> dict[str, JSON]:
        """Return the body of `compression.json`."""
        return codec.to_json(self)


def read_compression(path: Path) -> Compression:
    """Read a `compression.json`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a compression, or is damaged; the message names the file.
    """
    try:
        return codec.from_json(Compression, read_record(path))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not a joulecache compression: {error}") from None


def _accuracy_lost(accuracies: Mapping[str, tuple[float, ...]]) -> dict[str, AccuracyLoss]:
    control = accuracies.get(CONTROL, ())
    if len(control) < 2:
        return {}
    lost: dict[str, AccuracyLoss] = {}
    for name, each in accuracies.items():
        if name != CONTROL:
            mean = mean_of([whole - part for whole, part in zip(control, each, strict=True)])
            assert mean.low is not None
            assert mean.high is not None
            lost[name] = AccuracyLoss(mean.value, mean.low, mean.high)
    return lost
