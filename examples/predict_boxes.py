"""Train a network that finds the one object of an image: its box and its class.

python examples/predict_boxes.py
"""

import keras
from keras import ops

import joulecache as jc


def iou(true: keras.KerasTensor, found: keras.KerasTensor) -> keras.KerasTensor:
    """Return the intersection of boxes over their union."""
    inside = ops.minimum(true[..., 2:], found[..., 2:]) - ops.maximum(true[..., :2], found[..., :2])
    shared = ops.prod(ops.maximum(inside, 0), axis=-1)
    areas = [ops.prod(ops.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1) for boxes in (true, found)]
    return shared / (areas[0] + areas[1] - shared)


keras.utils.set_random_seed(0)
chain = "decode|resize(72) || random_crop(64)|flip_lr"
built = jc.precompute("synthetic:400", "example-boxes", chain, target="boxes", val_fraction=0.25)
names = built.manifest.features["boxes"].names
train = jc.load("example-boxes", "train", batch_size=16)
val = jc.load("example-boxes", "val", batch_size=16)

inputs = keras.Input((64, 64, 3))
x = keras.layers.Rescaling(1 / 127.5, -1)(inputs)
for filters in (16, 32, 64, 64):
    x = keras.layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")(x)
x = keras.layers.Dense(64, activation="relu")(keras.layers.Flatten()(x))
corners = keras.layers.Rescaling(64)(keras.layers.Dense(4, activation="sigmoid")(x))
classes = keras.layers.Dense(len(names), activation="softmax")(x)
# The targets have a place for each box of an image, boxes [B, 1, 4] and classes [B, 1].
outputs = {"boxes": keras.layers.Reshape((1, 4))(corners), "classes": keras.layers.Reshape((1, len(names)))(classes)}
model = keras.Model(inputs, outputs)
model.compile(
    keras.optimizers.Adam(2e-3),
    loss={"boxes": "mae", "classes": "sparse_categorical_crossentropy"},
    metrics={"boxes": iou, "classes": "accuracy"},
)
model.fit(train, epochs=24, shuffle=False, verbose=0)
found = model.evaluate(val, verbose=0, return_dict=True)
print(f"IoU {found['boxes_iou']:.2f}, accuracy {found['classes_accuracy']:.0%}; the mean box has 0.30, chance is 25%")
