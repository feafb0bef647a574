"""What a recipe refuses, by itself and for a model, and what it says of a model before anything is done."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import keras
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from keras import layers

from joulecache.pipelines.compressing.pruning import kept_channels, prune_channels
from joulecache.pipelines.compressing.recipe import Recipe
from joulecache.pipelines.compressing.steps import check_recipe, prune_ratio
from joulecache.pipelines.models import build_model, count_macs


def network(size: int | None = 20) -> keras.Model:
    pixels = keras.Input((size, size, 3))
    x = layers.Conv2D(32, 3, name="first", use_bias=False)(pixels)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.Conv2D(24, 3, name="second", activation="relu")(x)
    return keras.Model(pixels, layers.Dense(3, name="logits")(layers.GlobalAveragePooling2D()(x)), name="net")


outside = st.floats().filter(lambda value: not 0 <= value < 1) | st.integers().filter(bool) | st.booleans() | st.none()


@given(st.sampled_from([("prune", "prune ratio"), ("sparsity", "sparsity")]), outside)
@example(("prune", "prune ratio"), 1)
@example(("sparsity", "sparsity"), 1.0)
def test_shares_to_drop_lie_in_0_to_1(named: tuple[str, str], value: Any) -> None:
    name, called = named
    with pytest.raises(
        ValueError, match=re.escape(f"{called} {value!r}: give a share to drop, at least 0 and below 1")
    ):
        Recipe(**{name: value, "quantize": "int8"})


@given(st.floats().filter(lambda value: not 0 < value <= 1))
@example(0.0)
def test_the_share_of_macs_lies_above_0(value: float) -> None:
    with pytest.raises(ValueError, match=re.escape(f"share {value} of the multiply-accumulates: give one above 0")):
        Recipe(macs=value)


@given(st.floats().filter(lambda value: not 0 <= value < math.inf))
@example(math.inf)
@example(math.nan)
def test_the_strength_of_l1_is_finite(value: float) -> None:
    with pytest.raises(ValueError, match=re.escape(f"L1 strength {value!r}: give a finite number of at least 0")):
        Recipe(sparsity=0.5, l1=value)


@given(st.integers(max_value=1) | st.booleans() | st.floats())
@example(1)
@example(2.0)
@example(True)
def test_clusters_are_at_least_2(value: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{value!r} clusters: give a whole number of at least 2")):
        Recipe(clusters=value)


@given(st.integers(max_value=-1) | st.booleans() | st.floats() | st.none())
def test_epochs_are_whole(value: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{value!r} epochs of fine-tuning: give a whole number, 0 or more")):
        Recipe(prune=0.5, finetune_epochs=value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "nothing to do: give a prune ratio above 0, a share of MACs, a sparsity, a number of clusters, a quant"),
        ({"prune": 0, "sparsity": 0.0, "finetune_epochs": 9}, "nothing to do"),
        ({"criterion": "gamma", "protected": ("first",), "cluster_per": "channel"}, "nothing to do"),
        ({"quantize": ""}, "nothing to do"),
        (
            {"sparsity": 0.5, "protected": ("first",)},
            "protected layers are for channels: give a prune ratio or a share",
        ),
        ({"quantize": "int8", "criterion": "gamma"}, "a criterion and protected layers are for channels"),
        ({"prune": 0.5, "cluster_per": "channel"}, "cluster_per 'channel' is for weight sharing: give a number"),
        ({"prune": 0.5, "macs": 0.5}, r"prune ratio 0\.5 and a share of 0\.5 of the MACs: give one of them"),
        ({"l1": 1e-4, "quantize": "int8"}, r"L1 strength 0\.0001: it works while weights are pruned in fine-tuning"),
        ({"l1": 1e-4, "sparsity": 0.5, "finetune_epochs": 0}, "L1 strength .* give a sparsity and epochs too"),
        ({"prune": 0.5, "criterion": "l2"}, "unknown criterion 'l2': allowed are l1, gamma"),
        ({"clusters": 4, "cluster_per": "model"}, "unknown cluster_per 'model': allowed are layer, channel"),
        ({"quantize": "int4"}, "unknown quantization 'int4': allowed are float16, dynamic, int8"),
        ({"quantize": "float32"}, "unknown quantization 'float32'"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**settings)


@given(
    prune=st.floats(0, 1, exclude_max=True),
    sparsity=st.floats(0, 1, exclude_max=True),
    clusters=st.none() | st.integers(2, 1000),
    quantize=st.none() | st.sampled_from(["float16", "dynamic", "int8"]),
    epochs=st.integers(0, 100),
)
def test_everything_else_is_a_recipe(
    prune: float, sparsity: float, clusters: int | None, quantize: Any, epochs: int
) -> None:
    settings = {"sparsity": sparsity, "clusters": clusters, "quantize": quantize, "finetune_epochs": epochs}
    if not (prune or sparsity or clusters or quantize):
        return
    recipe = Recipe(prune=prune, **settings)
    assert recipe.prunes_channels == (prune > 0)
    if prune > 0:
        assert Recipe(macs=prune, **settings).prunes_channels
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.prune = 0.25  # type: ignore[misc]


# ---------------------------------------------------------------------------------------------- of a model


@pytest.mark.parametrize(("share", "protected"), [(0.6, ()), (0.35, ()), (0.6, ("second",))])
def test_the_share_of_macs_is_reached(share: float, protected: tuple[str, ...]) -> None:
    model = network()
    ratio = prune_ratio(Recipe(macs=share, protected=protected), model)
    pruned = prune_channels(model, ratio, protected=protected)
    assert share / 2 < count_macs(pruned) / count_macs(model) <= share
    assert (pruned.get_layer("second").kernel.shape[-1] == 24) == bool(protected)


def test_the_ratio_is_the_one_that_was_given() -> None:
    assert prune_ratio(Recipe(prune=0.3), network()) == 0.3


class OfMyOwn(layers.Layer):  # type: ignore[misc]
    def call(self, x: Any) -> Any:
        return x * 2


class Subclassed(keras.Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(name="mine")
        self.dense = layers.Dense(3)

    def call(self, x: Any) -> Any:
        return self.dense(x)


def called() -> keras.Model:
    """A subclassed model that has its weights."""
    model = Subclassed()
    model(keras.ops.zeros((1, 20)))
    return model


def with_a_layer_of_my_own() -> keras.Model:
    pixels = keras.Input((20, 20, 3))
    x = OfMyOwn(name="doubling")(layers.Conv2D(8, 3)(pixels))
    return keras.Model(pixels, layers.Dense(3)(layers.Flatten()(x)))


def of_any_size_without_convolutions() -> keras.Model:
    """Its multiply-accumulates can be counted, but no file of it can be run."""
    pixels = keras.Input((None, None, 3))
    return keras.Model(pixels, layers.Dense(3)(layers.GlobalAveragePooling2D()(pixels)), name="colours")


def weightless() -> keras.Model:
    pixels = keras.Input((20, 20, 3))
    return keras.Model(pixels, layers.GlobalAveragePooling2D()(pixels), name="mean")


def linear() -> keras.Model:
    pixels = keras.Input((20, 20, 3))
    return keras.Model(pixels, layers.Dense(3, name="only")(layers.Flatten()(pixels)), name="linear")


def upwards() -> keras.Model:
    pixels = keras.Input((20, 20, 3))
    return keras.Model(pixels, layers.Conv2DTranspose(2, 3, name="upwards")(pixels))


def depthwise() -> keras.Model:
    pixels = keras.Input((20, 20, 3))
    return keras.Model(pixels, layers.DepthwiseConv2D(3)(pixels), name="depthwise")


@pytest.mark.parametrize(
    ("build", "settings", "message"),
    [
        (weightless, {"quantize": "int8"}, "model 'mean' has no weights: there is nothing to compress"),
        (with_a_layer_of_my_own, {"quantize": "int8"}, "layer 'doubling' is a OfMyOwn: multiply-accumulates are known"),
        (upwards, {"quantize": "int8"}, "layer 'upwards' is a Conv2DTranspose"),
        (lambda: network(None), {"quantize": "float16"}, "layer 'first' puts out .*give the model a fixed image size"),
        (of_any_size_without_convolutions, {"quantize": "int8"}, "model 'colours' takes images of any size"),
        (Subclassed, {"quantize": "int8"}, r"model 'mine' has no fixed input: build it from keras\.Input"),
        (called, {"prune": 0.5}, r"model 'mine' has no fixed input: build it from keras\.Input"),
        (network, {"prune": 0.5, "protected": ("frist",)}, "unknown protected layer 'frist': did you mean first"),
        (
            network,
            {"prune": 0.5, "criterion": "gamma"},
            "layer 'second' has channels that no BatchNormalization scales",
        ),
        (network, {"macs": 0.01}, r"share 0\.01 of the multiply-accumulates cannot be reached"),
        (linear, {"sparsity": 0.5}, "model 'linear' has no prunable weights: the last of its layers, 'only'"),
        (depthwise, {"clusters": 4}, "model 'depthwise' has no Conv2D and no Dense layer"),
    ],
)
def test_models_that_it_cannot_be_done_to_are_refused(
    build: Callable[[], keras.Model], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_recipe(Recipe(**settings), build())


def test_what_is_not_asked_for_is_not_needed() -> None:
    check_recipe(Recipe(quantize="int8"), linear())
    check_recipe(Recipe(clusters=4), linear())
    check_recipe(Recipe(quantize="int8"), depthwise())
    check_recipe(Recipe(prune=0.5, criterion="gamma", protected=("second",)), network())
    check_recipe(
        Recipe(prune=0.5, sparsity=0.5, l1=1e-5, clusters=16, quantize="int8"), build_model("cnn", (20, 20, 3), 3)
    )


def test_checking_changes_nothing() -> None:
    model = network()
    before = [weight.tobytes() for weight in model.get_weights()]
    check_recipe(Recipe(macs=0.5, sparsity=0.5, clusters=4, quantize="int8"), model)
    assert [weight.tobytes() for weight in model.get_weights()] == before
    assert len(kept_channels(model, 0)["first"]) == 32
