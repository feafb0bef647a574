from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from keras import layers, regularizers
from numpy.typing import NDArray

from joulecache.pipelines.compressing.kernels import prunable_layers, weighted_layers
from joulecache.pipelines.compressing.projected_kernels import ProjectedConstraint
from joulecache.pipelines.compressing.regularization import with_l1, without_l1
from joulecache.pipelines.compressing.sparsity import (
    MagnitudePruning,
    Scope,
    magnitude_masks,
    masks_of,
    smallest,
    sparsity_at,
    sparsity_by_layer,
    sparsity_of,
)

Kernels = dict[str, NDArray[np.float32]]


def functional(**conv: Any) -> keras.Model:
    keras.utils.set_random_seed(0)
    pixels = keras.Input((6, 6, 2))
    x = layers.Conv2D(8, 3, name="conv", **conv)(layers.Rescaling(1 / 255)(pixels))
    x = layers.Dense(40, activation="relu", name="wide")(layers.Flatten()(x))
    return keras.Model(pixels, layers.Dense(3, name="logits")(x), name="small")


def separable() -> keras.Model:
    pixels = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, name="conv")(pixels)
    x = layers.DepthwiseConv2D(3, name="depthwise")(layers.ReLU()(layers.BatchNormalization()(x)))
    return keras.Model(pixels, layers.Dense(3, name="logits")(layers.Flatten()(x)))


def sequential() -> keras.Model:
    keras.utils.set_random_seed(1)
    parts = [layers.Conv2D(7, 2, name="conv"), layers.Flatten(), layers.Dropout(0.3), layers.Dense(3, name="logits")]
    return keras.Sequential([keras.Input((6, 6, 2)), *parts])


def tiny() -> keras.Model:
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [keras.Input((6, 6, 2)), layers.Flatten(), layers.Dense(8, name="wide"), layers.Dense(3, name="logits")]
    )


def nested() -> keras.Model:
    keras.utils.set_random_seed(2)
    base = keras.Sequential([keras.Input((6, 6, 2)), layers.Conv2D(5, 3, name="conv"), layers.Flatten()], name="base")
    pixels = keras.Input((6, 6, 2))
    return keras.Model(pixels, layers.Dense(3, name="logits")(layers.Dense(9, name="dense")(base(pixels))))


MODELS: list[Callable[[], keras.Model]] = [separable, sequential, nested]


def kernels_of(model: keras.Model) -> Kernels:
    return {name: layer.kernel.numpy() for name, layer in weighted_layers(model).items()}


def images(count: int = 40) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (count, 6, 6, 2), np.uint8), generator.integers(0, 3, count)


def fit(
    model: keras.Model, *callbacks: keras.callbacks.Callback, epochs: int = 1, optimizer: Any = None, **given: Any
) -> None:
    """Train on 10 batches per epoch; with plain gradient descent, which is traced in half the time of Adam."""
    if optimizer is not None or not model.compiled:
        model.compile(
            optimizer or keras.optimizers.SGD(1e-4, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            steps_per_execution=given.pop("steps_per_execution", 1),
            jit_compile=False,
        )
    model.fit(*images(), batch_size=4, shuffle=False, verbose=0, epochs=epochs, callbacks=list(callbacks), **given)


class Seen(keras.callbacks.Callback):  # type: ignore[misc]
    """Keep the sparsity after each execution, given before the callback that prunes."""

    def __init__(self) -> None:
        super().__init__()
        self.after: list[tuple[int, float]] = []
        self.validated: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.after.append((batch, sparsity_of(self.model)))

    def on_test_begin(self, logs: Any = None) -> None:
        self.validated.append(sparsity_of(self.model))


# ------------------------------------------------------------------------------------------------ the schedule

schedules = st.tuples(st.integers(0, 50), st.integers(0, 50)).map(sorted)


@settings(deadline=None)
@given(schedules, st.integers(0, 120), st.floats(0, 1, exclude_max=True), st.floats(0, 1))
def test_sparsity_follows_the_cubic(schedule: list[int], step: int, target: float, part: float) -> None:
    (begin, end), initial = schedule, target * part
    sparsity = sparsity_at(step, begin, end, target, initial)
    if step >= end:
        assert sparsity == target
    elif step <= begin:
        assert sparsity == initial
    else:
        left = 1 - Fraction(step - begin, end - begin)
        exact = Fraction(target) + (Fraction(initial) - Fraction(target)) * left**3
        assert sparsity == pytest.approx(float(exact), abs=1e-12)
    assert sparsity <= sparsity_at(step + 1, begin, end, target, initial) + 1e-12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0, 9, 1.0), "target sparsity must be .* got 1.0"),
        ((0, 0, 9, 0.5, 0.6), "initial sparsity must not exceed the target, got 0.6"),
        ((0, 0, 9, 0.5, float("nan")), "initial sparsity must be .* got nan"),
        ((-1, 0, 9, 0.5), "step must be an integer of at least 0, got -1"),
        ((0, -1, 9, 0.5), "begin step must"),
        ((0, True, 9, 0.5), "begin step must"),
        ((0, 3, 2.5, 0.5), "end step must"),
        ((0, 3, 2, 0.5), "must not end before it begins, got end step 2"),
    ],
)
def test_impossible_schedules_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sparsity_at(*arguments)
    if not any(word in message for word in ("initial", "^step", "got -1")):
        with pytest.raises(ValueError, match=message):
            MagnitudePruning(arguments[3], *arguments[1:3])


