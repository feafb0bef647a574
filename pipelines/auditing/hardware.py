"""What this machine achieves at each precision: operations per second, and per joule."""

from __future__ import annotations

import functools
import math
import operator
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from keras import layers

from joulecache.pipelines.compressing.tflite import convert_quietly
from joulecache.pipelines.core.progress import silenced_output
from joulecache.pipelines.energy import Energy, Meter, available_cpus

Operation = Literal["matrix product", "convolution"]
Precision = Literal["float32", "bfloat16", "int8"]

_SIDE = 1024  # of square matrices: 4 MB each at float32
_CONV = (8, 56, 56, 64)  # batch, height, width, channels in and out: a ResNet's first stage
_KERNEL = 3
_WORTH = 1.1  # times as much per joule: what a narrower precision must do to be worth its rounding
_FLOP: dict[Operation, int] = {
    "matrix product": 2 * _SIDE**3,
    "convolution": 2 * math.prod(_CONV) * _CONV[-1] * _KERNEL**2,
}

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all)."""


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """What one operation achieved at one precision, over all rounds.

    `flop_per_s` is the median of the rounds, `flop_per_s_low` and `flop_per_s_high` the least and the most; a multiplication and an
    addition are two operations, of integers too. `flop_per_j` is of active energy, over all rounds, and the same as FLOP/s per
    watt; `flop` are the operations of all rounds. `device` and `engine` say where it ran, `energy` what it took, with its passport.
    """

    operation: Operation
    precision: Precision
    device: str
    engine: str
    flop_per_s: float
    flop_per_s_low: float
    flop_per_s_high: float
    flop: int
    energy: Energy

    @property
    def flop_per_j(self) -> float | None:
        """Operations per active joule; None where no energy is active, as with watts that do not rise with load."""
        return self.flop / self.energy.active_j if self.energy.active_j else None

    def to_json(self) -> dict[str, object]:
        """Return a dict of JSON values."""
        return {**vars(self), "flop_per_j": self.flop_per_j, "energy": self.energy.to_json()}


def measure_hardware(
    *, meter: Meter | None = None, seconds: float = 0.5, rounds: int = 5, progress: Progress | None = None
) -> tuple[Throughput, ...]:
    """Measure a matrix product and a convolution at float32, bfloat16 and int8, on all processors or the first accelerator.

    Float precisions run in TensorFlow, int8 in LiteRT, as quantized models do: always on the processors. All take turns, in another order
    in each of `rounds` rounds, for `seconds` each. Raises ValueError for fewer than 1 round and for seconds that are not above 0.
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"rounds is {rounds!r}: give a whole number of at least 1")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise ValueError(f"seconds is {seconds!r}: give a finite number above 0")
    meter = meter or Meter()
    accelerators = tf.config.list_logical_devices("GPU")
    device = accelerators[0].name if accelerators else "CPU"
    makers: dict[Precision, tuple[str, str, Callable[[Operation], Callable[[], object]]]] = {
        "float32": (device, "TensorFlow", functools.partial(_in_tensorflow, tf.float32, device)),
        "bfloat16": (device, "TensorFlow", functools.partial(_in_tensorflow, tf.bfloat16, device)),
        "int8": ("CPU", "LiteRT", _in_litert),
    }
    tasks = [(operation, precision) for operation in get_args(Operation) for precision in get_args(Precision)]
    acts = {(operation, precision): makers[precision][2](operation) for operation, precision in tasks}
    rates: dict[tuple[Operation, Precision], list[float]] = {task: [] for task in tasks}
    energies: dict[tuple[Operation, Precision], list[Energy]] = {task: [] for task in tasks}
    done = dict.fromkeys(tasks, 0)
    for turn in range(rounds):
        for place, task in enumerate(random.Random(turn).sample(tasks, len(tasks))):
            if progress:
                progress("measuring operations", turn * len(tasks) + place, rounds * len(tasks))
            acts[task]()  # what is left of the one before it is gone from the caches
            with meter.window("operations") as window:
                times = _run(acts[task], seconds)
            done[task] += times
            energies[task].append(window.energy)
            rates[task].append(times * _FLOP[task[0]] / window.energy.duration_s)
    found = []
    for task in tasks:
        (name, precision), energy = task, functools.reduce(operator.add, energies[task])
        found.append(
            Throughput(
                operation=name,
                precision=precision,
                device=makers[precision][0],
                engine=makers[precision][1],
                flop_per_s=statistics.median(rates[task]),
                flop_per_s_low=min(rates[task]),
                flop_per_s_high=max(rates[task]),
                flop=done[task] * _FLOP[name],
                energy=energy,
            )
        )
    return tuple(found)


