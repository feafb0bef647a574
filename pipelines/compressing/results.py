"""Results of a compression: the model files, their figures, and how `compression.json` spells them.

Imports no TensorFlow.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from joulecache.pipelines.compressing.recipe import Recipe
from joulecache.pipelines.core.notebook import Displayed
from joulecache.pipelines.core.statistics import mean_of
from joulecache.pipelines.energy import Energy

COMPRESSION_RECORD = "compression.json"
CONTROL = "control"
"""Name of the model file that was fine-tuned as long as the compressed ones, but not compressed."""


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A TensorFlow Lite file, measured on the held-out images.

    Attributes:
        name: `baseline`, `control`, or the steps that made it, as in `pruned-clustered-int8`.
        path: The file.
        parameters: Number of weights of the Keras model.
        nonzero_weights: Those of the `parameters` that are not exactly 0, before quantization, which rounds more to 0.
        macs: Multiply-accumulates per image, including those with zeros.
        file_bytes: Size of the file.
        gzip_bytes: Size of the file after `gzip -9`.
        accuracy: Share of the held-out images that it classifies correctly.
        accuracy_low: Lower end of the 95% Wilson interval of `accuracy`.
        accuracy_high: Upper end of that interval.
        images: Number of held-out images.
        cpu_ms_per_image: CPU milliseconds per image in the fastest of the `runs`, on one thread.
        cpu_ms_per_image_median: The same, median of the `runs`.
        runs: How many times it was timed.
        batch_size: Images per batch in the timed runs.
        energy_per_image: Energy of the timed runs, per image.
        dense: Name of the model file to compare with: same precision, not pruned. None where it is not compared.
        faster_than_dense: Whether it used less CPU time than `dense` in every run; None where it is not compared.
        finetune_energy: Energy of all fine-tuning that led to it; None where there was none.
        inferences_to_pay_back: Images after which the active energy it saves over `dense` has paid back
            `finetune_energy`. None where there is nothing to pay back, and where not every run used less than `dense`.
    """

    name: str
    path: Path
    parameters: int
    nonzero_weights: int
    macs: int
    file_bytes: int
    gzip_bytes: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    images: int
    cpu_ms_per_image: float
    cpu_ms_per_image_median: float
    runs: int
    batch_size: int
    energy_per_image: Energy
    dense: str | None
    faster_than_dense: bool | None
    finetune_energy: Energy | None
    inferences_to_pay_back: float | None

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON values; `path` is the file's name."""
        return {
            **_fields(self),
            "path": self.path.name,
            "energy_per_image": self.energy_per_image.to_json(),
            "finetune_energy": self.finetune_energy and self.finetune_energy.to_json(),
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any], folder: Path) -> ModelFile:
        """Return the model file in `folder` that `to_json` described."""
        spent = body["finetune_energy"]
        changed = {
            "path": folder / Path(body["path"]).name,
            "energy_per_image": Energy.from_json(body["energy_per_image"]),
            "finetune_energy": None if spent is None else Energy.from_json(spent),
        }
        return cls(**{**body, **changed})


@dataclass(frozen=True, kw_only=True)
class Compression(Displayed):
    """What compressing a model produced.

    Attributes:
        folder: Where the files are.
        model_files: The measured files; the given model comes first, the result of the last step last.
        recipe: What was done.
        seed: The first seed. Files and figures other than `accuracies` are those of this seed.
        widths: Output channels (before, after) by pruned layer; empty where no channels were pruned.
        calibration_images: Number of images that calibrated int8; 0 where none did.
        accuracies: By model file, its accuracy for each seed from `seed` on.
        accuracy_lost: By model file, how far its accuracy is below the control's: (mean, low, high) over the seeds with
            the 95% Student's t interval of the differences. Empty with one seed and without a control.
    """

    folder: Path
    model_files: tuple[ModelFile, ...]
    recipe: Recipe
    seed: int
    widths: Mapping[str, tuple[int, int]]
    calibration_images: int
    accuracies: Mapping[str, tuple[float, ...]]
    accuracy_lost: Mapping[str, tuple[float, float, float]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "accuracy_lost", _lost(self.accuracies))

    def model_file(self, name: str) -> ModelFile:
        """Return the model file of that name.

        Raises:
            ValueError: There is none; the message lists the names.
        """
        for each in self.model_files:
            if each.name == name:
                return each
        raise ValueError(f"no model file {name!r}: choose one of {', '.join(each.name for each in self.model_files)}")

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON values, without the folder."""
        body = _fields(self)
        for name in ("folder", "model_files", "accuracy_lost"):
            del body[name]
        return {
            "variants": [each.to_json() for each in self.model_files],
            **body,
            "recipe": self.recipe.to_json(),
            "widths": {name: list(widths) for name, widths in self.widths.items()},
            "accuracies": {name: list(each) for name, each in self.accuracies.items()},
            "lost": {name: list(each) for name, each in self.accuracy_lost.items()},
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any], folder: Path) -> Compression:
        """Return the compression in `folder` that `to_json` described.

        Raises:
            ValueError: `body` is something else.
        """
        try:
            return cls(
                folder=folder,
                model_files=tuple(ModelFile.from_json(each, folder) for each in body["variants"]),
                recipe=Recipe(**{**body["recipe"], "protected": tuple(body["recipe"]["protected"])}),
                seed=body["seed"],
                widths={name: (before, after) for name, (before, after) in body["widths"].items()},
                calibration_images=body["calibration_images"],
                accuracies={name: tuple(each) for name, each in body["accuracies"].items()},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a compression: {type(error).__name__} {error}") from error


def read_compression(path: Path) -> Compression:
    """Read a `compression.json`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is something else; the message names the file.
    """
    try:
        return Compression.from_json(json.loads(path.read_text("utf-8")), path.parent)
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from error


def _fields(one: ModelFile | Compression) -> dict[str, Any]:
    return {each.name: getattr(one, each.name) for each in dataclasses.fields(one)}


def _lost(accuracies: Mapping[str, tuple[float, ...]]) -> dict[str, tuple[float, float, float]]:
    control = accuracies.get(CONTROL, ())
    lost = {}
    for name, each in accuracies.items():
        if name == CONTROL:
            continue
        mean = mean_of([a - b for a, b in zip(control, each, strict=True)]) if control else None
        if mean is not None and mean.low is not None and mean.high is not None:
            lost[name] = (mean.value, mean.low, mean.high)
    return lost