def test_impossible_prunings_are_refused() -> None:
    with pytest.raises(ValueError, match="every must be an integer of at least 1"):
        MagnitudePruning(0.5, 0, 1, every=0)
    with pytest.raises(ValueError, match="scope must be one of layer, global, got 'model'"):
        MagnitudePruning(0.5, 0, 1, scope="model")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ masks

few = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -3.0])
many = st.floats(-2, 2, width=32)


@settings(deadline=None)
@given(st.lists(few, max_size=30).map(np.array), st.data())
def test_the_smallest_are_counted_exactly_and_ties_go_by_place(
    values: NDArray[np.float64], data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, len(values)))
    expected = np.argsort(np.abs(values), kind="stable")[:count]
    assert np.flatnonzero(smallest(np.abs(values), count)).tolist() == sorted(expected.tolist())


@settings(deadline=None)
@given(
    st.lists(
        arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=few | many), min_size=1, max_size=3
    ),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(["layer", "global"]),
)
def test_masks_drop_the_rounded_share(kernels: list[NDArray[np.float32]], share: float, scope: Scope) -> None:
    named = {str(place): kernel for place, kernel in enumerate(kernels)}
    masks = magnitude_masks(named, share, scope)
    for group in [[name] for name in named] if scope == "layer" else [list(named)]:
        size, zeros = (sum(int(count(named[name])) for name in group) for count in (np.size, lambda k: (k == 0).sum()))
        dropped = sum(int((~masks[name]).sum()) for name in group)
        assert dropped == min(max(int(share * size + 0.5), zeros), size - len(group))
        tops = [np.abs(named[name]).max() for name in group]
        lost = [np.abs(named[name])[~masks[name]].max(initial=0) for name in group]
        kept = [np.sort(np.abs(named[name])[masks[name]])[:-1].min(initial=np.inf) for name in group]
        assert max(lost) <= min(kept)
        assert all(masks[name].shape == named[name].shape and masks[name].any() for name in group)
        assert all(np.abs(named[name])[masks[name]].max() == top for name, top in zip(group, tops, strict=True))


def test_depthwise_and_last_kernels_are_left_dense_unless_named() -> None:
    assert list(prunable_layers(functional())) == ["conv", "wide"]
    assert list(prunable_layers(separable())) == ["conv"]
    assert list(prunable_layers(functional(), ["logits", "conv"])) == ["conv", "logits"]
    assert list(prunable_layers(nested())) == ["base/conv", "dense"]
    with pytest.raises(ValueError, match="no layer 'depthwise' to prune: choose from conv, logits"):
        prunable_layers(separable(), ["depthwise"])


