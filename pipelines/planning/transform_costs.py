"""Measure the cost of each op on this machine: CPU time per image of 224x224."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from joulecache.pipelines.source import synthetic_photo
from joulecache.transforms import (
    CentralCrop,
    Chain,
    Decode,
    Normalize,
    Op,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    ResizeShorter,
    ToFloat,
)
from joulecache.transforms.chain import apply, apply_batch_ops
from joulecache.transforms.kernels import put
from joulecache.transforms.ops import OPS, BatchOp
from joulecache.transforms.randomness import random_words

SIDE = 224
LARGER = 256  # what crops are cut from

EXAMPLES: tuple[Op, ...] = tuple(kind(*kind.typical) for kind in OPS.values())
"""Every op with typical arguments; those with a probability are always applied."""

_DRAWS = 16
_PASSES = 5
_PASS_S = 0.02


@dataclass(frozen=True)
class OpCost:
    """The cost of an op with given draws, and the copy of the result to its place in a batch."""

    op: Op
    cpu_us_per_image: float


def op_costs() -> Iterator[OpCost]:
    """Measure the ops of `EXAMPLES` in sequence: a tenth of a second each.

    `decode` runs on a synthetic photo of about 500x375, resizes on the decoded photo, crops on 256x256, all others on 224x224;
    `normalize` runs after `to_float`.
    """
    for op in EXAMPLES:
        yield OpCost(op, cpu_us(_work(op)) / _DRAWS)


def copy_cost() -> float:
    """Measure copying an image of 224x224x3 to its place in a batch, in CPU microseconds: the floor of all other costs."""
    image = _image(CentralCrop(SIDE))[:SIDE, :SIDE]
    batch = np.empty((_DRAWS, SIDE, SIDE, 3), np.uint8)

    def copy() -> None:
        for place in batch:
            put(place, image)

    return cpu_us(copy) / _DRAWS


def cpu_us(work: Callable[[], object]) -> float:
    """Return the CPU microseconds of one call, all threads: the median of five passes of at least 20 ms, after a warm-up."""
    work()
    passes = []
    for _ in range(_PASSES):
        calls, started = 0, time.process_time()
        while (elapsed := time.process_time() - started) < _PASS_S:
            work()
            calls += 1
        passes.append(elapsed / calls)
    return statistics.median(passes) * 1e6


def _work(op: Op) -> Callable[[], object]:
    """Return a function that runs an op on as many images as there are draws."""
    if isinstance(op, BatchOp):
        return _batch_work(op)
    words = random_words([op], 1, 0, range(_DRAWS), 0)
    image = synthetic_photo(0) if isinstance(op, Decode) else _image(op)
    shape = apply([op], image, words[0]).shape
    batch = np.empty((_DRAWS, *shape), np.uint8)

    def run() -> None:
        for place, drawn in zip(batch, words, strict=True):
            put(place, apply([op], image, drawn))

    return run


def _batch_work(op: Op) -> Callable[[], object]:
    images = np.stack([_image(op)] * _DRAWS)
    words = random_words([op], 1, 0, [0], 0)[0]
    ops = [ToFloat(), op] if isinstance(op, Normalize) else [op]
    return lambda: apply_batch_ops(ops, images, words)


def _image(op: Op) -> NDArray[np.uint8]:
    """Return the image that an op is measured on."""
    if isinstance(op, Resize | ResizeShorter | RandomResizedCrop):
        return Chain((Decode(),), 1)(synthetic_photo(0))  # type: ignore[return-value]
    side = LARGER if isinstance(op, CentralCrop | RandomCrop) else SIDE
    return Chain((Decode(), Resize(side)), 2)(synthetic_photo(0))  # type: ignore[return-value]
