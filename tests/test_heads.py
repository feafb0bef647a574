"""Heads of classifiers, with the losses and metrics that fit them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from joulecache.pipelines.models.classifiers import build_model
from joulecache.pipelines.models.fitting import compile_model
from joulecache.pipelines.models.heads import Head, check_head, head_of
from joulecache.pipelines.source.features import ClassLabel, MultiLabel


def model_with(end: Callable[[Any], Any], units: int = 3) -> keras.Model:
    pixels = keras.Input((4, 4, 3))
    x = layers.Dense(units, name="logits")(layers.Flatten()(layers.Rescaling(1 / 255)(pixels)))
    return keras.Model(pixels, end(x), name="mine")


def nested(*parts: keras.Layer) -> Callable[[Any], Any]:
    return lambda x: keras.Sequential(list(parts))(x)


ENDS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "nothing": (lambda x: x, "logit"),
    "softmax": (layers.Softmax(), "softmax"),
    "activation": (layers.Activation("softmax"), "softmax"),
    "in a dense layer": (layers.Dense(3, "sigmoid"), "sigmoid"),
    "operation": (keras.ops.sigmoid, "sigmoid"),
    "float32 at the end": (lambda x: layers.Activation("linear", dtype="float32")(keras.ops.softmax(x)), "softmax"),
    "nested": (nested(layers.Dense(3), layers.Softmax()), "softmax"),
    "nested, then reshaped": (
        lambda x: layers.Reshape((3,))(layers.Dropout(0.5)(nested(layers.Dense(3, "softmax"))(x))),
        "softmax",
    ),
    "cast": (lambda x: keras.ops.cast(keras.ops.sigmoid(x), "float32"), "sigmoid"),
    "another activation": (layers.Dense(3, "relu"), "logit"),
}


@pytest.mark.parametrize(("end", "kind"), ENDS.values(), ids=ENDS)
def test_the_head_is_found_wherever_it_is(end: Callable[[Any], Any], kind: str) -> None:
    assert head_of(model_with(end)) == Head(3, kind)  # type: ignore[arg-type]


def evaluated(model: keras.Model, labels: Any, **options: Any) -> dict[str, float]:
    """The loss and metrics of a model in which the first color decides, on five images."""
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    compile_model(model, 1e-3, **options)
    model.run_eagerly = True
    found: dict[str, float] = model.evaluate(
        tf.data.Dataset.from_tensors((images, labels)), verbose=0, return_dict=True
    )
    return found


def test_one_output_is_trained_as_two_logits_are() -> None:
    classes = np.array([0, 1, 1, 0, 1])
    shares = np.eye(2, dtype=np.float32)[classes]
    keras.utils.set_random_seed(3)
    one = model_with(lambda x: x, 1)
    probability = model_with(layers.Activation("sigmoid"), 1)
    two = model_with(lambda x: layers.Concatenate()([x * 0.0, x]), 1)
    for model in (probability, two):
        model.set_weights(one.get_weights())
    expected = evaluated(two, classes)
    assert 0 < expected["accuracy"] < 1
    for model in (one, probability):
        assert evaluated(model, classes) == pytest.approx(expected, rel=1e-5)
        assert evaluated(model, shares, soft_labels=True) == pytest.approx(expected, rel=1e-5)


def test_multi_labels_have_the_loss_of_their_head() -> None:
    labels = np.random.default_rng(1).integers(0, 2, (5, 3)).astype(np.float32)
    keras.utils.set_random_seed(3)
    logits, probabilities = model_with(lambda x: x), model_with(nested(layers.Activation("sigmoid")))
    probabilities.set_weights(logits.get_weights())
    expected = evaluated(logits, labels, multi_label=True)
    assert expected.keys() == {"loss", "binary_accuracy"}
    assert evaluated(probabilities, labels, multi_label=True) == pytest.approx(expected, rel=1e-5)


def test_an_objective_says_what_it_is() -> None:
    assert compile_model(model_with(layers.Softmax()), 1e-3).description == (
        "categorical cross-entropy of 3 softmax outputs; accuracy"
    )
    assert compile_model(model_with(layers.Activation("sigmoid"), 1), 1e-3).description == (
        "binary cross-entropy of one sigmoid; accuracy at 0.5"
    )
    assert compile_model(model_with(lambda x: x), 1e-3, multi_label=True).description == (
        "binary cross-entropy of 3 logits; accuracy over all classes"
    )


def test_outputs_are_answered_by_their_head() -> None:
    outputs = np.array([[-1.0], [0.2], [0.7]])
    assert Head(1, "logit").answers(outputs).tolist() == [0, 1, 1]
    assert Head(1, "sigmoid").answers(outputs).tolist() == [0, 0, 1]
    assert Head(2, "logit").answers(np.array([[1.0, 0.0], [0.0, 1.0]])).tolist() == [0, 1]
    assert Head(2, "sigmoid").answers(np.array([[0.6, 0.9]]), multi_label=True).tolist() == [[1, 1]]


def test_outputs_that_do_not_fit_the_classes_are_refused() -> None:
    pair, triple = ClassLabel(("cat", "dog")), ClassLabel(("cat", "dog", "owl"))
    tags = MultiLabel(("wet", "dry"))
    check_head(model_with(lambda x: x, 1), pair, "cache")
    check_head(build_model("mlp", (4, 4, 3), 2), pair, "cache")
    check_head(model_with(layers.Activation("sigmoid"), 2), tags, "cache")
    for model, feature, message in (
        (model_with(lambda x: x, 1), triple, "has one logit, but 'cache' has 3 classes: use a model with 3 outputs"),
        (model_with(lambda x: x), pair, "has 3 logits, but 'cache' has 2 classes: use a model with 2 or one outputs"),
        (model_with(lambda x: x, 1), tags, "has one logit, but 'cache' has 2 classes: use a model with 2 outputs"),
        (model_with(layers.Softmax(), 2), tags, "ends in a softmax, which chooses one class, but images in 'cache'"),
        (model_with(layers.Reshape((3, 1)), 3), triple, r"has outputs \(None, 3, 1\), expected \[B, classes\]"),
    ):
        with pytest.raises(ValueError, match=f"the model 'mine' {message}"):
            check_head(model, feature, "cache")
