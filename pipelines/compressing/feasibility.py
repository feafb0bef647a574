"""Whether a recipe can be applied to a model, which is found out before anything is trained."""

from __future__ import annotations

import math

import keras
import numpy as np
from keras import layers

from joulecache.pipelines.compressing.batch_norm import trainable_norms
from joulecache.pipelines.compressing.kernels import prunable_layers, weighted_layers
from joulecache.pipelines.compressing.litert import TfliteModel
from joulecache.pipelines.compressing.pruning import kept_channels
from joulecache.pipelines.compressing.quantization_aware import QuantizationAware
from joulecache.pipelines.compressing.recipe import Recipe
from joulecache.pipelines.compressing.steps import prune_ratio
from joulecache.pipelines.compressing.tflite import check_precision, to_tflite
from joulecache.pipelines.models.macs import count_macs


def check_recipe(recipe: Recipe, model: keras.Model) -> None:
    """Raise ValueError, naming the layer, if a recipe cannot be applied to a model or its multiply-accumulates are unknown."""
    count_macs(model)
    check_precision(model)
    if None in model.inputs[0].shape[1:]:
        raise ValueError(f"model {model.name!r} accepts images of any size: fix the image size of keras.Input")
    if not model.count_params():
        raise ValueError(f"model {model.name!r} has no weights to compress")
    if recipe.changes_weights and any(
        isinstance(layer, layers.BatchNormalization) and layer.trainable for layer in model.layers
    ):
        trainable_norms(model)  # fine-tuning recomputes their statistics
    if recipe.prunes_channels:
        kept_channels(model, prune_ratio(recipe, model), criterion=recipe.criterion, protected=recipe.protected)
    if recipe.sparsity:
        prunable_layers(model)
    if recipe.clusters is not None:
        _check_clusters(recipe, model, recipe.clusters)


def check_conversion(recipe: Recipe, model: keras.Model) -> None:
    """Raise ValueError if a model cannot be converted, or fine-tuned with int8's rounding, as a recipe needs.

    That depends on the layers, not on the weights: the model may be untrained. It is tried on a blank image, which takes about 1 s
    for a small CNN, and 10 s for a network of a hundred layers.
    """
    blank = np.zeros((1, *model.inputs[0].shape[1:]), np.uint8)
    TfliteModel(to_tflite(model, recipe.quantize or "float32", blank, minimum_calibration=1)).predict(blank)
    if recipe.quantize != "int8" or not recipe.finetune_epochs:
        return
    try:
        QuantizationAware(model)(blank.astype(np.float32), training=True)
    except Exception as error:  # layers raise anything
        raise ValueError(
            f"model {model.name!r} cannot be fine-tuned with int8's rounding ({error}): quantize to float16 or dynamic, or set "
            "finetune_epochs to 0"
        ) from error


def _check_clusters(recipe: Recipe, model: keras.Model, clusters: int) -> None:
    """Refuse numbers of clusters with which no kernel would have two weights per value to fine-tune together."""
    sizes = [
        math.prod(layer.kernel.shape[:-1] if recipe.cluster_per == "channel" else layer.kernel.shape)
        for layer in weighted_layers(model).values()
    ]
    if recipe.finetune_epochs and 2 * clusters > max(sizes):
        raise ValueError(
            f"clusters must be at most {max(sizes) // 2}, half of the weights of the largest {_WHOLE[recipe.cluster_per]} of model "
            f"{model.name!r}, got {clusters}"
        )


_WHOLE = {"layer": "kernel", "channel": "output channel"}
