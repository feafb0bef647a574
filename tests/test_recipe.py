"""What a recipe refuses, by itself and for a model, and what it says of a model before anything is done."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import keras
import pytest
from keras import layers

from joulecache.pipelines.compressing.feasibility import check_recipe
from joulecache.pipelines.compressing.pruning import kept_channels, prune_channels
from joulecache.pipelines.compressing.recipe import Recipe
from joulecache.pipelines.compressing.steps import prune_ratio
from joulecache.pipelines.core import codec
from joulecache.pipelines.models.classifiers import build_model
from joulecache.pipelines.models.macs import count_macs


def network(size: int | None = 20) -> keras.Model:
    pixels = keras.Input((size, size, 3))
    x = layers.Conv2D(32, 3, name="first", use_bias=False)(pixels)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.Conv2D(24, 3, name="second", activation="relu")(x)
    return keras.Model(pixels, layers.Dense(3, name="logits")(layers.GlobalAveragePooling2D()(x)), name="net")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prune": 1}, "prune must be a finite number of at least 0 and below 1, got 1"),
        ({"sparsity": -0.1}, "sparsity must be .* got -0.1"),
        ({"macs": 0.0}, "macs must be .* above 0 and of at most 1, got 0.0"),
        ({"sparsity": 0.5, "l1": math.inf}, "l1 must be a finite number of at least 0, got inf"),
        ({"clusters": 1}, "clusters must be an integer of at least 2, got 1"),
        ({"prune": 0.5, "finetune_epochs": -1}, "finetune_epochs must be .* at least 0, got -1"),
        ({"prune": 0.5, "criterion": "l2"}, "criterion must be one of l1, gamma, got 'l2'"),
        ({"clusters": 4, "cluster_per": "model"}, "cluster_per must be one of layer, channel, got 'model'"),
        ({"quantize": "int4"}, "quantize must be one of float16, dynamic, int8, got 'int4'"),
        ({"quantize": ""}, "quantize must be one of"),
    ],
)
def test_values_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "the recipe is empty: set prune, macs, sparsity, clusters or quantize"),
        ({"prune": 0, "sparsity": 0.0, "finetune_epochs": 9}, "the recipe is empty"),
        ({"criterion": "gamma", "protected": ("first",), "cluster_per": "channel"}, "the recipe is empty"),
        ({"sparsity": 0.5, "protected": ("first",)}, "protected are about channels: set prune or macs"),
        ({"quantize": "int8", "criterion": "gamma"}, "criterion and protected are about channels"),
        ({"prune": 0.5, "cluster_per": "channel"}, "cluster_per is about weight sharing: set clusters"),
        ({"prune": 0.5, "macs": 0.5}, "prune and macs exclude each other"),
        ({"l1": 1e-4, "quantize": "int8"}, "l1 acts while weights are pruned: set sparsity"),
        ({"l1": 1e-4, "sparsity": 0.5, "finetune_epochs": 0}, "set sparsity and finetune_epochs too"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"prune": 0.999},
        {"macs": 1},
        {"sparsity": 0.5, "l1": 0.0, "finetune_epochs": 0},
        {"clusters": 2},
        {"quantize": "dynamic"},
        {"macs": 0.5, "sparsity": 0.5, "l1": 1, "clusters": 16, "cluster_per": "channel", "quantize": "int8"},
    ],
)
def test_everything_else_is_a_recipe(settings: dict[str, Any]) -> None:
    recipe = Recipe(**settings)
    assert recipe.prunes_channels == ("prune" in settings or "macs" in settings)
    assert codec.from_json(Recipe, json.loads(codec.dumps(recipe))) == recipe
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


def depthwise() -> keras.Model:
    pixels = keras.Input((20, 20, 3))
    return keras.Model(pixels, layers.DepthwiseConv2D(3)(pixels), name="depthwise")


@pytest.mark.parametrize(
    ("build", "settings", "message"),
    [
        (weightless, {"quantize": "int8"}, "model 'mean' has no weights to compress"),
        (
            with_a_layer_of_my_own,
            {"macs": 0.5},
            "layer 'doubling' is a OfMyOwn, whose multiply-accumulates are unknown",
        ),
        (lambda: network(None), {"quantize": "float16"}, "accepts images of any size: fix the image size"),
        (of_any_size_without_convolutions, {"quantize": "int8"}, "model 'colours' accepts images of any size"),
        (Subclassed, {"quantize": "int8"}, r"model 'mine' is not functional or not built: build it from keras\.Input"),
        (called, {"prune": 0.5}, r"model 'mine' is not functional or not built: build it from keras\.Input"),
        (network, {"prune": 0.5, "protected": ("frist",)}, "unknown protected layer 'frist': did you mean first"),
        (
            network,
            {"prune": 0.5, "criterion": "gamma"},
            "layer 'second' has channels that no BatchNormalization scales",
        ),
        (network, {"macs": 0.01}, r"cannot reach 0\.01 of the multiply-accumulates"),
        (linear, {"sparsity": 0.5}, "model 'linear' has no prunable weights: its last layer, 'only'"),
        (depthwise, {"clusters": 4}, "model 'depthwise' has no Conv2D or Dense layer"),
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
