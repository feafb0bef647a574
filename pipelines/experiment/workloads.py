"""What the arms feed: nothing, the training of a CNN, the fine-tuning of its pruned form, or the inference of the compressed one."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import keras
import tensorflow as tf

from joulecache.pipelines.compressing.pruning import prune_channels
from joulecache.pipelines.compressing.quantization_aware import QuantizationAware
from joulecache.pipelines.compressing.tflite import TfliteModel
from joulecache.pipelines.experiment.arms import Arm
from joulecache.pipelines.models.fitting import compile_model, ends_in_softmax
from joulecache.pipelines.training.input_waits import InputWaits

WORKLOADS = ("input", "train", "finetune", "infer")
DEFAULT_WORKLOADS = ("input", "train", "infer")
SHORTEST_RUN_S = 1.0
"""How long a run of the input alone takes at least, as far as so many times its epochs suffice."""
_MOST_TIMES = 50


def check_names(what: str, names: Sequence[str], allowed: Sequence[str], needed: Sequence[str] = ()) -> None:
    """Raise ValueError unless the names are some of the allowed ones, each once, and hold those that are needed."""
    if not names or len(set(names)) != len(names) or any(name not in allowed for name in names):
        raise ValueError(f"{what} must be some of {', '.join(allowed)}, each once, got {', '.join(names) or 'none'}")
    for name in needed:
        if name not in names:
            raise ValueError(f"{what} must have {name}, which the others are compared with, got {', '.join(names)}")


def check_whole(**values: object) -> None:
    """Raise ValueError for an argument that is no whole number of at least 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


class Workload(Protocol):
    """One thing that eats batches. `blocks` is how often each arm is measured, unless asked otherwise."""

    name: str
    blocks: int
    epochs: int

    def prepare(self, seed: int) -> None:
        """Make ready for one run; not measured."""

    def run(self, arm: Arm, first_epoch: int) -> int:
        """Consume the arm's epochs from that one on; return the number of images. This is what is measured."""

    def release(self) -> None:
        """Let go of what a run has kept, right after it; not measured."""

    def accuracy(self) -> float | None:
        """Return the accuracy on held-out records after a run; not measured."""

    def waited_s(self, duration_s: float) -> float | None:
        """Return for how many of a run's seconds a training waited for its next batch, None where none was timed; not measured."""


class Ended:
    """Iterators at their end, which are let go of when nothing is measured.

    TensorFlow's destructor may wait for the thread that tunes the pipeline, which sleeps for twice as long each time, up to a minute: a run
    would last up to twice as long as it did. That wait takes no CPU, and so nobody else waits for it; for one that may work on, everybody
    does. The sooner they are let go of, the shorter it is; many that are dropped one after the other wait for minutes.
    """

    def __init__(self) -> None:
        """Hold nothing."""
        self._at_rest: list[Any] = []
        self._working: list[Any] = []

    def keep(self, arm: Arm, iterator: Any) -> None:
        """Hold an iterator of the arm, until `let_go`."""
        (self._working if arm.reads_on else self._at_rest).append(iterator)

    def let_go(self) -> None:
        """Drop all of them."""
        self._working.clear()
        while self._at_rest:
            alone = [self._at_rest.pop()]
            threading.Thread(target=alone.clear).start()
            del alone


