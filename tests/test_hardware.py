"""What a machine achieves: real operations, counted, and a recommendation from made figures."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import tensorflow as tf

from joulecache.pipelines.auditing.hardware import FLOP, Task, measure_hardware, measure_tasks, tensorflow_call
from joulecache.pipelines.auditing.throughput import Operation, Precision, Throughput, recommend
from joulecache.pipelines.core.progress import silent
from joulecache.pipelines.energy import Meter
from joulecache.pipelines.report.describe.machine import describe_throughputs


@pytest.fixture(scope="module")
def found() -> tuple[Throughput, ...]:
    return measure_hardware(seconds=0.02, rounds=2)


def test_every_operation_is_measured_at_every_precision(found: tuple[Throughput, ...]) -> None:
    tasks = [(operation, precision) for operation in get_args(Operation) for precision in get_args(Precision)]
    assert [(one.operation, one.precision) for one in found] == tasks
    for one in found:
        assert 0 < one.flop_per_s_low <= one.flop_per_s <= one.flop_per_s_high
        # at least one act a round
        assert one.flop >= 2 * FLOP[one.operation]
        assert one.flop_per_j is not None
        assert one.flop_per_j * one.energy.active_j == pytest.approx(one.flop)
        assert one.energy.duration_s >= 2 * 0.02
        assert one.engine == ("LiteRT" if one.precision == "int8" else "TensorFlow")
        assert one.to_json()["energy"] == one.energy.to_json()


def test_operations_are_counted_as_they_are_done() -> None:
    calls: list[str] = []
    tasks = tuple(
        Task(operation, "int8", "CPU", "none", functools.partial(calls.append, operation))
        for operation in get_args(Operation)
    )
    seen = measure_tasks(tasks, Meter(), 0.01, 3, silent)
    counted = sum(one.flop / FLOP[one.operation] for one in seen)
    assert counted == len(calls) - 3 * len(seen)  # one of each turn comes before the window
    assert FLOP == {"matrix product": 2 * 1024**3, "convolution": 2 * 8 * 56 * 56 * 64 * 64 * 9}


@pytest.mark.parametrize("operation", get_args(Operation))
def test_the_operations_are_what_they_are_called(operation: Operation) -> None:
    """By their results: as many multiplications as counted give sums of the spread that random signs have."""
    values = np.asarray(tensorflow_call(tf.float32, "CPU", operation)())
    assert values.shape == ((1024, 1024) if operation == "matrix product" else (8, 56, 56, 64))
    summed = 1024 if operation == "matrix product" else 9 * 64
    inner = values if operation == "matrix product" else values[:, 1:-1, 1:-1]
    assert float(inner.std()) == pytest.approx(summed**0.5, rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds must be an integer of at least 1, got 0"),
        ({"rounds": True}, "rounds must be"),
        ({"rounds": 1.5}, "rounds must be"),
        ({"seconds": 0}, "seconds must be a finite number above 0, got 0"),
        ({"seconds": float("nan")}, "seconds must be"),
        ({"seconds": float("inf")}, "seconds must be"),
        ({"seconds": True}, "seconds must be"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure_hardware(**options)


@pytest.mark.parametrize(
    ("float32", "bfloat16", "int8", "training", "inference"),
    [
        (1.0, 4.0, 10.0, "bfloat16", "int8"),
        (1.0, 1.05, 1.09, "float32", "float32"),  # not worth their rounding
        (1.0, 0.5, 1.3, "float32", "int8"),
        (1.0, 4.0, 4.2, "bfloat16", "bfloat16"),
        (2.0, 1.0, 0.1, "float32", "float32"),
    ],
)
def test_what_is_recommended(
    found: tuple[Throughput, ...], float32: float, bfloat16: float, int8: float, training: str, inference: str
) -> None:
    figures = {"float32": float32, "bfloat16": bfloat16, "int8": int8}
    made = tuple(replace(one, energy=found[0].energy, flop=round(1e12 * figures[one.precision])) for one in found)
    advice = recommend(made)
    assert advice is not None
    assert (advice.training, advice.inference) == (training, inference)
    assert f"bfloat16 {bfloat16 / float32:.2f}" in advice.why
    with pytest.raises(ValueError, match="operations are missing at int8"):
        recommend(tuple(one for one in made if one.precision != "int8"))
    still = replace(found[0].energy, active=found[0].energy.active * 0.0)
    assert made[0].to_json()["flop_per_j"] == made[0].flop_per_j
    assert replace(made[0], energy=still).flop_per_j is None
    flat = tuple(replace(one, energy=still) for one in made)
    assert recommend(flat) is None
    (said,) = describe_throughputs(flat, Meter().provenance(), None).headline
    assert said.claim.startswith("No recommendation: the power does not rise with load")
