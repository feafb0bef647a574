"""Weight sharing: kernels with few distinct values, which compress well, and fine-tuning that keeps them few."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from joulecache.pipelines.compressing.kernels import copy_of, kernel_of, weighted_layers
from joulecache.pipelines.compressing.projected_kernels import ProjectedKernels, Projection
from joulecache.pipelines.compressing.recipe import Per
from joulecache.pipelines.core.checks import check_choice, check_integer

_ITERATIONS = 300


def cluster_weights(model: keras.Model, clusters: int, *, per: Per = "layer") -> keras.Model:
    """Return an uncompiled copy whose Conv2D and Dense kernels have few distinct values: the means of their clusters.

    See `cluster_values` (Han et al. 2016, Deep Compression, arXiv:1510.00149). Zeros stay zero, so a sparse model stays as
    sparse. Biases, BatchNormalization and depthwise kernels do not change.

    Args:
        model: A functional or sequential model, which stays untouched.
        clusters: Number of distinct values, at least 2, including zero if there are zeros.
        per: Count them per kernel ("layer") or per output channel ("channel").

    Raises:
        ValueError: As `weighted_layers`; or an argument is out of range, or weights are not finite.
    """
    check_integer("clusters", clusters, 2)
    check_choice("per", per, get_args(Per))
    weighted_layers(model)
    copy = copy_of(model)
    for name, layer in weighted_layers(copy).items():
        kernel = np.array(kernel_of(layer), order="C")
        if not np.isfinite(kernel.astype(np.float64)).all():
            raise ValueError(f"the kernel of layer {name!r} has weights that are not finite: they cannot be clustered")
        for part in _parts(kernel, per):
            part[:] = cluster_values(part, clusters)
        layer.kernel.assign(kernel)
    return copy


def distinct_values(model: keras.Model, *, per: Per = "layer") -> dict[str, int]:
    """Return the number of distinct values of each Conv2D and Dense kernel, or of the channel in it that has the most."""
    check_choice("per", per, get_args(Per))
    return {
        name: max(len(np.unique(part)) for part in _parts(kernel_of(layer), per))
        for name, layer in weighted_layers(model).items()
    }


def cluster_values(values: NDArray[Any], clusters: int) -> NDArray[Any]:
    """Return values `[N]`, each replaced by the mean of its cluster.

    Zeros form a separate cluster; `kmeans` clusters the others. With at most `clusters` distinct values nothing changes.
    """
    shared = values.copy()
    alive = values != 0
    distinct, where, counts = np.unique(values[alive].astype(np.float64), return_inverse=True, return_counts=True)
    rest = clusters if alive.all() else clusters - 1
    if len(distinct) > rest:
        labels, means = kmeans(distinct, counts, rest)
        shared[alive] = means[labels][where].astype(values.dtype)
    return shared


def kmeans(
    values: NDArray[np.float64], counts: NDArray[np.int64], clusters: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Cluster distinct values `[N]`, ascending and more than `clusters`, that occur `counts` times, by Lloyd's iteration.

    Initial centres are evenly spaced between the smallest and the largest value, so that large weights, which are rare,
    are not averaged away (Han et al. 2016, section 3.2). A centre without values moves to the value with the largest
    error. The squared error never exceeds that of the initial centres; it is a local optimum. The iteration ends when
    nothing changes, after at most 300 rounds.

    Returns:
        The cluster of each value `[N]`, and the means of the clusters; both ascend, and no cluster is empty.
    """
    starts = _starts(values, np.linspace(values[0], values[-1], clusters))
    for _ in range(_ITERATIONS):
        means = _means(values, counts, starts)
        if len(means) < clusters:
            costs = counts * (values - means[_labels(starts, len(values))]) ** 2
            costliest = np.argsort(-costs, kind="stable")[: clusters - len(means)]
            means = np.sort(np.append(means, values[costliest]))
        before, starts = starts, _starts(values, means)
        if np.array_equal(before, starts):
            break
    return _labels(starts, len(values)), _means(values, counts, starts)