@dataclass
class InputOnly:
    """Iterate over the batches and drop them: what the input costs by itself.

    An arm whose epochs take less than `shortest_s` goes through several times as many in every run but its first, which says how long they
    take: a run of some milliseconds is mostly noise.
    """

    name: str = "input"
    blocks: int = 20
    epochs: int = 1
    shortest_s: float = 0.0
    _times: dict[str, int] = field(default_factory=dict, init=False, repr=False)
    ended: Ended = field(default_factory=Ended, init=False, repr=False)

    def prepare(self, seed: int) -> None:
        """Nothing to make ready."""

    def release(self) -> None:
        """Let go of the run's iterators."""
        self.ended.let_go()

    def run(self, arm: Arm, first_epoch: int) -> int:
        """Iterate over the epochs."""
        if arm.name not in self._times:
            return self._first_run(arm, first_epoch)
        return self._consume(arm, first_epoch, self._times[arm.name] * self.epochs)

    def _first_run(self, arm: Arm, first_epoch: int) -> int:
        count, lasts_s = 0, 0.0
        for _ in range(2):  # the first time files are mapped, and graphs traced
            if not count or lasts_s < self.shortest_s:
                begun_s = time.monotonic()
                count += self._consume(arm, first_epoch, self.epochs)
                lasts_s = time.monotonic() - begun_s
        self._times[arm.name] = min(max(1, math.ceil(self.shortest_s / lasts_s)), _MOST_TIMES)
        return count

    def _consume(self, arm: Arm, first_epoch: int, epochs: int) -> int:
        return consume(arm, first_epoch, epochs, lambda images: None, self.ended)

    def accuracy(self) -> None:
        """Nothing is learned."""

    def waited_s(self, duration_s: float) -> None:
        """Nothing is trained."""


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
        self._waits = InputWaits()
        self._timed: dict[Any, Any] = {}  # to make one traces graphs: no run is charged with it but the first

    def prepare(self, seed: int) -> None:
        """Set the weights of the seed and forget the optimizer's moments."""
        keras.utils.set_random_seed(seed)
        self.network.set_weights(self._start(seed))
        for variable in self.network.optimizer.variables:
            if "learning_rate" not in variable.path:
                variable.assign(keras.ops.zeros_like(variable))

    def run(self, arm: Arm, first_epoch: int) -> int:
        """Train for the epochs."""
        self._waits.restart()
        for epoch in range(first_epoch, first_epoch + self.epochs):
            arm.start_epoch(epoch)
            # shuffle=False: the arms shuffle, and Keras warns that it cannot shuffle a tf.data.Dataset
            self.network.fit(self.timed(arm.dataset), epochs=1, shuffle=False, verbose=0)
        return arm.records * self.epochs

    def release(self) -> None:
        """Nothing was kept."""

    def timed(self, dataset: Any) -> Any:
        """Return a dataset whose waits are counted, the same one each time; the first call for it traces graphs."""
        if dataset not in self._timed:
            self._timed[dataset] = self._waits.timed(dataset)
        return self._timed[dataset]

    def accuracy(self) -> float | None:
        """Return the accuracy on the held-out records, None when there are none."""
        if self._val_data is None:
            return None
        return float(self.network.evaluate(self._val_data, verbose=0, return_dict=True)["accuracy"])

    def waited_s(self, duration_s: float) -> float | None:
        """Return the seconds of the last run in which its epochs waited for batches."""
        return self._waits.seconds(duration_s)


def train_from_scratch(network: keras.Model, val_data: Any, epochs: int) -> Training:
    """Make the workload "train": a model from fresh weights, drawn from the seed."""
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
        self._ended = Ended()

    def prepare(self, seed: int) -> None:
        """Nothing to make ready."""

    def release(self) -> None:
        """Let go of the run's iterators."""
        self._ended.let_go()

    def run(self, arm: Arm, first_epoch: int) -> int:
        """Predict every batch."""
        return consume(arm, first_epoch, self.epochs, lambda images: self._model.predict(images.numpy()), self._ended)

    def accuracy(self) -> None:
        """Measured once for each model file, not for each run."""

    def waited_s(self, duration_s: float) -> None:
        """Nothing is trained."""


def training_device() -> str:
    """Return the device that trains: the first GPU that TensorFlow sees, or the processor."""
    return "GPU:0" if tf.config.list_logical_devices("GPU") else "CPU:0"


def consume(arm: Arm, first_epoch: int, epochs: int, eat: Callable[[Any], object], ended: Ended) -> int:
    """Hand the images of each batch of the epochs to `eat`; return how many there were. The iterators are kept in `ended`."""
    count = 0
    for epoch in range(first_epoch, first_epoch + epochs):
        arm.start_epoch(epoch)
        iterator = iter(arm.dataset)
        ended.keep(arm, iterator)
        for batch in iterator:
            images = tf.nest.flatten(batch)[0]
            eat(images)
            count += images.shape[0]
    return count
