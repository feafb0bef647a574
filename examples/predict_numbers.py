"""Train a regressor: each image has a number, the share of its area that a shape covers.

python examples/predict_numbers.py
"""

import keras

import joulecache as jc

keras.utils.set_random_seed(0)
jc.precompute("synthetic:400", "example-numbers", "decode|resize(64) || flip_lr", target="area", val_fraction=0.25)
train = jc.load("example-numbers", "train", batch_size=16)
val = jc.load("example-numbers", "val", batch_size=16)

model = keras.Sequential(
    [
        keras.Input((64, 64, 3)),
        keras.layers.Rescaling(1 / 127.5, -1),
        keras.layers.Conv2D(16, 3, strides=2, padding="same", activation="relu"),
        keras.layers.Conv2D(32, 3, strides=2, padding="same", activation="relu"),
        keras.layers.Conv2D(64, 3, strides=2, padding="same", activation="relu"),
        keras.layers.Conv2D(64, 3, strides=2, padding="same", activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(32, activation="relu"),
        keras.layers.Dense(1),
    ]
)
model.compile(keras.optimizers.Adam(2e-3), "mse", metrics=[keras.metrics.R2Score()])
model.fit(train, epochs=25, shuffle=False, verbose=0)
print(
    f"R2 {model.evaluate(val, verbose=0, return_dict=True)['r2_score']:.2f} of the area; the mean of all images has 0"
)
