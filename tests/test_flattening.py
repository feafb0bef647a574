"""Plain copies: models without nested models, in float32."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import pytest
from keras import layers

from joulecache.pipelines.models.flattening import half_precision_layer, inner_layers, is_nested, plain_copy

pytestmark = pytest.mark.filterwarnings("ignore:.*structure of `inputs`")


def tutorial() -> keras.Model:
    """TensorFlow's image tutorial: augmentation as a sequential model, and a nested head with equal names."""
    augmentation = keras.Sequential([layers.RandomFlip(), layers.RandomRotation(0.1)], name="augmentation")
    head = keras.Sequential([layers.Dropout(0.2), layers.Dense(8, name="same"), layers.Dense(3)], name="head")
    parts = [augmentation, layers.Rescaling(1 / 255), layers.Conv2D(4, 3, name="same"), layers.Flatten(), head]
    return keras.Sequential([keras.Input((12, 12, 3)), *parts], name="tutorial")


def backbone() -> keras.Model:
    """Nested twice, with operations, for images of any size."""
    pixels = keras.Input((None, None, 3))
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(4, 3, padding="same")(pixels))
    inner = keras.Model(pixels, keras.ops.relu(x) + x, name="inner")
    return keras.Model(pixels, keras.ops.relu(inner(pixels / 255.0)), name="backbone")


def transfer() -> keras.Model:
    """A frozen backbone that runs as at inference, under a head."""
    base = backbone()
    base.trainable = False
    pixels = keras.Input((12, 12, 3), name="photo")
    x = layers.GlobalAveragePooling2D()(base(keras.ops.relu(pixels), training=False))
    model = keras.Model(pixels, layers.Dense(3)(layers.Dropout(0.9)(x)), name="transfer")
    model.compile("adam", "mse")
    return model


def twice() -> keras.Model:
    """One nested model that is called twice, next to a model with two inputs and outputs."""
    one, other = keras.Input((12, 12, 3)), keras.Input((12, 12, 3))
    pair = keras.Model([one, other], [one + other, one - other], name="pair")
    pixels = keras.Input((12, 12, 3))
    shared = keras.Sequential([layers.Flatten(), layers.Dense(3)], name="shared")
    total, difference = pair([pixels, pixels * 2.0])
    return keras.Model(pixels, layers.Add()([shared(total), shared(difference)]), name="twice")


def photos() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (3, 12, 12, 3)).astype(np.float32)


@pytest.mark.parametrize("make", [tutorial, backbone, transfer, twice])
def test_a_plain_copy_is_flat_and_predicts_the_same(make: Callable[[], keras.Model]) -> None:
    keras.utils.set_random_seed(1)
    model = make()
    copy = plain_copy(model)
    assert not any(map(is_nested, copy.layers))
    assert (copy.name, copy.count_params(), copy.compiled) == (model.name, model.count_params(), False)
    assert [each.shape for each in copy.trainable_weights] == [each.shape for each in model.trainable_weights]
    assert inner_layers(copy).keys() == inner_layers(model).keys()
    np.testing.assert_array_equal(copy(photos(), training=False), model(photos(), training=False))
    assert all(mine is not given for mine in copy.weights for given in model.weights)


def test_names_of_inner_layers_stay_where_they_are_unique() -> None:
    pixels = keras.Input((12, 12, 3))
    inner = keras.Sequential([layers.Conv2D(4, 3, name="same"), layers.Flatten(name="flat")], name="inner")
    middle = keras.Sequential([inner, layers.Dense(4, name="same"), layers.Dense(4, name="inner_same")], name="middle")
    model = keras.Model(pixels, layers.Dense(3, name="same")(middle(pixels)))
    assert [*inner_layers(model)] == ["middle_inner_same", "flat", "middle_same", "inner_same", "same"]
    copy = plain_copy(transfer())
    assert copy.input.name == "photo"
    assert copy.get_layer("norm").trainable is False


def test_a_nested_model_that_runs_as_at_inference_stays_so() -> None:
    model = transfer()
    norm = inner_layers(model)["norm"]
    norm.set_weights([np.full(4, value, np.float32) for value in (1, 0, 3, 2)])
    norm.trainable = True
    copy = plain_copy(model)
    features = [keras.Model(each.inputs, each.layers[-3].output) for each in (model, copy)]
    np.testing.assert_array_equal(*(each(photos(), training=True) for each in features))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16"])
def test_a_copy_in_float32_has_the_same_weights(policy: str) -> None:
    pixels = keras.Input((12, 12, 3))
    settings = {"dtype": keras.DTypePolicy(policy)}
    inner = keras.Sequential(
        [layers.Conv2D(4, 3, activation="relu", **settings), layers.BatchNormalization(**settings)]
    )
    x = layers.TimeDistributed(layers.Dense(2, **settings), **settings)(layers.Reshape((100, 4))(inner(pixels / 255.0)))
    model = keras.Model(pixels, layers.Dense(3, dtype="float32")(layers.Flatten()(x)))
    assert half_precision_layer(model) is inner.layers[0]
    copy = plain_copy(model)
    assert half_precision_layer(copy) is None
    assert {each.dtype for each in copy.weights} == {"float32"}
    mine, given = (inner_layers(each) for each in (copy, model))
    for name, layer in given.items():
        for weight, other in zip(mine[name].get_weights(), layer.get_weights(), strict=True):
            np.testing.assert_array_equal(weight, other.astype(np.float32))
    np.testing.assert_allclose(copy(photos()), model(photos()), atol=0.05)


def test_a_layer_that_cannot_be_copied_is_named() -> None:
    class Own(layers.Layer):  # type: ignore[misc]
        def __init__(self, size: int) -> None:
            super().__init__(name="own")
            self.size = size

        def get_config(self) -> dict[str, object]:
            raise RuntimeError("no configuration\nat all")

        def call(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
            return inputs

    pixels = keras.Input((12, 12, 3))
    with pytest.raises(ValueError, match=r"layer 'own' cannot be copied: .*no configuration"):
        plain_copy(keras.Model(pixels, Own(3)(pixels)))
