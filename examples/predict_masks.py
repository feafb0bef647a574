"""Train a small U-Net that gives each pixel its class.

python examples/predict_masks.py
"""

import keras

import joulecache as jc


def convolution(inputs: keras.KerasTensor, filters: int) -> keras.KerasTensor:
    """Return features of the same height and width."""
    x = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)(inputs)
    x = keras.layers.BatchNormalization(momentum=0.9)(x)
    return keras.layers.ReLU()(x)


def make_unet(side: int, classes: int) -> keras.Model:
    """Return a U-Net of three levels."""
    inputs = keras.Input((side, side, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1)(inputs)
    levels = []
    for filters in (16, 32, 64):
        x = convolution(x, filters)
        levels.append(x)
        x = keras.layers.MaxPooling2D()(x)
    x = convolution(x, 128)
    for level in reversed(levels):
        filters = level.shape[-1]
        x = keras.layers.Conv2DTranspose(filters, 2, strides=2)(x)
        x = convolution(keras.layers.Concatenate()([x, level]), filters)
    return keras.Model(inputs, keras.layers.Conv2D(classes, 1, activation="softmax")(x))


keras.utils.set_random_seed(0)
chain = "decode|resize(72) || random_crop(64)|flip_lr"
built = jc.precompute("synthetic:400", "example-masks", chain, target="mask", val_fraction=0.25)
names = built.manifest.features["mask"].names
train = jc.load("example-masks", "train", batch_size=16)
val = jc.load("example-masks", "val", batch_size=16)

model = make_unet(64, len(names))
iou = keras.metrics.MeanIoU(len(names), sparse_y_pred=False, name="iou")
model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy", metrics=[iou])
model.fit(train, epochs=10, shuffle=False, verbose=0)
print(
    f"mean IoU {model.evaluate(val, verbose=0, return_dict=True)['iou']:.2f} of {', '.join(names)}; all background has 0.18"
)
