"""Train a multi-label network: an image has any number of tags.

python examples/predict_tags.py
"""

import keras

import joulecache as jc

keras.utils.set_random_seed(0)
built = jc.precompute("synthetic:400", "example-tags", "decode|resize(64) || flip_lr", target="tags", val_fraction=0.25)
tags = built.manifest.features["tags"]
train = jc.load("example-tags", "train", batch_size=16)
val = jc.load("example-tags", "val", batch_size=16)

model = keras.Sequential(
    [
        keras.Input((64, 64, 3)),
        keras.layers.Rescaling(1 / 127.5, -1),
        keras.layers.Conv2D(16, 5, strides=2, activation="relu"),
        keras.layers.Conv2D(32, 3, strides=2, activation="relu"),
        keras.layers.Conv2D(64, 3, strides=2, activation="relu"),
        keras.layers.GlobalMaxPooling2D(),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(len(tags.names), activation="sigmoid"),
    ]
)
auc = keras.metrics.AUC(multi_label=True, num_labels=len(tags.names), name="auc")
model.compile(keras.optimizers.Adam(2e-3), "binary_crossentropy", metrics=[auc])
model.fit(train, epochs=30, shuffle=False, verbose=0)
print(f"AUC {model.evaluate(val, verbose=0, return_dict=True)['auc']:.2f} for {', '.join(tags.names)}; chance is 0.5")