def _run(act: Callable[[], object], seconds: float) -> int:
    """Repeat an act until the time is over; return how often."""
    times, end = 0, time.monotonic() + seconds
    while times == 0 or time.monotonic() < end:
        act()
        times += 1
    return times


def _in_tensorflow(dtype: tf.DType, device: str, name: Operation) -> Callable[[], object]:
    with tf.device(device):
        if name == "matrix product":
            left, right = (tf.cast(tf.random.stateless_normal((_SIDE, _SIDE), (0, seed)), dtype) for seed in range(2))
            call = tf.function(tf.linalg.matmul)
        else:
            channels = _CONV[-1]
            left = tf.cast(tf.random.stateless_normal(_CONV, (0, 0)), dtype)
            right = tf.cast(tf.random.stateless_normal((_KERNEL, _KERNEL, channels, channels), (0, 1)), dtype)
            call = tf.function(lambda images, kernel: tf.nn.conv2d(images, kernel, 1, "SAME"))

        def act() -> object:
            # one value comes back, since on an accelerator the call returns before the work is done
            return call(left, right)[..., 0].numpy() if "GPU" in device else call(left, right)

        act()
    return act


def _in_litert(name: Operation) -> Callable[[], object]:
    batch, *shape = (_SIDE, _SIDE) if name == "matrix product" else _CONV
    given = keras.Input(shape, batch_size=batch)
    if name == "matrix product":
        layer: Any = layers.Dense(_SIDE, use_bias=False)
    else:
        layer = layers.Conv2D(_CONV[-1], _KERNEL, padding="same", use_bias=False)
    converter = tf.lite.TFLiteConverter.from_keras_model(keras.Model(given, layer(given)))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    sample = np.random.default_rng(0).standard_normal((batch, *shape)).astype(np.float32)
    converter.representative_dataset = lambda: [[sample]]
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    content = convert_quietly(converter)
    with silenced_output():
        interpreter = Interpreter(model_content=content, num_threads=max(1, math.floor(available_cpus())))
        interpreter.allocate_tensors()
    integers = np.random.default_rng(0).integers(-128, 128, (batch, *shape), np.int8)
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], integers)
    interpreter.invoke()
    return lambda: interpreter.invoke()


@dataclass(frozen=True)
class Recommendation:
    """The precision that does the most per joule, for training (float32 or bfloat16) and for inference, and why."""

    training: Precision
    inference: Precision
    why: str


def recommend(found: tuple[Throughput, ...]) -> Recommendation:
    """Recommend precisions by operations per active joule, as the geometric mean over both operations.

    A narrower one must do 1.1 times as much as a wider one. Raises ValueError without figures of each.
    """

    def per_joule(precision: Precision) -> float:
        figures = [one.flop_per_j for one in found if one.precision == precision and one.flop_per_j is not None]
        if len(figures) != len(get_args(Operation)):
            raise ValueError(
                f"no joules at {precision}: measure every operation at every precision, with watts that rise with load"
            )
        return statistics.geometric_mean(figures)

    joules = {precision: per_joule(precision) for precision in get_args(Precision)}

    def best(allowed: tuple[Precision, ...]) -> Precision:
        chosen = allowed[0]
        for precision in allowed[1:]:  # from wide to narrow
            if joules[precision] > _WORTH * joules[chosen]:
                chosen = precision
        return chosen

    training, inference = best(("float32", "bfloat16")), best(("float32", "bfloat16", "int8"))
    shares = ", ".join(f"{name} {value / joules['float32']:.2f}" for name, value in joules.items())
    return Recommendation(training, inference, f"operations per joule against float32: {shares}")
