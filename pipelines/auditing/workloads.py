"""What the arms feed: nothing, the training of a CNN, the fine-tuning of its pruned form, or the inference of the compressed one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import keras

from joulecache.pipelines.auditing.arms import Arm
from joulecache.pipelines.compression import TfliteModel
from joulecache.pipelines.compression.pruning import prune_channels
from joulecache.pipelines.compression.quantization_aware import QuantizationAware
from joulecache.pipelines.models import build_model, compile_model, ends_in_softmax

WORKLOADS = ("input", "train", "finetune", "infer")
DEFAULT_WORKLOADS = ("input", "train", "infer")


class Workload(Protocol):
    """One thing that eats batches. `blocks` is how often each arm is measured, unless asked otherwise."""

    name: str
    blocks: int
    epochs: int

    def prepare(self, seed: int) -> None:
        """Make ready for one run; not measured."""

    def run(self, arm: Arm, first_epoch: int) -> int:
        """Consume the arm's epochs from that one on; return the number of images. This is what is measured."""

    def accuracy(self) -> float | None:
        """Return the accuracy on held-out records after a run; not measured."""


@dataclass
class InputOnly:
    """Iterate over the batches and drop them: what the input costs by itself."""

    name: str = "input"
    blocks: int = 20
    epochs: int = 1

    def prepare(self, seed: int) -> None:
        """Nothing to make ready."""

    def run(self, arm: Arm, first_epoch: int) -> int:
        """Iterate over the epochs."""
        return _consume(arm, first_epoch, self.epochs, lambda images: None)

    def accuracy(self) -> None:
        """Nothing is learned."""


class Training:
    """Train one network for some epochs, in every arm of a block from the same weights and in a fresh optimizer.

    It is compiled, and traced, once: that would otherwise be a part of every run, and the same in all of them.
    """

    blocks = 5

    def __init__(
        self, name: str, network: keras.Model, start: Callable[[int], Sequence[Any]], val_data: Any, epochs: int
    ) -> None:
        """Take a compiled network; `start` gives its weights for a seed."""
        self.name, self.network, self.epochs = name, network, epochs
        self._start, self._val_data = start, val_data

    def prepare(self, seed: int) -> None:
        """Set the weights of the seed and forget the optimizer's moments."""
        keras.utils.set_random_seed(seed)
        self.network.set_weights(self._start(seed))
        for variable in self.network.optimizer.variables:
            if "learning_rate" not in variable.path:
                variable.assign(keras.ops.zeros_like(variable))

    def run(self, arm: Arm, first_epoch: int) -> int:
        """Train for the epochs."""
        for epoch in range(first_epoch, first_epoch + self.epochs):
            arm.start_epoch(epoch)
            # shuffle=False: the arms shuffle, and Keras warns that it cannot shuffle a tf.data.Dataset
            self.network.fit(arm.dataset, epochs=1, shuffle=False, verbose=0)
        return arm.records * self.epochs

    def accuracy(self) -> float | None:
        """Return the accuracy on the held-out records, None when there are none."""
        if self._val_data is None:
            return None
        return float(self.network.evaluate(self._val_data, verbose=0, return_dict=True)["accuracy"])


def train_from_scratch(model: str, shape: tuple[int, int, int], classes: int, val_data: Any, epochs: int) -> Training:
    """Make the workload "train": a model from fresh weights, drawn from the seed."""
    network = build_model(model, shape, classes)
    compile_model(network, 1e-3)
    return Training("train", network, lambda seed: keras.models.clone_model(network).get_weights(), val_data, epochs)


def finetune_pruned(trained: keras.Model, prune: float, val_data: Any, epochs: int) -> Training:
    """Make the workload "finetune": the trained model, pruned, with int8's rounding in every step."""
    pruned = prune_channels(trained, prune)
    network = QuantizationAware(pruned)
    compile_model(network, 1e-4, softmax=ends_in_softmax(pruned))
    network(keras.ops.zeros((1, *pruned.inputs[0].shape[1:])))
    weights = network.get_weights()
    return Training("finetune", network, lambda seed: weights, val_data, epochs)


class Infer:
    """Run a TensorFlow Lite model over the whole training split, on one thread."""

    name = "infer"
    blocks = 10
    epochs = 1

    def __init__(self, model: Path) -> None:
        """Open the model file."""
        self._model = TfliteModel(model)

    def prepare(self, seed: int) -> None:
        """Nothing to make ready."""

    def run(self, arm: Arm, first_epoch: int) -> int:
        """Predict every batch."""
        return _consume(arm, first_epoch, self.epochs, lambda images: self._model.predict(images.numpy()))

    def accuracy(self) -> None:
        """Measured once for each model file, not for each run."""


def _consume(arm: Arm, first_epoch: int, epochs: int, eat: Callable[[Any], object]) -> int:
    count = 0
    for epoch in range(first_epoch, first_epoch + epochs):
        arm.start_epoch(epoch)
        for images, _ in arm.dataset:
            eat(images)
            count += images.shape[0]
    return count