def test_models_without_prunable_weights_are_refused_by_name() -> None:
    only = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="alone")], name="shallow")
    with pytest.raises(ValueError, match=r"'shallow' has no prunable weights: .* 'alone'"):
        sparsity_of(only)
    with pytest.raises(ValueError, match="'shallow' has no prunable weights"):
        fit_dense(only, MagnitudePruning(0.5, 0, 0))
    assert sparsity_of(only, ["alone"]) == 0
    with pytest.raises(ValueError, match="'bare' has no Conv2D or Dense layer"):
        sparsity_of(keras.Sequential([keras.Input((4,)), layers.ReLU()], name="bare"))
    with pytest.raises(ValueError, match="layer 'late' has no weights yet"):
        sparsity_of(keras.Sequential([layers.Dense(3, name="late"), layers.Dense(3)]))
    adapted = functional()
    adapted.get_layer("wide").enable_lora(2)
    with pytest.raises(ValueError, match="layer 'wide' has more weights than a kernel and a bias"):
        sparsity_of(adapted)


def fit_dense(model: keras.Model, callback: keras.callbacks.Callback) -> None:
    model.compile("sgd", "mse", jit_compile=False)
    model.fit(np.ones((4, 4)), np.ones((4, 3)), verbose=0, callbacks=[callback])


def test_a_layer_in_two_places_counts_once() -> None:
    shared = layers.Dense(4, name="shared")
    x = keras.Input((4,))
    assert list(weighted_layers(keras.Model(x, layers.Dense(1, name="last")(shared(shared(x)))))) == ["shared", "last"]
    inner = keras.Sequential([keras.Input((4,)), shared], name="inner")
    model = keras.Model(x, layers.Dense(1, name="last")(shared(inner(x))))
    assert len(weighted_layers(model)) == 2


def test_sparsity_counts_zeros() -> None:
    model = sequential()
    kernel = np.ones((2, 2, 2, 7), np.float32)
    kernel[0] = 0
    kernel[1, 0, 0, 0] = -0.0
    model.get_layer("conv").kernel.assign(kernel)
    assert sparsity_of(model) == 29 / 56
    assert sparsity_by_layer(model, ["conv", "logits"]) == {"conv": 29 / 56, "logits": 0}
    assert np.array_equal(masks_of(model)["conv"], kernel != 0)


# ------------------------------------------------------------------------------------------------ while training


@pytest.mark.parametrize(
    ("target", "optimizer"),
    [
        (0.3, lambda: keras.optimizers.SGD(0.05, momentum=0.9)),
        (0.9, lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1, use_ema=True, ema_overwrite_frequency=3)),
    ],
)
def test_masked_weights_stay_zero_and_the_target_is_met(target: float, optimizer: Callable[[], Any]) -> None:
    model, seen = functional(), Seen()
    fit(
        model,
        seen,
        MagnitudePruning(target, 3, 12, every=4),
        epochs=2,
        optimizer=optimizer(),
        validation_data=images(8),
    )
    assert sparsity_of(model) == pytest.approx(target, abs=0.005)
    assert all(abs(share - target) <= 0.005 for share in sparsity_by_layer(model).values())
    # seen before the callback's turn: a mask that grows after a step shows after the next
    grown = [sparsity_at(step, 3, 12, target) for step in (3, 7, 11, 12)]
    expected = [0.0] * 7 + [grown[1]] * 4 + [grown[2]] + [target] * 8
    assert [share for _, share in seen.after] == pytest.approx(expected, abs=0.005)
    assert seen.validated == pytest.approx([grown[1], target], abs=0.005)
    assert sparsity_of(model, ["logits"]) == 0
    assert model.get_layer("conv").kernel.constraint is None
    assert not np.signbit(kernels_of(model)["wide"][~masks_of(model)["wide"]]).any()


def test_masks_hold_within_an_execution_of_several_steps(tmp_path: Path) -> None:
    model, seen = tiny(), Seen()
    saver = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}-{batch}.keras", save_freq=4)
    pruning = MagnitudePruning(0.6, 2, 15, every=1)
    fit(model, seen, saver, pruning, epochs=2, steps_per_execution=4)
    shares = [share for _, share in seen.after]
    # the last execution of an epoch has 2 of its 4 steps
    grown = [sparsity_at(step, 2, 15, 0.6) for step in (4, 8, 10, 14)]
    assert shares == pytest.approx([0, *grown, 0.6], abs=0.003)
    saved = sorted(tmp_path.glob("2-*.keras"))
    assert saved
    for file in saved:
        assert sparsity_of(keras.models.load_model(file)) >= grown[2] - 0.003


