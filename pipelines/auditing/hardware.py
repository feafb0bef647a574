"""Measure operations per second and per joule at each precision on this machine."""

from __future__ import annotations

import functools
import math
import operator
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import get_args

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from keras import layers

from joulecache.pipelines.auditing.throughput import Operation, Precision, Throughput
from joulecache.pipelines.compressing.tflite import convert_quietly
from joulecache.pipelines.core.checks import check_integer, check_number
from joulecache.pipelines.core.progress import Progress, silenced_output, silent
from joulecache.pipelines.energy import Energy, Meter, available_cpus

_SIDE = 1024  # rows and columns of the matrices: 4 MB each at float32
_CONV = (8, 56, 56, 64)  # batch, height, width, channels in and out: a ResNet's first stage
_KERNEL = 3
FLOP: Mapping[Operation, int] = {
    "matrix product": 2 * _SIDE**3,
    "convolution": 2 * math.prod(_CONV) * _CONV[-1] * _KERNEL**2,
}
"""Operations of one call."""


@dataclass(frozen=True)
class Task:
    """An operation at one precision, and a call that runs it once in some engine on some device."""

    operation: Operation
    precision: Precision
    device: str
    engine: str
    call: Callable[[], object]


def measure_hardware(
    *, meter: Meter | None = None, seconds: float = 0.5, rounds: int = 5, progress: Progress | None = None
) -> tuple[Throughput, ...]:
    """Measure a matrix product and a convolution at every precision, on all processors or on the first accelerator.

    Float precisions run in TensorFlow, int8 in LiteRT as quantized models do: always on the processors.

    Args:
        meter: Measures the operations. None: a new one.
        seconds: Duration of each operation in a round.
        rounds: Rounds in which all run, in random order.
        progress: Called with a description, steps done and their total.

    Raises:
        ValueError: `seconds` or `rounds` is out of range.
    """
    check_integer("rounds", rounds)
    check_number("seconds", seconds, above=0)
    return measure_tasks(_make_tasks(), meter or Meter(), seconds, rounds, progress or silent)


def measure_tasks(
    tasks: tuple[Task, ...], meter: Meter, seconds: float, rounds: int, progress: Progress
) -> tuple[Throughput, ...]:
    """Measure tasks in rounds, each time in random order."""
    places = range(len(tasks))
    rates: list[list[float]] = [[] for _ in places]
    energies: list[list[Energy]] = [[] for _ in places]
    flop = [0 for _ in places]
    for number in range(rounds):
        for step, place in enumerate(random.Random(number).sample(places, len(tasks))):
            progress("measuring operations", number * len(tasks) + step, rounds * len(tasks))
            task = tasks[place]
            task.call()  # warm-up: the caches hold data of the previous task
            with meter.window("operations") as window:
                done = _repeat(task.call, seconds) * FLOP[task.operation]
            flop[place] += done
            energies[place].append(window.energy)
            rates[place].append(done / window.energy.duration_s)
    return tuple(
        Throughput(
            operation=task.operation,
            precision=task.precision,
            device=task.device,
            engine=task.engine,
            flop_per_s=statistics.median(rates[place]),
            flop_per_s_low=min(rates[place]),
            flop_per_s_high=max(rates[place]),
            flop=flop[place],
            energy=functools.reduce(operator.add, energies[place]),
        )
        for place, task in enumerate(tasks)
    )


def _repeat(call: Callable[[], object], seconds: float) -> int:
    """Repeat a call for some seconds; return the number of calls."""
    times, end_s = 0, time.monotonic() + seconds
    while times == 0 or time.monotonic() < end_s:
        call()
        times += 1
    return times


def _make_tasks() -> tuple[Task, ...]:
    accelerators = tf.config.list_logical_devices("GPU")
    device = accelerators[0].name if accelerators else "CPU"
    tasks = []
    for operation in get_args(Operation):
        for precision, dtype in (("float32", tf.float32), ("bfloat16", tf.bfloat16)):
            call = tensorflow_call(dtype, device, operation)
            tasks.append(Task(operation, precision, device, "TensorFlow", call))  # type: ignore[arg-type]
        tasks.append(Task(operation, "int8", "CPU", "LiteRT", _litert_call(operation)))
    return tuple(tasks)


def tensorflow_call(dtype: tf.DType, device: str, operation: Operation) -> Callable[[], tf.Tensor]:
    """Return a function that runs an operation in TensorFlow."""
    with tf.device(device):
        if operation == "matrix product":
            left, right = (tf.cast(tf.random.stateless_normal((_SIDE, _SIDE), (0, seed)), dtype) for seed in range(2))
            function = tf.function(tf.linalg.matmul)
        else:
            channels = _CONV[-1]
            left = tf.cast(tf.random.stateless_normal(_CONV, (0, 0)), dtype)
            right = tf.cast(tf.random.stateless_normal((_KERNEL, _KERNEL, channels, channels), (0, 1)), dtype)
            function = tf.function(lambda images, kernel: tf.nn.conv2d(images, kernel, 1, "SAME"))

        def call() -> tf.Tensor:
            # one value is copied back, since on an accelerator the call returns before the work is done
            return function(left, right)[..., 0].numpy() if "GPU" in device else function(left, right)

        call()
    return call


def _litert_call(operation: Operation) -> Callable[[], None]:
    """Return a function that runs an operation on int8 in LiteRT."""
    batch, *shape = (_SIDE, _SIDE) if operation == "matrix product" else _CONV
    given = keras.Input(shape, batch_size=batch)
    layer: keras.layers.Layer = (
        layers.Dense(_SIDE, use_bias=False)
        if operation == "matrix product"
        else layers.Conv2D(_CONV[-1], _KERNEL, padding="same", use_bias=False)
    )
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
