from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from keras import layers
from numpy.typing import NDArray

from joulecache.pipelines.compressing.clustering import (
    WeightSharing,
    cluster_values,
    cluster_weights,
    distinct_values,
    kmeans,
)
from joulecache.pipelines.compressing.kernels import weighted_layers
from joulecache.pipelines.compressing.projected_kernels import ProjectedConstraint
from joulecache.pipelines.compressing.recipe import Per
from joulecache.pipelines.compressing.sparsity import MagnitudePruning, magnitude_masks, sparsity_by_layer

NAMES = ["conv", "dense", "logits"]


def classifier(sparsity: float = 0.0, *, convolutional: bool = True, separable: bool = False) -> keras.Model:
    keras.utils.set_random_seed(0)
    pixels = keras.Input((6, 6, 2))
    x = layers.Rescaling(1 / 255)(pixels)
    if convolutional:
        x = layers.Conv2D(8, 3, name="conv")(x)
    if separable:
        x = layers.DepthwiseConv2D(3, name="depthwise")(layers.ReLU()(layers.BatchNormalization()(x)))
    x = layers.Dense(40, activation="relu", name="dense")(layers.Flatten()(x))
    model = keras.Model(pixels, layers.Dense(3, name="logits")(x), name="small")
    for name, mask in magnitude_masks(kernels_of(model), sparsity).items():
        model.get_layer(name).kernel.assign(model.get_layer(name).kernel.numpy() * mask)
    return model


def kernels_of(model: keras.Model) -> dict[str, NDArray[np.float32]]:
    return {name: layer.kernel.numpy() for name, layer in weighted_layers(model).items()}


def fit(model: keras.Model, *callbacks: keras.callbacks.Callback, **given: Any) -> None:
    """Train on 10 batches per epoch."""
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (40, 6, 6, 2), np.uint8), generator.integers(0, 3, 40)
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
        **given,
    )
    model.fit(images, labels, batch_size=4, shuffle=False, verbose=0, epochs=1, callbacks=list(callbacks))


# ------------------------------------------------------------------------------------------------ k-means

weights = st.floats(-4, 4, width=32) | st.sampled_from([0.0, -0.0, 0.25, -0.25, 1e-30, 3.0])
kernels = arrays(np.float32, st.integers(1, 40), elements=weights)


def squared_error(values: NDArray[Any], centres: NDArray[Any]) -> float:
    """Count each value's distance to its nearest centre, the plain way."""
    return float((np.abs(values.astype(np.float64)[:, None] - centres[None]).min(axis=1) ** 2).sum())


@settings(deadline=None)
@given(kernels, st.integers(1, 9))
def test_clusters_are_no_worse_than_even_centres_nor_better_than_the_best(
    given_values: NDArray[np.float32], clusters: int
) -> None:
    values, counts = np.unique(given_values.astype(np.float64), return_counts=True)
    if len(values) <= clusters:
        return
    labels, means = kmeans(values, counts, clusters)
    everything = np.repeat(values, counts)
    error = float((counts * (values - means[labels]) ** 2).sum())
    assert error <= squared_error(everything, np.linspace(values[0], values[-1], clusters)) * (1 + 1e-12)
    # each value is with its nearest mean, and each mean is that of its values
    assert error <= squared_error(everything, means) * (1 + 1e-12)
    assert np.unique(labels).tolist() == list(range(len(means)))
    for label, mean in enumerate(means):
        member = labels == label
        assert values[member].min() <= mean <= values[member].max()
        assert mean == pytest.approx(np.average(values[member], weights=counts[member]), abs=1e-12)
    # an empty centre does not stay empty
    assert len(means) == clusters
    assert (np.diff(means) > 0).all()


def test_an_empty_centre_moves_to_what_costs_most() -> None:
    values = np.array([0.0, 1.0, 2.0, 100.0])
    labels, means = kmeans(values, np.array([5, 1, 1, 1]), 3)
    # even centres at 0, 50 and 100: the one at 50 has nothing, and 2 costs most
    assert labels.tolist() == [0, 0, 1, 2]
    assert means.tolist() == [1 / 6, 2, 100]