def test_zeros_survive_the_file_and_further_training(tmp_path: Path) -> None:
    model = tiny()
    fit(model, MagnitudePruning(0.5, 0, 0), epochs=1)
    model.save(tmp_path / "sparse.keras")
    loaded = keras.models.load_model(tmp_path / "sparse.keras")
    masks = masks_of(loaded)
    assert {name: mask.tolist() for name, mask in masks.items()} == {n: m.tolist() for n, m in masks_of(model).items()}
    before = kernels_of(loaded)
    fit(loaded, MagnitudePruning.keeping())
    after = kernels_of(loaded)
    for name, mask in masks.items():
        assert (after[name][~mask] == 0).all()
        assert (after[name][mask] != before[name][mask]).mean() > 0.5
    assert sparsity_of(loaded) == sparsity_of(model)
    fit(loaded, MagnitudePruning(0.8, 0, 4, every=2))
    assert sparsity_of(loaded) == pytest.approx(0.8, abs=0.005)
    assert all((kernels_of(loaded)[name][~mask] == 0).all() for name, mask in masks.items())
    fit(loaded)
    assert sparsity_of(loaded) < 0.4, "without the callback momentum brings weights back: the test sees that"


def test_the_same_training_gives_the_same_bits() -> None:
    first, second = tiny(), tiny()
    for model in (first, second):
        fit(model, MagnitudePruning(0.5, 0, 5, every=2, scope="global"))
    assert all(np.array_equal(one, two) for one, two in zip(first.get_weights(), second.get_weights(), strict=True))
    assert sparsity_of(first) == pytest.approx(0.5, abs=0.005)


def test_a_model_that_trained_before_is_held_in_each_step() -> None:
    model, seen = tiny(), Seen()
    fit(model)
    fit(model, seen, MagnitudePruning(0.5, 0, 0))
    assert [share for _, share in seen.after] == [0.5] * 10


def test_weights_that_other_callbacks_put_in_are_masked() -> None:
    class Fill(keras.callbacks.Callback):  # type: ignore[misc]
        began: float | None = None

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.began = sparsity_of(self.model)

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.model.get_layer("wide").kernel.assign(np.ones((72, 8)))

    model, fill = tiny(), Fill()
    fit(model, fill, MagnitudePruning(0.5, 0, 0), epochs=2)
    assert (fill.began, sparsity_of(model)) == (0.5, 0.5)
    model = tiny()
    # with the best weights, those of the first epoch, come fewer zeros
    restoring = keras.callbacks.EarlyStopping("loss", mode="max", restore_best_weights=True)
    fit(model, restoring, MagnitudePruning(0.5, 0, 15, every=1), epochs=2, optimizer=keras.optimizers.Adam(0.01))
    assert sparsity_of(model) == 0.5


def test_a_constraint_of_the_layer_goes_on() -> None:
    model = functional(kernel_constraint=keras.constraints.MaxNorm(0.3, axis=(0, 1, 2)))
    own = model.get_layer("conv").kernel.constraint
    fit(model, MagnitudePruning(0.5, 0, 0))
    kernel = kernels_of(model)["conv"]
    assert np.sqrt((kernel**2).sum(axis=(0, 1, 2))).max() <= 0.3 + 1e-5
    assert (kernel == 0).mean() == 0.5
    assert model.get_layer("conv").kernel.constraint is own


