"""Whether a recipe can be applied to a model, which is found out before anything is trained."""

from __future__ import annotations

import logging
import math

import keras
import numpy as np

from joulecache.pipelines.compressing.batch_norm import normalizes, trainable_norms
from joulecache.pipelines.compressing.kernels import prunable_layers, weighted_layers
from joulecache.pipelines.compressing.litert import TfliteModel
from joulecache.pipelines.compressing.pruning import kept_channels
from joulecache.pipelines.compressing.quantization_aware import QuantizationAware
from joulecache.pipelines.compressing.recipe import Recipe
from joulecache.pipelines.compressing.steps import prune_ratio
from joulecache.pipelines.compressing.tflite import to_tflite
from joulecache.pipelines.models.flattening import check_functional, half_precision_layer, plain_copy
from joulecache.pipelines.models.macs import count_macs

_NOTES = logging.getLogger("joulecache")


def check_recipe(recipe: Recipe, model: keras.Model) -> None:
    """Raise ValueError, naming the layer, if a recipe cannot be applied to a model.

    Layers whose multiply-accumulates are unknown matter only to `Recipe.macs`; a note names the first.
    """
    check_functional(model)
    if None in model.inputs[0].shape[1:]:
        raise ValueError(f"model {model.name!r} accepts images of any size: fix the image size of keras.Input")
    if not model.count_params():
        raise ValueError(f"model {model.name!r} has no weights to compress")
    half, plain = half_precision_layer(model), plain_copy(model)
    try:
        count_macs(plain)
    except ValueError as error:
        if recipe.macs is not None:
            raise
        _NOTES.warning("the multiply-accumulates of model %r are not counted: %s", model.name, error)
    if half is not None:
        _NOTES.warning(
            "model %r computes in %s: it is compressed in float32, with the same weights",
            model.name,
            half.compute_dtype,
        )
    if recipe.changes_weights and normalizes(plain):
        trainable_norms(plain)  # fine-tuning recomputes their statistics
    if recipe.prunes_channels:
        kept_channels(plain, prune_ratio(recipe, plain), criterion=recipe.criterion, protected=recipe.protected)
    if recipe.sparsity:
        prunable_layers(plain)
    if recipe.clusters is not None:
        _check_clusters(recipe, plain, recipe.clusters)


def check_conversion(recipe: Recipe, model: keras.Model) -> None:
    """Raise ValueError if a model cannot be converted, or fine-tuned with int8's rounding, as a recipe needs.

    That depends on the layers, not on the weights: the model may be untrained. It is tried on four images of noise, which takes about 1 s
    for a small CNN, and 10 s for a network of a hundred layers.
    """
    model = plain_copy(model)
    # on a blank image activations may be all zero, and an empty range of values makes int8 files that do not run
    noise = np.random.default_rng(0).integers(0, 256, (4, *model.inputs[0].shape[1:]), np.uint8)
    TfliteModel(to_tflite(model, recipe.quantize or "float32", noise, minimum_calibration=1)).predict(noise)
    if recipe.quantize != "int8" or not recipe.finetune_epochs:
        return
    try:
        QuantizationAware(model)(noise.astype(np.float32), training=True)
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