def test_the_mean_of_equal_values_is_their_value() -> None:
    labels, means = kmeans(np.array([0.1, 0.5, 0.6]), np.array([3, 1, 1]), 2)
    assert 0.1 * 3 / 3 != 0.1
    assert (labels.tolist(), means[0]) == ([0, 1, 1], 0.1)


@settings(deadline=None)
@given(kernels, st.integers(2, 9))
def test_values_become_few_and_zeros_stay(values: NDArray[np.float32], clusters: int) -> None:
    before = values.copy()
    shared = cluster_values(values, clusters)
    assert values.tobytes() == before.tobytes()
    assert (shared.dtype, shared.shape) == (values.dtype, values.shape)
    assert len(np.unique(shared)) <= clusters
    assert shared[values == 0].tobytes() == values[values == 0].tobytes()
    assert cluster_values(shared, clusters).tobytes() == shared.tobytes()
    assert cluster_values(values, clusters).tobytes() == shared.tobytes()
    for one, other in itertools.pairwise(np.argsort(values, kind="stable")):
        if values[one] != 0 and values[other] != 0:
            assert shared[one] <= shared[other]


@settings(deadline=None)
@given(st.lists(weights, min_size=1, max_size=6, unique=True), st.data())
def test_few_values_stay_as_they_are(distinct: list[float], data: st.DataObject) -> None:
    values = np.array(data.draw(st.lists(st.sampled_from(distinct), min_size=1, max_size=40)), np.float32)
    clusters = max(2, len(np.unique(values)))
    assert cluster_values(values, clusters).tobytes() == values.tobytes()


# ------------------------------------------------------------------------------------------------ models


@pytest.mark.parametrize("per", ["layer", "channel"])
@pytest.mark.parametrize("clusters", [2, 16])
def test_kernels_hold_few_values_and_the_rest_stays(per: Per, clusters: int) -> None:
    model = classifier(0.5, separable=True)
    before = [weight.tobytes() for weight in model.get_weights()]
    shared = cluster_weights(model, clusters, per=per)
    assert [weight.tobytes() for weight in model.get_weights()] == before
    had = distinct_values(model, per=per)
    assert distinct_values(shared, per=per) == {name: min(clusters, had[name]) for name in NAMES}
    for name, kernel in kernels_of(shared).items():
        given_kernel = kernels_of(model)[name]
        assert np.array_equal(kernel == 0, given_kernel == 0)
        channels = kernel.reshape(-1, kernel.shape[-1]).T
        assert max(len(np.unique(channel)) for channel in channels) <= clusters
        if per == "layer":
            assert len(np.unique(kernel)) == clusters
        else:
            expected = [cluster_values(c, clusters) for c in given_kernel.reshape(-1, kernel.shape[-1]).T]
            assert np.array_equal(channels, expected)
    assert sparsity_by_layer(shared) == sparsity_by_layer(model)
    others = [
        (one, two)
        for one, two in zip(model.weights, shared.weights, strict=True)
        if one.name != "kernel" or "depthwise" in one.path
    ]
    assert len(others) == 9
    assert all(np.array_equal(one.numpy(), two.numpy()) for one, two in others)


def test_a_nested_model_is_clustered_too() -> None:
    base = keras.Sequential([keras.Input((6, 6, 2)), layers.Conv2D(9, 3, name="conv"), layers.Flatten()], name="base")
    pixels = keras.Input((6, 6, 2))
    model = keras.Model(pixels, layers.Dense(9, name="dense")(base(pixels)))
    assert distinct_values(cluster_weights(model, 4)) == {"base/conv": 4, "dense": 4}
    assert min(distinct_values(model).values()) > 100


def test_what_cannot_be_clustered_is_refused() -> None:
    model = classifier()
    with pytest.raises(ValueError, match="clusters must be an integer of at least 2, got 1"):
        cluster_weights(model, 1)
    for refused in (lambda: cluster_weights(model, 4, per="row"), lambda: WeightSharing(per="row")):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="per must be one of layer, channel, got 'row'"):
            refused()
    with pytest.raises(ValueError, match="'bare' has no Conv2D or Dense layer"):
        cluster_weights(keras.Sequential([keras.Input((4,)), layers.ReLU()], name="bare"), 4)
    model.get_layer("dense").kernel.assign(np.full((model.get_layer("dense").kernel.shape), np.nan))
    with pytest.raises(ValueError, match="the kernel of layer 'dense' has weights that are not finite"):
        cluster_weights(model, 4)