def test_an_interrupted_training_leaves_nothing_that_the_next_keeps() -> None:
    model = tiny()

    class Stop(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(model, MagnitudePruning(0.3, 0, 0), Stop())
    fit(model, MagnitudePruning(0.5, 0, 0))
    assert sparsity_of(model) == pytest.approx(0.5, abs=0.005)
    assert model.get_layer("wide").kernel.constraint is None


def test_trainings_that_cannot_be_pruned_are_refused() -> None:
    model = tiny()
    with pytest.raises(ValueError, match="pruning ends after step 21, but this training has only 20 steps"):
        fit(model, MagnitudePruning(0.5, 0, 21), epochs=2)
    with pytest.raises(ValueError, match="this training has only 10 steps"):
        fit(model, MagnitudePruning(0.5, 0, 11), epochs=5, initial_epoch=4)
    assert model.get_layer("wide").kernel.constraint is None
    with pytest.raises(ValueError, match="the kernel of layer 'wide' is already constrained by MagnitudePruning"):
        fit(model, MagnitudePruning(0.5, 0, 0, names=["wide"]), MagnitudePruning(0.5, 0, 0))
    model.get_layer("wide").kernel.assign(np.zeros((72, 8)))
    with pytest.raises(ValueError, match="the kernel of layer 'wide' is all zeros"):
        fit(model, MagnitudePruning(0.5, 0, 0))


def test_layers_with_targets_of_their_own() -> None:
    model = tiny()
    fit(model, MagnitudePruning(0.25, 0, 0, names=["wide"]), MagnitudePruning(0.75, 0, 0, names=["logits"]))
    assert sparsity_by_layer(model, ["wide", "logits"]) == {"wide": 0.25, "logits": 0.75}
    assert not any(isinstance(variable.constraint, ProjectedConstraint) for variable in model.variables)


# ------------------------------------------------------------------------------------------------ L1


@pytest.mark.parametrize("build", MODELS)
def test_l1_comes_and_goes_without_a_trace(build: Callable[[], keras.Model]) -> None:
    model = build()
    pixels = images(8)[0]
    expected = np.asarray(model(pixels))
    firm = with_l1(model, 0.25)
    magnitudes = sum(float(np.abs(kernels_of(model)[name]).sum()) for name in prunable_layers(model))
    assert float(sum(firm.losses)) == pytest.approx(0.25 * magnitudes, rel=1e-5)
    plain = without_l1(firm)
    assert not plain.losses
    assert not model.losses
    assert [type(layer) for layer in plain.layers] == [type(layer) for layer in model.layers]
    assert list(weighted_layers(plain)) == list(weighted_layers(firm)) == list(weighted_layers(model))
    for copy in (firm, plain):
        assert np.array_equal(copy(pixels), expected)
        assert all(np.array_equal(one, two) for one, two in zip(copy.get_weights(), model.get_weights(), strict=True))
        assert copy.layers[-1] is not model.layers[-1]
    model.layers[-1].bias.assign(np.ones(3))
    assert not firm.layers[-1].bias.numpy().any()


def test_other_regularizers_stay() -> None:
    model = functional(kernel_regularizer=regularizers.L2(0.125))
    firm = with_l1(with_l1(model, 0.5), 0.25)
    conv, wide = (firm.get_layer(name).kernel_regularizer for name in ("conv", "wide"))
    assert (type(conv), conv.l1, conv.l2) == (regularizers.L1L2, 0.25, 0.125)
    assert (type(wide), float(wide.l1)) == (regularizers.L1, 0.25)
    conv, wide = (without_l1(firm).get_layer(name).kernel_regularizer for name in ("conv", "wide"))
    assert (type(conv), float(conv.l2), wide) == (regularizers.L2, 0.125, None)
    with pytest.raises(ValueError, match=r"the kernel of layer 'conv' must have .* got OrthogonalRegularizer"):
        with_l1(functional(kernel_regularizer=regularizers.OrthogonalRegularizer(0.1)), 0.1)


def test_negative_strengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"strength must be .* at least 0, got -0.1"):
        with_l1(functional(), -0.1)


def test_models_that_cannot_be_copied_are_refused() -> None:
    class Own(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(name="own")
            self.first, self.last = layers.Dense(4), layers.Dense(2)

        def call(self, x: Any) -> Any:
            return self.last(self.first(x))

    (model := Own())(np.ones((1, 3)))
    with pytest.raises(ValueError, match="model 'own' is not functional or not built"):
        with_l1(model, 0.1)