class WeightSharing(ProjectedKernels):
    """Fine-tune a model of `cluster_weights`: values change, and weights that share a value keep sharing one.

    Weights of a kernel ("layer") or of an output channel ("channel") that are equal when training begins form a cluster.
    After each optimizer step they become their mean. With plain gradient descent a value moves along the mean of the
    gradients of its weights; Han et al. 2016 use the sum. Zeros stay exactly 0, and weights without a gradient stay
    bit-identical. Nothing is random, but sums on a GPU have no fixed order unless TensorFlow's op determinism is on.

    Raises:
        ValueError: When training begins: as `weighted_layers`; or no kernel has two weights per value, not counting
            zeros.
    """

    def __init__(self, *, per: Per = "layer") -> None:
        super().__init__()
        check_choice("per", per, get_args(Per))
        self._per: Per = per

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Find the clusters."""
        weighted = weighted_layers(self.model)
        labels = {name: _shared_labels(kernel_of(layer), self._per) for name, layer in weighted.items()}
        # some initial weights are equal by chance: they are drawn from 2^23 values
        if all(2 * each.max() > (each > 0).sum() for each in labels.values()):
            raise ValueError(f"model {self.model.name!r} has no weights that share a value: use cluster_weights first")
        self.start_projecting(
            {name: layer.kernel for name, layer in weighted.items()},
            {name: _sharing(each) for name, each in labels.items()},
        )


def _shared_labels(kernel: NDArray[Any], per: Per) -> NDArray[np.int32]:
    """Number the clusters of equal weights of a kernel from 1; 0 stands for zeros, even if there are none."""
    labels = np.zeros(kernel.shape, np.int32)
    used = 1
    for part, part_labels in zip(_parts(kernel, per), _parts(labels, per), strict=True):
        alive = part != 0
        distinct, where = np.unique(part[alive], return_inverse=True)
        part_labels[alive] = used + where
        used += len(distinct)
    return labels


def _sharing(labels: NDArray[np.int32]) -> Projection:
    # renumber without gaps: if there are no zeros, nothing has label 0
    used, first, dense = np.unique(labels.ravel(), return_index=True, return_inverse=True)
    clusters, has_zeros = len(used), used[0] == 0
    members = tf.constant(dense.astype(np.int32))
    leaders = tf.constant(first.astype(np.int32))

    def share(kernel: tf.Tensor) -> tf.Tensor:
        flat = tf.reshape(kernel, [-1])
        # averages differences, since a float sum of a million equal numbers is not exactly a million times the number
        led = tf.gather(flat, leaders)
        means = led + tf.math.unsorted_segment_mean(flat - tf.gather(led, members), members, clusters)
        if has_zeros:
            means = tf.concat([tf.zeros_like(means[:1]), means[1:]], axis=0)
        return tf.reshape(tf.gather(means, members), tf.shape(kernel))

    return share


def _parts(kernel: NDArray[Any], per: Per) -> Iterator[NDArray[Any]]:
    """Yield views `[N]` of a contiguous kernel: the whole, or each output channel."""
    if per == "layer":
        yield kernel.reshape(-1)
    else:
        yield from kernel.reshape(-1, kernel.shape[-1]).T


def _starts(values: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return where the values of each nonempty cluster begin. A value belongs to the nearest centre; ties go to the lower one."""
    bounds = np.searchsorted(values, (centres[1:] + centres[:-1]) / 2, side="right")
    starts = np.unique(np.append(0, bounds))
    return starts[starts < len(values)]


def _labels(starts: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(starts)), np.diff(np.append(starts, count)))


def _means(values: NDArray[np.float64], counts: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    means = np.add.reduceat(values * counts, starts) / np.add.reduceat(counts, starts)
    # rounding must not make the mean of many equal values differ from that value
    last = np.append(starts[1:], len(values)) - 1
    return np.clip(means, values[starts], values[last])