# ------------------------------------------------------------------------------------------------ fine-tuning


def partition(kernel: NDArray[Any]) -> list[int]:
    """Number a kernel's weights by value, in the order of appearance."""
    seen: dict[float, int] = {}
    return [seen.setdefault(float(value), len(seen)) for value in kernel.ravel()]


@pytest.mark.parametrize(("per", "steps"), [("layer", 1), ("channel", 4)])
def test_fine_tuning_moves_shared_values_together(tmp_path: Path, per: Per, steps: int) -> None:
    model = cluster_weights(classifier(0.5, convolutional=per == "layer"), 6, per=per)
    before = kernels_of(model)
    saver = keras.callbacks.ModelCheckpoint(tmp_path / "{batch}.keras", save_freq=4)
    fit(model, saver, WeightSharing(per=per), steps_per_execution=steps)
    for tuned in (model, *(keras.models.load_model(file) for file in tmp_path.glob("*.keras"))):
        for name, kernel in kernels_of(tuned).items():
            alive = before[name] != 0
            assert np.array_equal(kernel != 0, alive)
            parts = zip(
                *(k.reshape(-1, k.shape[-1] if per == "channel" else 1).T for k in (kernel, before[name])), strict=True
            )
            assert all(partition(part) == partition(given_part) for part, given_part in parts)
            assert (kernel[alive] != before[name][alive]).mean() > 0.5
    assert list(tmp_path.glob("*.keras"))
    assert not any(isinstance(variable.constraint, ProjectedConstraint) for variable in model.variables)
    if per == "layer":
        fit(model)
        assert min(distinct_values(model).values()) > 6, "without the callback they part: the test sees that"


def test_a_shared_value_becomes_the_mean_of_its_weights() -> None:
    model = keras.Sequential([keras.Input((5,)), layers.Dense(1, use_bias=False, name="only")])
    model.get_layer("only").kernel.assign(np.array([[0.5], [0.5], [0.0], [2.0], [2.0]]))
    model.compile(keras.optimizers.SGD(1.0), lambda truth, output: output, jit_compile=False)
    # the gradient is the input itself
    model.fit(np.array([[0.25, 0.75, 9.0, 1.0, 2.0]]), np.zeros((1, 1)), verbose=0, callbacks=[WeightSharing()])
    assert model.get_layer("only").kernel.numpy().ravel().tolist() == [0.0, 0.0, 0.0, 0.5, 0.5]


def test_a_million_equal_weights_do_not_drift() -> None:
    model = keras.Sequential([keras.Input((1000,)), layers.Dense(1000, use_bias=False, name="only")])
    model.get_layer("only").kernel.assign(np.full((1000, 1000), np.float32(0.1)))
    model.compile(keras.optimizers.SGD(1.0), "mse", jit_compile=False)
    zeros = np.zeros((4, 1000), np.float32)
    model.fit(zeros, zeros, batch_size=1, verbose=0, callbacks=[WeightSharing()])
    assert np.unique(model.get_layer("only").kernel.numpy()).tolist() == [np.float32(0.1)]


def test_fine_tuning_refuses_what_shares_nothing_and_what_is_pruned_meanwhile() -> None:
    with pytest.raises(ValueError, match="'small' has no weights that share a value: use cluster_weights first"):
        fit(classifier(convolutional=False), WeightSharing())
    model = cluster_weights(classifier(convolutional=False), 4)
    with pytest.raises(ValueError, match="the kernel of layer 'dense' is already constrained by MagnitudePruning"):
        fit(model, MagnitudePruning(0.5, 0, 0), WeightSharing())


def test_the_same_fine_tuning_gives_the_same_bits() -> None:
    first, second = (cluster_weights(classifier(0.3, convolutional=False), 8) for _ in range(2))
    for model in (first, second):
        fit(model, WeightSharing())
    assert all(
        one.tobytes() == two.tobytes() for one, two in zip(first.get_weights(), second.get_weights(), strict=True)
    )
