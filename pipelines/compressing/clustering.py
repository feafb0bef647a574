"""Weight sharing: kernels of few distinct values, which need few bits each, and fine-tuning that keeps them few."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from joulecache.pipelines.compressing.recipe import Per
from joulecache.pipelines.compressing.sparsity import HeldKernels, Onto, copy_of, weighted_layers

_ITERATIONS = 300


def cluster_weights(model: keras.Model, clusters: int, *, per: Per = "layer") -> keras.Model:
    """Return a copy, uncompiled, whose Conv2D and Dense kernels hold at most `clusters` distinct values each.

    With `per` "channel" that is each output channel (the last axis) of each kernel. The values are the means of clusters
    (`cluster_values`; Han et al. 2016, Deep Compression, arXiv:1510.00149). Weights of exactly 0 stay so, and count as one of
    the clusters, so a sparse model stays as sparse. All other weights stay: biases, BatchNormalization, depthwise
    kernels. The given model, functional or sequential, is untouched.

    Raises ValueError for fewer than 2 clusters, an unknown `per`, a model without kernels, and weights that are not finite.
    """
    if isinstance(clusters, bool) or not isinstance(clusters, int) or clusters < 2:
        raise ValueError(f"clusters must be a whole number of at least 2, one of them for zeros, got {clusters!r}")
    _check_per(per)
    weighted_layers(model)
    copy = copy_of(model)
    for name, layer in weighted_layers(copy).items():
        kernel = np.array(keras.ops.convert_to_numpy(layer.kernel), order="C")
        if not np.isfinite(kernel.astype(np.float64)).all():
            raise ValueError(f"the kernel of layer {name!r} has weights that are not finite: they have no clusters")
        for part in _parts(kernel, per):
            part[:] = cluster_values(part, clusters)
        layer.kernel.assign(kernel)
    return copy


def distinct_values(model: keras.Model, *, per: Per = "layer") -> dict[str, int]:
    """Return how many distinct values each Conv2D and Dense kernel holds; with `per` "channel" the most of any channel."""
    _check_per(per)
    return {
        name: max(len(np.unique(part)) for part in _parts(keras.ops.convert_to_numpy(layer.kernel), per))
        for name, layer in weighted_layers(model).items()
    }


def cluster_values(values: NDArray[Any], clusters: int) -> NDArray[Any]:
    """Return the values [N], each replaced by the mean of its cluster: at most `clusters` distinct ones, 0 staying 0.

    Where they are no more than that already, they return as they are. Zeros are a cluster of their own, the other values
    are clustered by `kmeans`.
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
    """Cluster more than `clusters` distinct, ascending values [N], each there `counts` times: labels [N], means [at most clusters].

    Lloyd's iteration from centres that lie evenly between the smallest and the largest value (Han et al. 2016, section 3.2:
    that way large weights, which are few, are not averaged away), until nothing changes, at most 300 times. A centre without
    values moves to the value that costs most where it is. So the squared error is never above that of the even centres.
    It is a local optimum, not always the best. Each label stands for at least one value, and both results ascend.
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


class WeightSharing(HeldKernels):
    """Fine-tune a clustered model (`cluster_weights`): its weights change, those that share a value go on sharing it.

    Weights of a kernel that are equal when the training begins form a cluster, with `per` "channel" those of one output
    channel. After each step of the optimizer all of a cluster become their mean, inside the compiled step (see
    `HeldKernels`): for plain gradient descent that moves a value along the mean of the gradients of its weights, where
    Han et al. 2016 take their sum. Zeros stay exactly 0. Weights without a gradient do not move by a bit. Nothing is random,
    but sums on a GPU are in no fixed order unless TensorFlow's op determinism is on.

    Raises ValueError, when the training begins, for a model that is not clustered (no kernel has two weights per value, zeros
    apart), and as `weighted_layers`.
    """

    def __init__(self, *, per: Per = "layer") -> None:
        super().__init__()
        _check_per(per)
        self._per: Per = per

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Take the clusters that there are."""
        kernels = {name: layer.kernel for name, layer in weighted_layers(self.model).items()}
        labels = {
            name: _shared_labels(keras.ops.convert_to_numpy(kernel), self._per) for name, kernel in kernels.items()
        }
        # drawn from 2^23 values, some initial weights are equal by chance
        if all(2 * those.max() > (those > 0).sum() for those in labels.values()):
            raise ValueError(f"model {self.model.name!r} has no weights that share a value: use cluster_weights first")
        self.hold(kernels, {name: _sharing(those) for name, those in labels.items()})


def _shared_labels(kernel: NDArray[Any], per: Per) -> NDArray[np.int32]:
    """Number the clusters of equal weights of a kernel from 1; 0 is that of zeros, also where there are none."""
    labels = np.zeros(kernel.shape, np.int32)
    taken = 1
    for part, of_part in zip(_parts(kernel, per), _parts(labels, per), strict=True):
        alive = part != 0
        distinct, where = np.unique(part[alive], return_inverse=True)
        of_part[alive] = taken + where
        taken += len(distinct)
    return labels


def _sharing(labels: NDArray[np.int32]) -> Onto:
    # dense numbers: without zeros the first cluster is as good as any other, and none is without weights
    used, first, dense = np.unique(labels.ravel(), return_index=True, return_inverse=True)
    clusters, has_zeros = len(used), used[0] == 0
    members = tf.constant(dense.astype(np.int32))
    leaders = tf.constant(first.astype(np.int32))

    def share(kernel: tf.Tensor) -> tf.Tensor:
        flat = tf.reshape(kernel, [-1])
        # means of differences: a sum of a million equal numbers is not a million times the number
        led = tf.gather(flat, leaders)
        means = led + tf.math.unsorted_segment_mean(flat - tf.gather(led, members), members, clusters)
        if has_zeros:
            means = tf.concat([tf.zeros_like(means[:1]), means[1:]], axis=0)
        return tf.reshape(tf.gather(means, members), tf.shape(kernel))

    return share


def _parts(kernel: NDArray[Any], per: Per) -> Iterator[NDArray[Any]]:
    """Yield views [N] of a contiguous kernel: the whole, or each output channel."""
    if per == "layer":
        yield kernel.reshape(-1)
    else:
        yield from kernel.reshape(-1, kernel.shape[-1]).T


def _starts(values: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return where the values [N] of each centre that has any begin: a value belongs to the nearest, of two to the lower."""
    bounds = np.searchsorted(values, (centres[1:] + centres[:-1]) / 2, side="right")
    starts = np.unique(np.append(0, bounds))
    return starts[starts < len(values)]


def _labels(starts: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(starts)), np.diff(np.append(starts, count)))


def _means(values: NDArray[np.float64], counts: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    means = np.add.reduceat(values * counts, starts) / np.add.reduceat(counts, starts)
    # rounding must not take the mean of one value, many times, beside it
    last = np.append(starts[1:], len(values)) - 1
    return np.clip(means, values[starts], values[last])


def _check_per(per: str) -> None:
    if per not in get_args(Per):
        raise ValueError(f"unknown per {per!r}: allowed are {', '.join(get_args(Per))}")
